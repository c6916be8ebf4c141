package integration_test

import (
	"context"
	"crypto/ecdsa"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/policy"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// Whoever holds the broker holds its token key, its SVID and its place on the network. With all three he signs tokens and
// speaks to the proxies as he likes, and gets nobody a right that users, agents and the policy key didn't give.
func TestALyingBrokerWidensNothing(t *testing.T) {
	f := newForge(t)
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, x.planner, func(g *actor.UserGrant) { g.Cap = reach("select") })
	good := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	f.mustServe(good, f.Address("target"))
	tokenKey := f.privateKey(t, "broker", "token.key")
	t.Run("with its token key", func(t *testing.T) { forgedTokens(t, f, x, dora, good, tokenKey) })
	t.Run("on its feed", func(t *testing.T) { lyingFeed(t, f, x, dora, good, tokenKey) })
	f.Verify(t)
}

// forgedTokens are well signed and false.
func forgedTokens(t *testing.T, f *forge, x tree, dora *signIn, good flow, key *ecdsa.PrivateKey) {
	token := good.parts[0]
	emil := actor.SubjectID{Issuer: f.idp.URL, Subject: "emil"}
	for name, c := range map[string]struct {
		change func(*actor.Token)
		class  string
	}{
		"more verbs": {func(tok *actor.Token) { tok.Details = reach("select", "delete").ForTarget(targetID(testmesh.Target)) }, "token.details"},
		"other databases": {func(tok *actor.Token) {
			d := reach("select")[0].(actor.PostgresDetail)
			d.Databases = nil
			tok.Details = actor.Details{d}.ForTarget(targetID(testmesh.Target))
		}, "token.details"},
		"another user":       {func(tok *actor.Token) { tok.Subject = emil }, "grant.subject"},
		"another task":       {func(tok *actor.Token) { tok.Txn = actor.NewHexID() }, "grant.txn"},
		"another sign-in":    {func(tok *actor.Token) { tok.SID = "other" }, "root.sid"},
		"a fresher sign-in":  {func(tok *actor.Token) { tok.AuthTime = tok.AuthTime.Add(time.Minute) }, "root."},
		"a stronger sign-in": {func(tok *actor.Token) { tok.ACR = "phr" }, "root.auth-time"},
		"another purpose":    {func(tok *actor.Token) { tok.Purpose = "something else" }, "token.purpose"},
		"another target":     {func(tok *actor.Token) { tok.Audience = targetID("crm-db") }, "token.audience"},
		"another mesh":       {func(tok *actor.Token) { tok.Issuer = "https://evil.example" }, "token.issuer"},
		"a longer life":      {func(tok *actor.Token) { tok.Expires = tok.IssuedAt.Add(actor.TokenLife + time.Second) }, "token.lifetime"},
		"a life of its own": {func(tok *actor.Token) {
			tok.IssuedAt = time.Now().Add(-10 * time.Minute)
			tok.NotBefore = tok.IssuedAt
			tok.Expires = time.Now().Add(-time.Minute)
		}, "token.expired"},
		"a start in the future": {func(tok *actor.Token) {
			tok.NotBefore = time.Now().Add(time.Minute)
			tok.Expires = tok.NotBefore.Add(time.Minute)
		}, "token.not-yet"},
		"the parent left out": {func(tok *actor.Token) { tok.Actors = tok.Actors[1:] }, "actor.grants"},
		"another first agent": {func(tok *actor.Token) { tok.Actors = []actor.AgentID{agentOf(t, x.b), tok.Actors[1]} }, "actor.grants"},
		"an agent that isn't": {func(tok *actor.Token) { tok.Actors = append([]actor.AgentID{agentOf(t, x.runner)}, tok.Actors...) }, "actor.grants"},
		"another presenter":   {func(tok *actor.Token) { tok.Actors = []actor.AgentID{tok.Actors[0], agentOf(t, x.b)} }, "presenter.actor"},
		"another key":         {func(tok *actor.Token) { tok.Certificate = actor.CertificateHash(x.b.Certificates[0]) }, "presenter.binding"},
		"no head":             {func(tok *actor.Token) { tok.Head = "" }, "grant.head"},
		"another head":        {func(tok *actor.Token) { tok.Head = actor.Hash("x") }, "grant.head"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := f.countersign(t, token, key, c.change)
			credential := join(append([]string{bad}, good.parts[1:]...)...)
			if in, why := f.letIn(x.a, f.Address("target"), credential); in || !strings.HasPrefix(why, "28000 ") || !strings.Contains(why, c.class) {
				t.Errorf("want %s: let in is %v, %s", c.class, in, why)
			}
		})
	}
	for name, c := range map[string]struct {
		change func(*rawJWS)
		class  string
	}{
		"a list of audiences":     {claims(`"aud":"`+targetID(testmesh.Target).String()+`"`, `"aud":["`+targetID(testmesh.Target).String()+`","x"]`), "json.type"},
		"an audience in capitals": {claims(`"aud":"spiffe://`+testmesh.TrustDomain, `"aud":"spiffe://`+strings.ToUpper(testmesh.TrustDomain)), "token.audience"},
		"a prefix of the target":  {claims(`/target/orders-db"`, `/target/orders-db2"`), "token.audience"},
		"a user's sub":            {func(j *rawJWS) { j.claims = cut(j.claims, `"sub":"`, `"`, "dora") }, ""},
		"a client that is a user": {func(j *rawJWS) { j.claims = cut(j.claims, `"client_id":"`, `"`, "dora") }, ""},
		"another client":          {func(j *rawJWS) { j.claims = cut(j.claims, `"client_id":"`, `"`, x.b.ID.String()) }, "presenter.client"},
		"may_act":                 {addClaim(`"may_act":{"sub":"x"}`), "json.unknown"},
		"a scope":                 {addClaim(`"scope":"postgres:ddl"`), "json.unknown"},
		"a grade":                 {addClaim(`"grade":"attested"`), "json.unknown"},
		"act without issuer": {func(j *rawJWS) {
			j.claims = cut(j.claims, `"iss":"spiffe://`+testmesh.TrustDomain+`",`, `"sub`, "\x00")
		}, "json."},
	} {
		t.Run(name, func(t *testing.T) {
			j := apart(t, token, key)
			c.change(&j)
			if in, why := f.letIn(x.a, f.Address("target"), join(append([]string{j.String()}, good.parts[1:]...)...)); in || !strings.HasPrefix(why, "28") || !strings.Contains(why, c.class) {
				t.Errorf("want %s: let in is %v, %s", c.class, in, why)
			}
		})
	}
	// No sign-in at all: a broker and an agent that work together, at a target that demands a verified one.
	t.Run("a user who never signed in", func(t *testing.T) {
		ghost := *f.idp.signIn(t, "ghost")
		mine := testca.NewKey(t)
		j := apart(t, ghost.idToken, mine) // signed by nobody's provider
		ghost.idToken = j.String()
		ug := f.root(&ghost, x.planner)
		tok := f.countersign(t, token, key, func(tok *actor.Token) {
			tok.Subject, tok.SID, tok.Txn, tok.Head = ghost.user, ghost.sid, parsedUserGrant(t, ug).Txn, actor.Hash(ug)
			tok.Actors = tok.Actors[:1]
			tok.Certificate = actor.CertificateHash(x.planner.Certificates[0])
		})
		for _, credential := range []string{join(tok, ug, ghost.idToken), join(tok, ug), tok} {
			if in, why := f.letIn(x.planner, f.Address("target"), credential); in || !strings.HasPrefix(why, "28000 ") {
				t.Errorf("let in is %v, %s", in, why)
			}
		}
	})
	f.mustServe(good, f.Address("target"))
}

func parsedUserGrant(t *testing.T, s string) actor.UserGrant {
	t.Helper()
	g, err := actor.ParseUserGrant(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func lyingFeed(t *testing.T, f *forge, x tree, dora *signIn, good flow, tokenKey *ecdsa.PrivateKey) {
	doomed := f.flow(dora, f.root(dora, x.planner), testmesh.Target, x.planner, x.b)
	policyKey := f.privateKey(t, "operator", "policy.key")
	certifying := f.privateKey(t, "operator", "certifying.key")
	statement := string(f.readFile(t, "broker", "token-key.jwt"))
	f.Broker.Stop()
	h := startHostileBroker(t, f)
	hello := h.greeted()
	h.revision = hello.Revision
	h.applied(feed.Snapshot, feed.Changes{TokenKeyStatements: []string{statement}})

	live, err := f.connect(x.a, f.Address("target"), good.credential())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = live.Close(context.Background()) })
	// What the policy in force says: e-mails are masked, and nobody deletes.
	holds := func(when string) {
		t.Helper()
		if got, err := served(live, "SELECT email FROM customers WHERE id = 1"); err != nil || got != "i***@example.com" {
			t.Fatalf("%s: %q %v", when, got, err)
		}
	}
	holds("under the lying broker")
	set := func(key *ecdsa.PrivateKey, version uint64, more ...string) string {
		t.Helper()
		source := policySource(t, version)
		for _, rule := range more {
			source.Files["more.cedar"] = rule
		}
		signed, err := policy.Sign(key, source)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	const wide = `@id("everything") permit (principal, action, resource);`
	const strict = `@id("no-updates") forbid (principal, action == Deputy::Action::"postgres:update", resource);`
	h.applied(feed.Delta, feed.Changes{PolicySet: set(policyKey, 5, strict)}) // a real one, of the operators
	foreign := testca.NewKey(t)
	unsigned := apart(t, set(policyKey, 9, wide), policyKey)
	unsigned.header = replaced(unsigned.header, `"ES256"`, `"none"`)
	for name, signed := range map[string]string{
		"an older set":                  set(policyKey, 4, strict),
		"the first set again":           string(f.readFile(t, "broker", "policy.jwt")),
		"the same version, but wider":   set(policyKey, 5, wide),
		"a wider set by another key":    set(foreign, 9, wide),
		"a wider set by its token key":  set(tokenKey, 9, wide),
		"a wider set by the certifying": set(certifying, 9, wide),
		"an unsigned set":               unsigned.String(),
		"a set without a signature":     unsigned.String()[:strings.LastIndex(unsigned.String(), ".")+1],
		"a token key statement":         statement,
		"a token":                       good.parts[0],
		"what isn't anything":           "x.y.z",
	} {
		h.applied(feed.Delta, feed.Changes{PolicySet: signed})
		holds(name)
	}
	for _, r := range f.Records(t, "proxy") {
		if d, ok := r.Event.(*audit.Decision); ok && d.PolicyVersion > 5 {
			t.Errorf("decided by a set of version %d", d.PolicyVersion)
		}
	}

	// Its own token key, whatever it says, counts only under the certifying key.
	mine := testca.NewKey(t)
	signedBy := func(key *ecdsa.PrivateKey, mesh string, from, to time.Duration) string {
		s, err := actor.SignKeyStatement(key, actor.KeyStatement{Mesh: mesh, Key: &mine.PublicKey, NotBefore: time.Now().Add(from), Expires: time.Now().Add(to)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, s := range map[string]string{
		"by itself":               signedBy(mine, f.meshURL(), -time.Hour, time.Hour),
		"by the token key":        signedBy(tokenKey, f.meshURL(), -time.Hour, time.Hour),
		"by the policy key":       signedBy(policyKey, f.meshURL(), -time.Hour, time.Hour),
		"for another mesh":        signedBy(certifying, "https://evil.example", -time.Hour, time.Hour),
		"that ran out":            signedBy(certifying, f.meshURL(), -2*time.Hour, -time.Hour),
		"that isn't in force yet": signedBy(certifying, f.meshURL(), time.Hour, 2*time.Hour),
	} {
		h.applied(feed.Delta, feed.Changes{TokenKeyStatements: []string{s}})
		forged := f.countersign(t, good.parts[0], mine, func(tok *actor.Token) {})
		if in, why := f.letIn(x.a, f.Address("target"), join(append([]string{forged}, good.parts[1:]...)...)); in || !strings.Contains(why, "token.key") {
			t.Errorf("a token key %s: let in is %v, %s", name, in, why)
		}
	}
	f.mustServe(good, f.Address("target"))

	// A revocation that was heard stays, whatever is left out later; and somebody else's concerns nobody here.
	f.mustServe(doomed, f.Address("target"))
	now := time.Now()
	gone := feed.Match{Kind: feed.Agent, Value: agentOf(t, x.b).String()}
	h.applied(feed.Delta, feed.Changes{Revocations: []feed.Revocation{
		{ID: "r1", Of: gone, IssuedAt: now, ExpiresAt: now.Add(time.Hour)},
		{ID: "r2", Of: feed.Match{Kind: feed.Target, Value: testmesh.OtherTarget}, IssuedAt: now, ExpiresAt: now.Add(time.Hour)},
	}})
	dead := func(when string) {
		t.Helper()
		if in, why := f.letIn(x.b, f.Address("target"), doomed.credential()); in || !strings.Contains(why, "revoked") {
			t.Errorf("%s: let in is %v, %s", when, in, why)
		}
	}
	dead("after the revocation")
	h.applied(feed.Snapshot, feed.Changes{TokenKeyStatements: []string{statement}})
	dead("after a snapshot without it")
	h.applied(feed.Delta, feed.Changes{Revocations: []feed.Revocation{{ID: "r1", Of: gone, IssuedAt: now, ExpiresAt: now.Add(-time.Hour)}}})
	dead("after the same, run out")
	holds("after somebody else's revocation")

	// A feed that goes back, leaves something out or can't be read isn't believed at all.
	snapshot := func() { h.applied(feed.Snapshot, feed.Changes{TokenKeyStatements: []string{statement}}) }
	for name, m := range map[string]*feedv1.BrokerMessage{
		"a heartbeat from before":        h.update(feed.Heartbeat, h.revision-1, feed.Changes{}),
		"a delta again":                  h.update(feed.Delta, h.revision, feed.Changes{}),
		"a delta from before":            h.update(feed.Delta, h.revision-3, feed.Changes{PolicySet: set(policyKey, 9, wide)}),
		"a delta too far":                h.update(feed.Delta, h.revision+2, feed.Changes{}),
		"a heartbeat too far":            h.update(feed.Heartbeat, h.revision+1, feed.Changes{}),
		"a snapshot from before":         h.update(feed.Snapshot, h.revision-1, feed.Changes{TokenKeyStatements: []string{statement}}),
		"a revocation that names nobody": {Revision: h.revision + 1, SentAt: h.update(feed.Heartbeat, 0, feed.Changes{}).SentAt, Message: &feedv1.BrokerMessage_Delta{Delta: &feedv1.Delta{Revocations: []*feedv1.Revocation{{Id: "x"}}}}},
		"nothing":                        {Revision: h.revision},
		"a message without its time":     {Revision: h.revision, Message: &feedv1.BrokerMessage_Heartbeat{}},
	} {
		h.refused(name, m)
		snapshot()
		dead(name)
		holds(name)
	}
	h.refused("a delta in place of the snapshot", h.update(feed.Delta, h.revision-1, feed.Changes{}))

	// Held-back messages aren't news: a heartbeat is as fresh as it was sent.
	snapshot()
	old := feed.UpdateToProto(feed.Update{Kind: feed.Heartbeat, Revision: h.revision, SentAt: time.Now().Add(-time.Hour)})
	h.silent.Store(true)
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for limit := time.Now().Add(patience); ; <-beat.C {
		h.send(old)
		_, err := served(live, "SELECT 1")
		if err != nil {
			if !strings.Contains(err.Error(), "57P01") && !strings.Contains(err.Error(), "broker") {
				t.Errorf("the end of a session without news: %v", err)
			}
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the proxy takes old heartbeats for news")
		}
	}
	if in, why := f.letIn(x.a, f.Address("target"), good.credential()); in || !strings.Contains(why, "heard from the broker") {
		t.Errorf("without news: let in is %v, %s", in, why)
	}
	h.silent.Store(false)
	snapshot()
	f.mustServe(good, f.Address("target"))

	// A proxy that starts again knows where it was.
	f.Proxy.Kill()
	f.Proxy.Resume()
	if hello := h.greeted(); hello.Revision != h.revision || hello.PolicyVersion != 5 {
		t.Errorf("after a restart the proxy is at revision %d and policy %d, want %d and 5", hello.Revision, hello.PolicyVersion, h.revision)
	}
	h.refused("a snapshot from before, after a restart", h.update(feed.Snapshot, h.revision-1, feed.Changes{TokenKeyStatements: []string{statement}, PolicySet: set(policyKey, 4, strict)}))
	if in, why := f.letIn(x.a, f.Address("target"), good.credential()); in {
		t.Errorf("let in by a proxy that heard nothing it can believe: %s", why)
	}
	snapshot()
	f.Proxy.AwaitReady()
	f.mustServe(good, f.Address("target"))
}

// policySource is the policy set of the tests, as somebody who signs sets reads it.
func policySource(t *testing.T, version uint64) policy.Source {
	t.Helper()
	s := policy.Source{Version: version, Schema: policy.SchemaID, IssuedAt: time.Now().Unix(), Files: map[string]string{}, Targets: map[string]policy.Target{}}
	for _, name := range []string{testmesh.Target, testmesh.OtherTarget} {
		s.Targets[name] = policy.Target{Kind: "postgres", Groups: []string{"test"}}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "policy", "*.cedar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no policies: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s.Files[filepath.Base(f)] = string(text)
	}
	return s
}
