package integration_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testpg"
)

// Two worlds differ in one customer's masked e-mail alone. Whatever an agent sends that could tell them apart at the server,
// it hears the same in both through the proxy: rows, errors and their details, notices, counts and plans.
func TestMaskedValuesLeakNowhere(t *testing.T) {
	a := newSQLAttacker(t,
		"DELETE FROM orders", "ALTER TABLE customers ADD UNIQUE (email)",
		"CREATE TABLE payroll (x text)",
		"CREATE TABLE notes (id int, note text)", "INSERT INTO notes VALUES (1, 'n')",
		"DELETE FROM customers WHERE id > 1", "ALTER TABLE customers ADD remark text DEFAULT ''",
		"CREATE TABLE elder (id int, name text, email text, phone text, remark text)",
		"CREATE TABLE younger () INHERITS (customers)", "INSERT INTO younger VALUES (9, 'Nina', 'x', '9')", "CREATE SCHEMA attic",
		// What a write makes the server say of other rows than its own: cascades, constraints that wait, views, triggers.
		"CREATE TABLE managers (name text PRIMARY KEY)", "INSERT INTO managers VALUES ('Max')",
		"ALTER TABLE customers ADD manager text DEFAULT 'Max' REFERENCES managers ON UPDATE CASCADE ON DELETE CASCADE CHECK (length(manager) < 5)",
		"CREATE TABLE logins (email text REFERENCES customers (email) ON UPDATE CASCADE DEFERRABLE)",
		"CREATE VIEW directory AS SELECT id, name, email AS address FROM customers",
		"CREATE VIEW harmless AS SELECT id, note FROM notes",
		"CREATE FUNCTION address(i int) RETURNS text LANGUAGE sql STABLE AS 'SELECT email FROM customers WHERE id = i'",
		"CREATE TABLE visits (customer int)",
		"CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'seen %', (SELECT email FROM customers WHERE id = new.customer); RAISE '%', address(new.customer); END $$",
		"CREATE TRIGGER shout BEFORE INSERT ON visits FOR EACH ROW EXECUTE FUNCTION shout()",
		"CREATE TABLE late (customer int)",
		"CREATE CONSTRAINT TRIGGER shout AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION shout()",
		"INSERT INTO logins SELECT email FROM ONLY customers WHERE id = 1",
	)
	secrets := []string{"ines.one@example.com", "ines.three@example.com"}
	world := func(secret string) {
		a.PG.Exec("SET ROLE "+testpg.App, "UPDATE customers SET email = '"+secret+"' WHERE id = 1", "UPDATE younger SET email = '"+strings.Replace(secret, "ines", "nina", 1)+"'")
	}
	// Each statement of an attack is a Query of its own, up to ";;". What is made for good has a name that begins with made.
	var attacks []string
	for _, list := range []string{byExpression, byErrorText, byDefinition, byOtherNames} {
		for line := range strings.Lines(list) {
			if line = strings.TrimSpace(line); line != "" {
				attacks = append(attacks, line)
			}
		}
	}
	serial := 0
	try := func(s *sqlSession, attack string) string {
		serial++
		name := fmt.Sprint("made", serial) // never made before, so nobody knows what it was
		return strings.ReplaceAll(s.run(t, strings.Split(strings.ReplaceAll(attack, "made", name), ";;")...), name, "made")
	}
	var plain, proxied [2]map[string]string
	for i, secret := range secrets {
		world(secret)
		plain[i], proxied[i] = map[string]string{}, map[string]string{}
		direct, through := a.direct(t), a.through(t, a.definer)
		for _, attack := range attacks {
			plain[i][attack], proxied[i][attack] = try(direct, attack), try(through, attack)
		}
	}
	for _, attack := range attacks {
		if plain[0][attack] == plain[1][attack] {
			t.Errorf("%s\nis no attack; at the server itself:\n%s", attack, plain[0][attack])
		}
		if got := proxied[0][attack]; got != proxied[1][attack] {
			t.Errorf("%s\ntells the worlds apart:\n%s\n%s", attack, got, proxied[1][attack])
		}
		for i, secret := range secrets {
			if got := strings.ToLower(proxied[i][attack]); strings.Contains(got, secret[:8]) || strings.Contains(got, "nina"+secret[4:8]) {
				t.Errorf("%s\ntells:\n%s", attack, got)
			}
		}
	}
	if len(attacks) < 100 {
		t.Errorf("only %d attacks", len(attacks))
	}

	t.Run("left to the end of a transaction by extended messages", func(t *testing.T) {
		world(secrets[0])
		for name, last := range map[string]pgproto3.FrontendMessage{"Sync": &pgproto3.Sync{}, "Query": &pgproto3.Query{String: "SELECT 1"}} {
			s := a.through(t, a.definer)
			f := s.Frontend()
			for _, sql := range []string{"SET CONSTRAINTS ALL DEFERRED", "DELETE FROM ONLY customers WHERE id = 1"} {
				f.Send(&pgproto3.Parse{Query: sql})
				f.Send(&pgproto3.Bind{})
				f.Send(&pgproto3.Execute{})
			}
			f.Send(last)
			if err := f.Flush(); err != nil {
				t.Fatal(err)
			}
			heard := ""
			for done := false; !done; {
				m, err := f.Receive()
				if err != nil {
					t.Fatal(err)
				}
				switch m := m.(type) {
				case *pgproto3.ErrorResponse:
					heard += fmt.Sprintln(m.Code, m.Message, m.Detail, m.Where)
				case *pgproto3.ReadyForQuery:
					done = true
				}
			}
			if !strings.HasPrefix(heard, "23503") || !strings.Contains(heard, "withheld") || strings.Contains(heard, "ines") {
				t.Errorf("%s: %s", name, heard)
			}
		}
	})
}

// byExpression are places of a value that no plain output is.
const byExpression = `
SELECT xmlforest(email) FROM customers
SELECT format('%s', email) FROM customers
SELECT format('%s', c) FROM customers c
SELECT to_jsonb(c) ->> 'email' FROM customers c
SELECT (c).email || '' FROM customers c
SELECT c::text FROM customers c
SELECT array_agg(email) FROM customers
SELECT array_to_string(array_agg(c.*), '') FROM customers c
SELECT string_agg(email, '') FROM customers
SELECT length(email) FROM customers
SELECT pg_column_size(c.*) FROM customers c
SELECT email[1] FROM (SELECT string_to_array(email, '@') AS email FROM customers) s
SELECT (ARRAY['a','b','c'])[length(email) - 19] FROM customers
SELECT percentile_disc(0) WITHIN GROUP (ORDER BY email) FROM customers
SELECT mode() WITHIN GROUP (ORDER BY email) FROM customers
SELECT rank('ines.p') WITHIN GROUP (ORDER BY email) FROM customers
SELECT count(*) FILTER (WHERE email ~ '^ines.o') FROM customers
SELECT first_value(email) OVER (ORDER BY id) FROM customers
SELECT count(*) OVER (ORDER BY g ROWS (SELECT length(email) - 20 FROM customers WHERE id = 1) PRECEDING) FROM generate_series(1, 5) g
SELECT min(name) OVER (PARTITION BY email > 'ines.p') , id FROM customers ORDER BY id
SELECT grouping(e), count(*) FROM (SELECT email > 'ines.p' AS e FROM customers) s GROUP BY GROUPING SETS ((e), ()) ORDER BY 2, 1
SELECT l.v FROM customers c, LATERAL (VALUES (c.email)) l (v)
SELECT l.* FROM customers c CROSS JOIN LATERAL regexp_split_to_table(c.email, '@') l
SELECT x.* FROM customers c, XMLTABLE('/r' PASSING xmlelement(name r, c.email) COLUMNS v text PATH '.') x
SELECT 1 FROM customers c, jsonb_path_query(to_jsonb(c), '$.email ? (@ starts with "ines.o")')
VALUES ((SELECT email FROM customers WHERE id = 1))
WITH RECURSIVE r AS (SELECT email, 1 AS n FROM customers WHERE id = 1 UNION ALL SELECT substr(email, 2), n + 1 FROM r WHERE n < 7) SELECT * FROM r
WITH RECURSIVE r (e, n) AS (SELECT email, 1 FROM customers WHERE id = 1 UNION SELECT e, 1 FROM r) CYCLE e SET looped USING path SELECT path::text FROM r
SELECT id FROM customers WHERE email BETWEEN 'ines.a' AND 'ines.p'
SELECT id FROM customers WHERE email = ANY ('{ines.one@example.com}')
SELECT id FROM customers WHERE 'ines.p' <= ALL (ARRAY[email])
SELECT id FROM customers WHERE email IS DISTINCT FROM 'ines.one@example.com'
SELECT id FROM customers WHERE email SIMILAR TO 'ines.o%'
SELECT id FROM customers WHERE starts_with(email, 'ines.o')
SELECT id FROM customers c WHERE c > ROW(1, 'Ines Albrecht', 'ines.p', '', '', '')::customers
SELECT id FROM customers c WHERE c.* > ROW(1, 'Ines Albrecht', 'ines.p', '', '', '')::customers
SELECT id FROM customers c WHERE (c.id, c.email) IN (VALUES (1, 'ines.one@example.com'))
SELECT id FROM customers WHERE (DATE '2020-01-01', INTERVAL '1 day' * length(email)) OVERLAPS (DATE '2020-01-22', DATE '2020-01-23')
SELECT id FROM customers WHERE EXISTS (SELECT email INTERSECT SELECT 'ines.one@example.com')
SELECT id FROM customers WHERE (SELECT email) = 'ines.one@example.com'
SELECT CASE email WHEN 'ines.one@example.com' THEN 1 END FROM customers
SELECT coalesce(email), nullif(email, ''), greatest(email, ''), least(email) FROM customers
SELECT 1 / (length(email) - 22) FROM customers WHERE id = 1
SELECT CASE WHEN email < 'ines.p' THEN ('x' || email)::int END FROM customers
SELECT 'x' FROM customers WHERE id = 1 AND email::text::uuid IS NULL
SELECT 1 FROM generate_series(1, 30) LIMIT (SELECT length(email) FROM customers WHERE id = 1)
SELECT 1 FROM generate_series(1, 30) FETCH FIRST (SELECT length(email) FROM customers WHERE id = 1) ROWS ONLY
SELECT 1 FROM generate_series(1, 30) OFFSET (SELECT length(email) FROM customers WHERE id = 1)
SELECT id FROM (SELECT id, email FROM customers UNION ALL VALUES (77, 'ines.p')) s ORDER BY email
SELECT id FROM (SELECT id, email FROM customers UNION ALL VALUES (77, 'ines.p')) s ORDER BY email USING <
SELECT DISTINCT ON (email < 'ines.p') id FROM customers ORDER BY email < 'ines.p', id
SELECT count(DISTINCT left(email, 6)) FROM (SELECT email FROM customers UNION ALL VALUES ('ines.o')) s
SELECT count(*) FROM (SELECT email FROM customers UNION VALUES ('ines.one@example.com')) s
SELECT count(*) FROM (VALUES ('ines.one@example.com')) g (email) NATURAL JOIN customers
SELECT j.n FROM (customers JOIN (VALUES ('ines.one@example.com', 1)) g (email, n) USING (email)) AS j
SELECT j.email FROM customers JOIN (VALUES ('ines.one@example.com', 1)) g (email, n) USING (email) AS j
SELECT 1 FROM customers c (a, b, d) WHERE d < 'ines.p'
SELECT upper(d) FROM customers c (a, b, d)
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT 1 FROM customers WHERE email < 'ines.p'
PREPARE made AS SELECT upper(email) FROM customers;; EXECUTE made;; DEALLOCATE made
BEGIN;; DECLARE c CURSOR FOR SELECT lower(email) FROM customers;; FETCH ALL FROM c
COPY (SELECT email FROM customers) TO STDOUT
COPY (SELECT c FROM customers c) TO STDOUT (FORMAT csv)
COPY customers (id, email) TO STDOUT
INSERT INTO notes SELECT id, email FROM customers RETURNING note
BEGIN;; INSERT INTO notes VALUES (7, (SELECT email FROM customers WHERE id = 1));; SELECT note FROM notes WHERE id = 7
BEGIN;; UPDATE notes SET note = email FROM customers WHERE customers.id = 1;; SELECT note FROM notes
BEGIN;; UPDATE customers SET name = email;; SELECT name FROM customers
BEGIN;; UPDATE customers SET name = 'hit' WHERE email < 'ines.p';; SELECT name FROM customers
BEGIN;; DELETE FROM notes USING customers WHERE email < 'ines.p'
BEGIN;; MERGE INTO notes USING customers ON notes.id = customers.id WHEN MATCHED AND email < 'ines.p' THEN DELETE
BEGIN;; INSERT INTO customers VALUES (50, 'x', 'ines.one@example.com', '') ON CONFLICT ON CONSTRAINT customers_email_key DO UPDATE SET name = 'hit' RETURNING id
BEGIN;; INSERT INTO customers VALUES (1, 'x', 'y', '') ON CONFLICT (id) DO UPDATE SET name = customers.email RETURNING name
BEGIN;; CREATE TEMP TABLE t AS SELECT email FROM customers;; SELECT * FROM t
BEGIN;; SELECT email INTO TEMP t FROM customers;; SELECT * FROM t
BEGIN;; CREATE MATERIALIZED VIEW m AS SELECT email FROM customers;; SELECT * FROM m
SELECT upper(system_user) FROM customers c (id, name, "system_user")
SELECT system_user FROM customers c (id, name, "system_user")
SELECT id FROM customers c (id, name, "system_user") WHERE system_user < 'ines.p'
`

// byErrorText are writes that make the server speak of a row.
const byErrorText = `
SET CONSTRAINTS ALL DEFERRED; DELETE FROM ONLY customers WHERE id = 1; SELECT 1
BEGIN;; SET CONSTRAINTS ALL DEFERRED;; DELETE FROM ONLY customers WHERE id = 1;; COMMIT
BEGIN;; SET CONSTRAINTS ALL DEFERRED;; DELETE FROM ONLY customers WHERE id = 1;; SET CONSTRAINTS ALL IMMEDIATE
BEGIN;; SET CONSTRAINTS ALL DEFERRED;; DELETE FROM managers;; COMMIT
DELETE FROM ONLY customers WHERE id = 1
DELETE FROM directory WHERE id = 1
DELETE FROM managers
UPDATE managers SET name = 'Maximilian'
UPDATE ONLY customers SET manager = 'Nobody knows' WHERE id = 1
UPDATE directory SET id = NULL
INSERT INTO visits VALUES (1)
BEGIN;; INSERT INTO late VALUES (1);; COMMIT
INSERT INTO late VALUES (1); SELECT 1
BEGIN;; INSERT INTO late VALUES (1);; SET CONSTRAINTS ALL IMMEDIATE
`

// byDefinition are definitions, in a transaction and for good, under which a value has another name.
const byDefinition = `
BEGIN;; ALTER TABLE customers RENAME COLUMN email TO e;; SELECT e FROM customers;; SELECT upper(e) FROM customers
BEGIN;; ALTER TABLE customers RENAME COLUMN email TO e;; ALTER TABLE customers RENAME COLUMN name TO email;; ALTER TABLE customers RENAME COLUMN e TO name;; SELECT upper(name) FROM customers
BEGIN;; ALTER TABLE customers RENAME TO c;; ALTER TABLE notes RENAME TO n;; ALTER TABLE c RENAME TO notes;; SELECT upper(email) FROM notes
BEGIN;; ALTER TABLE customers RENAME TO c;; CREATE TABLE customers (id int);; SELECT email FROM c;; SELECT upper(email) FROM c
BEGIN;; CREATE OR REPLACE VIEW harmless AS SELECT id, email AS note FROM customers;; SELECT upper(note) FROM harmless
CREATE OR REPLACE VIEW harmless AS SELECT id, email AS note FROM customers; SELECT upper(note) FROM harmless; ROLLBACK; CREATE OR REPLACE VIEW harmless AS SELECT id, note FROM notes
BEGIN;; DROP VIEW harmless;; DROP TABLE notes;; CREATE VIEW notes AS SELECT id, email AS note FROM customers;; SELECT upper(note) FROM notes
BEGIN;; ALTER VIEW harmless RENAME TO h;; ALTER VIEW directory RENAME TO harmless;; SELECT upper(address) FROM harmless
BEGIN;; ALTER TABLE harmless RENAME TO h;; ALTER TABLE directory RENAME TO harmless;; SELECT upper(address) FROM harmless
BEGIN;; ALTER FUNCTION address(int) RENAME TO lower;; SELECT lower(1)
BEGIN;; ALTER ROUTINE address(int) RENAME TO upper;; SELECT upper(1)
BEGIN;; ALTER TABLE younger NO INHERIT customers;; SELECT email FROM younger;; SELECT upper(email) FROM younger
BEGIN;; ALTER TABLE elder ADD manager text;; ALTER TABLE customers INHERIT elder;; SELECT email FROM elder;; SELECT upper(email) FROM elder
BEGIN;; ALTER TABLE customers SET SCHEMA attic;; SELECT upper(email) FROM attic.customers
BEGIN;; DROP SCHEMA attic;; ALTER SCHEMA public RENAME TO attic;; CREATE SCHEMA public;; CREATE TABLE public.customers (id int);; SELECT lower(email) FROM attic.customers
BEGIN;; ALTER TABLE customers ALTER remark TYPE text USING email;; SELECT remark FROM customers
BEGIN;; ALTER TABLE customers ADD copied text GENERATED ALWAYS AS (email) STORED;; SELECT copied FROM customers
BEGIN;; ALTER TABLE customers ADD CHECK (email > 'ines.p')
BEGIN;; CREATE POLICY p ON customers USING (email < 'ines.p');; ALTER TABLE customers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;; SELECT id FROM customers
BEGIN;; CREATE POLICY p ON notes USING (note < ALL (SELECT email FROM customers));; ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;; UPDATE notes SET note = 'ines.p';; SELECT id FROM notes
BEGIN;; CREATE INDEX made ON customers (id) WHERE email < 'ines.p';; SELECT reltuples FROM pg_class WHERE relname = 'made'
BEGIN;; INSERT INTO customers VALUES (50, 'x', 'ines.z', '');; CREATE UNIQUE INDEX made ON customers ((email > 'ines.p'))
BEGIN;; CREATE TABLE made (e text REFERENCES customers (email));; INSERT INTO made VALUES ('ines.one@example.com')
BEGIN;; CREATE TABLE made (e text);; ALTER TABLE made ADD FOREIGN KEY (e) REFERENCES customers (email);; INSERT INTO made VALUES ('ines.one@example.com')
BEGIN;; CREATE TABLE made (e text PRIMARY KEY);; INSERT INTO made SELECT email FROM customers WHERE id <> 1;; INSERT INTO made VALUES ('ines.one@example.com');; ALTER TABLE customers ADD FOREIGN KEY (email) REFERENCES made
CREATE VIEW made AS SELECT email AS e FROM customers;; SELECT e FROM made
CREATE VIEW made AS SELECT x.* FROM (SELECT * FROM customers) x;; SELECT email FROM made
CREATE VIEW made AS SELECT c AS r FROM customers c;; SELECT (r).email FROM made
CREATE TEMP VIEW made AS SELECT email AS e FROM customers;; SELECT upper(e) FROM made
CREATE VIEW made AS SELECT id FROM customers WHERE email < 'ines.p';; SELECT id FROM made
CREATE MATERIALIZED VIEW made AS SELECT email FROM customers;; SELECT email FROM made
CREATE TABLE made AS TABLE customers;; SELECT email FROM made
BEGIN;; CREATE RULE r AS ON UPDATE TO notes DO ALSO SELECT email FROM customers;; UPDATE notes SET id = 1
BEGIN;; CREATE FUNCTION pg_temp.f() RETURNS SETOF text LANGUAGE sql AS 'SELECT email FROM customers';; SELECT pg_temp.f()
BEGIN;; CREATE FUNCTION pg_temp.f() RETURNS SETOF text BEGIN ATOMIC SELECT email FROM customers; END;; SELECT pg_temp.f()
BEGIN;; ANALYZE customers;; SELECT histogram_bounds, most_common_vals FROM pg_stats WHERE tablename = 'customers' AND attname = 'email'
BEGIN;; CREATE STATISTICS made ON (upper(email)), id FROM customers;; ANALYZE customers;; SELECT most_common_vals, histogram_bounds FROM pg_stats_ext_exprs
DO $$ BEGIN RAISE NOTICE '%', (SELECT email FROM customers WHERE id = 1); END $$
`

// byOtherNames are the roads of the server itself to a table whose name stands in a string.
const byOtherNames = `
SELECT query_to_xml('SELECT email FROM customers', true, true, '')
SELECT table_to_xml('customers', true, true, '')
SELECT schema_to_xml('public', true, true, '')
SELECT database_to_xml(true, true, '')
BEGIN;; DECLARE c CURSOR FOR SELECT email FROM customers;; SELECT cursor_to_xml('c', 10, true, true, '')
SELECT word FROM ts_stat('SELECT to_tsvector(''simple'', email) FROM customers')
SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, quote_literal(email)::tsquery FROM customers WHERE id = 1')
SELECT address(1)
SELECT pg_catalog.upper(public.address(1))
SELECT address FROM directory
SELECT upper(address) FROM directory
SELECT count(*) FROM directory WHERE address < 'ines.p'
`
