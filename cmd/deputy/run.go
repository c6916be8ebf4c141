//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/supervise"
)

// defaultLeft is how often a first-level agent may delegate when nobody says.
const defaultLeft = 3

type runOptions struct {
	config, name, purpose, capFile string
	targets, allow                 []string
	left                           int
	ttl                            time.Duration
	isolate, noIsolate, verbose    bool
}

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run --as NAME [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a program as an agent",
		Long: "run gives a program an identity of its own, on behalf of the signed-in user or, inside an agent, of that agent,\n" +
			"and local listeners for its targets. Its exit status is the program's; 125 to 127 are run's own failures.\n" +
			"Without --allow or --cap a first-level agent may do what its user may. What an agent gives away can only be less\n" +
			"than what it has. Actions are, in a database, " + strings.Join(actor.PostgresVerbs(), ", ") + ";\n" +
			"on a host, " + strings.Join(actor.SSHVerbs(), ", ") + ";\n" +
			"at a web service, " + strings.Join(actor.HTTPVerbs(), ", ") + ";\n" +
			"at a tool server, " + strings.Join(actor.MCPVerbs(), ", ") + "; in a cluster, " + strings.Join(actor.KubeVerbs(), ", ") + ".",
		Example: "  deputy run --as planner --target orders-db --purpose \"q3 refunds\" -- psql -c \"SELECT 1\"\n" +
			"  deputy run --as planner --allow orders-db:select:shop:public.orders,public.customers -- ./agent\n" +
			"  deputy run --as planner -- deputy run --as researcher --ttl 10m -- ./agent",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("a program to run is expected after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			// Signals are the program's, not a reason to stop.
			errOut := newPatientWriter(cmd.ErrOrStderr())
			defer errOut.flush()
			code, err := runAgent(context.WithoutCancel(cmd.Context()), o, args, errOut)
			if err != nil {
				fmt.Fprintf(errOut, "deputy: %v\n", err)
			}
			if code == 0 && err == nil {
				return nil
			}
			return exitCode(code)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&o.config, "config", "", agentConfigUsage)
	f.StringVar(&o.name, "as", "", "the agent's name")
	f.StringArrayVar(&o.targets, "target", nil, "a target it may reach (repeat; default: all of the configuration, or of the parent)")
	f.StringVar(&o.purpose, "purpose", "", "what for: it stands in every record")
	f.StringVar(&o.capFile, "cap", "", "`file` with the capabilities to grant (RFC 9396 array)")
	f.StringArrayVar(&o.allow, "allow", nil, "a capability: TARGET:ACTION,...[:DATABASE[:SCHEMA.TABLE,...]], or TARGET:ACTION,...[:ACCOUNT,...] for a host (repeat)")
	f.IntVar(&o.left, "left", -1, "how often it may be delegated further (default: 3, or one less than the parent's)")
	f.Lookup("left").DefValue = "0" // the text says what the default is
	f.DurationVar(&o.ttl, "ttl", 0, "for how long, at most, such as 10m (default: as long as its parent may act)")
	f.BoolVar(&o.isolate, "isolate", false, "refuse to run without a host uid of its own (default as root: give it one)")
	f.BoolVar(&o.noIsolate, "no-isolate", false, "run under this uid; the agent is graded asserted")
	f.BoolVar(&o.verbose, "verbose", false, "say what the supervisor does")
	requireFlags(cmd, "as")
	cmd.MarkFlagsMutuallyExclusive("isolate", "no-isolate")
	cmd.MarkFlagsMutuallyExclusive("cap", "allow")
	return cmd
}

func runAgent(ctx context.Context, o runOptions, argv []string, errOut io.Writer) (int, error) {
	const failed = runFailed
	cwd, err := os.Getwd()
	if err != nil {
		return failed, fmt.Errorf("asking for the working folder: %w", err)
	}
	if o.ttl < 0 || (o.ttl > 0 && o.ttl < time.Second) {
		return failed, fmt.Errorf("--ttl %s: at least a second is expected", o.ttl)
	}
	if o.left < -1 || o.left > actor.MaxLeft {
		return failed, fmt.Errorf("--left %d: 0 to %d is expected", o.left, actor.MaxLeft)
	}
	r := supervise.Request{
		Name: o.name, Targets: o.targets, Argv: argv, Env: os.Environ(), Cwd: cwd,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Log: runLogger(errOut, o.verbose),
		Delegation: client.Delegation{Left: o.left, Purpose: o.purpose, TTL: o.ttl},
	}
	switch {
	case o.isolate:
		r.Isolation = supervise.IsolateAlways
	case o.noIsolate:
		r.Isolation = supervise.IsolateNever
	}
	// Where this really is, issuer and supervisors decide by the kernel: a variable that is set, or
	// unset, leads nowhere else.
	if socket := os.Getenv(client.SocketVariable); socket != "" {
		return runInside(ctx, socket, o, r)
	}
	cfg, err := loadAgentConfig(o.config)
	if err != nil {
		return failed, err
	}
	mesh, err := cfg.mesh()
	if err != nil {
		return failed, err
	}
	if r.Delegation.Left < 0 {
		r.Delegation.Left = defaultLeft
	}
	if r.Delegation.Cap, err = capabilities(o, mesh.TrustDomain, mesh.Targets); err != nil {
		return failed, err
	}
	var known []string
	for _, t := range mesh.Targets {
		known = append(known, t.Name)
	}
	if err := checkReach(o.targets, known, r.Delegation.Cap); err != nil {
		return failed, err
	}
	conn, session, err := dialSession(ctx, cfg)
	if err != nil {
		return failed, err
	}
	defer conn.Close()
	return supervise.Outside{Mesh: mesh, RuntimeDir: cfg.RuntimeDir, Session: session}.Run(ctx, r)
}

func runInside(ctx context.Context, socket string, o runOptions, r supervise.Request) (int, error) {
	if o.capFile != "" || len(o.allow) > 0 {
		a, err := client.Dial(ctx, socket)
		if err != nil {
			return runFailed, err
		}
		d, err := a.Describe(ctx)
		a.Close()
		if err != nil {
			return runFailed, err
		}
		if r.Delegation.Cap, err = capabilities(o, d.ID.TrustDomain(), d.Targets); err != nil {
			return runFailed, err
		}
		var known []string
		for _, t := range d.Targets {
			known = append(known, t.Name)
		}
		if err := checkReach(o.targets, known, r.Delegation.Cap); err != nil {
			return runFailed, err
		}
	}
	return supervise.Inside(ctx, socket, r)
}

// mesh is what supervisors must know of the configuration.
func (c *agentConfig) mesh() (supervise.Mesh, error) {
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return supervise.Mesh{}, err
	}
	broker, err := spiffeid.FromString(c.Broker.SPIFFEID)
	if err != nil {
		return supervise.Mesh{}, err
	}
	m := supervise.Mesh{TrustDomain: td, IssuerSocket: c.IssuerSocket, Broker: client.Mesh{Name: c.Mesh, TokenURL: c.Broker.TokenURL, Broker: broker}}
	for _, t := range c.Targets {
		proxy, err := spiffeid.FromString(t.Proxy)
		if err != nil {
			return supervise.Mesh{}, err
		}
		m.Targets = append(m.Targets, client.Target{Name: t.Name, Kind: t.Kind, Address: t.Address, Proxy: proxy,
			RenewalURL: t.Renewal, Database: t.Database, User: t.User})
	}
	return m, nil
}

// capabilities reads --cap or --allow; nil when neither was given.
func capabilities(o runOptions, td spiffeid.TrustDomain, targets []client.Target) (actor.Details, error) {
	if o.capFile != "" {
		f, err := os.Open(o.capFile)
		if err != nil {
			return nil, fmt.Errorf("reading the capabilities: %w", err)
		}
		defer f.Close()
		raw, err := io.ReadAll(io.LimitReader(f, actor.MaxSize+1))
		if err != nil {
			return nil, fmt.Errorf("reading the capabilities: %w", err)
		}
		d, err := actor.ParseDetails(raw)
		if err != nil {
			return nil, fmt.Errorf("the capabilities in %s: %w", o.capFile, err)
		}
		return d, nil
	}
	var out actor.Details
	for _, a := range o.allow {
		d, err := parseAllow(a, td, targets)
		if err != nil {
			return nil, fmt.Errorf("--allow %q: %w", a, err)
		}
		out = append(out, d)
	}
	if out == nil {
		return nil, nil
	}
	return out, out.Validate()
}

// checkReach finds misspelt targets before anything is started: the agent would only learn of them when it connects.
func checkReach(targets, known []string, capability actor.Details) error {
	for _, t := range targets {
		if !slices.Contains(known, t) {
			return fmt.Errorf("--target %s: there is no such target here; there is %s", t, strings.Join(known, ", "))
		}
	}
	if len(targets) == 0 {
		targets = known
	}
	for _, d := range capability {
		for _, id := range d.Targets() {
			if name, err := actor.TargetName(id); err != nil || !slices.Contains(targets, name) {
				return fmt.Errorf("the capability for %s is of no use: this run reaches %s", id, strings.Join(targets, ", "))
			}
		}
	}
	return nil
}

// parseAllow reads TARGET:ACTION,...[:DATABASE[:SCHEMA.TABLE,...]], where * stands for any database, or TARGET:ACTION,...[:ACCOUNT,...] for
// a target that is a host, or TARGET:ACTION,...[:PATH,...] for a web service, or TARGET:ACTION,...[:TOOL,...] for a tool server.
func parseAllow(s string, td spiffeid.TrustDomain, targets []client.Target) (actor.Detail, error) {
	parts := strings.Split(s, ":")
	for _, t := range targets {
		switch {
		case t.Name == parts[0] && t.Kind == "ssh":
			return parseAllowHost(parts, td)
		case t.Name == parts[0] && t.Kind == "http":
			return parseAllowHTTP(s, td)
		case t.Name == parts[0] && t.Kind == "tcp":
			return parseAllowTCP(parts, td)
		case t.Name == parts[0] && t.Kind == "mcp":
			return parseAllowMCP(s, td)
		case t.Name == parts[0] && t.Kind == "kube":
			return parseAllowKube(parts, td)
		}
	}
	if len(parts) < 2 || len(parts) > 4 {
		return nil, fmt.Errorf("TARGET:ACTION,...[:DATABASE[:SCHEMA.TABLE,...]] is expected, such as orders-db:select:shop:public.*")
	}
	id, err := actor.TargetID(td, parts[0])
	if err != nil {
		return nil, err
	}
	d := actor.PostgresDetail{Locations: []spiffeid.ID{id}, Actions: strings.Split(parts[1], ",")}
	if len(parts) > 2 && parts[2] != "*" {
		d.Databases = strings.Split(parts[2], ",")
	}
	if len(parts) > 3 {
		d.Tables = strings.Split(parts[3], ",")
	}
	return d, actor.Details{d}.Validate()
}

func parseAllowHost(parts []string, td spiffeid.TrustDomain) (actor.Detail, error) {
	if len(parts) < 2 || len(parts) > 3 {
		return nil, errors.New("TARGET:ACTION,...[:ACCOUNT,...] is expected, such as web:sftp-read,sftp-list:deploy; commands and paths go into --cap")
	}
	id, err := actor.TargetID(td, parts[0])
	if err != nil {
		return nil, err
	}
	d := actor.SSHDetail{Locations: []spiffeid.ID{id}, Actions: strings.Split(parts[1], ",")}
	if len(parts) == 3 {
		d.Accounts = strings.Split(parts[2], ",")
	}
	return d, actor.Details{d}.Validate()
}

func parseAllowHTTP(s string, td spiffeid.TrustDomain) (actor.Detail, error) {
	parts := strings.SplitN(s, ":", 3)
	if len(parts) < 2 {
		return nil, errors.New("TARGET:ACTION,...[:PATH,...] is expected, such as billing:get,post:/v1/invoices/{id},/v1/reports/*")
	}
	id, err := actor.TargetID(td, parts[0])
	if err != nil {
		return nil, err
	}
	d := actor.HTTPDetail{Locations: []spiffeid.ID{id}, Actions: strings.Split(parts[1], ",")}
	if len(parts) == 3 {
		d.Paths = strings.Split(parts[2], ",")
	}
	return d, actor.Details{d}.Validate()
}

func parseAllowMCP(s string, td spiffeid.TrustDomain) (actor.Detail, error) {
	parts := strings.SplitN(s, ":", 3)
	if len(parts) < 2 {
		return nil, errors.New("TARGET:ACTION,...[:TOOL,...] is expected, such as tools:call,list:search,fetch; resources and prompts go into --cap")
	}
	id, err := actor.TargetID(td, parts[0])
	if err != nil {
		return nil, err
	}
	d := actor.MCPDetail{Locations: []spiffeid.ID{id}, Actions: strings.Split(parts[1], ",")}
	if len(parts) == 3 {
		d.Tools = strings.Split(parts[2], ",")
	}
	return d, actor.Details{d}.Validate()
}

func parseAllowKube(parts []string, td spiffeid.TrustDomain) (actor.Detail, error) {
	if len(parts) < 2 || len(parts) > 4 {
		return nil, errors.New("TARGET:ACTION,...[:NAMESPACE,...[:RESOURCE,...]] is expected, such as prod:get,list:shop:pods,pods/log,deployments.apps, where * stands for any namespace; commands and names go into --cap")
	}
	id, err := actor.TargetID(td, parts[0])
	if err != nil {
		return nil, err
	}
	d := actor.KubeDetail{Locations: []spiffeid.ID{id}, Actions: strings.Split(parts[1], ",")}
	if len(parts) > 2 && parts[2] != "*" {
		d.Namespaces = strings.Split(parts[2], ",")
	}
	if len(parts) > 3 {
		d.Resources = strings.Split(parts[3], ",")
	}
	return d, actor.Details{d}.Validate()
}

func parseAllowTCP(parts []string, td spiffeid.TrustDomain) (actor.Detail, error) {
	if len(parts) != 2 {
		return nil, errors.New("TARGET:connect is expected: nothing else is decided of such a target")
	}
	id, err := actor.TargetID(td, parts[0])
	if err != nil {
		return nil, err
	}
	d := actor.TCPDetail{Locations: []spiffeid.ID{id}, Actions: strings.Split(parts[1], ",")}
	return d, actor.Details{d}.Validate()
}

func newSupervisorCommand() *cobra.Command {
	return &cobra.Command{
		Use: supervise.SupervisorArgument, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			errOut := newPatientWriter(os.Stderr)
			defer errOut.flush()
			code, err := supervise.RunIsolated(context.WithoutCancel(cmd.Context()), runLogger(errOut, false))
			if err != nil {
				fmt.Fprintf(errOut, "deputy: %v\n", err)
			}
			return exitCode(code)
		},
	}
}
