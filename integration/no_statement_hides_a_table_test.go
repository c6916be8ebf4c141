package integration_test

import (
	"strings"
	"testing"
)

// A policy forbids a table by its name. Whatever statement reaches it at the server, in whatever place and by whatever
// spelling, is refused through the proxy, although the agent may do everything else; and a name that only looks like it isn't.
func TestNoStatementHidesATable(t *testing.T) {
	a := newSQLAttacker(t,
		"CREATE TABLE payroll (x text PRIMARY KEY)", "INSERT INTO payroll VALUES ('top-secret')", "CREATE TABLE notes (id int PRIMARY KEY, note text)",
		"CREATE SEQUENCE numbers", "CREATE TYPE mood AS ENUM ('a')", "CREATE TABLE moods (x text REFERENCES payroll, m mood)",
		"CREATE DOMAIN word AS text", "ALTER TABLE payroll ADD w word", "CREATE SCHEMA attic",
		"CREATE TABLE heads (id int PRIMARY KEY)", "ALTER TABLE payroll ADD head int REFERENCES heads",
		"CREATE INDEX pay_head ON payroll (head)",
		"CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
		"CREATE TRIGGER quiet BEFORE UPDATE ON payroll FOR EACH ROW EXECUTE FUNCTION quiet()",
	)
	direct, through, reader := a.direct(t), a.through(t, a.definer), a.through(t, a.reader)
	tried := 0
	for line := range strings.Lines(hiding) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		tried++
		attack := append([]string{"BEGIN"}, strings.Split(line, ";;")...)
		if strings.HasPrefix(line, "VACUUM") || strings.HasPrefix(line, "REINDEX SCHEMA") || line == "CLUSTER" {
			attack = attack[1:]
		}
		if got := direct.run(t, attack...); strings.Contains(got, "ERROR ") {
			t.Errorf("%s\nis no attack; at the server itself:\n%s", line, got)
		}
		for name, s := range map[string]*sqlSession{"definer": through, "reader": reader} {
			got := s.run(t, attack...)
			if !strings.Contains(got, "ERROR 42501 refused") && !strings.Contains(got, "ERROR 0A000 refused") && !strings.Contains(got, "ERROR 42601 refused") || strings.Contains(got, "top-secret") {
				t.Errorf("%s\nby the %s:\n%s", line, name, got)
			}
		}
	}
	if tried < 100 {
		t.Errorf("only %d attacks", tried)
	}
	// The same letters, and another thing: PostgreSQL says what they mean.
	for line := range strings.Lines(looking) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		want, got := direct.run(t, "BEGIN", line), through.run(t, "BEGIN", line)
		if strings.Contains(want, "top-secret") || strings.Contains(want, "ERROR") {
			t.Errorf("%s\nat the server itself:\n%s", line, want)
		}
		if got != want {
			t.Errorf("%s\ngives\n%swhere the server gives\n%s", line, got, want)
		}
	}
}

// hiding are statements that reach the table, each in a transaction of its own.
const hiding = `
SELECT * FROM payroll
TABLE payroll
SELECT * FROM ONLY payroll
SELECT * FROM payroll *
SELECT * FROM "payroll"
SELECT * FROM PayRoll
SELECT * FROM public.payroll
SELECT * FROM shop.public.payroll
SELECT * FROM U&"p\0061yroll"
SELECT * FROM U&"p!0061yroll" UESCAPE '!'
SELECT/**/x/**/FROM/* /* */ ; */payroll--
SELECT payroll FROM payroll
SELECT payroll.* FROM notes RIGHT JOIN payroll ON true
SELECT p FROM public.payroll AS p (a, b, c)
SELECT (SELECT max(x) FROM payroll)
SELECT ARRAY(SELECT x FROM payroll)
SELECT EXISTS (TABLE payroll)
SELECT 1 WHERE 'a' IN (SELECT x FROM payroll)
SELECT 1 WHERE 'a' < ANY (SELECT x FROM payroll)
SELECT 1 WHERE ('a', 1) = (SELECT x, 1 FROM payroll)
SELECT CASE WHEN (SELECT true FROM payroll) THEN 1 END
SELECT coalesce(NULL, (SELECT x FROM payroll))
SELECT ROW((SELECT x FROM payroll), 1)
SELECT (ARRAY[1])[(SELECT 1 FROM payroll)]
SELECT count(*) FILTER (WHERE (SELECT true FROM payroll)) FROM notes
SELECT count(*) OVER (PARTITION BY (SELECT x FROM payroll)) FROM notes
SELECT count(*) OVER w FROM notes WINDOW w AS (ORDER BY (SELECT x FROM payroll))
SELECT string_agg('a', 'b' ORDER BY (SELECT x FROM payroll)) FROM notes
SELECT percentile_disc((SELECT 0.5 FROM payroll)) WITHIN GROUP (ORDER BY id) FROM notes
SELECT 1 FROM notes GROUP BY GROUPING SETS ((id), ((SELECT x FROM payroll)))
SELECT 1 FROM notes HAVING (SELECT true FROM payroll)
SELECT 1 FROM notes ORDER BY (SELECT x FROM payroll)
SELECT DISTINCT ON ((SELECT x FROM payroll)) 1 FROM notes
SELECT 1 FROM notes LIMIT (SELECT 1 FROM payroll)
SELECT 1 FROM notes OFFSET (SELECT 1 FROM payroll) ROWS FETCH FIRST (SELECT 1 FROM payroll) ROWS ONLY
SELECT 1 FROM notes TABLESAMPLE bernoulli ((SELECT 1 FROM payroll))
SELECT 1 FROM generate_series(1, (SELECT 1 FROM payroll))
SELECT 1 FROM ROWS FROM (generate_series(1, (SELECT 1 FROM payroll)))
SELECT 1 FROM notes n JOIN notes m ON (SELECT true FROM payroll)
SELECT 1 FROM notes, LATERAL (SELECT * FROM payroll) p
SELECT 1 FROM (notes CROSS JOIN payroll) AS j
SELECT 1 FROM (VALUES ((SELECT x FROM payroll))) v
SELECT 1 FROM XMLTABLE('/a' PASSING (SELECT '<a/>'::xml FROM payroll) COLUMNS b text DEFAULT (SELECT x FROM payroll))
VALUES (1, 'a'), (2, (SELECT x FROM payroll))
SELECT 'a' UNION ALL SELECT x FROM payroll
SELECT 'a' EXCEPT (SELECT 'b' INTERSECT SELECT x FROM payroll)
SELECT x FROM payroll FOR SHARE
WITH p AS (SELECT x FROM payroll) SELECT 1
WITH p AS NOT MATERIALIZED (TABLE payroll) TABLE p
WITH payroll AS (SELECT x FROM payroll) SELECT * FROM payroll
WITH payroll AS (SELECT 1 AS x) SELECT * FROM public.payroll
WITH p AS (WITH payroll AS (SELECT 1 AS x) SELECT * FROM payroll) SELECT payroll.x FROM p, payroll
(WITH payroll AS (SELECT 'a' AS x) TABLE payroll) UNION ALL SELECT x FROM payroll
WITH RECURSIVE r AS (SELECT x FROM payroll UNION ALL SELECT x FROM r WHERE false) SELECT 1 FROM r
WITH p AS (DELETE FROM payroll RETURNING x) SELECT 1
WITH p AS (UPDATE payroll SET x = x) SELECT 1
WITH p AS (INSERT INTO payroll VALUES ('b')) SELECT 1
WITH payroll AS (SELECT 1 AS x) INSERT INTO payroll VALUES ('c')
WITH payroll AS (SELECT 1 AS x) DELETE FROM payroll
INSERT INTO payroll VALUES ('b')
INSERT INTO notes SELECT 2, x FROM payroll
INSERT INTO notes VALUES (3, (SELECT x FROM payroll)) ON CONFLICT (id) DO UPDATE SET note = excluded.note
INSERT INTO notes VALUES (3) ON CONFLICT (id) DO UPDATE SET note = (SELECT x FROM payroll) WHERE notes.id = 1
INSERT INTO notes VALUES (4) RETURNING (SELECT x FROM payroll)
UPDATE notes SET note = (SELECT x FROM payroll)
UPDATE notes SET (id, note) = (SELECT 1, x FROM payroll)
UPDATE notes SET note = p.x FROM payroll p
DELETE FROM notes USING payroll
DELETE FROM payroll WHERE false
MERGE INTO payroll USING notes ON false WHEN NOT MATCHED THEN INSERT VALUES ('d')
MERGE INTO notes USING payroll ON false WHEN NOT MATCHED AND x = 'a' THEN INSERT VALUES (5, x)
MERGE INTO notes USING notes m ON notes.id = m.id WHEN MATCHED THEN UPDATE SET note = (SELECT x FROM payroll)
TRUNCATE notes, payroll CASCADE
TRUNCATE heads CASCADE
LOCK TABLE payroll IN ACCESS SHARE MODE
LOCK notes, payroll
COPY payroll TO STDOUT
COPY (SELECT x FROM payroll) TO STDOUT
COPY (INSERT INTO payroll VALUES ('e') RETURNING 1) TO STDOUT
EXPLAIN SELECT * FROM payroll
EXPLAIN (ANALYZE) UPDATE payroll SET x = x
EXPLAIN DECLARE c CURSOR FOR SELECT * FROM payroll
EXPLAIN CREATE TABLE q AS SELECT * FROM payroll
PREPARE p AS SELECT x FROM payroll;; EXECUTE p;; DEALLOCATE p
PREPARE p (text) AS DELETE FROM payroll WHERE x = $1;; DEALLOCATE p
DECLARE c CURSOR FOR SELECT x FROM payroll;; FETCH c
CREATE TABLE q AS SELECT x FROM payroll
CREATE TABLE q AS TABLE payroll WITH NO DATA
SELECT * INTO TEMP q FROM payroll
CREATE TABLE q (LIKE payroll INCLUDING ALL)
CREATE TABLE q () INHERITS (payroll)
CREATE TABLE q (x text REFERENCES payroll)
CREATE VIEW q AS SELECT x FROM payroll
CREATE TEMP VIEW q AS TABLE payroll
CREATE RECURSIVE VIEW q (x) AS SELECT x FROM payroll
CREATE MATERIALIZED VIEW q AS SELECT x FROM payroll
CREATE SCHEMA s CREATE VIEW q AS SELECT x FROM public.payroll
CREATE RULE q AS ON INSERT TO notes DO ALSO INSERT INTO payroll VALUES (new.note)
CREATE RULE q AS ON INSERT TO notes WHERE EXISTS (SELECT 1 FROM payroll) DO NOTHING
CREATE RULE q AS ON DELETE TO payroll DO INSTEAD NOTHING
CREATE FUNCTION q() RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT x FROM payroll; END
CREATE FUNCTION q() RETURNS text LANGUAGE sql RETURN (SELECT x FROM payroll)
CREATE FUNCTION q() RETURNS SETOF payroll LANGUAGE sql AS 'TABLE payroll';; SELECT q()
DO $$ BEGIN PERFORM x FROM payroll; END $$
CREATE POLICY q ON notes USING (note IN (SELECT x FROM payroll))
CREATE POLICY q ON payroll USING (true)
CREATE TRIGGER q BEFORE INSERT ON payroll FOR EACH ROW EXECUTE FUNCTION quiet()
CREATE INDEX q ON payroll (x)
CREATE STATISTICS q ON x, head FROM payroll
ALTER TABLE payroll ADD z int
ALTER TABLE payroll RENAME TO q;; SELECT x FROM q
ALTER TABLE payroll RENAME x TO y
ALTER TABLE payroll SET SCHEMA attic;; SELECT x FROM attic.payroll
ALTER TABLE notes ADD UNIQUE (note);; ALTER TABLE payroll ADD FOREIGN KEY (x) REFERENCES notes (note) NOT VALID
ALTER TABLE payroll DISABLE TRIGGER quiet
ALTER INDEX pay_head RENAME TO q
ALTER INDEX payroll_pkey SET (fillfactor = 50)
ALTER TRIGGER quiet ON payroll RENAME TO q
ALTER SCHEMA public RENAME TO q;; SELECT x FROM q.payroll
COMMENT ON TABLE payroll IS 'a'
COMMENT ON COLUMN payroll.x IS 'a'
COMMENT ON CONSTRAINT payroll_pkey ON payroll IS 'a'
COMMENT ON INDEX pay_head IS 'a'
DROP TABLE moods, payroll
DROP INDEX pay_head
DROP TRIGGER quiet ON payroll
DROP TABLE heads CASCADE
DROP DOMAIN word CASCADE
DROP SCHEMA public CASCADE
DROP OWNED BY shop_app
GRANT SELECT ON payroll TO PUBLIC
GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM deputy_catalog
ANALYZE payroll
ANALYZE notes, payroll (x)
ANALYZE
REINDEX TABLE payroll
REINDEX INDEX pay_head
CLUSTER payroll USING payroll_pkey
VACUUM payroll
VACUUM
SELECT query_to_xml('SELECT x FROM payroll', true, true, '')
SELECT table_to_xml('payroll', true, true, '')
SELECT schema_to_xml('public', true, true, '')
SELECT ts_stat('SELECT to_tsvector(x) FROM payroll')
`

// looking are statements that don't reach the table, by whatever they look like.
const looking = `
WITH payroll AS (SELECT 'mine' AS x) SELECT x FROM payroll
WITH payroll (x) AS (VALUES ('mine')) SELECT (SELECT x FROM payroll), payroll.x FROM payroll
WITH RECURSIVE payroll AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM payroll WHERE x < 3) TABLE payroll
WITH RECURSIVE a AS (SELECT * FROM payroll), payroll AS (SELECT 'mine' AS x) SELECT * FROM a
WITH payroll AS (SELECT 'mine' AS x) SELECT * FROM (WITH a AS (TABLE payroll) TABLE a) b
SELECT payroll.id FROM heads payroll
SELECT 'payroll' AS payroll
SELECT $$ FROM payroll $$, E'\' FROM payroll', U&'\0070ayroll'
SELECT 1 AS payroll /* FROM payroll */ -- FROM payroll
SELECT payroll FROM (SELECT 1 AS payroll) payroll
INSERT INTO notes VALUES (9, 'payroll') RETURNING note
`
