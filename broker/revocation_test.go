package broker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/testca"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// operatorReply is what the operators' API answers.
type operatorReply struct {
	reply
	ID       string
	Revision uint64
	Version  uint64
	Applied  []struct {
		Proxy string
		Ended uint32 `json:"sessions_ended"`
	}
	Pending []string
}

// call is an operator's call: the proof is by key, over signed, for act.
func (l *login) call(path, act string, body []byte, change ...func(*actor.OperatorRequest, *http.Request)) operatorReply {
	l.m.t.Helper()
	now := l.m.clock.now()
	p := actor.OperatorRequest{
		Issuer: l.user.Issuer, Mesh: meshURL, Act: act, Body: sha256.Sum256(body), IssuedAt: now, Expires: now.Add(actor.OperatorLife), ID: actor.NewHexID(),
	}
	req, err := http.NewRequest(http.MethodPost, "https://"+l.m.webAddr+path, bytes.NewReader(body))
	if err != nil {
		l.m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+l.idToken)
	for _, f := range change {
		f(&p, req)
	}
	if _, given := req.Header["Deputy-Operator-Proof"]; !given {
		proof, err := actor.SignOperatorRequest(l.key, p)
		if err != nil {
			l.m.t.Fatal(err)
		}
		req.Header.Set("Deputy-Operator-Proof", proof)
	}
	resp, err := l.m.web.Do(req)
	if err != nil {
		l.m.t.Fatal(err)
	}
	defer resp.Body.Close()
	out := operatorReply{}
	out.status = resp.StatusCode
	var raw json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		l.m.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		l.m.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &out.reply); err != nil {
		l.m.t.Fatal(err)
	}
	return out
}

func (l *login) revoke(body string) operatorReply {
	l.m.t.Helper()
	return l.call("/operator/v1/revocations", "revoke", []byte(body))
}

func (m *mesh) admin() *login {
	m.t.Helper()
	return m.login("root", func(c map[string]any) { c["groups"] = []string{"platform", "staff"} })
}

func TestRevocationEndsTheExchange(t *testing.T) {
	m := newMesh(t)
	admin := m.admin()
	jti := func(grant string) (iss, id string) {
		g, err := actor.ParseGrant(grant)
		if err != nil {
			t.Fatal(err)
		}
		return g.Issuer.String(), g.ID
	}
	for kind, body := range map[string]func(f flow) string{
		"user": func(f flow) string {
			return fmt.Sprintf(`"iss":%q,"sub":%q`, f.login.user.Issuer, f.login.user.Subject)
		},
		"session": func(f flow) string { return fmt.Sprintf(`"value":%q`, f.login.sid) },
		"task": func(f flow) string {
			g, err := actor.ParseUserGrant(f.root)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf(`"value":%q`, g.Txn)
		},
		"agent": func(f flow) string { return fmt.Sprintf(`"value":%q`, f.planner.ID) },
		"edge":  func(f flow) string { return fmt.Sprintf(`"value":%q,"delegate":%q`, f.planner.ID, f.researcher.ID) },
		"grant": func(f flow) string { iss, id := jti(f.one); return fmt.Sprintf(`"iss":%q,"value":%q`, iss, id) },
	} {
		t.Run(kind, func(t *testing.T) {
			f, other := m.flow("user-of-"+kind), m.flow("bystander-of-"+kind)
			deepest := join(f.two, f.one, f.root, f.login.idToken)
			m.ok(m.exchange(f.runner, deepest))
			m.ok(m.exchange(other.runner, join(other.parts()...)))
			r := admin.revoke(`{"kind":"` + kind + `",` + body(f) + `,"reason":"test","for":"1h"}`)
			if r.status != http.StatusOK || r.ID == "" || r.Revision == 0 || len(r.Pending) != 2 {
				t.Fatalf("answer: %+v", r)
			}
			m.refused(m.exchange(f.runner, deepest), "invalid_request", string(actor.ClassRevoked), "session.ended")
			m.ok(m.exchange(other.runner, join(other.parts()...)))
			if kind == "grant" || kind == "edge" {
				// What hangs on it is over, what is above goes on.
				m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
			}
		})
	}
	if n := len(events[*audit.Revoked](m)); n != 6 {
		t.Errorf("%d revocations are recorded, want 6", n)
	}
	calls := events[*audit.OperatorCall](m)
	if len(calls) != 6 || calls[0].Result != audit.Accepted || calls[0].Subject != "root" {
		t.Errorf("calls: %+v", calls)
	}
}

func TestRevokedTargetAndItsReturn(t *testing.T) {
	m := newMesh(t)
	f, admin := m.flow("alice"), m.admin()
	subject := join(f.root, f.login.idToken)
	m.ok(m.exchange(f.planner, subject))
	if r := admin.revoke(`{"kind":"target","value":"orders-db","for":"20m"}`); r.status != http.StatusOK {
		t.Fatalf("%s", r.reply)
	}
	m.refused(m.exchange(f.planner, subject), "invalid_request", string(actor.ClassRevoked))
	m.clock.pass(21 * time.Minute)
	m.ok(m.exchange(f.planner, subject))
	if r := admin.revoke(`{"kind":"target","value":"payroll"}`); r.status != http.StatusBadRequest {
		t.Errorf("an unknown target: %s", r.reply)
	}
}

// A revocation is forgotten some day; what it ended stays ended.
func TestSessionsStayEndedAfterTheRevocationIsForgotten(t *testing.T) {
	m := newMesh(t)
	f, admin := m.flow("alice"), m.admin()
	subject := join(f.root, f.login.idToken)
	m.ok(m.exchange(f.planner, subject))
	if r := admin.revoke(fmt.Sprintf(`{"kind":"user","iss":%q,"sub":"alice","for":"1s"}`, m.idp.URL)); r.status != http.StatusOK {
		t.Fatalf("%s", r.reply)
	}
	m.clock.pass(20 * time.Minute)
	m.refused(m.exchange(f.planner, subject), "invalid_request", "session.ended")
	// A fresh sign-in is another matter.
	again := m.login("alice")
	m.ok(m.exchange(f.planner, join(again.root(f.planner), again.idToken)))
}

func TestRevocationsSurviveARestart(t *testing.T) {
	m := newMesh(t)
	f, admin := m.flow("alice"), m.admin()
	first := admin.revoke(fmt.Sprintf(`{"kind":"agent","value":%q}`, f.planner.ID))
	if first.status != http.StatusOK {
		t.Fatalf("%s", first.reply)
	}
	m.stop()
	m.start()
	m.refused(m.exchange(f.researcher, join(f.one, f.root, f.login.idToken)), "invalid_request", string(actor.ClassRevoked))
	if next := m.admin().revoke(`{"kind":"task","value":"x"}`); next.Revision != first.Revision+1 {
		t.Errorf("revision %d follows %d", next.Revision, first.Revision)
	}
}

func TestWhoMayCallOperators(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
	admin := m.admin()
	user := []byte(fmt.Sprintf(`{"kind":"user","iss":%q,"sub":"alice"}`, m.idp.URL))
	const path, act = "/operator/v1/revocations", "revoke"
	for name, tc := range map[string]struct {
		do   func() operatorReply
		want int
	}{
		"ID token alone": {func() operatorReply {
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Deputy-Operator-Proof", "x") })
		}, http.StatusUnauthorized},
		"no proof at all": {func() operatorReply {
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) {
				r.Header["Deputy-Operator-Proof"] = nil
			})
		}, http.StatusUnauthorized},
		"a proof by another key: an agent that saw the ID token": {func() operatorReply {
			thief := *admin
			thief.key = testca.NewKey(t)
			return thief.call(path, act, user)
		}, http.StatusUnauthorized},
		"a proof of another call": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) { p.Act = "policy" })
		}, http.StatusUnauthorized},
		"a proof over another body": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) { p.Body = sha256.Sum256([]byte("x")) })
		}, http.StatusUnauthorized},
		"a proof for another mesh": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) { p.Mesh = "https://other.example" })
		}, http.StatusUnauthorized},
		"an old proof": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) {
				p.IssuedAt, p.Expires = p.IssuedAt.Add(-5*time.Minute), p.IssuedAt.Add(-4*time.Minute)
			})
		}, http.StatusUnauthorized},
		"a sign-in that has expired": {func() operatorReply {
			return m.login("root", func(c map[string]any) {
				c["groups"], c["exp"] = "platform", m.clock.now().Add(-time.Second).Unix()
			}).call(path, act, user)
		}, http.StatusUnauthorized},
		"the user grant as proof": {func() operatorReply {
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Deputy-Operator-Proof", f.root) })
		}, http.StatusUnauthorized},
		"a delegated token instead of the ID token": {func() operatorReply {
			token := m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) })
		}, http.StatusUnauthorized},
		"a user without a role, about somebody else": {func() operatorReply {
			return m.login("bob").call(path, act, user)
		}, http.StatusForbidden},
		"a user about himself as a whole": {func() operatorReply {
			return m.login("alice").call(path, act, user)
		}, http.StatusForbidden},
		"a user about another's session": {func() operatorReply {
			return m.login("bob").call(path, act, []byte(fmt.Sprintf(`{"kind":"session","value":%q}`, f.login.sid)))
		}, http.StatusForbidden},
		"a user about nobody's task": {func() operatorReply {
			return m.login("bob").call(path, act, []byte(`{"kind":"task","value":"abc"}`))
		}, http.StatusForbidden},
		"a user publishing policy": {func() operatorReply {
			return m.login("bob").call("/operator/v1/policy", "policy", []byte("x"))
		}, http.StatusForbidden},
		"an unknown member": {func() operatorReply {
			return admin.call(path, act, []byte(`{"kind":"task","value":"abc","force":true}`))
		}, http.StatusBadRequest},
		"a duplicate member": {func() operatorReply {
			return admin.call(path, act, []byte(`{"kind":"task","value":"abc","value":"def"}`))
		}, http.StatusBadRequest},
		"an unknown kind": {func() operatorReply { return admin.call(path, act, []byte(`{"kind":"world","value":"abc"}`)) }, http.StatusBadRequest},
		"an agent that is none": {func() operatorReply {
			return admin.call(path, act, []byte(`{"kind":"agent","value":"spiffe://corp.example/deputy/broker"}`))
		}, http.StatusBadRequest},
		"too large": {func() operatorReply { return admin.call(path, act, bytes.Repeat([]byte(" "), 20<<10)) }, http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if r := tc.do(); r.status != tc.want {
				t.Errorf("%s, want %d", r.reply, tc.want)
			}
		})
	}
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))

	// A proof is good once.
	var proof string
	body := []byte(`{"kind":"task","value":"abc"}`)
	if r := admin.call(path, act, body, func(p *actor.OperatorRequest, r *http.Request) {
		var err error
		if proof, err = actor.SignOperatorRequest(admin.key, *p); err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Deputy-Operator-Proof", proof)
	}); r.status != http.StatusOK {
		t.Fatalf("%s", r.reply)
	}
	replay := func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Deputy-Operator-Proof", proof) }
	if r := admin.call(path, act, body, replay); r.status != http.StatusUnauthorized || !strings.Contains(r.Text, "used before") {
		t.Errorf("replayed: %s", r.reply)
	}
	m.stop()
	m.start()
	if r := admin.call(path, act, body, replay); r.status != http.StatusUnauthorized {
		t.Errorf("replayed after a restart: %s", r.reply)
	}

	// Everybody may end what is his own.
	if r := m.login("alice").revoke(fmt.Sprintf(`{"kind":"session","value":%q}`, f.login.sid)); r.status != http.StatusOK {
		t.Errorf("own session: %s", r.reply)
	}
	m.refused(m.exchange(f.planner, join(f.root, f.login.idToken)), "invalid_request", string(actor.ClassRevoked), "session.ended")
}

func TestEndedAgentsEndTheirSubtree(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	m.ok(m.exchange(f.runner, join(f.parts()...)))
	m.issuer.end(agentID(t, f.researcher))
	deepest := join(f.parts()...)
	m.eventually("the runner is refused", func() bool { return m.exchange(f.runner, deepest).status != http.StatusOK })
	m.refused(m.exchange(f.runner, deepest), "invalid_request", string(actor.ClassRevoked))
	m.refused(m.exchange(f.researcher, join(f.one, f.root, f.login.idToken)), "invalid_request", string(actor.ClassRevoked))
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
	if ended := events[*audit.SessionEnded](m); len(ended) != 0 {
		t.Errorf("the session ended with an inner agent: %+v", ended[0])
	}
	m.stop()
	m.start()
	m.refused(m.exchange(f.runner, deepest), "invalid_request", string(actor.ClassRevoked))
	m.issuer.end(agentID(t, f.planner))
	m.eventually("the session ends with its first agent", func() bool {
		ended := events[*audit.SessionEnded](m)
		return len(ended) == 1 && ended[0].Reason == "agent_ended" && ended[0].By == f.planner.ID.String()
	})
}

func TestNoTokensWhileTheIssuerCantBeHeard(t *testing.T) {
	m := newMesh(t, func(m *mesh) { m.cfg.IssuerSocket, m.unready = filepath.Join(m.dir, "nobody.sock"), true })
	f := m.flow("alice")
	m.refused(m.exchange(f.planner, join(f.root, f.login.idToken)), "temporarily_unavailable", "not-ready")
}

// What is revoked between the verification and the answer wins: the token is signed already, but the record
// of it isn't durable yet, and it never leaves.
func TestRevocationRacesWithTheExchange(t *testing.T) {
	g := &gate{}
	var store *sqlite.Store
	m := newMesh(t, func(m *mesh) {
		cfg := audittest.Config(m.t)
		cfg.FS = slowDisk{g}
		m.log = audittest.OpenConfig(m.t, cfg)
		m.cfg.Log = m.log
		var err error
		if store, err = sqlite.Open(filepath.Join(m.dir, "broker.db")); err != nil {
			m.t.Fatal(err)
		}
		m.cfg.Store = store
	})
	t.Cleanup(func() { _ = store.Close() })
	f := m.flow("alice")
	subject := join(f.root, f.login.idToken)
	m.ok(m.exchange(f.planner, subject)) // opens the session

	waiting, open := g.shut()
	defer open()
	answer := make(chan reply, 1)
	go func() { answer <- m.exchange(f.planner, subject) }()
	<-waiting // its record is on the way to the disk
	m.issuer.end(agentID(t, f.planner))
	m.eventually("the end is stored", func() bool {
		c, err := store.Load(t.Context())
		return err == nil && len(c.Ended) == 1
	})
	// The broker's memory follows the store at once; a second exchange would see it.
	time.Sleep(50 * time.Millisecond)
	open()
	m.refused(<-answer, "invalid_request", string(actor.ClassRevoked))
}

func TestAnAgentGivesUpItsOwn(t *testing.T) {
	m := newMesh(t)
	f, other := m.flow("alice"), m.flow("bob")
	deepest := join(f.parts()...)
	token := m.ok(m.exchange(f.runner, deepest))
	give := func(as *x509svid.SVID, what string) int {
		resp, err := m.client(as).Post("https://"+m.meshAddr+"/revoke", "application/x-www-form-urlencoded", strings.NewReader("token="+what))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	revoked := func() []*audit.Revoked { return events[*audit.Revoked](m) }
	// Not its own, and nonsense: 200, and nothing happens.
	for _, what := range []string{token, f.one, "nonsense", f.login.idToken, f.root} {
		if got := give(other.planner, what); got != http.StatusOK {
			t.Errorf("%.20s…: %d", what, got)
		}
	}
	if give(f.runner, f.one) != http.StatusOK || len(revoked()) != 0 {
		t.Fatalf("something was revoked: %+v", revoked())
	}
	// A forged token must not revoke by its jti.
	parsed, err := actor.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	forger := testca.NewKey(t)
	parsed.Actors = []actor.AgentID{agentID(t, other.planner)}
	forged, err := actor.SignToken(forger, actor.NonceFor(forger.Public()), parsed)
	if err != nil {
		t.Fatal(err)
	}
	if give(other.planner, forged) != http.StatusOK || len(revoked()) != 0 {
		t.Fatal("a forged token revoked something")
	}
	// A parent gives up what it granted, and what hangs on it is over.
	if give(f.planner, f.one) != http.StatusOK {
		t.Fatal("its own grant was not taken")
	}
	m.refused(m.exchange(f.runner, deepest), "invalid_request", string(actor.ClassRevoked))
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
	// And a token of an agent below it.
	if give(f.planner, token) != http.StatusOK || len(revoked()) != 2 || revoked()[1].Value != parsed.ID {
		t.Errorf("revoked: %+v", revoked())
	}
	if give(m.ca.SVID(m.ca.ID("/deputy/proxy/orders")), token) != http.StatusBadRequest {
		t.Error("a proxy may give up tokens")
	}
}

// proxyConn is a proxy on the feed.
type proxyConn struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[feedv1.ProxyMessage, feedv1.BrokerMessage]
}

func (m *mesh) dial(as *x509svid.SVID) feedv1.FeedClient {
	m.t.Helper()
	cfg := tlsconfig.MTLSClientConfig(as, m.ca.Bundle(), tlsconfig.AuthorizeID(m.ca.ID("/deputy/broker")))
	cfg.MinVersion = tls.VersionTLS13
	conn, err := grpc.NewClient("passthrough:"+m.feedAddr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	return feedv1.NewFeedClient(conn)
}

func (m *mesh) proxy(ctx context.Context, as *x509svid.SVID, targets ...string) (*proxyConn, feed.Update, error) {
	m.t.Helper()
	s, err := m.dial(as).Sync(ctx)
	if err != nil {
		return nil, feed.Update{}, err
	}
	h := &feed.Hello{}
	for _, n := range targets {
		h.Targets = append(h.Targets, name(m.t, n))
	}
	p := &proxyConn{m.t, s}
	if err := s.Send(feed.ProxyMessageToProto(feed.ProxyMessage{Hello: h})); err != nil {
		return nil, feed.Update{}, err
	}
	u, err := p.next()
	return p, u, err
}

func (p *proxyConn) next() (feed.Update, error) {
	raw, err := p.stream.Recv()
	if err != nil {
		return feed.Update{}, err
	}
	return feed.UpdateFromProto(raw)
}

func (p *proxyConn) delta() feed.Update {
	p.t.Helper()
	for {
		u, err := p.next()
		if err != nil {
			p.t.Fatal(err)
		}
		if u.Kind != feed.Heartbeat {
			return u
		}
	}
}

func (p *proxyConn) ack(revision uint64, ended uint32) {
	p.t.Helper()
	if err := p.stream.Send(feed.ProxyMessageToProto(feed.ProxyMessage{Ack: &feed.Ack{Revision: revision, SessionsEnded: ended}})); err != nil {
		p.t.Fatal(err)
	}
}

func TestFeed(t *testing.T) {
	m := newMesh(t, func(m *mesh) { m.cfg.ApplyWait = 0 }) // the default
	admin := m.admin()
	before := admin.revoke(`{"kind":"target","value":"crm-db"}`)
	admin.revoke(`{"kind":"task","value":"old"}`)
	p, snapshot, err := m.proxy(t.Context(), m.ca.SVID(m.ca.ID("/deputy/proxy/orders")), "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	if snapshot.Kind != feed.Snapshot || snapshot.Revision != before.Revision+1 || len(snapshot.Revocations) != 1 ||
		snapshot.Revocations[0].Of != (feed.Match{Kind: feed.Task, Value: "old"}) {
		t.Errorf("the snapshot tells about other targets, or too little: %+v", snapshot)
	}
	if diff := cmp.Diff([]string{m.cfg.TokenKeyStatement}, snapshot.TokenKeyStatements); diff != "" {
		t.Errorf("token keys: %s", diff)
	}
	p.ack(snapshot.Revision, 0)
	crm, crmSnapshot, err := m.proxy(t.Context(), m.ca.SVID(m.ca.ID("/deputy/proxy/crm")), "crm-db")
	if err != nil {
		t.Fatal(err)
	}

	// One answers at once, the other doesn't: the operator hears both.
	done := make(chan operatorReply, 1)
	began := time.Now()
	go func() { done <- admin.revoke(`{"kind":"session","value":"gone"}`) }()
	u := p.delta()
	if u.Kind != feed.Delta || u.Revision != snapshot.Revision+1 || len(u.Revocations) != 1 || u.Revocations[0].Of.Value != "gone" {
		t.Errorf("delta: %+v", u)
	}
	p.ack(u.Revision, 3)
	r := <-done
	if len(r.Applied) != 1 || r.Applied[0].Proxy != "orders" || r.Applied[0].Ended != 3 || len(r.Pending) != 1 || r.Pending[0] != "crm" {
		t.Errorf("answer: %+v", r)
	}
	if took := time.Since(began); took < 1500*time.Millisecond || took > 6*time.Second {
		t.Errorf("it waited %s for the silent proxy, want about 2 s", took)
	}
	crm.ack(crm.delta().Revision, 0)

	// A revision that doesn't concern it comes empty, so that nothing can be missed unseen.
	go func() { done <- admin.revoke(`{"kind":"target","value":"crm-db"}`) }()
	u, v := p.delta(), crm.delta()
	if u.Revision != v.Revision || len(u.Revocations) != 0 || len(v.Revocations) != 1 {
		t.Errorf("orders got %+v, crm %+v", u, v)
	}
	p.ack(u.Revision, 0)
	crm.ack(v.Revision, 1)
	if r := <-done; len(r.Applied) != 2 || len(r.Pending) != 0 || r.Applied[0].Proxy != "crm" || r.Applied[0].Ended != 1 {
		t.Errorf("answer: %+v", r)
	}

	f := m.flow("alice")
	m.issuer.end(agentID(t, f.planner))
	if u := p.delta(); len(u.Ended) != 1 || u.Ended[0].ID != f.planner.ID.String() {
		t.Errorf("ended agent: %+v", u)
	}
	if u, err := p.next(); err != nil || u.Kind != feed.Heartbeat || u.Revision != v.Revision+1 {
		t.Errorf("heartbeat: %+v %v", u, err)
	}
	if crmSnapshot.Revision != snapshot.Revision {
		t.Errorf("snapshots at %d and %d", crmSnapshot.Revision, snapshot.Revision)
	}
}

func TestFeedRefuses(t *testing.T) {
	m := newMesh(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	orders := m.ca.SVID(m.ca.ID("/deputy/proxy/orders"))
	for name, tc := range map[string]struct {
		as      *x509svid.SVID
		targets []string
	}{
		"foreign target":    {orders, []string{"crm-db"}},
		"one of them":       {orders, []string{"orders-db", "crm-db"}},
		"unknown target":    {orders, []string{"payroll"}},
		"no target":         {orders, nil},
		"unknown proxy":     {m.ca.SVID(m.ca.ID("/deputy/proxy/other")), []string{"orders-db"}},
		"longer path":       {m.ca.SVID(m.ca.ID("/deputy/proxy/orders/x")), []string{"orders-db"}},
		"an agent":          {m.agent("planner"), []string{"orders-db"}},
		"the broker itself": {m.ca.SVID(m.ca.ID("/deputy/broker")), []string{"orders-db"}},
		"another CA":        {testca.New(t, "corp.example").SVID(orders.ID), []string{"orders-db"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, u, err := m.proxy(ctx, tc.as, tc.targets...); err == nil {
				t.Errorf("it got %+v", u)
			}
		})
	}
	p, snapshot, err := m.proxy(ctx, orders, "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	p.ack(snapshot.Revision+5, 0)
	for {
		if _, err := p.next(); err != nil {
			break // it acknowledged what was never sent
		}
	}
}

// With a log that takes nothing there is no token, and the error says that there is no record.
func TestNoTokenWithoutEvidence(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
	if err := m.log.Close(); err != nil {
		t.Fatal(err)
	}
	for what, subject := range map[string]string{"known session": join(f.root, f.login.idToken), "new session": join(f.login.root(f.planner), f.login.idToken)} {
		r := m.exchange(f.planner, subject)
		if r.status != http.StatusServiceUnavailable || r.Token != "" || !strings.Contains(r.Text, "record: none") {
			t.Errorf("%s: %s", what, r)
		}
	}
	if r := m.admin().revoke(`{"kind":"task","value":"x"}`); r.status != http.StatusServiceUnavailable || !strings.Contains(r.Text, "record: none") {
		t.Errorf("revocation: %s", r.reply)
	}
}
