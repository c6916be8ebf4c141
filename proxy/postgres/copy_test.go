package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testpg"
)

// TestCopyGivesTheSameBytes: in every format what comes through is what the server gives.
func TestCopyGivesTheSameBytes(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn, ctx := w.connect(), t.Context()
	direct, err := w.pg.Connect(ctx, testpg.App, testpg.AppPassword, testpg.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(context.Background())
	for _, sql := range []string{
		"copy customers to stdout",
		"copy customers (id, email) to stdout with (format csv, header, force_quote *)",
		"copy customers to stdout (format binary)",
		"copy (select id, note from orders order by id) to stdout csv header",
		"copy (select 1 where false) to stdout binary",
		"copy (update orders set note = note where id = 3 returning id, note) to stdout",
		"copy (values ('ä'), (E'\\n\\\\')) to stdout with (encoding 'LATIN1')",
	} {
		var want, got bytes.Buffer
		if _, err := direct.CopyTo(ctx, &want, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		tag, err := conn.PgConn().CopyTo(ctx, &got, sql)
		if err != nil || !bytes.Equal(want.Bytes(), got.Bytes()) {
			t.Errorf("%s: %s %v\nwant %q\ngot  %q", sql, tag, err, want.Bytes(), got.Bytes())
		}
		if o := w.ledger.outcome(t, sql); o.Status != "ok" || o.Bytes < int64(got.Len()) || fmt.Sprintf("COPY %d", o.Rows) != tag.String() {
			t.Errorf("%s: outcome %+v of %s", sql, o, tag)
		}
	}
}

// TestCopyOfMaskedColumnsIsRefused by every spelling, and what isn't masked passes.
func TestCopyOfMaskedColumnsIsRefused(t *testing.T) {
	pg := testpg.Start(t)
	shapes(pg)
	w := worldOf(t, pg, []string{"analyst", "copier"})
	conn, ctx := w.connect(), t.Context()
	for _, sql := range []string{
		"copy customers to stdout", "copy customers (email) to stdout csv", "copy customers (id, phone) to stdout binary",
		"copy public.customers to stdout", "copy customers_child to stdout", "copy customers_child (email) to stdout", "copy plain_view to stdout",
		"copy (select email from customers) to stdout", "copy (select * from customers) to stdout", "copy (table customers) to stdout",
		"copy (select c from customers c) to stdout", "copy (select c.* from customers c) to stdout", "copy (select upper(email) from customers) to stdout",
		"copy (select x from (select email as x from customers) s) to stdout", "copy (with w as (select email from customers) select * from w) to stdout",
		"copy (select name from customers union select email from customers) to stdout", "copy (select name from customers where email like 'a%') to stdout",
		"copy (select c.row_text from customers c) to stdout", "copy (select c.row_to_json from customers c) to stdout",
		"copy (select array(select email from customers)) to stdout", "copy (select to_json(c) from customers c) to stdout",
		"copy stored_view to stdout", "copy (select first_email()) to stdout", "copy (select e from over_view) to stdout",
		"copy (select email from customers) to '/tmp/deputy-copy'", "copy secrets to stdout", "copy (delete from customers returning email) to stdout",
		"copy (select id from customers for update) to stdout",
		"copy customers (id, name) from stdin",
	} {
		var got bytes.Buffer
		_, err := conn.PgConn().CopyTo(ctx, &got, sql)
		if sqlState(err) != "42501" || !strings.Contains(err.Error(), "refused") || got.Len() > 0 {
			t.Errorf("%s: %v %q", sql, err, got.String())
		}
	}
	for sql, want := range map[string]string{
		"copy customers (id, name) to stdout":                                        "1\tAda\n2\tBob\n3\tCarol\n",
		"copy (select name, id from customers where id = 1) to stdout csv":           "Ada,1\n",
		"copy (select count(*), upper(max(name)) from only customers) to stdout csv": "3,CAROL\n",
		"copy (select email from other.customers) to stdout":                         "eve@example.com\n",
		"copy (select 1) to stdout":                                                  "1\n",
		"copy orders (id) to stdout with (format csv, header)":                       "",
	} {
		var got bytes.Buffer
		if _, err := conn.PgConn().CopyTo(ctx, &got, sql); err != nil || want != "" && got.String() != want {
			t.Errorf("%s: %q %v, want %q", sql, got.String(), err, want)
		}
	}
	// Without the right to copy, reading is all there is.
	w.ledger.become("analyst")
	if _, err := conn.PgConn().CopyTo(ctx, io.Discard, "copy orders to stdout"); sqlState(err) != "42501" {
		t.Errorf("copy without the right to: %v", err)
	}
}

// TestCopyNeverTouchesTheServersFiles, whatever a policy says.
func TestCopyNeverTouchesTheServersFiles(t *testing.T) {
	w := newWorld(t, []string{"dba"})
	w.pg.Exec("grant pg_read_server_files, pg_write_server_files, pg_execute_server_program to " + testpg.App)
	conn := w.connect()
	for _, sql := range []string{
		"copy orders to '/tmp/deputy-copy-test'", "copy orders from '/etc/passwd'", "copy orders to program 'cat'", "copy orders from program 'id'",
		"copy (select 1) to program 'cat'", "copy (select 1) to '/tmp/deputy-copy-test'", "prepare x as copy orders to program 'cat'", "begin; copy orders to program 'cat'",
	} {
		if _, err := table(t.Context(), conn, sql); sqlState(err) != "42501" && sqlState(err) != "42601" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// TestCopyInsertsWhatTheAgentSends, in every format, counted in the record.
func TestCopyInsertsWhatTheAgentSends(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table parts (id int primary key, name text)")
	w := worldOf(t, pg, []string{"clerk"})
	conn, ctx := w.connect(), t.Context()
	in := func(sql, data string) (string, error) {
		tag, err := conn.PgConn().CopyFrom(ctx, strings.NewReader(data), sql)
		return tag.String(), err
	}
	for _, c := range []struct{ sql, data, tag, code string }{
		{"copy parts from stdin", "1\tone\n2\ttwo\n", "COPY 2", ""},
		{"copy parts (name, id) from stdin with (format csv, header, force_null (name))", "name,id\n\"\",3\nfour,4\n", "COPY 2", ""},
		{"copy parts from stdin where id > 10 and name <> 'x'", "5\tfive\n15\tfifteen\n16\tx\n", "COPY 1", ""},
		{"copy parts from stdin", "", "COPY 0", ""},
		{"copy parts from stdin", "20\ttwenty\nbad\trow\n", "", "22P02"},
		{"copy parts from stdin", "21\tx\n1\tagain\n", "", "23505"},
		{"copy nothing from stdin", "1\n", "", "42P01"},
		{"copy parts from stdin where id > (select 1)", "1\t1\n", "", "0A000"},
		{"copy parts to stdout", "1\t1\n", "", ""},
	} {
		tag, err := in(c.sql, c.data)
		if c.sql == "copy parts to stdout" {
			continue // pgconn's own complaint; the session below must be in step
		}
		if tag != c.tag || sqlState(err) != c.code {
			t.Errorf("%s of %q: %q %v, want %q %s", c.sql, c.data, tag, err, c.tag, c.code)
		}
	}
	conn = w.connect()
	n, err := conn.CopyFrom(ctx, pgx.Identifier{"parts"}, []string{"id", "name"}, pgx.CopyFromSlice(5000, func(i int) ([]any, error) {
		return []any{1000 + i, strings.Repeat("n", 100)}, nil
	}))
	if err != nil || n != 5000 {
		t.Errorf("pgx CopyFrom: %d %v", n, err)
	}
	if got := pg.Value("select string_agg(id || coalesce(name, '-'), ' ' order by id) from parts where id < 1000"); got != "1one 2two 3- 4four 15fifteen" {
		t.Errorf("the table has %q", got)
	}
	o := w.ledger.outcome(t, `copy "parts" ( "id", "name" ) from stdin binary`)
	if o.Status != "ok" || o.Affected != 5000 {
		t.Errorf("outcome %+v", o)
	}
	_, err = conn.PgConn().CopyFrom(ctx, io.MultiReader(strings.NewReader("9001\tx\n"), failing{}), "copy parts from stdin")
	if sqlState(err) != "57014" {
		t.Errorf("CopyFail: %v", err)
	}
	if got, err := table(ctx, conn, "select count(*) from parts where id > 9000"); err != nil || got[0] != "0" {
		t.Errorf("after a CopyFail: %v %v", got, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the source broke") }

func data(rows string) *pgproto3.CopyData { return &pgproto3.CopyData{Data: []byte(rows)} }

// TestCopyInEveryOrder sends messages in one go, as agents may.
func TestCopyInEveryOrder(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table parts (id int primary key)")
	w := worldOf(t, pg, []string{"clerk"})
	f := w.frontend()
	conn, err := pg.Connect(t.Context(), testpg.App, testpg.AppPassword, testpg.Database)
	if err != nil {
		t.Fatal(err)
	}
	direct, err := conn.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Conn.Close()
	done, fail := &pgproto3.CopyDone{}, &pgproto3.CopyFail{Message: "enough"}
	in := "copy parts from stdin"
	extended := []pgproto3.FrontendMessage{parse("", in), bind("", ""), execute("", 0)}
	with := func(more ...pgproto3.FrontendMessage) []pgproto3.FrontendMessage {
		return append(append([]pgproto3.FrontendMessage(nil), extended...), more...)
	}
	for _, c := range []struct {
		name  string
		ready int
		send  []pgproto3.FrontendMessage
		want  []string
	}{
		{"without waiting", 2, []pgproto3.FrontendMessage{query(in), data("1\n"), data("2\n3"), data("\n"), done, query("select 1")},
			[]string{"CopyInResponse", "COPY 3", "ready I", "fields 1", "row 1", "SELECT 1", "ready I"}},
		{"a transaction in one string", 1, []pgproto3.FrontendMessage{query("begin; " + in + "; select 5; " + in + "; commit"), data("4\n"), done, data("5\n"), done},
			[]string{"BEGIN", "CopyInResponse", "COPY 1", "fields 1", "row 5", "SELECT 1", "CopyInResponse", "COPY 1", "COMMIT", "ready I"}},
		{"out and in", 1, []pgproto3.FrontendMessage{query("copy (select 7) to stdout; " + in), data("6\n"), done},
			[]string{"CopyOutResponse", "data 7\n", "CopyDone", "COPY 1", "CopyInResponse", "COPY 1", "ready I"}},
		{"refused", 2, []pgproto3.FrontendMessage{query("copy secrets from stdin"), data("1\n"), done, query("select 2")},
			[]string{"error 42501", "ready I", "fields 1", "row 2", "SELECT 1", "ready I"}},
		{"a bad row, and more", 2, []pgproto3.FrontendMessage{query(in), data("x\n"), data("7\n"), done, query("select 3")},
			[]string{"CopyInResponse", "error 22P02", "ready I", "fields 1", "row 3", "SELECT 1", "ready I"}},
		{"a bad row in the first of two", 2, []pgproto3.FrontendMessage{query(in + "; " + in), data("x\n"), done, query("select 3")},
			[]string{"CopyInResponse", "error 22P02", "ready I", "fields 1", "row 3", "SELECT 1", "ready I"}},
		{"CopyFail", 2, []pgproto3.FrontendMessage{query(in), data("8\n"), fail, data("9\n"), query("select 4")},
			[]string{"CopyInResponse", "error 57014", "ready I", "fields 1", "row 4", "SELECT 1", "ready I"}},
		{"another message in its midst", 2, []pgproto3.FrontendMessage{query(in), data("10\n"), query("select 'lost'"), data("11\n"), query("select 5")},
			[]string{"CopyInResponse", "error 57014", "ready I", "fields 1", "row 5", "SELECT 1", "ready I"}},
		{"extended", 1, with(data("12\n"), done, syncMsg), []string{"ParseComplete", "BindComplete", "CopyInResponse", "COPY 1", "ready I"}},
		{"a Sync before the rows means nothing", 1, with(syncMsg, &pgproto3.Flush{}, data("13\n"), done, syncMsg),
			[]string{"ParseComplete", "BindComplete", "CopyInResponse", "COPY 1", "ready I"}},
		{"nor does one among them", 1, with(data("14\n"), syncMsg, data("15\n"), done, syncMsg),
			[]string{"ParseComplete", "BindComplete", "CopyInResponse", "COPY 2", "ready I"}},
		{"a Sync for a COPY that didn't begin", 2, []pgproto3.FrontendMessage{parse("", "copy nothing from stdin"), bind("", ""), execute("", 0), syncMsg, data("1\n"), done, syncMsg},
			[]string{"ParseComplete", "BindComplete", "error 42P01", "ready I", "ready I"}},
		{"and one for a refused COPY", 2, []pgproto3.FrontendMessage{parse("", "copy secrets from stdin"), bind("", ""), execute("", 0), syncMsg, data("1\n"), done, syncMsg},
			[]string{"error 42501", "ready I", "ready I"}},
		{"an error in an extended COPY", 1, with(data("x\n"), data("16\n"), done, syncMsg),
			[]string{"ParseComplete", "BindComplete", "CopyInResponse", "error 22P02", "ready I"}},
		{"CopyFail in an extended COPY", 1, with(data("17\n"), fail, parse("", "select 1"), syncMsg),
			[]string{"ParseComplete", "BindComplete", "CopyInResponse", "error 57014", "ready I"}},
		{"a pipeline goes on behind it", 1, with(data("18\n"), done, parse("", "select id from parts where id > 17"), bind("", ""), execute("", 0), syncMsg),
			[]string{"ParseComplete", "BindComplete", "CopyInResponse", "COPY 1", "ParseComplete", "BindComplete", "row 18", "SELECT 1", "ready I"}},
		{"out by messages", 1, []pgproto3.FrontendMessage{parse("", "copy (select 19) to stdout"), bind("", ""), &pgproto3.Describe{ObjectType: 'P'}, execute("", 0), syncMsg},
			[]string{"ParseComplete", "BindComplete", "NoData", "CopyOutResponse", "data 19\n", "CopyDone", "COPY 1", "ready I"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			has := func() string { return pg.Value("select string_agg(id::text, ' ' order by id) from parts") }
			pg.Exec("truncate parts")
			if diff := cmp.Diff(c.want, w.script(t, f, c.ready, c.send...)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			through := has()
			if slices.Contains(c.want, "error 42501") || c.name == "another message in its midst" {
				return // those are ours
			}
			pg.Exec("truncate parts")
			if diff := cmp.Diff(c.want, w.script(t, direct.Frontend, c.ready, c.send...)); diff != "" {
				t.Errorf("PostgreSQL itself (-want +got)\n%s", diff)
			}
			if at := has(); at != through {
				t.Errorf("the table has %q, and %q without the proxy", through, at)
			}
		})
	}
}

// TestAnAgentThatVanishesInACopyLeavesNothing, not even with a message cut off.
func TestAnAgentThatVanishesInACopyLeavesNothing(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table parts (id text)")
	w := worldOf(t, pg, []string{"clerk"})
	for _, last := range []string{"", "d\x00\x00\x00\x09abc", "d\x00\x00", "X\x00\x00\x00\x04"} {
		conn := w.connect()
		h, err := conn.PgConn().Hijack()
		if err != nil {
			t.Fatal(err)
		}
		h.Frontend.Send(query("copy parts from stdin"))
		h.Frontend.Send(data("one\n"))
		if err := h.Frontend.Flush(); err != nil {
			t.Fatal(err)
		}
		if m, err := h.Frontend.Receive(); err != nil {
			t.Fatalf("%T %v", m, err)
		}
		if _, err := h.Conn.Write([]byte(last)); err != nil {
			t.Fatal(err)
		}
		_ = h.Conn.Close()
		session := w.ledger.last()
		select {
		case <-session.ctx.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("the session goes on")
		}
	}
	if got := pg.Value("select count(*) from parts"); got != "0" {
		t.Errorf("%s rows stayed", got)
	}
}

// TestRowLimitsCutACopy after as many rows as are allowed, in every format.
func TestRowLimitsCutACopy(t *testing.T) {
	w := newWorld(t, []string{"limited"})
	conn, ctx := w.connect(), t.Context()
	for _, c := range []struct {
		sql   string
		lines int
		code  string
	}{
		{"copy (select 1 from generate_series(1, 10)) to stdout", 10, ""},
		{"copy (select 1 from generate_series(1, 11)) to stdout", 10, "54000"},
		{"copy (select 1 from generate_series(1, 10)) to stdout csv header", 11, ""},
		{"copy (select 1 from generate_series(1, 3000000)) to stdout csv header", 11, "54000"},
		{"copy (select 1 from generate_series(1, 10)) to stdout binary", -1, ""},
		{"copy (select 1 from generate_series(1, 11)) to stdout binary", -1, "54000"},
	} {
		var got bytes.Buffer
		_, err := conn.PgConn().CopyTo(ctx, &got, c.sql)
		if sqlState(err) != c.code || c.lines >= 0 && strings.Count(got.String(), "\n") != c.lines {
			t.Errorf("%s: %v, %d lines", c.sql, err, strings.Count(got.String(), "\n"))
		}
		o := w.ledger.outcome(t, c.sql)
		if c.code != "" && (o.Status != "cut" || o.Rows != 10) {
			t.Errorf("%s: outcome %+v", c.sql, o)
		}
	}
	if got, err := table(ctx, conn, "select 1"); err != nil || len(got) != 1 {
		t.Errorf("afterwards: %v %v", got, err)
	}
}

// The end of one COPY and the beginning of the next may be heard of together: both stand when the agent, who waited for them, sends more rows.
func TestASecondCopyOfATextTakesItsRows(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table parts (id int)")
	w := worldOf(t, pg, []string{"clerk"})
	f := w.frontend()
	await := func(want string) {
		t.Helper()
		for {
			m, err := f.Receive()
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if e, failed := m.(*pgproto3.ErrorResponse); failed {
				t.Fatalf("waiting for %s: %s", want, e.Message)
			}
			if fmt.Sprintf("%T", m) == "*pgproto3."+want {
				return
			}
		}
	}
	send := func(messages ...pgproto3.FrontendMessage) {
		t.Helper()
		for _, m := range messages {
			f.Send(m)
		}
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	const times = 20
	for range times {
		send(query("copy parts from stdin; copy parts from stdin"))
		for range 2 {
			await("CopyInResponse")
			send(data("1\n"), data("2\n"), &pgproto3.CopyDone{})
		}
		await("ReadyForQuery")
	}
	if n := pg.Value("select count(*) from parts"); n != fmt.Sprint(4*times) {
		t.Errorf("%s rows came, and %d were sent", n, 4*times)
	}
}
