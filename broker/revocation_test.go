package broker_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/internal/testca"
)

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

// Each revocation goes to every proxy and stays for hours, and the grant needs no signature. An agent that starts many others
// must not fill the feed with theirs.
func TestGivingUpIsCountedForTheWholeTree(t *testing.T) {
	m := newMesh(t)
	planner := m.agent("planner")
	give := func(as *x509svid.SVID) int {
		now := m.clock.now()
		child := m.child(as, "helper")
		grant, err := actor.SignGrant(as.PrivateKey, as.Certificates, actor.Grant{
			Issuer: agentID(t, as), Delegate: agentID(t, child), Mesh: meshURL, Subject: actor.SubjectID{Issuer: m.idp.URL, Subject: "x"},
			Txn: actor.NewHexID(), Previous: actor.Hash("x"), Cap: m.cap("select"), Left: 0, IssuedAt: now, Expires: now.Add(time.Minute), ID: actor.NewHexID(),
		})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := m.client(as).Post("https://"+m.meshAddr+"/revoke", "application/x-www-form-urlencoded", strings.NewReader("token="+grant))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	taken := 0
	for range 10 {
		child := m.child(planner, "worker")
		for range 5 {
			if give(child) == http.StatusOK {
				taken++
			}
		}
	}
	if taken > 25 || taken != len(events[*audit.Revoked](m)) {
		t.Errorf("%d of 50 were taken, %d recorded", taken, len(events[*audit.Revoked](m)))
	}
	if got := give(m.agent("planner")); got != http.StatusOK {
		t.Errorf("another tree: HTTP %d", got)
	}
}

// A refusal without a verified chain belongs to no task, so no task's budget of records bounds it. Many agents of one tree must
// not fill the log with them.
func TestNonsenseOfManyAgentsDoesntFillTheLog(t *testing.T) {
	m := newMesh(t)
	planner := m.agent("planner")
	before := len(events[*audit.Exchange](m))
	for range 6 {
		child := m.child(planner, "worker")
		for range 30 {
			if r := m.exchange(child, "nonsense"); r.status != http.StatusBadRequest {
				t.Fatalf("%s", r)
			}
		}
	}
	if n := len(events[*audit.Exchange](m)) - before; n < 50 || n > 110 {
		t.Errorf("180 pieces of nonsense left %d records", n)
	}
	if r := m.exchange(m.agent("planner"), "nonsense"); !strings.Contains(r.Text, "record: 0") {
		t.Errorf("another tree's has no record: %s", r)
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
