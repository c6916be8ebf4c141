//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/internal/login"
	"github.com/deputymesh/deputy/internal/supervise"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const helperArgument = "session-helper"

type loginOptions struct {
	config, scriptUser, scriptPasswordFile string
	noBrowser                              bool
	session                                int
}

func newLoginCommand() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Sign in, and keep the sign-in for this session",
		Long: "login signs you in at the identity provider, with a key made for this sign-in, and leaves a helper in the\n" +
			"background that holds the key in memory. Everything that this shell starts can be given work in your name with\n" +
			"`deputy run`; agents can't use the sign-in. It ends with `deputy logout`, with this shell, or after 12 hours.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLogin(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", agentConfigUsage)
	f.BoolVar(&o.noBrowser, "no-browser", false, "only print the URL to open")
	f.IntVar(&o.session, "session-pid", 0, "process whose descendants may use the sign-in: an ancestor of this one (default: its parent)")
	f.StringVar(&o.scriptUser, "script-user", "", "sign in without a browser, as this user (demonstrations and tests)")
	f.StringVar(&o.scriptPasswordFile, "script-password-file", "", "file with the password for --script-user")
	hideFlags(cmd, "script-user", "script-password-file")
	cmd.MarkFlagsRequiredTogether("script-user", "script-password-file")
	return cmd
}

func runLogin(cmd *cobra.Command, o loginOptions) error {
	ctx := cmd.Context()
	cfg, err := loadAgentConfig(o.config)
	if err != nil {
		return err
	}
	password, err := scriptPassword(o.scriptPasswordFile)
	if err != nil {
		return err
	}
	session, err := loginSession(o.session)
	if err != nil {
		return err
	}
	if conn, rpc, err := login.Dial(ctx, cfg.RuntimeDir); err == nil {
		defer conn.Close()
		d, err := rpc.Describe(ctx, &sessionv1.DescribeRequest{})
		if err != nil {
			return err
		}
		return fmt.Errorf("%s is signed in here already, to the mesh %s, until %s; run `deputy logout` first", describeUser(d), printableText(d.GetMesh()), d.GetExpiresAt().AsTime().Local().Format(time.DateTime))
	} else if !errors.Is(err, login.ErrNotSignedIn) {
		return err
	}
	path, err := findAgentConfig(o.config)
	if err != nil {
		return err
	}
	reports, stop, err := startHelper(path, session)
	if err != nil {
		return err
	}
	defer stop()
	failed := make(chan error, 1)
	script := false
	for {
		select {
		case <-ctx.Done():
			return errors.New("the sign-in was broken off")
		case err := <-failed:
			return err
		case r, ok := <-reports:
			switch {
			case !ok:
				return errors.New("the session helper ended before the sign-in was done")
			case r.Error != "":
				return errors.New(r.Error)
			case r.SignedIn != nil:
				fmt.Fprintf(cmd.OutOrStdout(), "Signed in as %s, until %s.\n", r.SignedIn, r.SignedIn.Ends.Local().Format(time.DateTime))
				return nil
			case o.scriptUser != "" && !script:
				script = true
				go func() {
					if err := login.Script(ctx, readOptional(cfg.IdentityProvider.CAFile), r.URL, o.scriptUser, password); err != nil {
						failed <- err
					}
				}()
			case r.URL != "" && !script:
				fmt.Fprintf(cmd.ErrOrStderr(), "Open this page to sign in:\n\n  %s\n\n", r.URL)
				if !o.noBrowser {
					openBrowser(ctx, r.URL)
				}
			}
		}
	}
}

// dialSession finds the helper of this login session, and refuses one that signed in to another mesh than the
// configuration's.
func dialSession(ctx context.Context, cfg *agentConfig) (*grpc.ClientConn, sessionv1.SessionClient, error) {
	conn, rpc, err := login.Dial(ctx, cfg.RuntimeDir)
	if err != nil {
		return nil, nil, err
	}
	d, err := rpc.Describe(ctx, &sessionv1.DescribeRequest{})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("asking the session helper: %s", status.Convert(err).Message()), conn.Close())
	}
	if d.GetMesh() != cfg.Mesh {
		return nil, nil, errors.Join(fmt.Errorf("this shell is signed in to the mesh %s; the configuration is of %s. Run `deputy logout` first, or use another shell",
			printableText(d.GetMesh()), cfg.Mesh), conn.Close())
	}
	return conn, rpc, nil
}

// loginSession is the process whose descendants may use the sign-in.
func loginSession(pid int) (kernel.Process, error) {
	self, err := kernel.Self()
	if err != nil {
		return kernel.Process{}, err
	}
	if pid == 0 {
		return self.Parent()
	}
	session, err := kernel.Find(pid)
	if err != nil {
		return kernel.Process{}, fmt.Errorf("--session-pid %d: %w", pid, err)
	}
	ok, err := self.DescendsFrom(session)
	if err == nil && (!ok || session == self) {
		err = errors.New("it is no ancestor of this process")
	}
	if err != nil {
		return kernel.Process{}, fmt.Errorf("--session-pid %d: %w", pid, err)
	}
	return session, nil
}

// startHelper starts this program again as the session helper, in a session of its own. What it reports
// comes over a pipe; stop ends a helper that has not signed in.
func startHelper(config string, session kernel.Process) (<-chan login.Report, func(), error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("starting the session helper: %w", err)
	}
	wd, err := os.Getwd()
	if err != nil {
		wd = "/"
	}
	//nolint:noctx // the helper outlives this command
	cmd := exec.Command("/proc/self/exe", helperArgument, "--config", config,
		"--session-pid", strconv.Itoa(session.PID), "--session-start", strconv.FormatUint(session.StartTime, 10))
	cmd.Args[0] = "deputy"
	cmd.Dir = wd
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		w.Close()
		return nil, nil, fmt.Errorf("starting the session helper: %w", err)
	}
	w.Close()
	reports := make(chan login.Report)
	quit := make(chan struct{})
	go func() {
		defer close(reports)
		lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
		for lines.Scan() {
			var rep login.Report
			if json.Unmarshal(lines.Bytes(), &rep) != nil {
				continue
			}
			select {
			case reports <- rep:
			case <-quit:
				return
			}
		}
	}()
	// The helper notices that nobody listens any more: it ends unless it has signed in by then.
	return reports, func() { close(quit); r.Close() }, nil
}

func openBrowser(ctx context.Context, url string) {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return
	}
	for _, name := range []string{"xdg-open", "sensible-browser", "x-www-browser"} {
		if path, err := exec.LookPath(name); err == nil {
			cmd := exec.CommandContext(ctx, path, url)
			if cmd.Start() == nil {
				go func() { _ = cmd.Wait() }() // reaps it; what a browser says is nothing to us
				return
			}
		}
	}
}

func scriptPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

func readOptional(path string) []byte {
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return raw
}

func describeUser(d *sessionv1.DescribeResponse) string {
	return login.Who{Issuer: d.GetIssuer(), Subject: d.GetSubject(), Display: d.GetDisplay()}.String()
}

func newSessionHelperCommand() *cobra.Command {
	var config string
	var session kernel.Process
	cmd := &cobra.Command{
		Use: helperArgument, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := os.NewFile(3, "reports")
			if out == nil {
				return errors.New("this subcommand is for `deputy login` alone")
			}
			syscall.CloseOnExec(3)
			report := json.NewEncoder(out)
			if err := runHelper(cmd.Context(), config, session, func(r login.Report) error { return report.Encode(r) }, func() { out.Close() }); err != nil {
				_ = report.Encode(login.Report{Error: err.Error()})
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "")
	cmd.Flags().IntVar(&session.PID, "session-pid", 0, "")
	cmd.Flags().Uint64Var(&session.StartTime, "session-start", 0, "")
	return cmd
}

func runHelper(ctx context.Context, config string, session kernel.Process, report func(login.Report) error, done func()) error {
	if err := kernel.Guard(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg, err := loadAgentConfig(config)
	if err != nil {
		return err
	}
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return err
	}
	issuer, err := supervise.DialIssuer(cfg.IssuerSocket)
	if err != nil {
		return err
	}
	defer issuer.Close()
	rpc := spawnv1.NewSpawnClient(issuer)
	if err := refuseInside(ctx, rpc, session); err != nil {
		return err
	}
	provider := login.Provider{Issuer: cfg.IdentityProvider.Issuer, ClientID: cfg.IdentityProvider.ClientID,
		Algorithms: cfg.IdentityProvider.Algorithms, Scopes: cfg.IdentityProvider.Scopes, Callback: cfg.IdentityProvider.Callback}
	if path := cfg.IdentityProvider.CAFile; path != "" {
		if provider.CA, err = os.ReadFile(path); err != nil {
			return fmt.Errorf("reading the identity provider's CA: %w", err)
		}
	}
	if err := supervise.PrepareRuntimeDir(cfg.RuntimeDir, false); err != nil {
		return err
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchReader(ctx, cancel)
	}()
	h, err := login.New(ctx, login.Config{
		Provider: provider, Mesh: cfg.Mesh, TrustDomain: td, Issuer: rpc, Session: session,
		Socket: login.SocketFor(cfg.RuntimeDir, session),
	}, func(url string) {
		if err := report(login.Report{URL: url}); err != nil {
			cancel() // nobody is left to open it
		}
	})
	if err != nil {
		return err
	}
	l, err := h.Listen(ctx)
	if err != nil {
		return err
	}
	who := h.Who()
	if err := report(login.Report{SignedIn: &who}); err != nil {
		l.Close()
		return errors.New("the process that started the sign-in is gone")
	}
	cancel()
	<-watched
	done()
	return h.Serve(context.WithoutCancel(ctx), l)
}

// refuseInside keeps an agent from opening a root of its own: whatever it knows, it signs nobody in.
func refuseInside(ctx context.Context, rpc spawnv1.SpawnClient, session kernel.Process) error {
	self, err := kernel.Self()
	if err != nil {
		return err
	}
	for _, p := range []kernel.Process{self, session} {
		where, err := rpc.Locate(ctx, &spawnv1.LocateRequest{Pid: int32(p.PID), StartTime: p.StartTime})
		if err != nil {
			return fmt.Errorf("the issuer can't say whether this is inside an agent: %s", status.Convert(err).Message())
		}
		if where.GetAgentId() != "" {
			return fmt.Errorf("this is inside the agent %s; nobody signs in from there", where.GetAgentId())
		}
	}
	return nil
}

// watchReader breaks the sign-in off when the `deputy login` that waits for it is gone.
func watchReader(ctx context.Context, cancel func()) {
	for ctx.Err() == nil {
		if kernel.PipeAbandoned(3) {
			cancel()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
