package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// devSignInPort is where the sample sign-in server listens, counted from the base port.
const devSignInPort = 15

// devUsers are the sample users of `deputy dev`, and their groups.
var devUsers = [][2]string{{"alice", "analysts"}, {"bob", "support"}, {"oscar", "operators"}}

func newDevCommand() *cobra.Command {
	o := initOptions{
		trustDomain: devTrustDomain, clientID: "deputy-cli", algorithms: []string{"ES256"}, rolesClaim: "groups",
		roles: []string{"analysts=analyst", "support=support"}, operators: []string{"operators=admin"},
		agents: []string{"planner"}, agentUIDs: "70000-79999", starterUIDs: []int{os.Getuid()}, unsafeDev: true,
	}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run all roles in one process, on loopback, for trying things by hand",
		Long: "Makes a mesh in a temporary folder with random passwords, runs its roles and a sample sign-in server in this process,\n" +
			"and prints what to type. Issuer and broker share a process here, so the grants prove nothing: the trust domain is\n" +
			devTrustDomain + ", which every role refuses otherwise, and every record says dev. All of it is gone at the end.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.postgres) == 0 {
				return errors.New("--postgres: a target is expected, such as orders-db=127.0.0.1:5432/shop. `make dev` starts a sample PostgreSQL and fills this in")
			}
			return runDev(cmd.Context(), &o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.basePort, "base-port", 7400, "first of 16 loopback ports")
	f.StringArrayVar(&o.postgres, "postgres", nil, "NAME=HOST:PORT/DATABASE: a PostgreSQL target (repeat)")
	f.StringVar(&o.postgresCA, "postgres-ca", "", "PEM `file` with the CA of the PostgreSQL servers' certificates")
	f.StringArrayVar(&o.accounts, "account", nil, "ROLE=DBUSER:PASSWORDFILE: the account at the targets for a role (repeat)")
	f.StringArrayVar(&o.agents, "agent", o.agents, "name of an agent that users may start (repeat)")
	f.StringVar(&o.policy, "policy", "examples/policy", "`folder` with the policy set")
	return cmd
}

// runDev makes a mesh in a temporary folder and runs its roles until ctx ends.
func runDev(ctx context.Context, o *initOptions, out io.Writer) error {
	dir, err := os.MkdirTemp("", "deputy-dev-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // agents run under uids of their own
		return err
	}
	signIn := net.JoinHostPort("127.0.0.1", fmt.Sprint(o.basePort+devSignInPort))
	o.identityProvider = "https://" + signIn
	plan, err := o.plan(filepath.Join(dir, "mesh"))
	if err != nil {
		return err
	}
	plan.ProviderCA, plan.SignInListen = sampleCA, signIn
	for _, u := range devUsers {
		plan.SampleUsers = append(plan.SampleUsers, planUser{Name: u[0], Subject: "sample-" + u[0], Group: u[1], Password: randomPassword()})
	}
	if err := plan.write(); err != nil {
		return fmt.Errorf("making the mesh: %w", err)
	}

	g, gctx := errgroup.WithContext(ctx)
	if err := plan.startDev(gctx, g); err != nil {
		return errors.Join(err, g.Wait())
	}
	plan.explainDev(out)
	err = g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// startDev reads each role's configuration as the role's own command would, and runs the role.
func (p *meshPlan) startDev(ctx context.Context, g *errgroup.Group) error {
	signInPath := p.path("sample-signin", "sample-signin.yaml")
	signInCfg, err := loadConfig(signInPath, (*sampleSignInConfig).check)
	if err != nil {
		return err
	}
	signInCfg.Cert, signInCfg.Key = beside(signInPath, signInCfg.Cert), beside(signInPath, signInCfg.Key)
	issuerPath, brokerPath, proxyPath := p.path("issuer", "issuer.yaml"), p.path("broker", "broker.yaml"), p.path("proxy", "proxy.yaml")
	issuerCfg, err := loadConfig(issuerPath, func(c *issuerConfig) error { return errors.Join(c.check(true), c.checkAccounts()) })
	if err != nil {
		return err
	}
	brokerCfg, err := loadConfig(brokerPath, func(c *brokerConfig) error { return c.check(true) })
	if err != nil {
		return err
	}
	proxyCfg, err := loadConfig(proxyPath, func(c *proxyConfig) error { return c.check(true) })
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", signInCfg.Listen)
	if err != nil {
		return fmt.Errorf("sample sign-in server: %w; another --base-port may be free", err)
	}
	g.Go(func() error { return signInCfg.serve(ctx, l) })
	g.Go(func() error { return runIssuer(ctx, issuerCfg, issuerPath, true) })
	if err := awaitSocket(ctx, p.Socket); err != nil {
		return err
	}
	g.Go(func() error { return runBroker(ctx, brokerCfg, brokerPath, true) })
	g.Go(func() error { return runProxy(ctx, proxyCfg, proxyPath, true) })
	return nil
}

// awaitSocket waits until the issuer listens, so that the others find it at once.
func awaitSocket(ctx context.Context, path string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (p *meshPlan) explainDev(w io.Writer) {
	target := p.Targets[0].Name
	fmt.Fprintf(w, "\n%s\n  DEV MODE. All roles share this process, so chains prove nothing here. Loopback only; all is gone at the end.\n%s\n\n",
		strings.Repeat("=", 112), strings.Repeat("=", 112))
	fmt.Fprintln(w, "Sample users:")
	for _, u := range p.SampleUsers {
		fmt.Fprintf(w, "  %-6s %s  (%s)\n", u.Name, u.Password, u.Group)
	}
	fmt.Fprintf(w, "\nIn another shell:\n\n  export DEPUTY_CONFIG=%s\n  %s login\n", p.path("agent", "agent.yaml"), p.Binary)
	fmt.Fprintf(w, "  %s run --as %s --target %s --purpose \"have a look\" -- psql\n", p.Binary, p.Agents[0], target)
	fmt.Fprintf(w, "  %s audit tail -f %s\n\nThe browser will warn about the certificate of %s: it was made for this run.\nCtrl-C ends everything.\n\n", p.Binary, p.path("proxy", "audit"), p.IdentityProvider)
}

// randomPassword is 80 bits in letters that are easy to type.
func randomPassword() string { return strings.ToLower(rand.Text()[:16]) }
