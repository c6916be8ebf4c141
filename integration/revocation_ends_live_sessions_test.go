package integration_test

import (
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Whatever an operator revokes, what runs under it ends within a second: the client is told, the statement
// is cancelled at the target, and nothing of it comes back. Others go on.
func TestRevocationEndsLiveSessions(t *testing.T) {
	m := testmesh.Start(t)
	oscar := m.Login(t, "oscar")
	bob := m.Login(t, "bob")
	bystander := testmesh.Begin(t, bob.Agents(t, []string{"planner"}, m.PG.Bin("psql"), "-XAt"))
	stillServed := func(t *testing.T, n int) {
		t.Helper()
		bystander.Type("SELECT 'orders', count(*) FROM orders;\n")
		bystander.Await("orders|6", n)
	}
	stillServed(t, 1)
	kinds := []struct {
		kind string
		of   func(*audit.Chain) string
		// the whole sign-in is over, not only a task of it
		signIn bool
	}{
		{"task", func(c *audit.Chain) string { return c.Txn }, false},
		{"agent", func(c *audit.Chain) string { return c.Hops[1].ID }, false},
		{"grant", func(c *audit.Chain) string { return c.Hops[1].ID + "#" + c.Hops[1].Grant.ID }, false},
		{"session", func(c *audit.Chain) string { return c.SID }, true},
		{"user", func(c *audit.Chain) string { return c.User.Issuer + "#" + c.User.Subject }, true},
	}
	for i, k := range kinds {
		t.Run(k.kind, func(t *testing.T) {
			alice := m.Login(t, "alice")
			live, chain := sleeper(t, m, alice, `; psql -XAt -c "SELECT 'came back'"`)

			r := oscar.Deputy(t, "revoke", "--"+k.kind, k.of(chain), "--reason", "it went astray")
			if r.Code != 0 || !strings.Contains(r.Stdout, "in force, 1 live session") {
				t.Fatalf("revoke: %s", r)
			}
			revoked := m.AwaitRecord(t, "broker", "the revocation", func(rec *audit.Record) bool {
				e, ok := rec.Event.(*audit.Revoked)
				return ok && e.Kind == k.kind
			})
			if e := revoked.Event.(*audit.Revoked); e.Reason != "it went astray" || !strings.Contains(e.By, "sample-oscar") {
				t.Errorf("the record of the revocation: %+v", e)
			}
			closed := m.AwaitRecord(t, "proxy", "the end of the connection", func(rec *audit.Record) bool {
				e, ok := rec.Event.(*audit.ConnectionClosed)
				return ok && rec.Txn == chain.Txn && e.Reason == "revoked"
			})
			if took := closed.Time.Sub(revoked.Time); took > time.Second {
				t.Errorf("the connection ended %s after the revocation", took)
			}
			awaitValue(t, m, "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep%' and usename = 'shop_app'", "0")

			end := live.Wait(patience)
			if !strings.Contains(end.Stderr, "57P01") || strings.Contains(end.Stdout, "came back") || end.Code == 0 {
				t.Errorf("the agent's end: %s", end)
			}
			outcome := m.AwaitRecord(t, "proxy", "the outcome", func(rec *audit.Record) bool {
				_, ok := rec.Event.(*audit.Completed)
				return ok && rec.Txn == chain.Txn && rec.Event.(*audit.Completed).Status == "cut"
			})
			if outcome.Decision == "" {
				t.Errorf("the outcome belongs to no decision: %+v", outcome)
			}
			after := alice.SQL(t, testmesh.Nested, "SELECT 'served'")
			if served := strings.Contains(after.Stdout, "served"); served == k.signIn {
				t.Errorf("a new task of the same sign-in: served is %v: %s", served, after)
			}
			stillServed(t, i+2)
		})
	}
	t.Run("who may", func(t *testing.T) {
		r := bob.Deputy(t, "revoke", "--user", m.Provider+"#sample-alice", "--reason", "spite")
		if r.Code == 0 || !strings.Contains(r.Stderr, "insufficient_scope") {
			t.Errorf("a user who is no operator revoked: %s", r)
		}
		inside := oscar.Run(t, []string{"planner"}, testmesh.Deputy(t), "revoke", "--user", m.Provider+"#sample-alice", "--reason", "told to")
		if inside.Code == 0 {
			t.Errorf("an agent of the operator revoked: %s", inside)
		}
	})
	bystander.Type("\\q\n")
	if r := bystander.Wait(patience); r.Code != 0 {
		t.Errorf("the bystander: %s", r)
	}
	m.Verify(t)
}

// sleeper starts a statement that would take minutes, in nested agents, and returns when it runs at the
// target, with the chain that its decision was recorded with. then is shell for the agent to go on with.
func sleeper(t *testing.T, m *testmesh.Mesh, who *testmesh.Session, then string) (*testmesh.Live, *audit.Chain) {
	t.Helper()
	seen := map[audit.RecordID]bool{}
	sleeps := func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action != "postgres:connect" && d.Effect == audit.Allow && d.Statement != nil && strings.Contains(d.Statement.Scrubbed, "pg_sleep")
	}
	for _, r := range m.Records(t, "proxy") {
		seen[r.ID] = sleeps(r)
	}
	script := `psql -XAt -v VERBOSITY=verbose -c "SELECT pg_sleep(300)"`
	if then == "" {
		script = "exec " + script // signals are for psql
	}
	live := testmesh.Begin(t, who.Agents(t, testmesh.Nested, "sh", "-c", `PATH=`+dirOf(m.PG.Bin("psql"))+`:$PATH; `+script+then))
	rec := m.AwaitRecord(t, "proxy", "the decision about the statement", func(r *audit.Record) bool { return sleeps(r) && !seen[r.ID] })
	awaitValue(t, m, "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep%' and usename = 'shop_app'", "1")
	return live, rec.Chain
}

// awaitValue waits until a query at the target itself has a value.
func awaitValue(t *testing.T, m *testmesh.Mesh, sql, want string) {
	t.Helper()
	var got string
	for limit := time.Now().Add(patience / 4); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		if got = m.PG.Value(sql); got == want {
			return
		}
	}
	t.Fatalf("%s: %s, want %s", sql, got, want)
}
