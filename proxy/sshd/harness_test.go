package sshd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

// connectArg makes the test binary the ProxyCommand of OpenSSH's client: TEST_BINARY connect FOLDER ADDRESS.
const connectArg = "connect"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == connectArg {
		if err := connectMain(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// connectMain is `deputy connect` without a mesh: SVID, CA and credential lie in a folder.
func connectMain(dir, address string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid.key"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	credential, err := os.ReadFile(filepath.Join(dir, "credential"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, text, err := present(address, &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}, NextProtos: []string{preface},
	}, string(credential))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, key, _ := strings.Cut(text, "\n")
	// Renamed into place: several connections may begin at once.
	tmp := filepath.Join(dir, fmt.Sprintf("known.%d", os.Getpid()))
	if err := os.WriteFile(tmp, []byte("web "+key), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "known_hosts")); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, conn)
	return err
}

const preface = "deputy-ssh/1"

// present does the preface, as docs/spec/preface.md says it.
func present(address string, cfg *tls.Config, credential string) (*tls.Conn, string, error) {
	conn, err := tls.Dial("tcp", address, cfg)
	if err != nil {
		return nil, "", err
	}
	frame := binary.BigEndian.AppendUint32([]byte(preface), uint32(len(credential)))
	if _, err := conn.Write(append(frame, credential...)); err != nil {
		conn.Close()
		return nil, "", err
	}
	status, text, err := readAnswer(conn)
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	if status != 0 {
		conn.Close()
		return nil, "", errors.New(text)
	}
	return conn, text, nil
}

func readAnswer(r io.Reader) (status byte, text string, err error) {
	head := make([]byte, len(preface)+5)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, "", err
	}
	if string(head[:len(preface)]) != preface {
		return 0, "", fmt.Errorf("not the preface: %q", head)
	}
	body := make([]byte, binary.BigEndian.Uint32(head[len(preface)+1:]))
	_, err = io.ReadFull(r, body)
	return head[len(preface)], string(body), err
}

const goodCredential = "token~grant~grant"

// ledger stands in for the core: it decides by a real policy set and writes down what the engine did, in order.
type ledger struct {
	set    *policy.Set
	roles  []string
	served atomic.Int64

	mu       sync.Mutex
	events   []event
	durable  func(ctx context.Context, cmd proxy.Command) error // guarded by mu: where a decision becomes durable
	keeps    func(ctx context.Context, piece []byte) error      // guarded by mu: where a piece of a recording becomes durable
	sessions []*testSession
	counts   map[string]int
}

// becomesDurable sets what happens where a decision becomes durable.
func (l *ledger) becomesDurable(f func(context.Context, proxy.Command) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable = f
}

// keep sets what happens where a piece of a recording becomes durable.
func (l *ledger) keep(f func(context.Context, []byte) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keeps = f
}

// userRoles are what the user has now; become changes them, as a renewal does.
func (l *ledger) userRoles() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.roles
}

func (l *ledger) become(roles ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roles = roles
}

type event struct {
	kind string // decided, durable, refused, forwarded, completed, closed
	cmd  proxy.Command
	out  proxy.Outcome
	why  string
}

func (l *ledger) add(e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *ledger) all(kind string) []event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []event
	for _, e := range l.events {
		if e.kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// await waits for an event of a command.
func (l *ledger) await(t testing.TB, kind, scrubbed string) event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range l.all(kind) {
			if strings.Contains(e.cmd.Scrubbed+e.why, scrubbed) {
				return e
			}
		}
	}
	t.Fatalf("nothing %s of %q among %+v", kind, scrubbed, l.all(kind))
	return event{}
}

func (l *ledger) Open(_ context.Context, peer proxy.Peer, credential string, c proxy.Connection) (sshd.Session, error) {
	if credential != goodCredential || len(peer.Certificates) == 0 {
		return nil, &proxy.Refusal{Class: "token", Reason: "the credential can't be read", RecordID: "rec-open"}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &testSession{l: l, ctx: ctx, cancel: cancel, id: fmt.Sprintf("s%d", l.served.Add(1)), conn: c}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions = append(l.sessions, s)
	return s, nil
}

func (l *ledger) Count(class string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[class]++
}

func (l *ledger) last() *testSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions[len(l.sessions)-1]
}

type testSession struct {
	l      *ledger
	id     string
	ctx    context.Context
	cancel context.CancelCauseFunc
	conn   proxy.Connection
	once   sync.Once
	closed atomic.Bool
}

func (s *testSession) ID() string      { return s.id }
func (s *testSession) Roles() []string { return s.l.userRoles() }
func (s *testSession) Owner() actor.SubjectID {
	return actor.SubjectID{Issuer: "https://idp.test", Subject: "ada"}
}
func (s *testSession) Chain() *actor.Chain {
	return &actor.Chain{Digest: "sha256-of-the-chain", Hops: []actor.Hop{{Kind: actor.HopAgent, ID: agentID}}}
}
func (s *testSession) Context() context.Context { return s.ctx }
func (s *testSession) Close(reason, detail string) {
	s.once.Do(func() { s.l.add(event{kind: "closed", why: reason + " " + detail}) })
	s.closed.Store(true)
	s.cancel(nil)
}

// over says whether the engine has closed the session.
func (s *testSession) over() bool { return s.closed.Load() }

func (s *testSession) refuse(cmd proxy.Command, r *proxy.Refusal) *proxy.Refusal {
	r.RecordID = "rec-refused"
	s.l.add(event{kind: "refused", cmd: cmd, why: r.Class + ": " + r.Reason})
	return r
}

func (s *testSession) Refuse(_ context.Context, cmd proxy.Command, o proxy.Objection) *proxy.Refusal {
	return s.refuse(cmd, &proxy.Refusal{Class: o.Class, Reason: o.Reason})
}

func (s *testSession) Authorize(ctx context.Context, cmd proxy.Command) (sshd.Pass, error) {
	if s.ctx.Err() != nil {
		return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true})
	}
	subject, err := policy.NewSubjectFromFacts(facts(s.l.userRoles()))
	if err != nil {
		return nil, err
	}
	var ob policy.Obligations
	for _, op := range cmd.Ops {
		d := s.l.set.Decide(policy.Request{
			Subject: subject, Now: time.Now(), Action: op.Action.Name(), Resource: op.Resource, Exact: op.Exact,
			Command: policy.Command{Database: cmd.Database, Account: cmd.Account, ReadOnly: cmd.ReadOnly, Kind: cmd.Kind},
		})
		if !d.Allow {
			return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassPolicy, Reason: d.Reason, Err: d.Err})
		}
		ob = ob.And(d.Obligations)
	}
	if cmd.Check != nil {
		if err := cmd.Check(ob); err != nil {
			var o *proxy.Objection
			errors.As(err, &o)
			return nil, s.refuse(cmd, &proxy.Refusal{Class: o.Class, Reason: o.Reason})
		}
	}
	s.l.add(event{kind: "decided", cmd: cmd})
	p := &testPass{s: s, cmd: cmd, ob: ob}
	if !cmd.ReadOnly {
		if err := p.Wait(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

type testPass struct {
	s                   *testSession
	cmd                 proxy.Command
	ob                  policy.Obligations
	used, durable, done atomic.Bool
}

func (p *testPass) RecordID() audit.RecordID        { return "rec-decided" }
func (p *testPass) Obligations() policy.Obligations { return p.ob }

func (p *testPass) Use() error {
	if p.used.Swap(true) {
		return proxy.ErrPassUsed
	}
	if !p.cmd.ReadOnly && !p.durable.Load() {
		return errors.New("used before it was durable")
	}
	if p.s.ctx.Err() != nil {
		return &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true}
	}
	return nil
}

func (p *testPass) Wait(ctx context.Context) error {
	if p.durable.Load() {
		return nil
	}
	p.s.l.mu.Lock()
	durable := p.s.l.durable
	p.s.l.mu.Unlock()
	if durable != nil {
		if err := durable(ctx, p.cmd); err != nil {
			return err
		}
	}
	p.durable.Store(true)
	p.s.l.add(event{kind: "durable", cmd: p.cmd})
	return nil
}

func (p *testPass) Forwarded(int64) { p.s.l.add(event{kind: "forwarded", cmd: p.cmd}) }

func (p *testPass) Keep(ctx context.Context, piece []byte) error {
	if p.done.Load() {
		return errors.New("kept behind the outcome")
	}
	p.s.l.mu.Lock()
	keeps := p.s.l.keeps
	p.s.l.mu.Unlock()
	if keeps != nil {
		if err := keeps(ctx, piece); err != nil {
			return err
		}
	}
	p.s.l.add(event{kind: "kept", cmd: p.cmd, why: string(piece)})
	return nil
}

func (p *testPass) Completed(_ context.Context, o proxy.Outcome) error {
	if !p.done.Swap(true) {
		p.s.l.add(event{kind: "completed", cmd: p.cmd, out: o})
	}
	return nil
}

const agentID = "spiffe://mesh.test/agent/planner/0123456789abcdef0123456789abcdef"

func facts(roles []string) policy.Facts {
	now := time.Now()
	return policy.Facts{
		User: policy.User{Issuer: "https://idp.test", Subject: "ada", Grade: "attested"}, TrustDomain: "mesh.test",
		Agents: []policy.Agent{{ID: agentID, Grade: "attested"}}, Roles: roles, RootEvidence: "verified", SignedIn: now, Started: now, Issued: now,
	}
}

// policies: ops may do anything, readers run two programs, looker connects only, files reads some files.
const policies = `
@id("ops") permit (principal in Deputy::Role::"ops", action, resource in Deputy::Target::"web");
@id("connect") permit (principal, action == Deputy::Action::"ssh:connect", resource in Deputy::Target::"web");
@id("reader") permit (principal in Deputy::Role::"reader", action == Deputy::Action::"ssh:exec", resource in Deputy::Target::"web")
  when { resource.program == "echo" || resource.program == "id" };
@id("by-its-text") permit (principal in Deputy::Role::"ops", action == Deputy::Action::"ssh:exec", resource == Deputy::Exec::"web/ACCOUNT/echo 'by its text'; echo two");
@id("files-open") permit (principal in Deputy::Role::"files", action == Deputy::Action::"ssh:sftp", resource in Deputy::Target::"web");
@id("files") permit (principal in Deputy::Role::"files", action in [Deputy::Action::"ssh:sftp-read", Deputy::Action::"ssh:sftp-stat"],
  resource is Deputy::Path in Deputy::Target::"web") when { resource.name like "*/readable*" };
@id("recorded") @record("full") permit (principal in Deputy::Role::"recorded", action, resource in Deputy::Target::"web");
@id("limited") @limit("rows=5") permit (principal in Deputy::Role::"limited", action == Deputy::Action::"ssh:exec", resource in Deputy::Target::"web");
@id("never") forbid (principal, action == Deputy::Action::"ssh:exec", resource) when { resource.name like "*forbidden*" };
`

func policySet(t testing.TB, account string) *policy.Set {
	t.Helper()
	key := testca.NewKey(t)
	signed, err := policy.Sign(key, policy.Source{
		Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{"test.cedar": strings.ReplaceAll(policies, "ACCOUNT", account)},
		Targets: map[string]policy.Target{"web": {Kind: "ssh"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Open(signed, []*ecdsa.PublicKey{&key.PublicKey}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// world is one proxy in front of one server.
type world struct {
	t      testing.TB
	host   *testssh.Server
	ca     *testca.CA
	agent  *x509svid.SVID
	ledger *ledger
	addr   string
	dir    string
	stop   context.CancelFunc
}

func newWorld(t testing.TB, roles []string, change ...func(*sshd.Config)) *world {
	t.Helper()
	return worldOf(t, testssh.Start(t), roles, change...)
}

func worldOf(t testing.TB, host *testssh.Server, roles []string, change ...func(*sshd.Config)) *world {
	t.Helper()
	w := &world{t: t, host: host, ca: testca.New(t, "mesh.test"), dir: t.TempDir()}
	w.agent = w.ca.SVID(spiffeid.RequireFromString(agentID))
	w.ledger = &ledger{set: policySet(t, host.Account), roles: roles, counts: map[string]int{}}
	cfg := configOf(t, w.ca, host)
	cfg.Core = w.ledger
	for _, c := range change {
		c(&cfg)
	}
	e, err := sshd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve doesn't end")
		}
	})
	w.writeFiles()
	return w
}

// newConfig is one that works.
func newConfig(t testing.TB, host *testssh.Server) sshd.Config {
	t.Helper()
	cfg := configOf(t, testca.New(t, "mesh.test"), host)
	cfg.Core = &ledger{set: policySet(t, host.Account), counts: map[string]int{}}
	return cfg
}

func configOf(t testing.TB, ca *testca.CA, host *testssh.Server) sshd.Config {
	t.Helper()
	svid := ca.SVID(ca.ID("/deputy/proxy/p1"), testca.Hosts("localhost", "127.0.0.1"))
	return sshd.Config{
		Target: spiffeid.RequireFromString("spiffe://mesh.test/target/web"), TLS: proxy.ServerTLS(svid, ca.Bundle(), ca.TrustDomain()),
		Upstream: sshd.Upstream{Address: host.Address(), HostKeys: []ssh.PublicKey{host.HostKey}},
		Accounts: []sshd.Account{{Name: host.Account, Key: host.UserKey}},
		Logger:   slog.New(slog.NewTextHandler(&testLog{t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

type testLog struct{ t testing.TB }

func (l *testLog) Write(b []byte) (int, error) { l.t.Logf("%s", b); return len(b), nil }

func (w *world) writeFiles() {
	w.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(w.agent.PrivateKey)
	if err != nil {
		w.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"svid.pem":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.agent.Certificates[0].Raw})),
		"svid.key":   string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"ca.pem":     string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ca.Certificate().Raw})),
		"credential": goodCredential,
		"config": strings.Join([]string{
			"Host web", "  ProxyCommand " + self + " " + connectArg + " " + w.dir + " " + w.addr, "  HostKeyAlias web", "  User " + sshd.AnyAccount,
			"  UserKnownHostsFile " + filepath.Join(w.dir, "known_hosts"), "  GlobalKnownHostsFile /dev/null", "  StrictHostKeyChecking yes",
			"  PubkeyAuthentication no", "  PreferredAuthentications none", "", "Host *", "  IdentityAgent none", "",
		}, "\n"),
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) tls(protocols ...string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Certificate())
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost", NextProtos: protocols,
		Certificates: []tls.Certificate{{Certificate: [][]byte{w.agent.Certificates[0].Raw}, PrivateKey: w.agent.PrivateKey}},
	}
}

// dial connects by x/crypto's client, with the credential as the password.
func (w *world) dial(user, password string) (*ssh.Client, string, error) {
	conn, err := tls.Dial("tcp", w.addr, w.tls())
	if err != nil {
		return nil, "", err
	}
	var said strings.Builder
	c, channels, requests, err := ssh.NewClientConn(conn, "web:22", &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.Password(password)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), // TLS proved the proxy
		BannerCallback: func(m string) error { said.WriteString(m); return nil },
	})
	if err != nil {
		conn.Close()
		return nil, said.String(), err
	}
	return ssh.NewClient(c, channels, requests), said.String(), nil
}

func (w *world) client() *ssh.Client {
	w.t.Helper()
	c, said, err := w.dial(sshd.AnyAccount, goodCredential)
	if err != nil {
		w.t.Fatalf("connecting: %v %s", err, said)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// result is what a program did.
type result struct {
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d, stdout %q, stderr %q", r.code, clip(r.out), clip(r.err))
}

func clip(s string) string { return s[:min(len(s), 2000)] }

// run runs a client of the machine's own.
func (w *world) run(stdin string, name string, args ...string) result {
	w.t.Helper()
	var out, errs bytes.Buffer
	cmd := w.command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%s: %v", name, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (w *world) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "SSH_") }),
		"GIT_SSH_COMMAND=ssh -F "+w.config(), "RSYNC_RSH=ssh -F "+w.config(), "GIT_CONFIG_GLOBAL=/dev/null", "HOME="+w.dir, "LC_ALL=C.UTF-8",
		"GORACE=atexit_sleep_ms=0") // the ProxyCommand is this binary, whose detector would sleep for a second
	return cmd
}

func (w *world) config() string { return filepath.Join(w.dir, "config") }

// ssh runs OpenSSH's client.
func (w *world) ssh(stdin string, args ...string) result {
	w.t.Helper()
	return w.run(stdin, "ssh", append([]string{"-F", w.config()}, args...)...)
}
