package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/proxy"
)

func TestARenewalContinuesTheSession(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	before := s.Expires()
	m.clock.add(4 * time.Minute)
	m.heartbeat()
	narrower := m.flow()
	narrower.details = m.details("select")
	if err := s.Renew(context.Background(), m.peer(m.researcher), m.credential(narrower)); err != nil {
		t.Fatal(err)
	}
	if !s.Expires().After(before) {
		t.Errorf("expires %s, was %s", s.Expires(), before)
	}
	m.clock.add(2 * time.Minute)
	m.heartbeat()
	p, err := s.Authorize(context.Background(), m.command("select", "orders"))
	if err != nil {
		t.Fatalf("after the renewal: %v", err)
	}
	if err := p.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	if rec := m.recorded(p.RecordID()); rec.Chain.Token.ID != narrower.tokenID || rec.Connection != s.ID() {
		t.Errorf("the record carries token %s of connection %s", rec.Chain.Token.ID, rec.Connection)
	}
	if _, err := s.Authorize(context.Background(), m.command("ddl", "orders")); refusal(t, err).Class != proxy.ClassCapability {
		t.Errorf("the narrower credential isn't in force: %v", err)
	}
	if err := s.Renew(context.Background(), m.peer(m.researcher), m.credential(m.flow())); refusal(t, err).Class != proxy.ClassRenewal {
		t.Errorf("widened back: %v", err)
	}
	// The session can be revoked by its new names, too.
	if n := m.revoke(must(feed.MatchGrant(meshURL, narrower.tokenID))); n != 1 {
		t.Errorf("ended %d sessions", n)
	}
	if err := s.Renew(context.Background(), m.peer(m.researcher), m.credential(narrower)); refusal(t, err).Class != proxy.ClassRevoked {
		t.Errorf("renewed after the end: %v", err)
	}
}

// A credential of before that was wider changes nothing either: it isn't refused, and it gives nothing back.
func TestAnOvertakenRenewalWidensNothing(t *testing.T) {
	m := serving(t)
	wide, foreign := m.flow(), m.flow()
	foreign.txn = actor.NewHexID()
	wider, other := m.credential(wide), m.credential(foreign)
	s := m.open(m.flow())
	m.clock.add(2 * time.Minute)
	m.heartbeat()
	narrower := m.flow()
	narrower.details = m.details("select")
	if err := s.Renew(context.Background(), m.peer(m.researcher), m.credential(narrower)); err != nil {
		t.Fatal(err)
	}
	if err := s.Renew(context.Background(), m.peer(m.researcher), wider); err != nil {
		t.Errorf("a wider credential of before: %v", err)
	}
	if _, err := s.Authorize(context.Background(), m.command("ddl", "orders")); refusal(t, err).Class != proxy.ClassCapability {
		t.Errorf("it gave back what was given up: %v", err)
	}
	if err := s.Renew(context.Background(), m.peer(m.researcher), other); refusal(t, err).Class != proxy.ClassRenewal {
		t.Errorf("one of another task, of before: %v", err)
	}
}

// Renewals at once, as requests and a supervisor make them, are none of them refused.
func TestRenewalsAtOnceAllCount(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	var fresh []string
	for range 16 {
		fresh = append(fresh, m.credential(m.flow()))
	}
	peer, start, errs := m.peer(m.researcher), make(chan struct{}), make(chan error, len(fresh))
	for _, credential := range fresh {
		go func() {
			<-start
			errs <- s.Renew(context.Background(), peer, credential)
		}()
	}
	close(start)
	for range fresh {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Requests overtake each other: a credential of before doesn't bring the session's end nearer.
func TestARenewalNeverGoesBack(t *testing.T) {
	m := serving(t)
	first := m.credential(m.flow())
	s := m.open(m.flow())
	m.clock.add(2 * time.Minute)
	m.heartbeat()
	if err := s.Renew(context.Background(), m.peer(m.researcher), m.credential(m.flow())); err != nil {
		t.Fatal(err)
	}
	end := s.Expires()
	if err := s.Renew(context.Background(), m.peer(m.researcher), first); err != nil {
		t.Errorf("a credential of before, still alive: %v", err)
	}
	if !s.Expires().Equal(end) {
		t.Errorf("the session ends at %s now, not at %s", s.Expires(), end)
	}
	// It is verified all the same.
	if err := s.Renew(context.Background(), m.peer(m.researcher), first[:len(first)-2]); err == nil {
		t.Error("a broken credential was taken")
	}
}

func TestARenewalThatDoesntContinueTheSessionIsRefused(t *testing.T) {
	m := serving(t)
	base := m.flow()
	base.details = m.details("select")
	s := m.open(base)
	sibling := m.agent(must(m.planner.id.Child("researcher", actor.NewHexID())))
	fresh := m.agent(m.researcher.id)
	for name, c := range map[string]struct {
		change func(f *flow)
		peer   *agent
		class  string
	}{
		"wider":               {func(f *flow) { f.details = m.details("select", "update") }, m.researcher, proxy.ClassRenewal},
		"another task":        {func(f *flow) { f.txn = actor.NewHexID() }, m.researcher, proxy.ClassRenewal},
		"another user":        {func(f *flow) { f.subject = "bob" }, m.researcher, proxy.ClassRenewal},
		"another sign-in":     {func(f *flow) { f.sid = "sid-2" }, m.researcher, proxy.ClassRenewal},
		"another role":        {func(f *flow) { f.roles = []string{"analyst", "support"} }, m.researcher, proxy.ClassRenewal},
		"another agent":       {func(f *flow) { f.agents = []*agent{m.planner, sibling} }, sibling, proxy.ClassRenewal},
		"fewer agents":        {func(f *flow) { f.agents = []*agent{m.planner} }, m.planner, proxy.ClassRenewal},
		"over another's line": {func(*flow) {}, m.planner, "presenter.actor"},
		"bound to an old key": {func(*flow) {}, fresh, "presenter.binding"},
	} {
		t.Run(name, func(t *testing.T) {
			f := m.flow()
			f.details = m.details("select")
			c.change(f)
			r := refusal(t, s.Renew(context.Background(), m.peer(c.peer), m.credential(f)))
			if r.Class != c.class {
				t.Errorf("class %q (%s), want %q", r.Class, r.Reason, c.class)
			}
			rec := m.recorded(r.RecordID)
			if _, ok := rec.Event.(*audit.Refused); !ok || rec.Connection != s.ID() {
				t.Errorf("record %+v", rec)
			}
		})
	}
	if s.Context().Err() != nil {
		t.Error("a refused renewal ended the session")
	}
	// A new SVID of the same agent, with a credential bound to it, is what rotation looks like.
	rotated := m.flow()
	rotated.details, rotated.agents = m.details("select"), []*agent{m.planner, fresh}
	if err := s.Renew(context.Background(), m.peer(fresh), m.credential(rotated)); err != nil {
		t.Errorf("after rotation: %v", err)
	}
}

func TestRenewalOverTheWire(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	svid := m.ca.SVID(m.ca.ID("/deputy/proxy/orders"))
	l, err := tls.Listen("tcp", "127.0.0.1:0", proxy.ServerTLS(svid, m.ca.Bundle(), m.ca.TrustDomain()))
	if err != nil {
		t.Fatal(err)
	}
	server := proxy.NewRenewalServer(m.core)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	as := func(a *agent) *http.Client {
		id := a.id.ID()
		cfg := tlsconfig.MTLSClientConfig(&x509svid.SVID{ID: id, Certificates: a.crt, PrivateKey: a.key}, m.ca.Bundle(), tlsconfig.AuthorizeID(svid.ID))
		return &http.Client{Timeout: soon, Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
	}
	post := func(a *agent, id, body string) (int, string) {
		t.Helper()
		resp, err := as(a).Post("https://"+l.Addr().String()+"/sessions/"+id+"/credential", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	for _, c := range []struct {
		name     string
		agent    *agent
		id, body string
		status   int
		want     string
	}{
		{"good", m.researcher, s.ID(), m.credential(m.flow()), 204, ""},
		{"another agent's session", m.planner, s.ID(), m.credential(m.flow()), 404, "no such session"},
		{"no session", m.researcher, "0123", m.credential(m.flow()), 404, "no such session"},
		{"no credential", m.researcher, s.ID(), "", 403, "credential.size"},
		{"too large", m.researcher, s.ID(), strings.Repeat("a", actor.MaxSize+1), 413, "too large"},
		{"nonsense", m.researcher, s.ID(), "a~b", 403, `"record":"0`},
	} {
		if status, body := post(c.agent, c.id, c.body); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, body, c.status, c.want)
		}
	}
	resp, err := as(m.researcher).Get("https://" + l.Addr().String() + "/ready")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 204 {
		t.Errorf("ready: %d", resp.StatusCode)
	}
}

func TestTheListenerTakesAgentsOfItsTrustDomainOnly(t *testing.T) {
	m := serving(t)
	svid := m.ca.SVID(m.ca.ID("/deputy/proxy/orders"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	cfg := proxy.ServerTLS(svid, m.ca.Bundle(), m.ca.TrustDomain())
	handshake := func(client *tls.Config) error {
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			_ = c.SetDeadline(time.Now().Add(soon))
			done <- tls.Server(c, cfg).HandshakeContext(context.Background())
			_ = c.Close()
		}()
		c, err := tls.Dial("tcp", l.Addr().String(), client)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(soon))
			_, _ = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		return <-done
	}
	client := func(id spiffeid.ID, change func(*tls.Config)) *tls.Config {
		c := tlsconfig.MTLSClientConfig(m.ca.SVID(id), m.ca.Bundle(), tlsconfig.AuthorizeAny())
		if change != nil {
			change(c)
		}
		return c
	}
	planner := m.planner.id.ID()
	if err := handshake(client(planner, nil)); err != nil {
		t.Fatalf("the control: %v", err)
	}
	for name, c := range map[string]*tls.Config{
		"a role":         client(m.ca.ID("/deputy/broker"), nil),
		"no certificate": {InsecureSkipVerify: true},
		"TLS 1.2":        client(planner, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }),
	} {
		if err := handshake(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if !cfg.SessionTicketsDisabled {
		t.Error("session tickets would let a peer resume without being checked")
	}
}
