package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// staleness of the feed in this file's mesh.
const staleness = 3 * time.Second

// A role that is killed takes nothing with it: what was decided stays decided, what was open is said to be
// unknown, what can't be known is refused, and service comes back with the role.
func TestRolesSurviveKill(t *testing.T) {
	m := testmesh.Start(t, testmesh.Edit("proxy", func(c string) string {
		return strings.Replace(c, "staleness: 10s", "staleness: "+staleness.String(), 1)
	}))
	alice := m.Login(t, "alice")
	oscar := m.Login(t, "oscar")
	served := func(t *testing.T) {
		t.Helper()
		if r := alice.SQL(t, testmesh.Nested, "SELECT 'served'"); strings.TrimSpace(r.Stdout) != "served" {
			t.Fatalf("a new agent: %s", r)
		}
	}
	served(t)

	t.Run("broker", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-v", "VERBOSITY=verbose"))
		live.Type("SELECT 'before';\n")
		live.Await("before", 1)
		killed := time.Now()
		m.Broker.Kill()
		live.Type("SELECT 'without a broker';\n")
		live.Await("without a broker", 1)
		closed := m.AwaitRecord(t, "proxy", "the end of the connection", func(r *audit.Record) bool {
			e, ok := r.Event.(*audit.ConnectionClosed)
			return ok && e.Reason == "stale" && r.Time.After(killed)
		})
		if after := closed.Time.Sub(killed); after > staleness+2*time.Second {
			t.Errorf("the connection ended %s after the broker; the limit is %s", after, staleness)
		}
		live.Type("SELECT 'never';\n")
		r := live.Wait(patience)
		if strings.Contains(r.Stdout, "never") || !strings.Contains(r.Stderr, "57P01") || !strings.Contains(r.Stderr, "hasn't heard from the broker") {
			t.Errorf("after the limit: %s", r)
		}
		if r := alice.SQL(t, testmesh.Nested, "SELECT 'served'"); r.Code == 0 || strings.Contains(r.Stdout, "served") || len(r.Stderr) == 0 {
			t.Errorf("a new agent without a broker: %s", r)
		}
		if r := oscar.Deputy(t, "revoke", "--task", chainOf(t, m).Txn, "--reason", "x"); r.Code == 0 || !strings.Contains(r.Stderr, "calling the broker") {
			t.Errorf("a revocation without a broker: %s", r)
		}
		m.Broker.Begin()
		eventually(t, alice)
	})
	t.Run("a revocation survives the broker", func(t *testing.T) {
		bob := m.Login(t, "bob")
		if r := bob.SQL(t, testmesh.Nested, "SELECT count(*) FROM orders"); r.Code != 0 {
			t.Fatalf("bob: %s", r)
		}
		if r := oscar.Deputy(t, "revoke", "--user", m.Provider+"#sample-bob", "--reason", "for good"); r.Code != 0 {
			t.Fatalf("revoke: %s", r)
		}
		m.Broker.Kill()
		m.Broker.Begin()
		eventually(t, alice)
		if r := bob.SQL(t, testmesh.Nested, "SELECT count(*) FROM orders"); r.Code == 0 {
			t.Errorf("a revoked user after the broker's restart: %s", r)
		}
		m.Proxy.Kill()
		m.Proxy.Begin()
		eventually(t, alice)
		if r := bob.SQL(t, testmesh.Nested, "SELECT count(*) FROM orders"); r.Code == 0 {
			t.Errorf("a revoked user after the proxy's restart: %s", r)
		}
	})
	t.Run("proxy in mid-statement", func(t *testing.T) {
		live, chain := sleeper(t, m, alice, "")
		decision := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && r.Txn == chain.Txn && d.Action != "postgres:connect"
		})
		m.Proxy.Kill()
		if r := live.Wait(patience); r.Code == 0 || r.Stderr == "" {
			t.Errorf("psql whose proxy was killed: %s", r)
		}
		awaitValue(t, m, "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep%' and usename = 'shop_app' and backend_start < now() - interval '1 minute'", "0")
		m.Proxy.Begin()
		outcome := m.Outcome(t, decision.ID)
		if e, ok := outcome.Event.(*audit.OutcomeUnknown); !ok || !e.Forwarded {
			t.Errorf("the outcome after the kill: %+v", outcome.Event)
		}
		eventually(t, alice)
		shown := m.Show(t, chain.Txn)
		if !strings.Contains(shown.Stdout, "unknown") {
			t.Errorf("audit show doesn't say that the outcome is unknown:\n%s", shown)
		}
	})
	t.Run("issuer", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq"))
		live.Type("SELECT 'before';\n")
		live.Await("before", 1)
		m.Issuer.Kill()
		if r := alice.Run(t, testmesh.Nested, "echo", "STARTED"); r.Code == 0 || strings.Contains(r.Stdout, "STARTED") {
			t.Errorf("an agent without an issuer: %s", r)
		}
		m.Issuer.Begin()
		// Agents outlive an issuer's restart.
		live.Type("SELECT 'after';\n")
		live.Await("after", 1)
		if r := live.Wait(patience); r.Code != 0 {
			t.Errorf("an agent that outlived the issuer: %s", r)
		}
		eventually(t, alice)
	})
	t.Run("all at once", func(t *testing.T) {
		for _, p := range []*testmesh.Process{m.Issuer, m.Broker, m.Proxy} {
			p.Kill()
		}
		for _, p := range []*testmesh.Process{m.Proxy, m.Issuer, m.Broker} {
			p.Resume()
		}
		for _, p := range []*testmesh.Process{m.Proxy, m.Issuer, m.Broker} {
			p.AwaitReady()
		}
		eventually(t, alice)
	})
	t.Run("supervisor", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, []string{"planner"}, "sh", "-c", testmesh.Deputy(t)+" whoami; echo ready; exec sleep 1000.7171"))
		live.Await("ready", 1)
		agent := strings.Fields(live.Output())[1]
		live.Signal(os.Kill)
		live.Wait(patience)
		m.AwaitRecord(t, "issuer", "the end of "+agent, func(r *audit.Record) bool {
			e, ok := r.Event.(*audit.AgentEnded)
			return ok && e.Agent == agent
		})
		awaitNoProcess(t, "1000.7171")
		leftovers, err := filepath.Glob(filepath.Join(m.Root, "r", "*", "a", "*.lock"))
		if err != nil {
			t.Fatal(err)
		}
		served(t)
		after, err := filepath.Glob(filepath.Join(m.Root, "r", "*", "a", "*.lock"))
		if err != nil || len(after) > 0 {
			t.Errorf("left behind: %v (before the next run: %v), %v", after, leftovers, err)
		}
	})
	m.Verify(t)
}

// eventually waits until a new agent is served: roles find each other again within seconds.
func eventually(t *testing.T, who *testmesh.Session) {
	t.Helper()
	var r testmesh.Result
	for limit := time.Now().Add(patience); time.Now().Before(limit); {
		if r = who.SQL(t, testmesh.Nested, "SELECT 'served'"); strings.TrimSpace(r.Stdout) == "served" {
			return
		}
	}
	t.Fatalf("no service again: %s", r)
}

// chainOf is the newest chain in the proxy's log.
func chainOf(t *testing.T, m *testmesh.Mesh) *audit.Chain {
	t.Helper()
	var c *audit.Chain
	for _, r := range m.Records(t, "proxy") {
		if r.Chain != nil {
			c = r.Chain
		}
	}
	return c
}
