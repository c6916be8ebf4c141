package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sync/errgroup"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/postgres"
)

// identityWait is how long a role waits for its first SVID and its providers' keys.
const identityWait = 20 * time.Second

func newProxyCommand() *cobra.Command {
	var config string
	var unsafeDev bool
	cmd := &cobra.Command{
		Use:   "proxy --config proxy.yaml",
		Short: "Run a proxy: verify chains, decide commands and keep evidence in front of targets",
		Long: "The proxy stands in front of targets. It verifies every hop of a chain, decides every command by the signed policy,\n" +
			"masks fields, and forwards nothing that it can't record. It asks nobody to verify or to decide.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config, func(c *proxyConfig) error { return c.check(unsafeDev) })
			if err != nil {
				return err
			}
			return runProxy(cmd.Context(), cfg, config, unsafeDev)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` (deputy init writes one; required)")
	cmd.Flags().BoolVar(&unsafeDev, "unsafe-dev", false, "accept the trust domain of deputy dev, whose grants prove nothing")
	requireFlags(cmd, "config")
	return cmd
}

// provider makes the verifier's view of a configured identity provider.
func (p identityProviderConfig) provider(client *http.Client) idp.Provider {
	return idp.Provider{Issuer: p.Issuer, ClientID: p.ClientID, Algorithms: p.Algorithms, Client: client}
}

func (p identityProviderConfig) open(config string) (idp.Provider, error) {
	client, err := httpClient(beside(config, p.CAFile))
	if err != nil {
		return idp.Provider{}, fmt.Errorf("identity provider %s: %w", p.Issuer, err)
	}
	return p.provider(client), nil
}

// runProxy runs one proxy until ctx ends.
func runProxy(ctx context.Context, cfg *proxyConfig, config string, unsafeDev bool) (err error) {
	id, err := cfg.id(unsafeDev)
	if err != nil {
		return err
	}
	logger := slog.Default().With("role", "proxy", "proxy", cfg.Name)
	if err := cfg.readSecrets(config); err != nil {
		return err
	}
	log, err := openAudit(cfg.Audit, config, id, unsafeDev && cfg.TrustDomain == devTrustDomain)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	wait, cancel := context.WithTimeout(ctx, identityWait)
	defer cancel()
	ident, err := openIdentity(wait, beside(config, cfg.WorkloadAPI), id, cfg.First.beside(config))
	if err != nil {
		return err
	}
	defer ident.Close()

	state, err := openProxyState(cfg, config, log, logger)
	if err != nil {
		return err
	}
	tokens, keys, audiences, err := openIdentityTokens(cfg, config, log, logger)
	if err != nil {
		return err
	}
	if err := tokens.Fetch(wait); err != nil {
		// Until the keys are there every credential is refused; Run goes on asking.
		logger.WarnContext(ctx, "the identity providers' keys are not there yet", "error", err)
	}

	core, names, err := cfg.core(ident, state, tokens, keys, audiences, log, logger)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program for the SQL parser: %w", err)
	}
	pool, err := sqlparse.New(wait, sqlparse.Config{Command: []string{exe, sqlparse.ChildArg}})
	if err != nil {
		return fmt.Errorf("starting the SQL parser: %w", err)
	}
	defer pool.Close()

	server := proxy.ServerTLS(ident, ident, id.TrustDomain())
	g, gctx := errgroup.WithContext(ctx)
	for i := range cfg.Targets {
		t := &cfg.Targets[i]
		engine, err := t.engine(config, cfg.Mesh, id.TrustDomain(), core, names[i], ident, pool, server, logger)
		if err != nil {
			return err
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", t.Listen)
		if err != nil {
			return fmt.Errorf("target %s: %w", t.Name, portTaken(err))
		}
		g.Go(func() error { return engine.Serve(gctx, l) })
	}
	renewals, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.RenewalListen)
	if err != nil {
		return fmt.Errorf("renewal_listen: %w", portTaken(err))
	}
	broker, err := spiffeid.FromSegments(id.TrustDomain(), "deputy", "broker")
	if err != nil {
		return err
	}
	g.Go(func() error { core.Run(gctx); return nil })
	g.Go(func() error { tokens.Run(gctx); return nil })
	g.Go(func() error {
		return proxy.RunFeed(gctx, proxy.FeedConfig{
			Address: cfg.Feed, Broker: broker, SVID: ident, Bundles: ident, Targets: names, State: state, Logger: logger,
		})
	})
	g.Go(func() error {
		srv := proxy.NewRenewalServer(core)
		stop := context.AfterFunc(gctx, func() { _ = srv.Close() })
		defer stop()
		if err := srv.Serve(tls.NewListener(renewals, server)); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	defer giveMemoryBack(ctx)()
	g.Go(func() error { sayReady(gctx, logger, core.Ready); return nil })
	return g.Wait()
}

// sayReady logs once that the role is ready.
func sayReady(ctx context.Context, logger *slog.Logger, ready func() error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ready() != nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	logger.InfoContext(ctx, "ready")
}

func openProxyState(cfg *proxyConfig, config string, log *audit.Log, logger *slog.Logger) (*proxy.State, error) {
	certifying, err := readPublicKey(beside(config, cfg.CertifyingKey))
	if err != nil {
		return nil, fmt.Errorf("certifying_key: %w", err)
	}
	var policyKeys []*ecdsa.PublicKey
	for _, p := range cfg.PolicyKeys {
		k, err := readPublicKey(beside(config, p))
		if err != nil {
			return nil, fmt.Errorf("policy_keys: %w", err)
		}
		policyKeys = append(policyKeys, k)
	}
	dir := filepath.Join(beside(config, cfg.DataDir), "state")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	return proxy.NewState(proxy.StateConfig{
		Mesh: cfg.Mesh, Certifying: certifying, PolicyKeys: policyKeys, Staleness: cfg.Staleness,
		Dir: dir, Log: log, Logger: logger,
	})
}

func openIdentityTokens(cfg *proxyConfig, config string, log *audit.Log, logger *slog.Logger) (*idp.Verifier, *proxy.IdentityKeys, []string, error) {
	keys := proxy.NewIdentityKeys(log, actor.DefaultMaxSession, nil)
	var providers []idp.Provider
	var audiences []string
	for _, p := range cfg.IdentityProviders {
		provider, err := p.open(config)
		if err != nil {
			return nil, nil, nil, err
		}
		providers, audiences = append(providers, provider), append(audiences, p.ClientID)
	}
	tokens, err := idp.New(idp.Config{Providers: providers, Keep: actor.DefaultMaxSession, Logger: logger, OnKeys: keys.Keep})
	return tokens, keys, audiences, err
}

func (c *proxyConfig) core(ident *identity, state *proxy.State, tokens actor.IdentityTokens, keys *proxy.IdentityKeys, audiences []string, log *audit.Log, logger *slog.Logger) (*proxy.Core, []target.Name, error) {
	var targets []proxy.Target
	var names []target.Name
	for _, t := range c.Targets {
		name, err := target.ParseName(t.Name)
		if err != nil {
			return nil, nil, err
		}
		pt := proxy.Target{Name: name, RootEvidence: actor.RootEvidence(t.Root), MaxActors: t.MaxActors}
		for _, d := range t.Delegations {
			pair, err := d.pair()
			if err != nil {
				return nil, nil, err
			}
			pt.Delegations = append(pt.Delegations, pair)
		}
		targets, names = append(targets, pt), append(names, name)
	}
	core, err := proxy.New(proxy.Config{
		TrustDomain: ident.want.TrustDomain(), Bundles: ident, Mesh: c.Mesh, State: state,
		IdentityTokens: tokens, IdentityKeys: keys, Audiences: audiences, Targets: targets, Log: log, Logger: logger,
	})
	return core, names, err
}

// readSecrets reads the passwords and client certificates of all accounts.
func (c *proxyConfig) readSecrets(config string) error {
	for _, t := range c.Targets {
		var err error
		switch {
		case t.SSH != nil:
			err = t.SSH.readSecrets(config)
		case t.HTTP != nil:
			err = t.HTTP.readSecrets(config)
		case t.MCP != nil:
			err = t.MCP.Service.readSecrets(config)
		case t.Kube != nil:
			err = t.Kube.readSecrets(config)
		case t.TCP != nil: // it has none
		default:
			err = t.Postgres.readSecrets(config)
		}
		if err != nil {
			return fmt.Errorf("target %s: %w", t.Name, err)
		}
	}
	return nil
}

func (p *postgresConfig) readSecrets(config string) error {
	for i := range p.Accounts {
		a := &p.Accounts[i]
		if err := a.readSecrets(config); err != nil {
			return fmt.Errorf("account %s: %w", a.Name, err)
		}
	}
	return nil
}

func (t *targetConfig) engine(config, mesh string, td spiffeid.TrustDomain, core *proxy.Core, name target.Name, svid x509svid.Source, pool *sqlparse.Pool, server *tls.Config, logger *slog.Logger) (proxy.Engine, error) {
	if t.SSH != nil {
		return t.sshEngine(config, td, core, name, server, logger)
	}
	if t.TCP != nil {
		return t.tcpEngine(config, td, core, name, server, logger)
	}
	if t.HTTP != nil {
		return t.httpEngine(config, mesh, td, core, name, svid, server, logger)
	}
	if t.Kube != nil {
		return t.kubeEngine(config, mesh, td, core, name, svid, server, logger)
	}
	if t.MCP != nil {
		return t.mcpEngine(config, mesh, td, core, name, svid, server, logger)
	}
	p := t.Postgres
	cas, err := readPool(beside(config, p.CAFile))
	if err != nil {
		return nil, fmt.Errorf("target %s: ca_file: %w", t.Name, err)
	}
	var accounts []postgres.Account
	for _, a := range p.Accounts {
		account := postgres.Account{Name: a.Name, Password: a.password, Roles: a.Roles}
		if a.certificate != nil {
			account.Certificate = a.certificate.get
		}
		accounts = append(accounts, account)
	}
	return postgres.New(postgres.Config{
		Core: postgres.ForTarget(core, name), Target: name.ID(td), TLS: server,
		Upstream:  postgres.Upstream{Address: p.Address, ServerName: p.ServerName, RootCAs: cas, NoChannelBinding: p.NoChannelBinding},
		Accounts:  accounts,
		Databases: p.Databases, DefaultDatabase: p.DefaultDatabase, Schemas: p.Schemas,
		Parser: pool, PlainCancel: p.PlainCancel, Logger: logger.With("target", t.Name),
	})
}

// newSQLParseChildCommand is what the proxy starts to parse SQL in: hostile text kills the child alone.
func newSQLParseChildCommand() *cobra.Command {
	return &cobra.Command{
		Use: sqlparse.ChildArg, Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return sqlparse.ChildMain(os.Stdin, os.Stdout) },
	}
}
