package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Users sign in at an OpenID provider that isn't ours (npm's oidc-provider, RS256), and everything behind
// the sign-in works as with the sample server.
func TestForeignOpenIDProvider(t *testing.T) {
	t.Parallel()
	m := testmesh.Start(t, testmesh.ForeignProvider())
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	who := alice.Deputy(t, "whoami")
	if who.Code != 0 || !strings.Contains(who.Stdout, "alice at "+m.Provider) {
		t.Fatalf("whoami: %s", who)
	}
	r := alice.SQL(t, testmesh.Nested, "SELECT id, name, email, phone FROM customers WHERE id = 1", "DROP TABLE customers")
	if strings.TrimSpace(r.Stdout) != masked[0] || !strings.Contains(r.Stderr, "no-ddl-by-agents") {
		t.Fatalf("psql: %s", r)
	}
	rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
	if rec.Chain.User != (actor.SubjectID{Issuer: m.Provider, Subject: "alice"}) || rec.Chain.RootEvidence != actor.RootVerified || strings.Join(rec.Chain.Roles, " ") != "analyst" {
		t.Errorf("the chain: user %v, root evidence %s, roles %v", rec.Chain.User, rec.Chain.RootEvidence, rec.Chain.Roles)
	}

	live, chain := sleeper(t, m, alice, "")
	if r := oscar.Deputy(t, "revoke", "--user", chain.User.Issuer+"#"+chain.User.Subject, "--reason", "left the company"); r.Code != 0 {
		t.Fatalf("revoke: %s", r)
	}
	if r := live.Wait(patience); !strings.Contains(r.Stderr, "57P01") {
		t.Errorf("the revoked user's agent: %s", r)
	}

	t.Run("a user without a role", func(t *testing.T) {
		r := oscar.SQL(t, testmesh.Nested, "SELECT 1")
		if r.Code == 0 || strings.Contains(r.Stdout, "1") {
			t.Errorf("an operator without a role at the target: %s", r)
		}
	})
	t.Run("a provider that isn't configured", func(t *testing.T) {
		other := testmesh.Start(t)
		s := other.Session(t)
		// The same login, at the foreign provider, for a mesh that believes another one.
		foreign := strings.NewReplacer(other.Provider, m.Provider, "idp-ca.pem", filepath.Join(m.Dir, "agent", "idp-ca.pem"))
		raw, err := os.ReadFile(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Config, []byte(foreign.Replace(string(raw))), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := s.Deputy(t, "login", "--script-user", "alice", "--script-password-file", filepath.Join(m.Root, "alice.password")); r.Code != 0 {
			t.Fatalf("the sign-in itself: %s", r)
		}
		defer s.Deputy(t, "logout")
		r := s.SQL(t, testmesh.Nested, "SELECT 1")
		if r.Code == 0 || strings.Contains(r.Stdout, "1") {
			t.Fatalf("a chain from a provider that nobody configured: %s", r)
		}
		other.AwaitRecord(t, "broker", "the refused exchange", func(r *audit.Record) bool {
			e, ok := r.Event.(*audit.Exchange)
			return ok && e.Result == audit.Refusal
		})
	})
	m.Verify(t)
}
