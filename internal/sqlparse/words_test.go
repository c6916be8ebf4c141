package sqlparse_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	pg "github.com/pganalyze/pg_query_go/v6"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// newerWords are those that PostgreSQL 17 has and 15 hasn't. An unreserved word is a name to both, where it isn't followed by
// what 15 refuses; one that begins an expression is a name to 15 alone, and so a function in [sqlparse.Forms] or in the facts.
var newerWords = map[pg.KeywordKind][]string{
	pg.KeywordKind_UNRESERVED_KEYWORD: {
		"absent", "conditional", "empty", "error", "format", "indent", "keep", "keys", "nested", "omit", "path", "plan", "quotes", "scalar",
		"source", "string", "target", "unconditional",
	},
	pg.KeywordKind_COL_NAME_KEYWORD: append([]string{"json_table"}, sqlparse.Forms...), // of JSON_TABLE COLUMNS is a part, which 15 refuses
	pg.KeywordKind_RESERVED_KEYWORD: {"system_user"},
}

// wordsAreTheServers holds that parser and server agree on every keyword, or that the difference is known.
func wordsAreTheServers(t *testing.T, c *pgconn.PgConn) {
	kinds := map[string]pg.KeywordKind{
		"U": pg.KeywordKind_UNRESERVED_KEYWORD, "C": pg.KeywordKind_COL_NAME_KEYWORD, "T": pg.KeywordKind_TYPE_FUNC_NAME_KEYWORD, "R": pg.KeywordKind_RESERVED_KEYWORD,
	}
	theirs := map[string]bool{}
	for _, r := range rows(t, c, "SELECT word, catcode::text FROM pg_get_keywords()") {
		theirs[r[0]] = true
		if got := kindOf(t, r[0]); got != kinds[r[1]] {
			t.Errorf("%s is of kind %s to the server and %s to the parser", r[0], r[1], got)
		}
	}
	if len(theirs) < 400 {
		t.Fatalf("only %d words", len(theirs))
	}
	for _, name := range pg.Token_name {
		word := strings.ToLower(strings.TrimSuffix(name, "_P"))
		kind := kindOf(t, word)
		if kind != pg.KeywordKind_NO_KEYWORD && !theirs[word] && !slices.Contains(newerWords[kind], word) {
			t.Errorf("the parser alone knows %s, of kind %s", word, kind)
		}
	}
	p := newPool(t, sqlparse.Config{CacheBytes: -1})
	for _, sql := range []string{
		"SELECT json(x)", "SELECT json_array(x)", "SELECT json_arrayagg(x)", "SELECT json_exists(x, 'a')", "SELECT json_object()", "SELECT json_query(x, 'a')",
		"SELECT json_scalar(x)", "SELECT json_serialize(x)", "SELECT json_value(x, 'a')", "SELECT merge_action()", "SELECT system_user",
	} {
		name := strings.TrimPrefix(strings.SplitN(sql, "(", 2)[0], "SELECT ")
		got, err := p.Parse(t.Context(), sql)
		if err != nil || len(got) != 1 || !slices.ContainsFunc(got[0].Functions, func(n sqlparse.Name) bool { return n.Name == name }) {
			t.Errorf("%s: %+v %v, want a function", sql, got, err)
		}
	}
}

func kindOf(t *testing.T, word string) pg.KeywordKind {
	t.Helper()
	scan, err := pg.Scan(word)
	if err != nil || len(scan.Tokens) != 1 {
		return pg.KeywordKind_NO_KEYWORD // a token that is no word
	}
	return scan.Tokens[0].KeywordKind
}

// oddTexts are those that two readers may read differently, beside the statements of the tests of facts.
var oddTexts = []string{
	"WITH users AS (SELECT 1 AS id) SELECT * FROM users", "WITH a AS (SELECT * FROM users), users AS (SELECT 1 AS id) SELECT * FROM a, users",
	"WITH RECURSIVE users AS (SELECT 1 AS id UNION ALL SELECT id FROM users WHERE false) SELECT * FROM users", "WITH users AS (SELECT 1 AS id) SELECT * FROM public.users",
	"WITH users AS (SELECT * FROM users) SELECT (WITH t AS (SELECT 1) SELECT count(*) FROM users)", "(WITH users AS (SELECT 1 AS id) SELECT id FROM users) UNION ALL SELECT id FROM users",
	"WITH RECURSIVE users AS (SELECT * FROM t), t AS (SELECT 1 AS id) SELECT * FROM users", "WITH t AS (WITH users AS (SELECT 1 AS id) SELECT * FROM users) SELECT t.id FROM t, users",
	"WITH users AS (SELECT 1 AS id) INSERT INTO users (id) SELECT id FROM users", "WITH users AS (SELECT 1 AS id) DELETE FROM users USING t WHERE t.id IN (SELECT id FROM users)",
	"WITH users AS (SELECT 1 AS id) UPDATE t SET id = users.id FROM users", "WITH t AS (SELECT 1 AS id) MERGE INTO users USING t ON t.id = users.id WHEN MATCHED THEN DELETE",
	`SELECT * FROM U&"\0075sers"`, `SELECT * FROM U&"!0075sers" UESCAPE '!'`, `SELECT * FROM "users" AS "t.x", t`, "SELECT 1 FROM users/* /* */ , x */,t--, y",
	"SELECT 'a'\n'b', E'\\'' FROM x --' FROM users", "SELECT $$ FROM users $$ FROM t", "SELECT $a$ $$ FROM users $$ $a$ FROM t", "SELECT 1 AS keep FROM users path, t plan, x source",
	"SELECT format FROM (SELECT 1 AS format FROM users) absent", "SELECT users.* FROM t users", "TABLE ONLY users", "SELECT 1 FROM users*, ONLY (t)",
	"SELECT 1 FROM t WHERE (SELECT users IS NOT NULL FROM users LIMIT 1)", "VALUES ((SELECT id FROM users)), ((TABLE y))", "SELECT 1 FROM t ORDER BY (SELECT 1 FROM users)",
	"SELECT 1 FROM t GROUP BY CUBE ((SELECT id FROM users LIMIT 1))", "SELECT array(TABLE y), exists(TABLE users)", "SELECT 1 FROM postgres.public.users",
}

// plansReadWhatIsSaid compares the tables of the server's own plans with the facts, for what it can plan.
func plansReadWhatIsSaid(t *testing.T, c *pgconn.PgConn) {
	p := newPool(t, sqlparse.Config{CacheBytes: -1})
	rows(t, c, "DROP TABLE IF EXISTS users, t, a, b, x, y, z, orders CASCADE; CREATE TABLE users (id int, email text, name text, active bool); CREATE TABLE t (id int, a int, b int, c text); CREATE TABLE a (id int, email text, x int); CREATE TABLE b (LIKE a); CREATE TABLE x (a int); CREATE TABLE y (b int); CREATE TABLE orders (id int, user_id int, email text); SELECT 1")
	texts := slices.Clone(oddTexts)
	for _, s := range readCases(t) {
		texts = append(texts, s.sql)
	}
	for _, l := range lines(t, "testdata/masked.txt") {
		texts = append(texts, strings.TrimPrefix(l, "pass: "))
	}
	planned := 0
	for i, sql := range texts {
		results, err := c.Exec(t.Context(), "EXPLAIN (FORMAT JSON, VERBOSE) "+sql).ReadAll()
		if err != nil || len(results) != 1 || len(results[0].Rows) != 1 {
			if i < len(oddTexts) {
				t.Errorf("the server can't plan %s: %v", sql, err)
			}
			continue
		}
		facts, err := p.Parse(t.Context(), sql)
		if err != nil || len(facts) != 1 {
			if i < len(oddTexts) {
				t.Errorf("%s: %v", sql, err)
			}
			continue
		}
		planned++
		var plan any
		if err := json.Unmarshal(results[0].Rows[0][0], &plan); err != nil {
			t.Fatal(err)
		}
		for _, name := range relationsOf(plan) {
			if !slices.ContainsFunc(facts[0].Relations, func(r sqlparse.Relation) bool { return r.Name == name }) {
				t.Errorf("%s: the server uses %s, the facts say %v", sql, name, relationTexts(&facts[0]))
			}
		}
	}
	if planned < 150 {
		t.Errorf("only %d statements were planned", planned)
	}
}

// relationsOf gives the tables in a plan, those of public alone.
func relationsOf(plan any) []string {
	var out []string
	switch v := plan.(type) {
	case []any:
		for _, e := range v {
			out = append(out, relationsOf(e)...)
		}
	case map[string]any:
		if name, ok := v["Relation Name"].(string); ok && v["Schema"] == "public" {
			out = append(out, name)
		}
		for _, e := range v {
			out = append(out, relationsOf(e)...)
		}
	}
	return out
}
