package integration_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A revoked task's agents end with everything below them, told why, within the issuer's few seconds; meanwhile they get no
// child. Agents of other tasks go on.
func TestRevokedAgentsEnd(t *testing.T) {
	m := testmesh.Start(t)
	oscar, alice, bob := m.Login(t, "oscar"), m.Login(t, "alice"), m.Login(t, "bob")
	bystander := testmesh.Begin(t, bob.Agents(t, []string{"planner"}, m.PG.Bin("psql"), "-XAt"))
	bystander.Type("SELECT 'orders', count(*) FROM orders;\n")
	bystander.Await("orders|6", 1)
	seen := map[audit.RecordID]bool{}
	for _, r := range m.Records(t, "proxy") {
		seen[r.ID] = true
	}
	script := m.PG.Bin("psql") + ` -XAt -c "SELECT 'mine'"; trap '' TERM; while sleep 0.2; do ` + testmesh.Deputy(t) + ` run --as helper --purpose x -- echo "came up" 2>&1; done`
	live := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, "sh", "-c", script))
	live.Await("came up", 1)
	rec := m.AwaitRecord(t, "proxy", "the task's statement", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && !seen[r.ID] && d.Effect == audit.Allow && d.Statement != nil && r.Chain != nil
	})
	if r := oscar.Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
		t.Fatalf("revoke: %s", r)
	}
	for i, h := range rec.Chain.Hops[1:] {
		ended := m.AwaitRecord(t, "issuer", "the end of "+h.ID, func(r *audit.Record) bool {
			e, ok := r.Event.(*audit.AgentEnded)
			return ok && (e.Agent == h.ID || i > 0 && e.Agent == rec.Chain.Hops[1].ID && e.Descendants > 0)
		})
		if e := ended.Event.(*audit.AgentEnded); e.Reason != "revoked" {
			t.Errorf("%s: %+v", h.ID, e)
		}
	}
	end := live.Wait(patience)
	if end.Code == 0 || !strings.Contains(end.Stdout, "is revoked") || !strings.Contains(end.Stderr, "revoked") {
		t.Errorf("the agent's end: %s", end)
	}
	bystander.Type("SELECT 'orders', count(*) FROM orders;\n\\q\n")
	bystander.Await("orders|6", 2)
	if r := bystander.Wait(patience); r.Code != 0 {
		t.Errorf("the bystander: %s", r)
	}
	m.Verify(t)
}
