package integration_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// However a statement is put, no answer, error or notice holds a personal field; what would let a value
// through by another road is refused or withheld.
func TestMaskedInEveryAnswer(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	statements := []struct {
		name, sql string
		shows     string // in the answer
	}{
		{"alias", "SELECT email AS note FROM customers WHERE id = 1", "i***@example.com"},
		{"star", "SELECT * FROM customers WHERE id = 1", "1|Ines Albrecht|i***@example.com|****0101"},
		{"join", "SELECT c.email FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.id = 101", "i***@example.com"},
		{"subquery", "SELECT s.e FROM (SELECT email AS e FROM customers WHERE id = 1) s", ""},
		{"cte", "WITH s AS (SELECT email AS e FROM customers WHERE id = 1) SELECT e FROM s", ""},
		{"union", "SELECT email FROM customers WHERE id = 1 UNION ALL SELECT 'x'", "(null)"},
		{"whole row", "SELECT c FROM customers c WHERE id = 1", "(null)"},
		{"as json", "SELECT row_to_json(c) FROM customers c WHERE id = 1", ""},
		{"expression", "SELECT upper(email) FROM customers WHERE id = 1", ""},
		{"concatenation", "SELECT 'x' || email FROM customers WHERE id = 1", ""},
		{"filter", "SELECT name FROM customers WHERE email LIKE 'ines%'", "42501"},
		{"order", "SELECT name FROM customers ORDER BY email", "42501"},
		{"group", "SELECT count(*) FROM customers GROUP BY phone", "42501"},
		{"aggregate", "SELECT string_agg(email, ',') FROM customers", ""},
		{"error text", "SELECT email::int FROM customers WHERE id = 1", ""},
		{"error by division", "SELECT 1 / (CASE WHEN email LIKE 'i%' THEN 0 ELSE 1 END) FROM customers", "42501"},
		{"copy", "COPY customers TO STDOUT", "COPY"},
		{"copy of a query", "COPY (SELECT email FROM customers) TO STDOUT", "COPY"},
		{"returning", "DELETE FROM customers WHERE id = 99 RETURNING email", "42501"},
		{"temporary copy", "CREATE TEMP TABLE x AS SELECT email FROM customers", "42501"},
		{"do", "DO $$ BEGIN RAISE NOTICE '%', (SELECT email FROM customers WHERE id = 1); END $$", "42501"},
		{"cursor", "DECLARE c CURSOR FOR SELECT email FROM customers", ""},
		{"explain", "EXPLAIN (ANALYZE, VERBOSE) SELECT email FROM customers WHERE id = 1", ""},
		{"statistics", "SELECT most_common_vals FROM pg_stats WHERE tablename = 'customers'", "42501"},
	}
	sql := []string{`\pset null (null)`}
	// One session, since a refusal leaves it usable: each statement's answer stands behind its name.
	for _, s := range statements {
		sql = append(sql, `\echo == `+s.name, `\warn == `+s.name, s.sql)
	}
	r := alice.SQL(t, testmesh.Nested, sql...)
	answers, errors := sections(r.Stdout), sections(r.Stderr)
	for _, s := range statements {
		t.Run(s.name, func(t *testing.T) {
			answer, ok := answers[s.name]
			if !ok {
				t.Fatalf("the session had ended: %s", r)
			}
			both := answer + errors[s.name]
			if leak := personal.FindString(both); leak != "" {
				t.Errorf("%s: %q came through:\n%s", s.sql, leak, both)
			}
			if !strings.Contains(both, s.shows) || strings.TrimSpace(both) == "" {
				t.Errorf("%s: want %q in the answer:\n%s", s.sql, s.shows, both)
			}
		})
	}
}

// personal are parts of the shop's personal fields that no mask shows.
var personal = regexp.MustCompile(`(?i)ines\.alb|tomas\.ok|mai\.lind|rahul\.ban|carla\.nun|555010`)

// sections splits output at the lines "== name".
func sections(out string) map[string]string {
	in := map[string]string{}
	var name string
	for line := range strings.Lines(out) {
		if n, ok := strings.CutPrefix(line, "== "); ok {
			name = strings.TrimSpace(n)
			in[name] = ""
			continue
		}
		in[name] += line
	}
	return in
}
