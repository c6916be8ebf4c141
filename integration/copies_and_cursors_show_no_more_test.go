package integration_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// COPY, cursors and SQL-level PREPARE are decided by what they run: they show what a SELECT would show, and change what an
// INSERT might, with psql's \copy and FETCH_COUNT and with pgx's CopyFrom.
func TestCopiesAndCursorsShowNoMore(t *testing.T) {
	m := testmesh.Shared(t)
	m.PG.Exec("create table imports (id int, note text)", "grant select, insert on imports to shop_app")
	t.Cleanup(func() { m.PG.Exec("drop table imports") })
	t.Run("psql", func(t *testing.T) {
		alice := m.Login(t, "alice")
		r := alice.SQL(t, testmesh.Nested,
			`\set FETCH_COUNT 2`, `\copy customers (id, name) to stdout csv`, `\copy (select count(*), max(id) from customers) to stdout`,
			"PREPARE p (int) AS SELECT email FROM customers WHERE id = $1", "EXECUTE p (1)", "EXECUTE p (1 + 1)", "DEALLOCATE p",
			"BEGIN", "DECLARE c SCROLL CURSOR FOR SELECT id, email, phone FROM customers ORDER BY id", "FETCH 2 FROM c", "MOVE 1 FROM c", "FETCH c", "COMMIT",
			"BEGIN; COPY (SELECT 'in one text') TO STDOUT; COMMIT", "DISCARD ALL", "SELECT 'usable'",
			`\copy customers to stdout`, `\copy (select upper(email) from customers) to stdout`, "COPY customers (phone) TO STDOUT (FORMAT binary)",
			"COPY orders TO PROGRAM 'cat'", `\copy orders from /dev/null`, "EXECUTE p (1)", "FETCH c", "FETCH d1", "LISTEN jobs", "NOTIFY jobs",
			"PREPARE d AS DELETE FROM orders", "SELECT 'still usable'",
		)
		want := []string{
			"1,Ines Albrecht", "2,Tomas Okafor", "3,Mai Lindqvist", "4,Rahul Banerjee", "5,Carla Nunes", "5\t5", "i***@example.com", "t***@example.net",
			masked[0][:2] + "i***@example.com|****0101", "2|t***@example.net|****0102", "4|r***@example.com|****0104", "in one text", "usable", "still usable",
		}
		if diff := cmp.Diff(want, testmesh.Lines(r.Stdout)); diff != "" {
			t.Errorf("answers (-want +got):\n%s%s", diff, r)
		}
		if diff := cmp.Diff(strings.Fields("42501 42501 42501 42501 42501 26000 34000 34000 42501 42501 42501"), errorStates(r.Stderr)); diff != "" {
			t.Errorf("errors (-want +got):\n%s%s", diff, r)
		}
	})
	t.Run("FETCH_COUNT", func(t *testing.T) {
		alice := m.Login(t, "alice")
		c := alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-v", "FETCH_COUNT=2")
		c.Stdin = "SELECT id, name, email, phone FROM customers ORDER BY id;\n"
		if r := testmesh.Exec(t, c); !cmp.Equal(masked, testmesh.Lines(r.Stdout)) || r.Code != 0 {
			t.Errorf("psql by a cursor: %s", r)
		}
		m.AwaitRecord(t, "proxy", "a FETCH that says what it ran", func(rec *audit.Record) bool {
			e, ok := rec.Event.(*audit.Decision)
			return ok && strings.HasPrefix(e.Statement.Scrubbed, "FETCH FORWARD") && strings.Contains(e.Statement.Scrubbed, "FROM customers ORDER BY id")
		})
	})
	t.Run("rows brought in", func(t *testing.T) {
		bob := m.Login(t, "bob")
		r := bob.Run(t, testmesh.Nested, testmesh.Program(t, "agentprobe"), "copy", "imports", "2000")
		checkLines(t, r, []string{"in 2000", "out COPY 2000"})
		c := bob.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-c", `\copy imports from stdin csv`)
		c.Stdin = "7001,\"a, b\"\n7002,c\n"
		if r := testmesh.Exec(t, c); r.Code != 0 {
			t.Errorf("\\copy: %s", r)
		}
		if got := m.PG.Value("select count(*) || ' ' || sum(length(note)) from imports where id >= 7000"); got != "2 5" {
			t.Errorf("the table has %q", got)
		}
		m.AwaitRecord(t, "proxy", "the outcome of a COPY", func(rec *audit.Record) bool {
			e, ok := rec.Event.(*audit.Completed)
			return ok && e.Status == "ok" && e.Command == "COPY 2000" && e.Affected == 2000 && e.BytesIn > 2000*8
		})
		if r := bob.SQL(t, testmesh.Nested, `\copy orders from /dev/null`); !strings.Contains(r.Stderr, "42501") {
			t.Errorf("a table that nothing may be brought into: %s", r)
		}
	})
}

// errorStates are the SQLSTATEs of psql's verbose errors.
func errorStates(stderr string) []string {
	var states []string
	for _, line := range testmesh.Lines(stderr) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(line, "ERROR:") {
			for i, w := range f {
				if w == "ERROR:" && i+1 < len(f) {
					states = append(states, strings.TrimSuffix(f[i+1], ":"))
				}
			}
		}
	}
	return states
}
