package integration_test

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// answers are what an operation of a client gives, whatever the client: under a policy that lets it read the shop, with two
// columns masked, and add to one table. "metadata" is what each client asks of the catalogue, so its answer is its own.
var answers = map[string]string{
	"select":          "ok 1|i***@example.com",
	"parameters":      "ok 2|t***@example.net",
	"cursor":          "ok 1|i***@example.com,2|t***@example.net,3|m***@example.org",
	"batch":           "ok 10",
	"batch_rewritten": "ok 10",
	"transaction":     "ok 6",
	"refused":         "42501 *refused: no policy permits postgres:ddl on table \"public\".\"orders\" in orders-db/shop (record: *",
	"copy_out":        "ok 1,Ines Albrecht;2,Tomas Okafor",
	"copy_masked":     "42501 *refused: COPY would give a column that is masked or may be*",
	"copy_in":         "ok *2",
}

// everyday are the clients, how each is run, and what it learns from the catalogue.
var everyday = []struct {
	name     string
	argv     func(m *testmesh.Mesh, dir string) []string
	metadata string
}{
	{"psycopg2", python("psycopg2"), "ok email,born"},
	{"psycopg3", python("psycopg3"), "ok email,born mood"},
	{"asyncpg", python("asyncpg"), "ok happy [<Record a=1 b='x'>]"},
	{"SQLAlchemy", python("sqlalchemy"), "ok True paid i***@example.com"},
	// It reads a row of every table, and a foreign one could be any table.
	{"Django", python("django"), "ok True paid i***@example.com [\"# Unable to inspect table 'farther'\"]"},
	{"JDBC", func(_ *testmesh.Mesh, dir string) []string {
		return []string{"java", "-XX:TieredStopAtLevel=1", "-Djava.io.tmpdir=/tmp", "-cp", "/usr/share/java/postgresql.jar", filepath.Join(dir, "JdbcClient.java"), testmesh.Target}
	}, "ok {tables=*, columns=5, primary=1, imported=1, exported=1, cross=1, index=3, best row=1, result customers.email nullable=0, mood=0}"},
	{"pg", node("pg"), ""},
	{"knex", node("knex"), "ok 5 true true"},
	{"Sequelize", node("sequelize"), "ok true 5"},
	{"TypeORM", node("typeorm"), "ok 5 1 1"},
}

func python(client string) func(*testmesh.Mesh, string) []string {
	return func(_ *testmesh.Mesh, dir string) []string {
		return []string{"env", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", filepath.Join(dir, client+"_client.py")}
	}
}

func node(client string) func(*testmesh.Mesh, string) []string {
	return func(m *testmesh.Mesh, dir string) []string {
		modules := filepath.Join(m.Root, "node_modules")
		return []string{filepath.Join(modules, "node", "bin", "node"), filepath.Join(dir, "node_clients.mjs"), m.Root, client}
	}
}

// TestEverydayClientsReadOnly runs every client's every operation, and holds the table in docs/targets/postgresql.md to it.
func TestEverydayClientsReadOnly(t *testing.T) {
	m := testmesh.Start(t, testmesh.Policy(filepath.Join("testdata", "reader-masked")))
	dir := kinds(t, m)
	m.NodeModules(t)
	alice := m.Login(t, "alice")
	cells := documented(t, "postgresql.md")
	for _, c := range everyday {
		if len(cells[c.name]) < 5 {
			t.Fatalf("the table in docs/targets/postgresql.md has no row of %s", c.name)
		}
	}
	for _, c := range everyday {
		r := alice.Run(t, []string{"planner"}, c.argv(m, dir)...)
		if r.Code != 0 {
			t.Errorf("%s: %s", c.name, r)
		}
		done := map[string]bool{}
		for _, line := range testmesh.Lines(r.Stdout) {
			operation, got, _ := strings.Cut(line, " ")
			done[operation] = true
			t.Run(c.name+"/"+operation, func(t *testing.T) {
				want := answers[operation]
				if operation == "metadata" {
					want = c.metadata
				}
				if want == "" || !like(want, got) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
		for operation := range cells[c.name] {
			if !done[operation] {
				t.Errorf("docs/targets/postgresql.md says that %s does %s, and no test has it:\n%s", c.name, operation, r)
			}
		}
		for operation := range done {
			if !cells[c.name][operation] && operation != "batch_rewritten" && operation != "copy_masked" {
				t.Errorf("docs/targets/postgresql.md doesn't say that %s does %s", c.name, operation)
			}
		}
	}
	t.Run("psql", func(t *testing.T) { psqlDescribes(t, m, alice, dir) })
	t.Run("pg_dump", func(t *testing.T) { dumpsMasked(t, m, alice) })
	m.Verify(t)
}

// kinds makes one object of every kind in the shop, and puts the clients where agents can read them.
func kinds(t *testing.T, m *testmesh.Mesh) string {
	t.Helper()
	sql, err := os.ReadFile(filepath.Join("testdata", "clients", "kinds.sql"))
	if err != nil {
		t.Fatal(err)
	}
	m.PG.Exec(string(sql))
	files, err := filepath.Glob(filepath.Join("testdata", "clients", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		m.Share(t, f)
	}
	return m.Root
}

// like says that got is want, where a * stands for anything.
func like(want, got string) bool {
	parts := strings.Split(want, "*")
	if strings.Contains(want, "@") { // the stars of masked values are meant
		parts = strings.Split(strings.ReplaceAll(want, "***@", "\x00"), "*")
		got = strings.ReplaceAll(got, "***@", "\x00")
	}
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("(?s)^" + strings.Join(parts, ".*") + "$").MatchString(got)
}

// documented reads the table of clients and operations: a cell with ✓ promises the operation.
func documented(t *testing.T, page string) map[string]map[string]bool {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "docs", "targets", page))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cells := map[string]map[string]bool{}
	var operations []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		row := strings.Split(sc.Text(), "|")
		if len(row) < 3 {
			operations = nil
			continue
		}
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		switch {
		case row[1] == "client":
			operations = row
		case operations != nil && !strings.HasPrefix(row[1], "-"):
			cells[row[1]] = map[string]bool{}
			for i := 2; i < len(row)-1; i++ {
				if row[i] == "✓" {
					cells[row[1]][strings.ReplaceAll(operations[i], " ", "_")] = true
				}
			}
		}
	}
	return cells
}

// psqlDescribes runs psql's commands that describe, and finds the same as a psql that asks the server itself, but for what is
// nobody's business.
func psqlDescribes(t *testing.T, m *testmesh.Mesh, alice *testmesh.Session, dir string) {
	script := filepath.Join(dir, "describe.sql")
	psql := func(dsn ...string) []string {
		return append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh", m.PG.Bin("psql"), "-X", "-P", "pager=off", "-v", "VERBOSITY=terse", "-f", script}, dsn...)
	}
	through := alice.Run(t, []string{"planner"}, psql()...)
	direct := testmesh.Exec(t, testmesh.Command{Args: psql(m.PG.DSN("shop_app", "app-Pa55", testmesh.Database))})
	refused := map[string]string{ // because of passwords of other servers
		`\deu`: `needs a policy written for exactly that`, `\deu+`: `needs a policy written for exactly that`,
	}
	want := byCommand(direct.Stdout)
	got := byCommand(through.Stdout)
	if len(want) < 100 || len(got) != len(want) {
		t.Fatalf("%d commands directly, %d through the proxy: %s", len(want), len(got), through)
	}
	for command, answer := range want {
		if why, ok := refused[command]; ok {
			if !strings.Contains(got[command], why) || strings.Contains(got[command], "geheim") {
				t.Errorf("%s: %s", command, got[command])
			}
			continue
		}
		if got[command] != answer {
			t.Errorf("%s differs:\n%s\nfrom\n%s", command, got[command], answer)
		}
	}
}

// byCommand takes the output of describe.sql apart. Sizes in bytes and addresses don't count.
func byCommand(out string) map[string]string {
	all := map[string]string{}
	name := ""
	for _, line := range strings.Split(strings.ReplaceAll(out, "\r", ""), "\n") {
		if command, ok := strings.CutPrefix(line, ">>> "); ok {
			name = command
			all[name] = ""
			continue
		}
		if at := strings.Index(line, "ERROR:"); at > 0 {
			line = line[at:]
		}
		all[name] += strings.TrimRight(line, " ") + "\n"
	}
	delete(all, "")
	return all
}

// dumpsMasked: a dump of what is masked says so, or holds nothing unmasked.
func dumpsMasked(t *testing.T, m *testmesh.Mesh, alice *testmesh.Session) {
	dump := func(flags ...string) testmesh.Result {
		return alice.Run(t, []string{"planner"}, append([]string{m.PG.Bin("pg_dump"), "--no-sync"}, flags...)...)
	}
	// Passwords of other servers are nobody's business, and pg_dump asks for them where there are servers.
	if r := dump("--schema-only"); r.Code == 0 || !strings.Contains(r.Stderr, `select on table "pg_catalog"."pg_user_mappings"`) || strings.Contains(r.Stdout, "geheim") {
		t.Errorf("user mappings: %s", r)
	}
	if r := dump("--schema-only", "--schema", "public"); r.Code != 0 || !strings.Contains(r.Stdout, "CREATE TABLE public.customers") {
		t.Errorf("the schema: %s", r)
	}
	for _, r := range []testmesh.Result{dump(), dump("--schema", "public"), dump("--data-only", "--table", "customers"), dump("--inserts", "--table", "customers")} {
		if strings.Contains(r.Stdout+r.Stderr, "ines.albrecht@") || strings.Contains(r.Stdout, "5550101") {
			t.Errorf("a dump with unmasked values: %s", r)
		}
		if r.Code != 0 && !strings.Contains(r.Stderr, "refused: ") {
			t.Errorf("a dump that fails without saying why: %s", r)
		}
	}
	if r := dump("--schema", "public", "--exclude-table-data", "customers"); r.Code != 0 || !strings.Contains(r.Stdout, "COPY public.orders") {
		t.Errorf("without the rows of what is masked: %s", r)
	}
	if r := dump("--data-only", "--table", "orders", "--strict-names"); r.Code != 0 || strings.Count(r.Stdout, "refund requested") != 3 {
		t.Errorf("a table with nothing masked: %s", r)
	}
}

// TestADumpNeedsNothingButReading: the smallest policy for pg_dump lets connect and read, and its dump of the shop is, byte for
// byte, the one that the server gives directly.
func TestADumpNeedsNothingButReading(t *testing.T) {
	m := testmesh.Start(t, testmesh.Policy(filepath.Join("testdata", "reader")))
	kinds(t, m)
	alice := m.Login(t, "alice")
	// Some of it belongs to the superuser, or to a server that isn't there.
	m.PG.Exec("drop publication everything", "drop server far cascade")
	for _, flags := range [][]string{{"--schema-only"}, {"--data-only"}, {"-Fp"}, {"--inserts", "--table", "kinds"}, {"--column-inserts", "--clean", "--if-exists"}} {
		// With row policies it would have to leave out rows; the owner of the table sees all.
		through := alice.Run(t, []string{"planner"}, append([]string{m.PG.Bin("pg_dump"), "--no-sync"}, flags...)...)
		direct := testmesh.Exec(t, testmesh.Command{Args: append([]string{m.PG.Bin("pg_dump"), "--no-sync", "-d", m.PG.DSN("shop_app", "app-Pa55", testmesh.Database)}, flags...)})
		if diff := cmp.Diff(plainDump(direct.Stdout), plainDump(through.Stdout)); through.Code != 0 || diff != "" || len(direct.Stdout) < 500 {
			t.Errorf("pg_dump %v: %s%.2000s (-directly +through)", flags, through.Stderr, diff)
		}
	}
	// What has to do with passwords stays shut where nothing is masked, too.
	r := alice.SQL(t, []string{"planner"}, "SELECT umoptions FROM pg_user_mappings")
	if r.Code == 0 || !strings.Contains(r.Stderr, "needs a policy written for exactly that") {
		t.Errorf("user mappings: %s", r)
	}
}

// plainDump leaves out what differs from run to run: newer versions guard psql's meta-commands by a random word.
func plainDump(s string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool {
		return strings.HasPrefix(l, `\restrict `) || strings.HasPrefix(l, `\unrestrict `)
	}), "\n")
}
