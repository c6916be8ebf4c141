package broker_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

// proxyVerifier is what a proxy for orders-db believes.
func (m *mesh) proxyVerifier() *actor.Verifier {
	m.t.Helper()
	at, err := actor.TargetID(m.ca.TrustDomain(), "orders-db")
	if err != nil {
		m.t.Fatal(err)
	}
	v, err := actor.NewVerifier(actor.Config{
		TrustDomain: m.ca.TrustDomain(), Bundles: m.ca.Bundle(), Target: at, Mesh: meshURL, TokenKeys: oneKey(m.cert),
		RootEvidence: actor.RootBroker, Revocations: nothingRevoked{}, Now: m.clock.now,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return v
}

type oneKey actor.KeyStatement

func (k oneKey) TokenKey(string) (actor.KeyStatement, error) { return actor.KeyStatement(k), nil }

type nothingRevoked struct{}

func (nothingRevoked) Check([]actor.RevocationKey) error { return nil }

func TestExchangeGivesATokenThatAProxyAccepts(t *testing.T) {
	m := newMesh(t)
	alice := m.login("alice", func(c map[string]any) { c["acr"] = "phr" })
	planner := m.agent("planner")
	researcher := m.child(planner, "researcher")
	runner := m.child(researcher, "runner")
	root := alice.root(planner)
	one := m.pass(planner, researcher, root)
	two := m.pass(researcher, runner, one, func(g *actor.Grant) { g.Cap = m.cap("select") })

	// The deepest comes first: it opens the session as well as any other.
	r := m.exchange(runner, join(two, one, root, alice.idToken))
	token := m.ok(r)
	if r.Type != "urn:ietf:params:oauth:token-type:access_token" || r.Scheme != "Bearer" || r.Refresh != "" ||
		r.Expires <= 290 || r.Expires > 300 || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("answer is %+v", r)
	}
	chain, err := m.proxyVerifier().Verify(t.Context(), runner.Certificates, actor.JoinCredential(token, []string{two, one, root}, alice.idToken))
	if err != nil {
		t.Fatalf("a proxy refuses it: %v", err)
	}
	if chain.Depth() != 3 || chain.User != alice.user || chain.ACR != "phr" || chain.Purpose != "q3 refunds" || len(chain.Roles) != 1 || chain.Roles[0] != "analyst" {
		t.Errorf("chain is %+v", chain)
	}
	if got, _ := json.Marshal(chain.Details); string(got) != string(mustJSON(t, m.cap("select"))) {
		t.Errorf("the token allows %s", got)
	}
	m.ok(m.exchange(planner, join(root, alice.idToken)))
	m.ok(m.exchange(researcher, join(one, root, alice.idToken)))
	if opened := events[*audit.SessionOpened](m); len(opened) != 1 || opened[0].FirstAgent != planner.ID.String() {
		t.Errorf("sessions opened: %+v", opened)
	}
	exchanges := events[*audit.Exchange](m)
	if len(exchanges) != 3 || exchanges[0].Result != audit.Accepted || exchanges[0].Presenter != runner.ID.String() || exchanges[0].TokenID != chain.Token.ID {
		t.Errorf("exchanges: %+v", exchanges)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestExchangeNarrowsToWhatIsAskedFor(t *testing.T) {
	m := newMesh(t)
	alice, planner := m.login("alice"), m.agent("planner")
	subject := join(alice.root(planner), alice.idToken)
	parse := func(r reply) actor.Token {
		t.Helper()
		tok, err := actor.ParseToken(m.ok(r))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	r := m.exchange(planner, subject, "scope", "postgres:select")
	if got := parse(r).Details[0].(actor.PostgresDetail); len(got.Actions) != 1 || got.Actions[0] != "select" || r.Scope != "postgres:select" {
		t.Errorf("by scope: %+v, scope %q", got, r.Scope)
	}
	want := `[{"type":"deputy_postgres","locations":["spiffe://corp.example/target/orders-db"],"actions":["update"],"databases":["orders"],"max_rows":5}]`
	if got := mustJSON(t, parse(m.exchange(planner, subject, "authorization_details", want)).Details); string(got) != want {
		t.Errorf("by details: %s", got)
	}
	for _, audience := range []string{"orders-db", "spiffe://corp.example/target/orders-db"} {
		if got := parse(m.exchange(planner, subject, "resource", "", "audience", audience)).Audience.String(); got != "spiffe://corp.example/target/orders-db" {
			t.Errorf("audience %s became %s", audience, got)
		}
	}
	m.ok(m.exchange(planner, subject, "client_id", planner.ID.String(), "purpose", "q3 refunds", "something_unknown", "1"))
}

// The end of a token is the earliest of session, grants, SVID and five minutes, and auth_time stays.
func TestTokenEndsWithWhatEndsFirst(t *testing.T) {
	m := newMesh(t)
	planner := m.agent("planner")
	parse := func(r reply) actor.Token {
		t.Helper()
		tok, err := actor.ParseToken(m.ok(r))
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	now := m.clock.now()

	alice := m.login("alice", func(c map[string]any) { c["auth_time"] = now.Add(-12*time.Hour + 2*time.Minute).Unix() })
	if got := parse(m.exchange(planner, join(alice.root(planner), alice.idToken))); got.Expires.Unix() != now.Add(2*time.Minute).Unix() || got.AuthTime.Unix() != now.Add(-12*time.Hour+2*time.Minute).Unix() {
		t.Errorf("by session: %s, auth_time %s", got.Expires, got.AuthTime)
	}
	bob := m.login("bob")
	short := bob.root(planner, func(g *actor.UserGrant) { g.Expires = now.Add(time.Minute) })
	if got := parse(m.exchange(planner, join(short, bob.idToken))); got.Expires.Unix() != now.Add(time.Minute).Unix() {
		t.Errorf("by grant: %s", got.Expires)
	}
	brief := m.ca.SVID(planner.ID, func(c *certificate) { c.NotAfter = now.Add(90 * time.Second) })
	carol := m.login("carol")
	if got := parse(m.exchange(brief, join(carol.root(planner), carol.idToken))); got.Expires.Unix() != now.Add(90*time.Second).Unix() {
		t.Errorf("by SVID: %s", got.Expires)
	}
}

func TestSessionOutlivesTheIDTokenButOpensWithAFreshOne(t *testing.T) {
	m := newMesh(t)
	planner := m.agent("planner")
	// The SVIDs of the test live for an hour, so sign-ins of five minutes stand in for longer ones.
	alice := m.login("alice", func(c map[string]any) { c["exp"] = m.clock.now().Add(5 * time.Minute).Unix() })
	root := alice.root(planner)
	m.ok(m.exchange(planner, join(root, alice.idToken)))
	m.clock.pass(10 * time.Minute)
	m.ok(m.exchange(planner, join(root, alice.idToken)))
	m.refused(m.exchange(planner, join(alice.root(planner), alice.idToken)), "invalid_request", string(actor.ClassIDTokenExpired))

	// A re-signed grant of the same task goes on in the same session.
	parsed, err := actor.ParseUserGrant(root)
	if err != nil {
		t.Fatal(err)
	}
	m.ok(m.exchange(planner, join(alice.root(planner, func(g *actor.UserGrant) { g.Txn = parsed.Txn }), alice.idToken)))
}

func TestStateSurvivesARestart(t *testing.T) {
	m := newMesh(t)
	alice, planner := m.login("alice", func(c map[string]any) { c["exp"] = time.Now().Add(5 * time.Minute).Unix() }), m.agent("planner")
	subject := join(alice.root(planner), alice.idToken)
	m.ok(m.exchange(planner, subject))
	m.stop()
	m.clock.pass(10 * time.Minute)
	m.start()
	m.eventually("the session goes on", func() bool { return m.exchange(planner, subject).status == http.StatusOK })
	if opened := events[*audit.SessionOpened](m); len(opened) != 1 {
		t.Errorf("%d sessions were opened, want 1", len(opened))
	}
}
