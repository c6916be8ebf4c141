package integration_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A user's agent starts a sub-agent, that runs psql: what it reads is masked, what it may not do is refused
// by name, and the record of the refusal names the user and both agents.
func TestChainReachesTheRecord(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")

	rows := alice.SQL(t, testmesh.Nested, "SELECT name, email, phone FROM customers ORDER BY id LIMIT 2")
	want := "Ines Albrecht|i***@example.com|****0101\nTomas Okafor|t***@example.net|****0102\n"
	if rows.Code != 0 || rows.Stdout != want {
		t.Fatalf("want masked rows, got %s", rows)
	}

	drop := alice.SQL(t, testmesh.Nested, "DROP TABLE customers")
	if drop.Code == 0 || !strings.Contains(drop.Stderr, "42501") || !strings.Contains(drop.Stderr, `policy "no-ddl-by-agents"`) {
		t.Fatalf("want a refusal that names the policy, got %s", drop)
	}
	if n := m.PG.Value("select count(*) from customers"); n != "5" {
		t.Fatalf("customers after the refused DROP: %q", n)
	}

	id := testmesh.RecordIn(t, drop.Stderr)
	rec := m.Record(t, "proxy", id)
	d, ok := rec.Event.(*audit.Decision)
	if !ok || d.Effect != audit.Refuse || d.Action != "postgres:ddl" || rec.Chain == nil {
		t.Fatalf("record %s: %+v", id, rec)
	}
	if rec.Chain.User.Subject != "sample-alice" || rec.Chain.User.Issuer != m.Provider || rec.Chain.Purpose != testmesh.Purpose {
		t.Errorf("record %s: user %s, purpose %q", id, rec.Chain.User, rec.Chain.Purpose)
	}
	if rec.Chain.RootEvidence != actor.RootVerified {
		t.Errorf("record %s: root evidence %q", id, rec.Chain.RootEvidence)
	}
	var names []string
	for _, hop := range rec.Chain.Hops[1:] {
		names = append(names, hop.Agent.Name())
	}
	if got := strings.Join(names, " "); got != "planner researcher" {
		t.Errorf("record %s: agents %q", id, got)
	}

	shown := m.Show(t, id.String())
	for _, part := range []string{"sample-alice", "planner", "researcher", testmesh.Purpose, "DROP TABLE customers", "no-ddl-by-agents", id.String()} {
		if !strings.Contains(shown.Stdout, part) {
			t.Errorf("audit show doesn't say %q:\n%s", part, shown)
		}
	}
	m.Verify(t)
}
