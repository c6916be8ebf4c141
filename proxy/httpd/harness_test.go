package httpd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
)

const (
	goodCredential = "token~grant~grant"
	nextCredential = "token2~grant~grant"
	agentID        = "spiffe://test.example/agent/planner/0123456789abcdef0123456789abcdef"
)

// ledger stands in for the core: it decides by a function and writes down what the engine did, in order.
type ledger struct {
	roles  []string
	opened atomic.Int64

	mu       sync.Mutex
	allow    func(proxy.Command) bool // guarded by mu, as is what follows
	ob       policy.Obligations
	durable  func(context.Context) error
	outcome  func(proxy.Outcome) error
	events   []event
	sessions []*testSession
	counts   map[string]int
}

type event struct {
	kind string // decided, refused, forwarded, completed, closed
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

func (l *ledger) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// await waits for the latest event of a kind that a test finds.
func (l *ledger) await(t testing.TB, kind, text string) event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all := l.all(kind)
		for i := len(all) - 1; i >= 0; i-- {
			if strings.Contains(all[i].cmd.Scrubbed+all[i].why, text) {
				return all[i]
			}
		}
	}
	t.Fatalf("nothing %s of %q among %+v", kind, text, l.all(kind))
	return event{}
}

func (l *ledger) Open(_ context.Context, peer proxy.Peer, credential string, _ proxy.Connection) (httpd.Session, error) {
	if credential != goodCredential || len(peer.Certificates) == 0 || peer.Certificates[0].URIs[0].String() != agentID {
		return nil, &proxy.Refusal{Class: "token", Reason: "the credential can't be read", RecordID: "rec-open"}
	}
	s := &testSession{l: l, id: fmt.Sprintf("s%d", l.opened.Add(1))}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
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
	once   sync.Once
}

func (s *testSession) ID() string { return s.id }
func (s *testSession) Roles() []string {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.l.roles
}
func (s *testSession) Chain() *actor.Chain {
	agent, err := actor.AgentIDFromString(agentID)
	if err != nil {
		panic(err)
	}
	return &actor.Chain{
		User: actor.SubjectID{Issuer: "https://idp.test", Subject: "ada"}, Txn: strings.Repeat("0f", 16), Roles: s.Roles(), Purpose: "q3 refunds", RootEvidence: actor.RootVerified,
		Target: spiffeid.RequireFromString("spiffe://test.example/target/billing"), Digest: "sha256-of-the-chain",
		Hops: []actor.Hop{{Kind: actor.HopUser, ID: "ada"}, {Kind: actor.HopAgent, ID: agentID, Agent: agent, Grade: actor.Attested}},
	}
}
func (s *testSession) Context() context.Context { return s.ctx }
func (s *testSession) Close(reason, detail string) {
	s.once.Do(func() { s.l.add(event{kind: "closed", why: s.id + " " + reason + " " + detail}) })
	s.cancel(&proxy.Ended{Class: proxy.ClassClosed, Reason: "closed"})
}

func (s *testSession) revoke() {
	s.cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the session was ended: revoked"})
}

func (s *testSession) Renew(_ context.Context, _ proxy.Peer, credential string) error {
	if credential != nextCredential {
		return &proxy.Refusal{Class: proxy.ClassRenewal, Reason: "the fresh credential doesn't continue the session", RecordID: "rec-renew"}
	}
	return nil
}

func (s *testSession) Would(proxy.Command) bool { return true }

func (s *testSession) refuse(cmd proxy.Command, r *proxy.Refusal) *proxy.Refusal {
	r.RecordID = "rec-refused"
	s.l.add(event{kind: "refused", cmd: cmd, why: r.Class + ": " + r.Reason})
	return r
}

func (s *testSession) Refuse(_ context.Context, cmd proxy.Command, o proxy.Objection) *proxy.Refusal {
	return s.refuse(cmd, &proxy.Refusal{Class: o.Class, Reason: o.Reason})
}

func (s *testSession) Authorize(ctx context.Context, cmd proxy.Command) (httpd.Pass, error) {
	if s.ctx.Err() != nil {
		return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true})
	}
	s.l.mu.Lock()
	allow, ob, durable := s.l.allow, s.l.ob, s.l.durable
	s.l.mu.Unlock()
	if len(cmd.Ops) == 0 || !allow(cmd) {
		return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassPolicy, Reason: "no policy permits it"})
	}
	var o *proxy.Objection
	if err := cmd.Check(ob); errors.As(err, &o) {
		return nil, s.Refuse(ctx, cmd, *o)
	}
	if durable != nil {
		if err := durable(ctx); err != nil {
			return nil, err
		}
	}
	s.l.add(event{kind: "decided", cmd: cmd})
	return &testPass{s: s, cmd: cmd, ob: ob}, nil
}

type testPass struct {
	s    *testSession
	cmd  proxy.Command
	ob   policy.Obligations
	used atomic.Bool
	done atomic.Bool
}

func (p *testPass) RecordID() audit.RecordID        { return "rec-decided" }
func (p *testPass) Obligations() policy.Obligations { return p.ob }
func (p *testPass) Wait(context.Context) error      { return nil }
func (p *testPass) Forwarded(int64)                 { p.s.l.add(event{kind: "forwarded", cmd: p.cmd}) }

func (p *testPass) Use() error {
	if p.used.Swap(true) {
		return proxy.ErrPassUsed
	}
	if p.s.ctx.Err() != nil {
		return &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true}
	}
	return nil
}

func (p *testPass) Completed(_ context.Context, o proxy.Outcome) error {
	if p.done.Swap(true) {
		return nil
	}
	p.s.l.add(event{kind: "completed", cmd: p.cmd, out: o})
	p.s.l.mu.Lock()
	outcome := p.s.l.outcome
	p.s.l.mu.Unlock()
	if outcome != nil {
		return outcome(o)
	}
	return nil
}

// rig is an engine in front of a service.
type rig struct {
	*ledger
	t       testing.TB
	address string
	tls     *tls.Config // of the agent
	client  *http.Client
	ca      *testca.CA
	stop    func() // ends the engine and waits for it
}

type change func(*httpd.Config)

// newRig puts the engine in front of a service's handler, which speaks TLS with HTTP/2.
func newRig(t testing.TB, service http.Handler, changes ...change) *rig {
	t.Helper()
	up := httptest.NewUnstartedServer(service)
	up.EnableHTTP2 = true
	up.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	up.StartTLS()
	t.Cleanup(up.Close)
	u, err := url.Parse(up.URL)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(up.Certificate())
	return rigFor(t, httpd.Upstream{URL: u, RootCAs: roots, ServerName: "example.com"}, changes...)
}

func rigFor(t testing.TB, up httpd.Upstream, changes ...change) *rig {
	t.Helper()
	ca := testca.New(t, "test.example")
	server := ca.SVID(ca.ID("/deputy/proxy/main"), testca.Hosts("localhost"))
	agent := ca.SVID(spiffeid.RequireFromString(agentID))
	r := &rig{t: t, ca: ca, ledger: &ledger{roles: []string{"analyst"}, counts: map[string]int{}, allow: func(proxy.Command) bool { return true }}}
	cfg := httpd.Config{
		Core: r.ledger, Target: ca.ID("/target/billing"), Mesh: "https://broker.test", SVID: server, TLS: proxy.ServerTLS(server, ca.Bundle(), ca.TrustDomain()),
		Upstream: up, Accounts: []httpd.Account{{Name: "reader", Bearer: "the-services-own-secret"}}, Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range changes {
		c(&cfg)
	}
	e, err := httpd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- e.Serve(ctx, l) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("serving: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the engine doesn't end")
		}
	})
	t.Cleanup(r.stop)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	pair := tls.Certificate{PrivateKey: agent.PrivateKey}
	for _, c := range agent.Certificates {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	r.address = l.Addr().String()
	r.tls = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}}
	transport := &http.Transport{TLSClientConfig: r.tls.Clone(), ForceAttemptHTTP2: true, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	r.client = &http.Client{Transport: transport, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r
}

func (r *rig) request(method, path string, body io.Reader, headers ...string) *http.Request {
	r.t.Helper()
	q, err := http.NewRequest(method, "https://"+r.address+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+goodCredential)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Add(headers[i], headers[i+1])
	}
	return q
}

// do sends a request and reads the answer.
func (r *rig) do(method, path string, body io.Reader, headers ...string) (*http.Response, string) {
	r.t.Helper()
	a, err := r.client.Do(r.request(method, path, body, headers...))
	if err != nil {
		r.t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return a, string(text)
}

// raw sends bytes over HTTP/1.1 and reads all that comes until the proxy closes or nothing comes for a while.
func (r *rig) raw(text string) string {
	r.t.Helper()
	cfg := r.tls.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", r.address, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return ""
	}
	_ = c.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	out, _ := io.ReadAll(c)
	return string(out)
}
