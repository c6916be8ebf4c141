package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// What a hop takes away stays away: no sub-agent reaches what its parent couldn't, whatever it asks for.
func TestSubAgentsGetLess(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	rows := filepath.Join(m.Root, "rows.json")
	if err := os.WriteFile(rows, []byte(`[{"type":"deputy_postgres","locations":["spiffe://`+testmesh.TrustDomain+`/target/`+testmesh.Target+`"],"actions":["select"],"max_rows":2}]`), 0o644); err != nil {
		t.Fatal(err)
	}
	const orders = "--allow orders-db:select:shop:public.orders"
	for _, c := range []struct {
		name   string
		agents []string
		sql    string
		class  string // of the refusal; empty: it is served
		says   string // in an error, or it is the answer
	}{
		{"a narrowed agent within", []string{"planner", "researcher " + orders}, "SELECT count(*) FROM orders", "", "6\n"},
		{"a narrowed agent beyond", []string{"planner", "researcher " + orders}, "SELECT name FROM customers", "capability", "action.outside"},
		{"below a narrowed agent", []string{"planner", "researcher " + orders, "reader"}, "SELECT name FROM customers", "capability", "action.outside"},
		{"a narrowed root", []string{"planner " + orders, "researcher"}, "SELECT name FROM customers", "capability", "action.outside"},
		{"a limit on rows", []string{"planner", "researcher --cap " + rows}, "SELECT id FROM orders", "", "the result was cut after 2 rows"},
		{"policy about the chain", []string{"clerk", "helper"}, "SELECT 1", "policy", "clerk-works-alone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := alice.SQL(t, c.agents, c.sql)
			if r.Stdout != c.says && !strings.Contains(r.Stderr, c.says) {
				t.Fatalf("want %q: %s", c.says, r)
			}
			if c.class == "" {
				if strings.Contains(r.Stdout, "103") {
					t.Errorf("more rows than the capability allows: %s", r)
				}
				return
			}
			rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
			if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != c.class {
				t.Errorf("record %s: %+v", rec.ID, rec.Event)
			}
		})
	}
	for _, c := range []struct {
		name   string
		agents []string
		says   string
	}{
		{"widened actions", []string{"planner " + orders, "researcher --allow orders-db:select,ddl:shop:public.orders"}, "cap"},
		{"widened tables", []string{"planner " + orders, "researcher --allow orders-db:select"}, "cap"},
		{"no delegation left", []string{"planner --left 0", "researcher"}, "left is 0"},
		{"more delegations than the parent has", []string{"planner --left 1", "researcher --left 5"}, "left"},
		{"an unknown target", []string{"planner", "researcher --target payroll-db"}, "payroll-db"},
		{"an agent without an entry", []string{"stranger"}, "stranger"},
		{"a name that is none", []string{"planner", "../deputy"}, "name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := alice.Run(t, c.agents, "echo", "STARTED")
			if r.Code == 0 || strings.Contains(r.Stdout, "STARTED") || !strings.Contains(r.Stderr, c.says) {
				t.Errorf("want a refusal that says %q: %s", c.says, r)
			}
		})
	}
}
