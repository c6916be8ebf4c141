// Package hoptest is what the tests of engines that speak HTTP share: a ledger in the core's place, a service, and agents.
package hoptest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// What a ledger takes, and whose it is.
const (
	Credential     = "token~grant~grant"
	NextCredential = "token2~grant~grant"
	Agent          = "spiffe://test.example/agent/planner/0123456789abcdef0123456789abcdef"
	Target         = "spiffe://test.example/target/billing"
)

// NewLedger allows everything to an analyst.
func NewLedger() *Ledger {
	return &Ledger{Roles: []string{"analyst"}, Counts: map[string]int{}, Allow: func(proxy.Command) bool { return true }}
}

// Ledger stands in for the core: it decides by a function and writes down what the engine did, in order.
type Ledger struct {
	Roles  []string
	Opened atomic.Int64

	mu    sync.Mutex
	Allow func(proxy.Command) bool // guarded by mu, as is what follows
	// Demanded are the obligations of other commands than the one at hand; nil is none.
	Demanded func(proxy.Command) policy.Obligations
	Ob       policy.Obligations
	Obliges  func(proxy.Command) policy.Obligations // instead of Ob
	Durable  func(context.Context) error
	Outcome  func(proxy.Outcome) error
	events   []Event
	sessions []*Session
	Counts   map[string]int
}

// Event is one thing that the engine did.
type Event struct {
	Kind string // decided, refused, forwarded, completed, closed
	Cmd  proxy.Command
	Out  proxy.Outcome
	Why  string
}

// Add writes an event down.
func (l *Ledger) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// All gives the events of a kind.
func (l *Ledger) All(kind string) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Event
	for _, e := range l.events {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// Set changes the ledger's fields while an engine runs.
func (l *Ledger) Set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// Await waits for the latest event of a kind that a test finds.
func (l *Ledger) Await(t testing.TB, kind, text string) Event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all := l.All(kind)
		for i := len(all) - 1; i >= 0; i-- {
			if strings.Contains(all[i].Cmd.Scrubbed+all[i].Why, text) {
				return all[i]
			}
		}
	}
	t.Fatalf("nothing %s of %q among %+v", kind, text, l.All(kind))
	return Event{}
}

func (l *Ledger) Open(_ context.Context, peer proxy.Peer, credential string, _ proxy.Connection) (hop.Session, error) {
	if credential != Credential || len(peer.Certificates) == 0 || !strings.HasPrefix(peer.Certificates[0].URIs[0].Path, "/agent/") {
		return nil, &proxy.Refusal{Class: "token", Reason: "the credential can't be read", RecordID: "rec-open"}
	}
	s := &Session{l: l, agent: peer.Certificates[0].URIs[0].String(), id: fmt.Sprintf("s%d", l.Opened.Add(1))}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions = append(l.sessions, s)
	return s, nil
}

func (l *Ledger) Count(class string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Counts[class]++
}

// Last is the newest session.
func (l *Ledger) Last() *Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions[len(l.sessions)-1]
}

// Session is one that the ledger opened.
type Session struct {
	l      *Ledger
	id     string
	agent  string
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   sync.Once

	mu     sync.Mutex
	passes []*testPass // guarded by mu
}

func (s *Session) ID() string { return s.id }
func (s *Session) Roles() []string {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.l.Roles
}
func (s *Session) Chain() *actor.Chain {
	agent, err := actor.AgentIDFromString(s.agent)
	if err != nil {
		panic(err)
	}
	return &actor.Chain{
		User: actor.SubjectID{Issuer: "https://idp.test", Subject: "ada"}, Txn: strings.Repeat("0f", 16), Roles: s.Roles(), Purpose: "q3 refunds", RootEvidence: actor.RootVerified,
		Target: spiffeid.RequireFromString(Target), Digest: "sha256-of-the-chain",
		Hops: []actor.Hop{{Kind: actor.HopUser, ID: "ada"}, {Kind: actor.HopAgent, ID: s.agent, Agent: agent, Grade: actor.Attested}},
	}
}
func (s *Session) Context() context.Context { return s.ctx }

// Close completes what is still open, as the core does, and knows nothing of it but that.
func (s *Session) Close(reason, detail string) {
	s.cancel(&proxy.Ended{Class: proxy.ClassClosed, Reason: "closed"})
	s.once.Do(func() {
		s.mu.Lock()
		passes := s.passes
		s.mu.Unlock()
		for _, p := range passes {
			status := "cut"
			if !p.used.Load() {
				status = "not_sent"
			}
			_ = p.Completed(s.ctx, proxy.Outcome{Status: status})
		}
		s.l.Add(Event{Kind: "closed", Why: s.id + " " + reason + " " + detail})
	})
}

// Revoke ends the session as a revocation does.
func (s *Session) Revoke() {
	s.cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the session was ended: revoked"})
}

func (s *Session) Renew(_ context.Context, _ proxy.Peer, credential string) error {
	if credential != NextCredential {
		return &proxy.Refusal{Class: proxy.ClassRenewal, Reason: "the fresh credential doesn't continue the session", RecordID: "rec-renew"}
	}
	return nil
}

func (s *Session) Would(cmd proxy.Command) bool {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.l.Allow(cmd)
}

func (s *Session) Demands(cmd proxy.Command) policy.Obligations {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.Demanded == nil {
		return policy.Obligations{}
	}
	return s.l.Demanded(cmd)
}

func (s *Session) refuse(cmd proxy.Command, r *proxy.Refusal) *proxy.Refusal {
	r.RecordID = "rec-refused"
	s.l.Add(Event{Kind: "refused", Cmd: cmd, Why: r.Class + ": " + r.Reason})
	return r
}

func (s *Session) Refuse(_ context.Context, cmd proxy.Command, o proxy.Objection) *proxy.Refusal {
	return s.refuse(cmd, &proxy.Refusal{Class: o.Class, Reason: o.Reason})
}

func (s *Session) Authorize(ctx context.Context, cmd proxy.Command) (hop.Pass, error) {
	if s.ctx.Err() != nil {
		return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true})
	}
	s.l.mu.Lock()
	allow, ob, obliges, durable := s.l.Allow, s.l.Ob, s.l.Obliges, s.l.Durable
	s.l.mu.Unlock()
	if obliges != nil {
		ob = obliges(cmd)
	}
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
	s.l.Add(Event{Kind: "decided", Cmd: cmd})
	p := &testPass{s: s, cmd: cmd, ob: ob}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passes = append(s.passes, p)
	return p, nil
}

type testPass struct {
	s    *Session
	cmd  proxy.Command
	ob   policy.Obligations
	used atomic.Bool
	done atomic.Bool
}

func (p *testPass) RecordID() audit.RecordID        { return "rec-decided" }
func (p *testPass) Obligations() policy.Obligations { return p.ob }
func (p *testPass) Wait(context.Context) error      { return nil }
func (p *testPass) Forwarded(int64)                 { p.s.l.Add(Event{Kind: "forwarded", Cmd: p.cmd}) }

func (p *testPass) Keep(_ context.Context, piece []byte) error {
	p.s.l.Add(Event{Kind: "kept", Cmd: p.cmd, Why: string(piece)})
	return nil
}

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
	p.s.l.Add(Event{Kind: "completed", Cmd: p.cmd, Out: o})
	p.s.l.mu.Lock()
	outcome := p.s.l.Outcome
	p.s.l.mu.Unlock()
	if outcome != nil {
		return outcome(o)
	}
	return nil
}

// Service starts a service that speaks TLS with HTTP/2, and says how it is reached.
func Service(t testing.TB, service http.Handler) hop.Upstream {
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
	return hop.Upstream{URL: u, RootCAs: roots, ServerName: "example.com"}
}

// Serve runs an engine until the test's end, or stop, which waits for it.
func Serve(t testing.TB, e proxy.Engine) (address string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
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
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// AgentTLS is how an agent connects.
func AgentTLS(ca *testca.CA, id string) *tls.Config {
	agent := ca.SVID(spiffeid.RequireFromString(id))
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	pair := tls.Certificate{PrivateKey: agent.PrivateKey}
	for _, c := range agent.Certificates {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}}
}
