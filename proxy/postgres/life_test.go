package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/postgres"
)

type cmdOf = proxy.Command

func afterMillis(n int) <-chan time.Time { return time.After(time.Duration(n) * time.Millisecond) }

func TestARevokedSessionEndsWithinASecondAndSoDoesItsQuery(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	for _, sql := range []string{"select pg_sleep(30)", ""} {
		conn := w.connect()
		done := make(chan error, 1)
		if sql != "" {
			go func() { _, err := table(context.Background(), conn, sql); done <- err }()
			waitFor(t, func() bool {
				return w.pg.Value("select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'") == "1"
			})
		}
		start := time.Now()
		w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "user ada is revoked"})
		if sql == "" {
			waitFor(t, func() bool {
				return w.pg.Value("select count(*) from pg_stat_activity where application_name like 'deputy s%'") == "0"
			})
			_, err := table(context.Background(), conn, "select 1")
			if err == nil {
				t.Error("a query ran in a revoked session")
			}
		} else {
			wantState(t, <-done, "57P01", "user ada is revoked")
			waitFor(t, func() bool {
				return w.pg.Value("select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'") == "0"
			})
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("%q: the end took %s", sql, d)
		}
	}
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it didn't come")
		}
	}
}

func TestTheEndOfAnAgentEndsItsQuery(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	go func() { _, _ = table(context.Background(), conn, "select pg_sleep(30)") }()
	active := func() string {
		return w.pg.Value("select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'")
	}
	waitFor(t, func() bool { return active() == "1" })
	_ = conn.PgConn().Conn().Close()
	waitFor(t, func() bool { return active() == "0" })
	waitFor(t, func() bool { return len(w.ledger.all("closed")) == 1 })
}

func TestCancel(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	done := make(chan error, 1)
	go func() { _, err := table(context.Background(), conn, "select pg_sleep(30)"); done <- err }()
	waitFor(t, func() bool {
		return w.pg.Value("select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'") == "1"
	})
	// 1. Another agent with the stolen key.
	thief := w.config()
	other := w.ca.SVID(w.ca.ID("/agent/planner/ffffffffffffffffffffffffffffffff"))
	thief.TLSConfig.Certificates[0].Certificate = [][]byte{other.Certificates[0].Raw}
	thief.TLSConfig.Certificates[0].PrivateKey = other.PrivateKey
	cancelWith(t, w, thief, conn)
	select {
	case err := <-done:
		t.Fatalf("another agent cancelled: %v", err)
	case <-afterMillis(300):
	}
	// 2. The agent itself.
	if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantState(t, <-done, "57014", "canceling statement due to user request")
	if o := w.ledger.outcome(t, "pg_sleep"); o.Status != "cancelled" {
		t.Errorf("outcome %+v", o)
	}
	if _, err := table(t.Context(), conn, "select 1"); err != nil {
		t.Errorf("the session isn't usable after a cancel: %v", err)
	}
}

// cancelWith sends a cancel with conn's key over a connection of another identity.
func cancelWith(t *testing.T, w *world, as *pgx.ConnConfig, conn *pgx.Conn) {
	t.Helper()
	raw := dialTLS(t, w, as.TLSConfig)
	defer raw.Close()
	raw.send(be32(16), be32(80877102), be32(conn.PgConn().PID()), conn.PgConn().SecretKey())
	raw.readAll()
}

func TestALogThatFailsStopsEverything(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	refusal := &proxy.Refusal{Class: proxy.ClassEvidence, Reason: "the decision couldn't be recorded"}
	w.ledger.mu.Lock()
	w.ledger.durable = func(context.Context, cmdOf) error { return refusal }
	w.ledger.mu.Unlock()
	got, err := table(t.Context(), conn, "select email from customers")
	if len(got) != 0 || sqlState(err) != "58000" {
		t.Errorf("rows %v, error %v; want 58000 and no row", got, err)
	}
}

func TestPsql(t *testing.T) {
	w := newWorld(t, []string{"analyst"})
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, w.pg.Bin("psql"), append([]string{"-X", "-A", "-t"}, args...)...)
		cmd.Env = w.env()
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("-c", "select name, email from customers where id = 1")
	if err != nil || strings.TrimSpace(out) != "Ada|a***@example.com" {
		t.Errorf("%s %v", out, err)
	}
	out, err = run("-c", "drop table customers")
	if err == nil || !strings.Contains(out, "refused: no policy permits postgres:ddl") || !strings.Contains(out, "record: rec-refused") {
		t.Errorf("%s %v", out, err)
	}
	out, err = run("-c", "\\d customers")
	if err != nil || !strings.Contains(out, "email|text") {
		t.Errorf("\\d: %s %v", out, err)
	}
	for _, meta := range []string{"\\dt", "\\l", "\\du", "\\df", "\\dn", "\\conninfo"} {
		if out, err := run("-c", meta); err != nil {
			t.Errorf("%s: %s %v", meta, out, err)
		}
	}
	// Errors in a script: the transaction aborts, the session goes on.
	cmd := exec.CommandContext(t.Context(), w.pg.Bin("psql"), "-X", "-A", "-t")
	cmd.Env = w.env()
	cmd.Stdin = strings.NewReader("begin;\nselect 1;\nupdate customers set name = 'x';\nselect 2;\nrollback;\nselect 'usable';\n\\copy customers to stdout\nselect 'still';\n")
	b, err := cmd.CombinedOutput()
	out = string(b)
	for _, want := range []string{"refused: no policy permits postgres:update", "current transaction is aborted", "ROLLBACK", "usable", "no policy permits postgres:copy", "still"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s (%v)", want, out, err)
		}
	}
}

func TestPgbench(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	init := exec.Command(w.pg.Bin("pgbench"), "-i", "-q", "-s", "1", w.pg.DSN("shop_app", "app-Pa55", "shop"))
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, script := range []string{"tpcb-like", "select-only"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			cmd := exec.CommandContext(ctx, w.pg.Bin("pgbench"), "-n", "-M", mode, "-b", script, "-c", "4", "-j", "2", "-t", "100")
			cmd.Env = w.env()
			out, err := cmd.CombinedOutput()
			cancel()
			if err != nil || !strings.Contains(string(out), "number of failed transactions: 0") || !strings.Contains(string(out), "actually processed: 400/400") {
				t.Errorf("%s %s: %v\n%s", mode, script, err, out)
			}
		}
	}
	// All of it happened, and each statement was decided.
	if got := w.pg.Value("select count(*) from pgbench_history"); got != "1200" {
		t.Errorf("%s rows of history, want 1200", got)
	}
	n := 0
	for _, e := range w.ledger.all("completed") {
		if e.cmd.Kind == "insert" && e.out.Status == "ok" && strings.HasPrefix(e.out.Command, "INSERT") {
			n++
		}
	}
	if n != 1200 {
		t.Errorf("%d recorded inserts, want 1200", n)
	}
}

func TestLargeResultsPassAndLeaveMemoryBounded(t *testing.T) {
	w := newWorld(t, []string{"clerk", "analyst"})
	conn := w.connect()
	// A value of 5 MB, copied through, and 200k rows.
	var n int
	if err := conn.QueryRow(t.Context(), "select length(repeat('x', 5000000))").Scan(&n); err != nil || n != 5000000 {
		t.Fatal(n, err)
	}
	var big string
	if err := conn.QueryRow(t.Context(), "select repeat('x', 5000000)").Scan(&big); err != nil || len(big) != 5000000 {
		t.Fatal(len(big), err)
	}
	rows, err := conn.Query(t.Context(), "select i, c.email from generate_series(1, 200000) i, customers c where c.id = 1")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for rows.Next() {
		var i int
		var email string
		if err := rows.Scan(&i, &email); err != nil || email != "a***@example.com" {
			t.Fatal(email, err)
		}
		count++
	}
	if rows.Err() != nil || count != 200000 {
		t.Errorf("%d rows, %v", count, rows.Err())
	}
}

func TestPinnedSettingsAndWhatTheParserCannotSee(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	for _, sql := range []string{
		"set search_path = other", "SET SEARCH_PATH TO public", "set local search_path = public", "select set_config('search_path', 'x', false)",
		"select pg_catalog.set_config('x.y', '1', true)", "set role shop_app", "set session authorization shop_app",
		"set standard_conforming_strings = off", "set client_encoding = 'latin1'", "set names 'latin1'", "update pg_settings set setting = 'x' where name = 'search_path'",
		"do $$ begin perform 1; end $$", "call nothing()", "select pg_read_file('/etc/passwd')", "select lo_import('/etc/passwd')", "select pg_terminate_backend(1)",
		"select * from dblink('x', 'y') as t(a int)", "select query_to_xml('select 1', true, true, '')", "select current_setting('x'), pg_reload_conf()",
		"select nextval('x')", "select * from orders for update nowait", "set my.tenant = '1'",
	} {
		if sql == "select * from orders for update nowait" {
			continue // allowed to a clerk, who may lock
		}
		_, err := table(t.Context(), conn, sql)
		if code := sqlState(err); code != "42501" {
			t.Errorf("%s: %v, want 42501", sql, err)
		}
	}
	for _, sql := range []string{
		"set statement_timeout = 5000", "set datestyle = 'ISO'", "set client_encoding = 'UTF8'", "show search_path", "set application_name = 'mine'", "reset search_path", "reset all",
		"select * from orders for update nowait", "set transaction isolation level read committed",
	} {
		if _, err := table(t.Context(), conn, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	got, err := table(t.Context(), conn, "show search_path")
	if err != nil || got[0] != `"public", pg_temp` {
		t.Errorf("search_path %v %v", got, err)
	}
	got, err = table(t.Context(), conn, "show application_name")
	if err != nil || !strings.HasPrefix(got[0], "deputy s") {
		t.Errorf("application_name %v %v", got, err)
	}
}

func TestDefinitionsAreSeenAtOnce(t *testing.T) {
	w := newWorld(t, []string{"dba"})
	conn := w.connect()
	for _, sql := range []string{
		"create table fresh (id int, email text)", "insert into fresh values (1, 'x')", "select * from fresh", "begin", "create table inside (a int)", "insert into inside values (1)",
		"select * from inside", "rollback", "create temp table scratch (a int)", "insert into scratch values (1)", "select a from scratch",
		"create function plus(a int) returns int language sql immutable as 'select a + 1'", "select plus(1)", "do $$ begin perform 1; end $$", "vacuum orders", "truncate fresh", "drop table fresh",
		"set my.tenant = '1'", "select nextval('s') from (select 1) x where false", "explain analyze update orders set note = note where id = 1",
	} {
		if strings.Contains(sql, "nextval") {
			w.pg.Exec("create sequence s")
			w.pg.Exec("grant usage on sequence s to shop_app")
		}
		if _, err := table(t.Context(), conn, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	// pgx's caches live with our names for statements.
	for range 2 {
		if _, err := conn.Exec(t.Context(), "select $1::int", 1); err != nil {
			t.Error(err)
		}
		if _, err := conn.Exec(t.Context(), "deallocate all"); err != nil {
			t.Error(err)
		}
		if err := conn.DeallocateAll(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, e := range w.ledger.all("decided") {
		if e.cmd.ReadOnly && (strings.HasPrefix(e.text, "create") || strings.Contains(e.text, "plus(") || strings.HasPrefix(e.text, "explain analyze")) {
			t.Errorf("%q was taken for read-only", e.text)
		}
	}
}

func TestTheTargetGoesAway(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	w.pg.Exec("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'deputy s%'")
	_, err := table(t.Context(), conn, "select 1")
	if err == nil {
		t.Fatal("no error")
	}
	if code := sqlState(err); code != "" && code != "57P01" && code != "08006" {
		t.Errorf("%v", err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it hangs")
	}
	// A new connection works: also that of the catalogue was made anew.
	w.pg.Exec("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'deputy%'")
	if _, err := table(t.Context(), w.connect(), "select count(*) from orders"); err != nil {
		t.Error(fmt.Errorf("after the target came back: %w", err))
	}
}

// A session that ends while its target keeps the proxy waiting is over at once, and the agent hears why.
func TestASessionEndsWhileItsTargetIsAwaited(t *testing.T) {
	var w *world
	dials := make(chan struct{}, 8)
	w = newWorld(t, []string{"clerk"}, func(c *postgres.Config) {
		c.Upstream.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	go func() {
		<-dials
		w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "user ada is revoked"})
	}()
	began := time.Now()
	_, err := pgx.ConnectConfig(t.Context(), w.config())
	wantState(t, err, "57P01", "user ada is revoked")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if all := w.ledger.all("completed"); len(all) != 1 || all[0].out.Status != "cut" {
		t.Errorf("the outcome: %+v", all)
	}
}
