package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/sqlite"
)

func newIssuerCommand() *cobra.Command {
	var config string
	var unsafeDev bool
	cmd := &cobra.Command{
		Use:   "issuer --config issuer.yaml",
		Short: "Run the issuer: identities for roles and nested agents",
		Long: "The issuer gives X.509- and JWT-SVIDs to roles and to nested agents, by what the kernel says about its callers.\n" +
			"It attests processes of its own host. Run it as root, or with CAP_SYS_PTRACE: otherwise it can't see the executables\n" +
			"of other users, and entries that select by path or sha256 match nobody. SIGHUP reads the CA certificates and\n" +
			"the public keys of the JWT bundle again.",
		Example: "  setpriv --reuid=64001 --regid=64001 --clear-groups --inh-caps=+sys_ptrace --ambient-caps=+sys_ptrace -- \\\n" +
			"    deputy issuer --config /etc/deputy/issuer/issuer.yaml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config, func(c *issuerConfig) error {
				if err := c.check(unsafeDev); err != nil {
					return err
				}
				return c.checkAccounts()
			})
			if err != nil {
				return err
			}
			return runIssuer(cmd.Context(), cfg, config, unsafeDev)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` (deputy init writes one; required)")
	cmd.Flags().BoolVar(&unsafeDev, "unsafe-dev", false, "accept the trust domain of deputy dev, whose grants prove nothing")
	requireFlags(cmd, "config")
	return cmd
}

// runIssuer serves until ctx is done. cfg was checked.
func runIssuer(ctx context.Context, cfg *issuerConfig, config string, unsafeDev bool) (err error) {
	logger := slog.Default().With("role", "issuer")
	td, err := parseTrustDomain(cfg.TrustDomain, unsafeDev)
	if err != nil {
		return err
	}
	id, err := spiffeid.FromSegments(td, "deputy", "issuer")
	if err != nil {
		return err
	}

	// 1. The CA, and what else stands in the bundle.
	key, err := readPrivateKey(beside(config, cfg.CA.Key))
	if err != nil {
		return fmt.Errorf("reading the CA key: %w", err)
	}
	bundle, err := readAuthorities(beside(config, cfg.CA.Cert), td)
	if err != nil {
		return err
	}
	authority, err := ca.New(ca.Config{TrustDomain: td, Certificate: bundle[0], Key: key, TTL: cfg.SVIDTTL})
	if err != nil {
		return fmt.Errorf("%s: %w", beside(config, cfg.CA.Cert), err)
	}

	jwt, jwtKeys, err := cfg.JWT.authority(config, td)
	if err != nil {
		return err
	}

	// 2. The log and the database. The log's lock also keeps a second issuer away from the database.
	log, err := openAudit(cfg.Audit, config, id, unsafeDev && cfg.TrustDomain == devTrustDomain)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	dir := beside(config, cfg.DataDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	store, err := sqlite.Open(filepath.Join(dir, "issuer.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	// 3. The role, and its socket last: whoever can connect is served.
	roles, err := cfg.roles()
	if err != nil {
		return err
	}
	role, err := issuer.New(issuer.Config{
		CA: authority, Bundle: bundle, JWT: jwt, JWTKeys: jwtKeys, Roles: roles, Agents: cfg.firstLevel(), UIDs: cfg.uids(), Limits: cfg.limits(),
		Store: store, Log: log, UnsafeDev: unsafeDev, Logger: logger,
	})
	if err != nil {
		return err
	}
	if cfg.readsExecutables() && !seesOthers() {
		logger.WarnContext(ctx, "entries select by path or sha256 but this process can't see which program another user's process runs, so those match nobody; "+
			"start it with CAP_SYS_PTRACE (setpriv --inh-caps=+sys_ptrace --ambient-caps=+sys_ptrace, or AmbientCapabilities= of systemd)")
	}
	listener, err := listenForWorkloads(ctx, beside(config, cfg.Socket))
	if err != nil {
		return err
	}
	stop := onHangup(ctx, func() {
		if err := reloadBundle(role, beside(config, cfg.CA.Cert), authority); err != nil {
			logger.ErrorContext(ctx, "reading the CA certificates again failed; the old ones stay", "error", err)
			return
		}
		if err := cfg.JWT.reload(config, role, jwt); err != nil {
			logger.ErrorContext(ctx, "reading the JWT bundle again failed; the old one stays", "error", err)
			return
		}
		logger.InfoContext(ctx, "CA certificates and JWT bundle read again and pushed")
	})
	defer stop()
	defer giveMemoryBack(ctx)()
	logger.InfoContext(ctx, "ready", "id", id, "socket", listener.Addr().String())
	return role.Serve(ctx, listener)
}

// seesOthers says whether this process has CAP_SYS_PTRACE, by which it sees the executables of other users' processes.
// Where that can't be known it says yes: the issuer goes on either way, and each refusal says what was missing.
func seesOthers() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	return capPtrace(string(status))
}

// capPtrace finds CAP_SYS_PTRACE among the effective capabilities of a /proc/PID/status.
func capPtrace(status string) bool {
	const sysPtrace = 19
	for line := range strings.Lines(status) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
			return err != nil || caps&(1<<sysPtrace) != 0
		}
	}
	return true
}

func (c *issuerConfig) readsExecutables() bool {
	for _, e := range c.Entries {
		if e.Unix.Path != "" || e.Unix.SHA256 != "" {
			return true
		}
	}
	for _, e := range c.Agents {
		if e.Unix.Path != "" || e.Unix.SHA256 != "" {
			return true
		}
	}
	return false
}

func readAuthorities(path string, td spiffeid.TrustDomain) ([]*x509.Certificate, error) {
	raw, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("reading the CA certificates: %w", err)
	}
	certs, err := ca.DecodeCertificates(raw, td)
	if err != nil {
		return nil, fmt.Errorf("CA certificates %s: %w", path, err)
	}
	return certs, nil
}

func reloadBundle(role *issuer.Issuer, path string, authority *ca.CA) error {
	certs, err := readAuthorities(path, authority.TrustDomain())
	if err != nil {
		return err
	}
	if !certs[0].Equal(authority.Certificate()) {
		return fmt.Errorf("CA certificates %s: the first one isn't the one in use; add the next one after it, and restart with its key once everybody has it", path)
	}
	role.SetBundle(certs...)
	return nil
}

// onHangup calls f for each SIGHUP until the returned function is called.
func onHangup(ctx context.Context, f func()) (stop func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-hup:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(hup)
		cancel()
		<-done
	}
}

// maxSocketPath is what Linux takes (sun_path, with its closing zero byte).
const maxSocketPath = 107

// listenForWorkloads makes the issuer's socket: everybody may connect, since the kernel says who did, but nobody else may
// put another socket in its place.
func listenForWorkloads(ctx context.Context, path string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) { return nil, fmt.Errorf("opening the socket %s: %w", path, err) }
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fail(err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fail(fmt.Errorf("its folder %s must belong to the issuer's user and be writable by nobody else (such as mode 0755)", dir))
	}
	switch old, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail(err)
	case old.Mode().Type() != fs.ModeSocket:
		return fail(errors.New("there is a file that is no socket; move it away"))
	default:
		dialer := net.Dialer{Timeout: time.Second}
		if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
			c.Close()
			return fail(errors.New("somebody serves it already; stop that one first"))
		}
		if err := os.Remove(path); err != nil {
			return fail(err)
		}
	}
	if len(path) > maxSocketPath {
		return fail(fmt.Errorf("the path has %d bytes, a Unix socket's at most %d; choose a shorter one", len(path), maxSocketPath))
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fail(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return fail(errors.Join(err, l.Close()))
	}
	return l, nil
}
