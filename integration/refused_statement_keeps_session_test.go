package integration_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A refused statement costs nothing but itself: the session goes on, with the transaction status that
// PostgreSQL would have.
func TestRefusedStatementKeepsSession(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	t.Run("in and out of a transaction", func(t *testing.T) {
		r := alice.SQL(t, testmesh.Nested,
			"SELECT 'one'", "DROP TABLE customers", "SELECT 'two'", "this is no SQL", "SELECT 'three'",
			"BEGIN", "SELECT count(*) FROM orders", "TRUNCATE orders", "SELECT 'not now'", "ROLLBACK", "SELECT 'four'",
			"BEGIN", "SELECT 'five'", "COMMIT", "SELECT 1; DROP TABLE orders; SELECT 2", "SELECT 'six'")
		if diff := cmp.Diff([]string{"one", "two", "three", "6", "four", "five", "six"}, testmesh.Lines(r.Stdout)); diff != "" {
			t.Errorf("answers (-want +got):\n%s%s", diff, r)
		}
		var states []string
		for _, line := range testmesh.Lines(r.Stderr) {
			if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(line, "ERROR:") {
				states = append(states, strings.TrimSuffix(f[1], ":"))
			}
		}
		if diff := cmp.Diff([]string{"42501", "42601", "42501", "25P02", "42501"}, states); diff != "" {
			t.Errorf("errors (-want +got):\n%s%s", diff, r)
		}
	})
	t.Run("cancelled by the client", func(t *testing.T) {
		live, chain := sleeper(t, m, alice, "")
		// psql asks the run's listener to cancel.
		live.Signal(syscall.SIGINT)
		r := live.Wait(patience)
		if !strings.Contains(r.Stderr, "57014") {
			t.Errorf("psql: %s", r)
		}
		awaitValue(t, m, "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep%' and usename = 'shop_app'", "0")
		m.AwaitRecord(t, "proxy", "a cancelled statement", func(rec *audit.Record) bool {
			e, ok := rec.Event.(*audit.Completed)
			return ok && rec.Txn == chain.Txn && e.Status == "cancelled"
		})
	})
	t.Run("a statement beyond the role", func(t *testing.T) {
		bob := m.Login(t, "bob")
		r := bob.SQL(t, testmesh.Nested, "UPDATE orders SET status = 'refunded' WHERE id = 102", "SELECT name FROM customers", "SELECT status FROM orders WHERE id = 102",
			"UPDATE orders SET status = 'refund requested' WHERE id = 102")
		if got := testmesh.Lines(r.Stdout); len(got) != 1 || got[0] != "refunded" || strings.Count(r.Stderr, "42501") != 1 {
			t.Errorf("bob: %s", r)
		}
	})
}
