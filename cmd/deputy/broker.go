package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/deputymesh/deputy/broker"
	"github.com/deputymesh/deputy/broker/session"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/policy"
)

func newBrokerCommand() *cobra.Command {
	var config string
	var unsafeDev bool
	cmd := &cobra.Command{
		Use:   "broker --config broker.yaml",
		Short: "Run the broker: sign-in sessions, token exchange, revocations, feed of the proxies",
		Long: "The broker turns the grants of a chain of agents into a short-lived token for one target. It keeps what is revoked\n" +
			"and tells the proxies. It is never on the data path.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config, func(c *brokerConfig) error { return c.check(unsafeDev) })
			if err != nil {
				return err
			}
			return runBroker(cmd.Context(), cfg, config, unsafeDev)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` (deputy init writes one; required)")
	cmd.Flags().BoolVar(&unsafeDev, "unsafe-dev", false, "accept the trust domain of deputy dev, whose grants prove nothing")
	requireFlags(cmd, "config")
	return cmd
}

// runBroker serves until ctx is done. cfg was checked.
func runBroker(ctx context.Context, cfg *brokerConfig, config string, unsafeDev bool) (err error) {
	logger := slog.Default().With("role", "broker")
	td, err := parseTrustDomain(cfg.TrustDomain, unsafeDev)
	if err != nil {
		return err
	}
	id, err := spiffeid.FromSegments(td, "deputy", "broker")
	if err != nil {
		return err
	}

	// 1. What stands on our own disk: keys, certificate, policy.
	role := broker.Config{
		TrustDomain: td, Mesh: cfg.Mesh, TokenURL: cfg.TokenURL, Logger: logger,
		IssuerSocket: beside(config, cfg.IssuerSocket), MaxSession: cfg.Sessions.Max, TokenTTL: cfg.Sessions.TokenTTL,
		MaxActors: cfg.MaxActors, Identity: cfg.mappings(),
	}
	if role.IssuerSocket == "" {
		role.IssuerSocket = beside(config, cfg.WorkloadAPI)
	}
	if err := cfg.files(config, &role); err != nil {
		return err
	}
	if role.Targets, role.Proxies, err = cfg.meshTargets(); err != nil {
		return err
	}

	// 2. The log and the database. The log's lock also keeps a second broker away from the database.
	log, err := openAudit(cfg.Audit, config, id, unsafeDev && cfg.TrustDomain == devTrustDomain)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	dir := beside(config, cfg.DataDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	store, err := sqlite.Open(filepath.Join(dir, "broker.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	role.Log, role.Store = log, store

	// 3. Who we are.
	wait, cancel := context.WithTimeout(ctx, identityWait)
	defer cancel()
	ident, err := openIdentity(wait, beside(config, cfg.WorkloadAPI), id, cfg.First.beside(config))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ident.Close()) }()
	role.SVIDs, role.Bundles = ident, ident

	// 4. The listeners last: whoever can connect is served.
	var listeners broker.Listeners
	for _, l := range []struct {
		place   string
		address string
		to      *net.Listener
	}{{"listen", cfg.Listen, &listeners.Mesh}, {"feed_listen", cfg.FeedListen, &listeners.Feed}, {"web.listen", cfg.Web.Listen, &listeners.Web}} {
		if *l.to, err = (&net.ListenConfig{}).Listen(ctx, "tcp", l.address); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", l.place, portTaken(err)), closeAll(listeners))
		}
	}
	if role.TokenURL == "" {
		role.TokenURL = "https://" + listeners.Mesh.Addr().String()
	}
	b, err := broker.New(ctx, role)
	if err != nil {
		return errors.Join(err, closeAll(listeners))
	}
	defer giveMemoryBack(ctx)()
	logger.InfoContext(ctx, "listening", "mesh", listeners.Mesh.Addr(), "feed", listeners.Feed.Addr(), "web", listeners.Web.Addr())
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.Serve(gctx, listeners) })
	g.Go(func() error { sayReady(gctx, logger, b.Ready); return nil })
	return g.Wait()
}

func closeAll(l broker.Listeners) error {
	var err error
	for _, one := range []net.Listener{l.Mesh, l.Feed, l.Web} {
		if one != nil {
			err = errors.Join(err, one.Close())
		}
	}
	return err
}

// files reads the files that the configuration names.
func (c *brokerConfig) files(config string, role *broker.Config) (err error) {
	if role.TokenKey, err = readPrivateKey(beside(config, c.TokenKey)); err != nil {
		return fmt.Errorf("reading the token key: %w", err)
	}
	if role.TokenKeyStatement, err = readStatement(beside(config, c.TokenKeyStatement)); err != nil {
		return fmt.Errorf("reading the token key's statement: %w", err)
	}
	if role.CertifyingKey, err = readPublicKey(beside(config, c.CertifyingKey)); err != nil {
		return fmt.Errorf("reading the certifying key: %w", err)
	}
	if err = checkPrivate(beside(config, c.Web.Key)); err != nil {
		return fmt.Errorf("reading the web listener's key: %w", err)
	}
	if role.WebCertificate, err = tls.LoadX509KeyPair(beside(config, c.Web.Cert), beside(config, c.Web.Key)); err != nil {
		return fmt.Errorf("reading the web listener's certificate: %w", err)
	}
	for _, path := range c.PolicyKeys {
		var key *ecdsa.PublicKey
		if key, err = readPublicKey(beside(config, path)); err != nil {
			return fmt.Errorf("reading a policy key: %w", err)
		}
		role.PolicyKeys = append(role.PolicyKeys, key)
	}
	if c.Policy != "" {
		if role.Policy, err = readStatement(beside(config, c.Policy)); err != nil {
			return fmt.Errorf("reading the policy set: %w", err)
		}
	}
	for _, p := range c.IdentityProviders {
		var provider idp.Provider
		if provider, err = p.common().open(config); err != nil {
			return err
		}
		role.Providers = append(role.Providers, provider)
	}
	for _, d := range c.Delegations {
		pair, err := d.pair()
		if err != nil {
			return err
		}
		role.Delegations = append(role.Delegations, pair)
	}
	for _, o := range c.OpenSessions {
		var p session.Permission
		if p, err = o.permission(); err != nil {
			return err
		}
		role.Bare = append(role.Bare, p)
	}
	return nil
}

// readStatement reads a compact JWS from a file.
func readStatement(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, policy.MaxSignedBytes+1))
	if err != nil {
		return "", err
	}
	if len(raw) > policy.MaxSignedBytes {
		return "", fmt.Errorf("%s is larger than %d bytes", path, policy.MaxSignedBytes)
	}
	return strings.TrimSpace(string(raw)), nil
}
