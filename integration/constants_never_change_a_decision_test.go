package integration_test

import (
	"fmt"
	"strings"
	"testing"
)

// The proxy keeps what it knows of a statement for others that differ in constants only. Each pair differs in what only looks
// like constants, or in constants that mean something: the second is decided as if the first had never been.
func TestConstantsNeverChangeADecision(t *testing.T) {
	a := newSQLAttacker(t,
		"CREATE TABLE payroll (x text)", "CREATE TABLE notes (id int PRIMARY KEY, note text)", "INSERT INTO notes VALUES (1, 'email'), (2, 'n')", "CREATE SEQUENCE one", "CREATE SEQUENCE two",
	)
	through, direct := a.through(t, a.definer), a.direct(t)
	tried, refused := 0, 0
	for line := range strings.Lines(constants) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		tried++
		pair := strings.Split(strings.ReplaceAll(line, "¶", "\n"), ";;")
		if len(pair) != 2 {
			t.Fatalf("%s isn't a pair", line)
		}
		first := through.run(t, pair[0])
		got := through.run(t, pair[1])
		// A comment keeps the text from being like any other.
		want := through.run(t, fmt.Sprintf("%s -- %d", pair[1], tried))
		if got != want {
			t.Errorf("%s\nafter\n%s\ngives\n%sand alone\n%s", pair[1], pair[0], got, want)
		}
		if strings.Contains(first, "ERROR") {
			t.Errorf("%s: %s", pair[0], first)
		}
		if strings.Contains(got, "refused") {
			refused++
			continue
		}
		if server := direct.run(t, pair[1]); got != server {
			t.Errorf("%s\ngives\n%swhere the server gives\n%s", pair[1], got, server)
		}
	}
	if tried < 50 || refused < 15 {
		t.Errorf("%d pairs, of which %d are refused", tried, refused)
	}
}

// constants are pairs of statements; ¶ is the end of a line.
const constants = `
SELECT id, email FROM customers ORDER BY 1;;SELECT id, email FROM customers ORDER BY 2
SELECT id, email FROM customers ORDER BY 1 DESC;;SELECT id, email FROM customers ORDER BY 02 DESC
SELECT id, email FROM customers ORDER BY name, 1;;SELECT id, email FROM customers ORDER BY name, 2
SELECT id, phone, email FROM customers GROUP BY 1;;SELECT id, phone, email FROM customers GROUP BY 1, 3
SELECT DISTINCT ON (1) id, email FROM customers;;SELECT DISTINCT ON (2) id, email FROM customers
SELECT id, email FROM customers UNION ALL SELECT 1, 'a' ORDER BY 1;;SELECT id, email FROM customers UNION ALL SELECT 1, 'a' ORDER BY 2
SELECT string_agg(name, ',' ORDER BY 1) FROM customers;;SELECT string_agg(name, ',' ORDER BY email) FROM customers
SELECT name FROM customers WHERE name = 'a';;SELECT name FROM customers WHERE name = email
SELECT name FROM customers WHERE name = 'a';;SELECT name FROM customers WHERE name = "email"
SELECT name FROM customers WHERE name = 'a';;SELECT name FROM customers WHERE name = 'a'OR email>''
SELECT name FROM customers WHERE name = 'a';;SELECT name FROM customers WHERE name = '' '' OR email > ''
SELECT name FROM customers WHERE name = 'a';;SELECT name FROM customers WHERE name = 'a'' OR email > '''
SELECT name FROM customers WHERE name = 'a\';;SELECT name FROM customers WHERE name = 'a\' OR email > ''
SELECT name FROM customers WHERE name = E'a';;SELECT name FROM customers WHERE name = E'a\' OR email > '''
SELECT name FROM customers WHERE name = E'a';;SELECT name FROM customers WHERE name = E'a\\' OR email > ''
SELECT name FROM customers WHERE name = $$a$$;;SELECT name FROM customers WHERE name = $$a$$ OR email > $$$$
SELECT name FROM customers WHERE name = $b1$a$b1$;;SELECT name FROM customers WHERE name = 'x'
SELECT name FROM customers WHERE name = $a$ $$ $a$;;SELECT name FROM customers WHERE name = $a$ $b$ $a$ OR email > ''
SELECT name FROM customers WHERE name = U&'a';;SELECT name FROM customers WHERE name = U&'!0061' UESCAPE '!' OR email > ''
SELECT name FROM customers WHERE name = N'a';;SELECT name FROM customers WHERE name = n'a' OR email > ''
SELECT name FROM customers WHERE name = 'a'¶'b';;SELECT name FROM customers WHERE name = 'a'¶'b' OR email > ''
SELECT name FROM customers WHERE name = 'a' --'¶;;SELECT name FROM customers WHERE name = 'a' --'¶ OR email > ''
SELECT name FROM customers WHERE name = 'a' /* ' */;;SELECT name FROM customers WHERE name = 'a' /* ' */ OR email > '' /* ' */
SELECT name FROM customers WHERE name = 'a' /*/* ' */*/;;SELECT name FROM customers WHERE name = 'a' /*/* ' */ OR email > '' */
SELECT note AS "a'" FROM notes WHERE note = 'b';;SELECT note AS "a'" FROM notes WHERE note = 'c'
SELECT note AS "1" FROM notes WHERE id = 1;;SELECT note AS "2" FROM notes WHERE id = 2
SELECT note AS "a""1" FROM notes;;SELECT note AS "a""2" FROM notes
SELECT note AS é1 FROM notes;;SELECT note AS é2 FROM notes
SELECT 1 AS a1;;SELECT 1 AS a2
SELECT note FROM notes LIMIT 1;;SELECT note FROM notes LIMIT 2
SELECT note FROM notes ORDER BY id LIMIT 1 OFFSET 0;;SELECT note FROM notes ORDER BY id LIMIT 1 OFFSET 1
SELECT note FROM notes ORDER BY id FETCH FIRST 1 ROWS ONLY;;SELECT note FROM notes ORDER BY id FETCH FIRST 2 ROWS ONLY
SELECT sum(id) OVER (ORDER BY id ROWS 0 PRECEDING) FROM notes;;SELECT sum(id) OVER (ORDER BY id ROWS 1 PRECEDING) FROM notes
SELECT 'notes'::regclass;;SELECT 'payroll'::regclass
SELECT regclass 'notes';;SELECT regclass 'payroll'
SELECT 'notes'::regclass::oid > 0::oid;;SELECT 'nowhere'::regclass::oid > 0::oid
SELECT 'lower(text)'::regprocedure;;SELECT 'pg_read_file(text)'::regprocedure
SELECT DATE '2020-01-01';;SELECT DATE '2021-01-01'
SELECT INTERVAL '1' DAY;;SELECT INTERVAL '2' DAY
SELECT INTERVAL '1' DAY;;SELECT INTERVAL '1' HOUR
SELECT INTERVAL (1) '1.234 s';;SELECT INTERVAL (2) '1.234 s'
SELECT 1.25::numeric(5,1);;SELECT 1.25::numeric(5,2)
SELECT 1.2345678901::float(20);;SELECT 1.2345678901::float(50)
SELECT 'abc'::char(1);;SELECT 'abc'::char(2)
SELECT -1;;SELECT - 1
SELECT - -1;;SELECT - - 2
SELECT 2-1;;SELECT 2 -1
SELECT 1, 2;;SELECT 1.5, 2.
SELECT 1 AS a;;SELECT 1. AS a
SELECT 2147483647;;SELECT 2147483648
SELECT 9223372036854775807;;SELECT 9223372036854775808
SELECT 1e5;;SELECT 1e-5
SELECT B'101';;SELECT B'110'
SELECT X'1F';;SELECT x'2F'
SELECT note FROM notes WHERE id IN (1);;SELECT note FROM notes WHERE id IN (1, 2)
SELECT note FROM notes WHERE id IN (1, 2);;SELECT note FROM notes WHERE id IN (1, (SELECT length(x) FROM payroll))
SELECT note FROM notes WHERE note LIKE 'e%' ESCAPE '!';;SELECT note FROM notes WHERE note LIKE 'n!%' ESCAPE '!'
SELECT ('{a,b}'::text[])[1];;SELECT ('{a,b}'::text[])[2]
SELECT 'a' COLLATE "C" < 'B';;SELECT 'a' COLLATE "C" < 'b'
SELECT now() AT TIME ZONE 'UTC' < '1999-01-01';;SELECT now() AT TIME ZONE 'UTC' > '1999-01-01'
SELECT current_setting('search_path');;SELECT current_setting('row_security')
SELECT nextval('one') WHERE false;;SELECT nextval('two') WHERE false
SELECT '{"email": 1}'::jsonb -> 'email';;SELECT '{"email": 1}'::jsonb -> 'phone'
SELECT to_jsonb(n) ->> 'note' FROM notes n;;SELECT to_jsonb(c) ->> 'email' FROM customers c
SELECT xpath('/a/text()', '<a>1</a>');;SELECT xpath('/b/text()', '<b>2</b>')
INSERT INTO notes VALUES (100, 'a') ON CONFLICT (id) DO NOTHING;;INSERT INTO notes VALUES (100, 'a'), (1, email) ON CONFLICT (id) DO NOTHING
UPDATE notes SET note = 'n' WHERE id = 2;;UPDATE notes SET note = 'n' WHERE id = 2 OR 'a' IN (SELECT x FROM payroll)
EXPLAIN (ANALYZE 0, COSTS 0) SELECT note FROM notes WHERE id = 1;;EXPLAIN (ANALYZE 0, COSTS 0) SELECT note FROM notes WHERE id = (SELECT length(x) FROM payroll)
SET statement_timeout = 1000;;SET search_path = 1000
SET statement_timeout TO 1000;;SET row_security TO 1000
COPY notes (id) TO STDOUT;;COPY notes TO '/tmp/x'
SELECT 1; SELECT 2;;SELECT 1; SELECT x FROM payroll
`
