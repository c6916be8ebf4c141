package broker_test

import (
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/session"
)

const bareType = "urn:ietf:params:oauth:token-type:id_token"

func bareMesh(t *testing.T) *mesh {
	return newMesh(t, func(m *mesh) {
		pattern, err := actor.ParsePathPattern("/agent/web/*")
		if err != nil {
			t.Fatal(err)
		}
		m.cfg.Bare = []session.Permission{{Agents: pattern, Issuer: m.idp.URL, Roles: []string{"analyst"}, Cap: m.cap("select")}}
	})
}

func TestSessionsOnTheBrokersWord(t *testing.T) {
	m := bareMesh(t)
	alice := m.login("alice", func(c map[string]any) { delete(c, "nonce") })
	web := m.agent("web")
	first, err := actor.ParseToken(m.ok(m.exchange(web, alice.idToken, "subject_token_type", bareType, "purpose", "support")))
	if err != nil {
		t.Fatal(err)
	}
	again, err := actor.ParseToken(m.ok(m.exchange(web, alice.idToken, "subject_token_type", bareType)))
	if err != nil {
		t.Fatal(err)
	}
	if first.Txn != again.Txn || first.Purpose != "support" || first.Head != "" || len(first.Actors) != 1 {
		t.Errorf("tokens are %+v and %+v", first, again)
	}
	if got := string(mustJSON(t, first.Details)); got != string(mustJSON(t, m.cap("select"))) {
		t.Errorf("the token allows %s", got)
	}

	// The first agent passes on what the session has, and no more.
	child := m.child(web, "helper")
	grant := func(c actor.Details, txn string) string {
		now := m.clock.now()
		s, err := actor.SignGrant(web.PrivateKey, web.Certificates, actor.Grant{
			Issuer: agentID(t, web), Delegate: agentID(t, child), Mesh: meshURL, Subject: alice.user, Txn: txn, Previous: actor.Hash(alice.idToken),
			Cap: c, Left: 1, IssuedAt: now, Expires: now.Add(60e9), ID: actor.NewHexID(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	m.ok(m.exchange(child, join(grant(m.cap("select"), first.Txn), alice.idToken)))
	m.refused(m.exchange(child, join(grant(m.cap("select", "update"), first.Txn), alice.idToken)), "invalid_request", "session.mismatch")
	m.refused(m.exchange(child, join(grant(m.cap("select"), actor.NewHexID()), alice.idToken)), "invalid_request", "session.unknown")

	// Another sign-in of the user is another session.
	other := m.login("alice", func(c map[string]any) { c["nonce"] = "web-7f3a" })
	third, err := actor.ParseToken(m.ok(m.exchange(web, other.idToken, "subject_token_type", bareType)))
	if err != nil {
		t.Fatal(err)
	}
	if third.Txn == first.Txn {
		t.Error("two sign-ins share a task")
	}
	m.refused(m.exchange(child, join(grant(m.cap("select"), third.Txn), alice.idToken)), "invalid_request", "session.mismatch")
}

func TestWhoMayOpenSessionsWithAnIDTokenAlone(t *testing.T) {
	m := bareMesh(t)
	webNonce := func(c map[string]any) { c["nonce"] = "web-7f3a" }
	handed := m.login("alice", webNonce)
	bob := m.login("bob", webNonce, func(c map[string]any) { c["groups"] = "staff" })
	inner := m.child(m.agent("planner"), "web")
	m.refused(m.exchange(m.agent("planner"), handed.idToken, "subject_token_type", bareType), "unauthorized_client", "session.permission")
	m.refused(m.exchange(m.agent("web"), bob.idToken, "subject_token_type", bareType), "unauthorized_client", "session.permission")
	m.refused(m.exchange(inner, handed.idToken, "subject_token_type", bareType), "unauthorized_client", "session.permission")
	stale := m.login("alice", func(c map[string]any) { c["exp"] = m.clock.now().Add(-60e9).Unix() })
	m.refused(m.exchange(m.agent("web"), stale.idToken, "subject_token_type", bareType), "invalid_request", string(actor.ClassIDTokenExpired))

	// A session with a user grant isn't entered without it.
	web := m.agent("web")
	alice := m.login("alice")
	root := alice.root(web)
	m.ok(m.exchange(web, join(root, alice.idToken)))
	m.refused(m.exchange(web, alice.idToken, "subject_token_type", bareType), "unauthorized_client", "session.permission")
}

// An agent that a user gave a narrow grant carries the ID token too. With it alone it would get all that configuration
// gives to sessions without a grant.
func TestASignInWithALoginKeyOpensNoSessionWithoutItsGrant(t *testing.T) {
	m := bareMesh(t)
	alice, web := m.login("alice"), m.agent("web")
	m.refused(m.exchange(web, alice.idToken, "subject_token_type", bareType), "unauthorized_client", "session.permission")
}
