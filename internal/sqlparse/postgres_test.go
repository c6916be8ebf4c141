package sqlparse_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// server starts a PostgreSQL of its own, reachable through a Unix socket only, and gives a
// connection to it.
func server(t *testing.T) *pgconn.PgConn {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		t.Fatal("no PostgreSQL server is installed: apt-get install postgresql")
	}
	bin := filepath.Dir(found[len(found)-1])
	// Short, since it holds a socket; and not below a folder that only root can pass.
	dir, err := os.MkdirTemp("/tmp", "sqlparse")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var as *syscall.SysProcAttr
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = as, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	postgres := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "autovacuum=off", "-c", "logging_collector=off")
	// Should the test binary die, its server does too.
	dies := syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if as != nil {
		dies.Credential = as.Credential
	}
	postgres.SysProcAttr, postgres.Dir = &dies, dir
	if err := postgres.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = postgres.Process.Signal(syscall.SIGQUIT)
		_ = postgres.Wait()
	})
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		conn, err := pgconn.Connect(ctx, "host="+dir+" user=postgres dbname=postgres")
		if err == nil {
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
			return conn
		}
		select {
		case <-ctx.Done():
			t.Fatalf("PostgreSQL doesn't answer: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// rows runs a statement and gives its rows as text.
func rows(t *testing.T, c *pgconn.PgConn, sql string) [][]string {
	t.Helper()
	results, err := c.Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var out [][]string
	for _, row := range results[len(results)-1].Rows {
		var texts []string
		for _, v := range row {
			texts = append(texts, string(v))
		}
		out = append(out, texts)
	}
	return out
}

func TestAgainstPostgres(t *testing.T) {
	c := server(t)
	t.Run("the committed lists are the server's", func(t *testing.T) { listsAreTheServers(t, c) })
	t.Run("no row function of its own does harm", func(t *testing.T) { rowFunctionsAreHarmless(t, c) })
	t.Run("the parser's words are the server's", func(t *testing.T) { wordsAreTheServers(t, c) })
	t.Run("the server reads no other table", func(t *testing.T) { plansReadWhatIsSaid(t, c) })
	t.Run("a masked column never leaves", func(t *testing.T) { maskedNeverLeaves(t, c) })
	t.Run("read-only statements change nothing", func(t *testing.T) { readOnlyChangesNothing(t, c) })
}

// listsAreTheServers computes data/*.txt anew. They are those of PostgreSQL 15.
func listsAreTheServers(t *testing.T, c *pgconn.PgConn) {
	if v := rows(t, c, "SHOW server_version_num")[0][0]; !strings.HasPrefix(v, "15") {
		t.Fatalf("the server is version %s; the lists in data/ are reviewed for 15", v)
	}
	var denied []string
	for _, l := range lines(t, "data/functions_denied.txt") {
		if !strings.HasPrefix(l, "#") {
			denied = append(denied, l)
		}
	}
	for _, name := range []string{"functions", "operators", "types"} {
		query, err := os.ReadFile("data/" + name + ".sql")
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, r := range rows(t, c, string(query)) {
			if name == "functions" && slices.ContainsFunc(denied, func(d string) bool {
				prefix, open := strings.CutSuffix(d, "*")
				return d == r[0] || open && strings.HasPrefix(r[0], prefix)
			}) {
				continue
			}
			want = append(want, r[0])
		}
		if diff := cmp.Diff(want, lines(t, "data/"+name+".txt")); diff != "" {
			t.Errorf("data/%s.txt (-server +file)\n%s", name, diff)
		}
	}
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestListsLeaveOutWhatReaches(t *testing.T) {
	for _, name := range []string{
		"pg_read_file", "pg_read_binary_file", "pg_ls_dir", "pg_stat_file", "query_to_xml", "query_to_xmlschema",
		"query_to_xml_and_xmlschema", "cursor_to_xml", "table_to_xml", "schema_to_xml", "database_to_xml", "dblink",
		"dblink_exec", "lo_import", "lo_export", "lo_get", "lo_put", "lo_creat", "lowrite", "set_config", "nextval",
		"setval", "currval", "lastval", "pg_terminate_backend", "pg_cancel_backend", "pg_reload_conf", "pg_notify",
		"pg_advisory_lock", "pg_try_advisory_xact_lock", "pg_export_snapshot", "pg_sleep", "pg_sleep_for", "random",
		"setseed", "ts_stat", "ts_rewrite", "txid_current", "pg_current_xact_id", "pg_stat_get_activity",
		"pg_switch_wal", "pg_create_restore_point", "pg_logical_emit_message", "pg_rotate_logfile", "domain_in",
		"record_in", "pg_mcv_list_items", "pg_show_all_settings", "pg_hba_file_rules", "binary_upgrade_set_record_init_privs",
		"no_such_function", "",
	} {
		if (sqlparse.Builtin{}).Function(sqlparse.Name{Name: name}) {
			t.Errorf("%s counts as harmless", name)
		}
	}
	for _, name := range []string{"lower", "count", "now", "substring", "round", "row_number", "to_char", "coalesce_is_none", "json_agg"} {
		if want := name != "coalesce_is_none"; (sqlparse.Builtin{}).Function(sqlparse.Name{Name: name}) != want {
			t.Errorf("%s: harmless = %t", name, !want)
		}
	}
	if (sqlparse.Builtin{}).Function(sqlparse.Name{Schema: "public", Name: "lower"}) ||
		(sqlparse.Builtin{}).Operator(sqlparse.Name{Schema: "public", Name: "="}) ||
		(sqlparse.Builtin{}).Type(sqlparse.Name{Schema: "public", Name: "text"}) ||
		(sqlparse.Builtin{}).Contained(sqlparse.Name{Schema: "public", Name: "random"}) {
		t.Error("a name in another schema counts as PostgreSQL's own")
	}
	if !(sqlparse.Builtin{}).Contained(sqlparse.Name{Name: "random"}) || (sqlparse.Builtin{}).Contained(sqlparse.Name{Name: "pg_sleep"}) {
		t.Error("random is contained, pg_sleep is not")
	}
}

// rowFunctionsAreHarmless holds what Builtin.RowFunction says.
func rowFunctionsAreHarmless(t *testing.T, c *pgconn.PgConn) {
	for _, r := range rows(t, c, `SELECT proname FROM pg_proc
		WHERE pronamespace = 'pg_catalog'::regnamespace AND pronargs > 0 AND pronargs - pronargdefaults <= 1
		AND prorettype <> 'internal'::regtype
		AND (SELECT typtype FROM pg_type t WHERE t.oid = proargtypes[0]) IN ('p', 'c')
		AND proargtypes[0] NOT IN ('internal'::regtype, 'cstring'::regtype)`) {
		out := strings.HasSuffix(r[0], "out") || strings.HasSuffix(r[0], "send") // of a pseudo-type: writes it as text or bytes
		if !out && !(sqlparse.Builtin{}).Function(sqlparse.Name{Name: r[0]}) {
			t.Errorf("%s takes a row and isn't known as harmless", r[0])
		}
	}
}

const secret = "SeCrEt"

// maskedNeverLeaves plays an engine by the rules that facts.go states: with users.email masked, it
// refuses what uses the column, or anything that may be it, other than as a plain output, masks by
// the origin in RowDescription, and runs the rest on a real server. The secret must not come back,
// nor an answer that depends on it.
func maskedNeverLeaves(t *testing.T, c *pgconn.PgConn) {
	p := newPool(t, sqlparse.Config{})
	setup := `DROP TABLE IF EXISTS users, orders CASCADE;
		CREATE TABLE users (id int, name text, email text, tags text[]); CREATE TABLE orders (id int, user_id int, email text);
		INSERT INTO users VALUES (1, 'ann', '%s', '{a}'); INSERT INTO orders VALUES (10, 1, 'none');`
	oid := func() uint32 {
		n, err := strconv.ParseUint(rows(t, c, "SELECT 'users'::regclass::oid")[0][0], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	passed, refused := 0, 0
	for _, sql := range lines(t, "testdata/masked.txt") {
		sql, mayPass := strings.CutPrefix(sql, "pass: ")
		statements, err := p.Parse(t.Context(), sql)
		if err != nil || len(statements) != 1 {
			t.Errorf("%s: %d statements, %v", sql, len(statements), err)
			continue
		}
		if refuses(&statements[0]) {
			refused++
			if mayPass {
				t.Errorf("refused, but harmless: %s", sql)
			}
			continue
		}
		passed++
		var answers []string
		for _, value := range []string{secret, "other"} {
			rows(t, c, fmt.Sprintf(setup, value)+"SELECT 1")
			answers = append(answers, maskedAnswer(t, c, sql, oid(), &statements[0]))
		}
		if strings.Contains(answers[0], secret) || answers[0] != answers[1] {
			t.Errorf("leaks: %s\nwith the secret %s\nwithout %s", sql, answers[0], answers[1])
		}
		if !mayPass && !strings.HasPrefix(answers[0], "error") {
			t.Errorf("passed with %s and isn't marked so: %s", answers[0], sql)
		}
	}
	if passed < 20 || refused < 60 {
		t.Errorf("%d passed, %d refused: too few for a test", passed, refused)
	}
}

// refuses is the rule for masked columns.
func refuses(s *sqlparse.Statement) bool {
	nested := false
	for _, c := range s.Columns {
		nested = nested || c.Use == sqlparse.UseNested && mayBeEmail(s, c)
	}
	for _, c := range s.Columns {
		switch c.Use {
		case sqlparse.UseOutput, sqlparse.UseNested, sqlparse.UseTarget:
			continue
		}
		if mayBeEmail(s, c) || c.Derived && nested {
			return true
		}
	}
	return false
}

// mayBeEmail says whether a reference can mean users.email, or a row that holds it.
func mayBeEmail(s *sqlparse.Statement, c sqlparse.Column) bool {
	for _, i := range c.From {
		r := s.Relations[i]
		if r.Name != "users" || c.Excluded {
			continue
		}
		known := c.Name() == "id" || c.Name() == "name" || c.Name() == "tags"
		if c.Star || c.Row || r.Renamed || c.Name() == "email" || len(c.Path) > 1 && !known {
			return true
		}
	}
	return false
}

// maskedAnswer runs a statement and gives its rows, masked by origin.
func maskedAnswer(t *testing.T, c *pgconn.PgConn, sql string, users uint32, s *sqlparse.Statement) string {
	t.Helper()
	reader := c.ExecParams(t.Context(), sql, nil, nil, nil, nil)
	nested := slices.ContainsFunc(s.Columns, func(c sqlparse.Column) bool { return c.Use == sqlparse.UseNested && mayBeEmail(s, c) })
	var b strings.Builder
	for reader.NextRow() {
		fields := reader.FieldDescriptions()
		for i, v := range reader.Values() {
			f := fields[i]
			hidden := f.TableOID == users && (f.TableAttributeNumber == 3 || f.TableAttributeNumber == 0)
			if f.TableOID == 0 {
				hidden = withheld(s, i, len(fields), nested)
			}
			if hidden {
				v = []byte("*")
			}
			fmt.Fprintf(&b, "%s|", v)
		}
		b.WriteString("\n")
	}
	if _, err := reader.Close(); err != nil {
		return "error " + strings.SplitN(err.Error(), "\n", 2)[0]
	}
	return b.String()
}

// withheld says whether the i-th field, which has no origin, may hold the column.
func withheld(s *sqlparse.Statement, i, fields int, nested bool) bool {
	outputs := s.Outputs
	if len(outputs) != fields || slices.ContainsFunc(outputs, func(o sqlparse.Output) bool { return o.Kind == sqlparse.OutputStar }) {
		return nested || slices.ContainsFunc(s.Columns, func(c sqlparse.Column) bool { return mayBeEmail(s, c) })
	}
	if outputs[i].Derived && nested {
		return true
	}
	return slices.ContainsFunc(outputs[i].Columns, func(j int) bool { return mayBeEmail(s, s.Columns[j]) })
}

// readOnlyChangesNothing runs what is proven read-only in a transaction that may not write.
func readOnlyChangesNothing(t *testing.T, c *pgconn.PgConn) {
	p := newPool(t, sqlparse.Config{})
	rows(t, c, "DROP TABLE IF EXISTS users, t, a, b, x, y, z CASCADE; CREATE TABLE users (id int, email text, name text, active bool); CREATE TABLE t (id int, a int, b int, c text); CREATE TABLE a (id int, email text, x int); CREATE TABLE b (LIKE a); CREATE TABLE x (a int); CREATE TABLE y (b int); SELECT 1")
	ran := 0
	for _, test := range readCases(t) {
		statements, err := p.Parse(t.Context(), test.sql)
		if err != nil {
			continue
		}
		for _, s := range statements {
			if s.Kind == sqlparse.KindTransaction || !s.ReadOnly(sqlparse.Builtin{}) {
				continue
			}
			rows(t, c, "BEGIN READ ONLY; SET LOCAL statement_timeout = 200; SELECT 1")
			_, err := c.Exec(t.Context(), s.Text).ReadAll()
			if err != nil && strings.Contains(err.Error(), "SQLSTATE 25006") {
				t.Errorf("%s writes: %v", s.Text, err)
			}
			if err == nil {
				ran++
				if xid := rows(t, c, "SELECT pg_current_xact_id_if_assigned()")[0][0]; xid != "" {
					t.Errorf("%s got a transaction id", s.Text)
				}
			}
			rows(t, c, "ROLLBACK; SELECT 1")
		}
	}
	if ran < 30 {
		t.Errorf("only %d statements ran", ran)
	}
}
