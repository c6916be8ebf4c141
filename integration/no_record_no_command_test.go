package integration_test

import (
	"os"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// What can't be recorded isn't done: when the proxy's log takes no more, every command is refused and says
// that there is no record; nothing reaches the target. A log that failed once is believed again only after
// a restart, which says what became of everything that was open.
func TestNoRecordNoCommand(t *testing.T) {
	m := testmesh.Start(t)
	bob := m.Login(t, "bob")
	dir := m.LogDir("proxy")
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	// The open file of the log takes 1 MiB; then a new one can't be made.
	c := bob.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq")
	c.Stdin = strings.Repeat("SELECT status FROM orders WHERE id = 102;\n", 800) + "UPDATE orders SET status = 'refunded' WHERE id = 102;\n"
	r := testmesh.Exec(t, c)
	if !strings.Contains(r.Stderr, "couldn't be recorded") || !strings.Contains(r.Stderr, "(record: none)") {
		t.Fatalf("the log took everything: %s", r)
	}
	decided := 0
	for _, rec := range m.Records(t, "proxy") {
		if d, ok := rec.Event.(*audit.Decision); ok && d.Action == "postgres:select" {
			decided++
		}
	}
	if answers := strings.Count(r.Stdout, "refund requested"); answers == 0 || answers > decided {
		t.Errorf("%d answers, %d recorded decisions", answers, decided)
	}
	if got := m.PG.Value("select status from orders where id = 102"); got != "refund requested" {
		t.Errorf("a command without a record changed the target: %s", got)
	}
	if r := bob.SQL(t, testmesh.Nested, "SELECT 'answered'"); r.Code == 0 || !strings.Contains(r.Stderr, "record: none") {
		t.Errorf("a new connection: %s", r)
	}

	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if r := bob.SQL(t, testmesh.Nested, "SELECT 'answered'"); r.Code == 0 {
		t.Errorf("a log that failed was believed again: %s", r)
	}
	m.Proxy.Stop()
	m.Proxy.Begin()
	if r := bob.SQL(t, testmesh.Nested, "UPDATE orders SET status = 'refunded' WHERE id = 102"); r.Code != 0 {
		t.Errorf("after the restart: %s", r)
	}
	if got := m.PG.Value("select status from orders where id = 102"); got != "refunded" {
		t.Errorf("the command with a record: %s", got)
	}
	m.SettledRecords(t, "proxy")
	m.Verify(t)
}
