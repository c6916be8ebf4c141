package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testpg"
)

// step is one simple Query and what comes of it: rows, or "error CODE" as the last line.
type dialogue []struct {
	sql  string
	want []string
}

func (d dialogue) run(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	for _, c := range d {
		got, err := table(t.Context(), conn, c.sql)
		if err != nil {
			got = append(got, "error "+sqlState(err))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", c.sql, err, diff)
		}
	}
}

// TestPreparedBySQLIsDecidedByWhatItRuns: PREPARE and EXECUTE do what Parse and Execute do, and share their names.
func TestPreparedBySQLIsDecidedByWhatItRuns(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table secrets (x text)", "insert into secrets values ('hidden')",
		"create function loud(int) returns int language plpgsql as 'begin raise notice $$ran$$; return $1; end'")
	w := worldOf(t, pg, []string{"clerk"})
	conn := w.connect()
	dialogue{
		{"prepare q(int) as select id from orders where id = $1", nil},
		{"execute q(4)", []string{"4"}},
		{"execute Q(2 + 3)", []string{"5"}},
		{"execute q(loud(1))", []string{"error 42501"}},
		{"execute q((select 1))", []string{"error 0A000"}},
		{"execute q((select id from customers limit 1))", []string{"error 0A000"}},
		{"execute q((select length(x) from secrets))", []string{"error 0A000"}},
		{"execute d1(4)", []string{"error 26000"}},
		{"execute \"Q\"(4)", []string{"error 26000"}},
		{"prepare q as select 1", []string{"error 42P05"}},
		{"prepare bad as select x from secrets", []string{"error 42501"}},
		{"execute bad", []string{"error 26000"}},
		{"prepare wrong as select nothing from orders", []string{"error 42703"}},
		{"prepare wrong as select 7", nil},
		{"execute wrong", []string{"7"}},
		{"deallocate d1", []string{"error 26000"}},
		{"deallocate q", nil},
		{"execute q(4)", []string{"error 26000"}},
		{"prepare q as update orders set note = 'changed' where id = 1", nil},
		{"execute q", nil},
		{"create table x as execute q", []string{"error 0A000"}},
		{"explain execute q", []string{"error 0A000"}},
		{"prepare q2 as select 1; execute q2; deallocate q2; prepare q2 as select 2; execute q2", []string{"1", "2"}},
		{"execute q2", []string{"2"}},
		{"prepare q3 as select 3; drop table orders", []string{"error 42501"}},
		{"execute q3", []string{"error 26000"}},
		{"prepare q3 as select 3; select 1/0; prepare q4 as select 4", []string{"error 22012"}},
		{"execute q3", []string{"3"}},
		{"execute q4", []string{"error 26000"}},
		{"deallocate q3; select 1/0", []string{"error 22012"}},
		{"execute q3", []string{"error 26000"}},
		{"begin; select 1/0", []string{"error 22012"}},
		{"deallocate q2", []string{"error 25P02"}},
		{"rollback", nil},
		{"execute q2", []string{"2"}},
		{"prepare \"a\"\"b;\" as select 5", nil},
		{"execute \"a\"\"b;\"", []string{"5"}},
		{"deallocate all", nil},
		{"execute q2", []string{"error 26000"}},
	}.run(t, conn)
	if got := pg.Value("select note from orders where id = 1"); got != "changed" {
		t.Errorf("EXECUTE of an update left %q", got)
	}
	if !w.ledger.decidedWith("execute q", "update orders") {
		t.Error("the record of the EXECUTE doesn't say what ran")
	}

	// One name space, both ways.
	ctx := t.Context()
	if _, err := conn.Prepare(ctx, "shared", "select id from orders where id = $1::int"); err != nil {
		t.Fatal(err)
	}
	dialogue{
		{"execute shared(3)", []string{"3"}},
		{"prepare shared as select 1", []string{"error 42P05"}},
		{"deallocate shared", nil},
		{"prepare shared as select 33", nil},
	}.run(t, conn)
	if r := conn.PgConn().ExecPrepared(ctx, "shared", nil, nil, nil).Read(); r.Err != nil || len(r.Rows) != 1 || string(r.Rows[0][0]) != "33" {
		t.Errorf("Bind of what SQL prepared: %v %v", r.Rows, r.Err)
	}
}

// decidedWith says whether a decision's text holds the one and what is recorded of it the other.
func (l *ledger) decidedWith(text, scrubbed string) bool {
	for _, e := range l.all("decided") {
		if strings.Contains(e.text, text) && strings.Contains(e.cmd.Scrubbed, scrubbed) {
			return true
		}
	}
	return false
}

// TestExecuteAndFetchAreDecidedAnew: what was prepared or declared under one policy runs under the policy of now.
func TestExecuteAndFetchAreDecidedAnew(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	dialogue{
		{"prepare mail as select id, email from customers where id = 1", nil},
		{"prepare filter as select id from customers where email like 'a%'", nil},
		{"prepare change as update orders set note = 'x' where id = 2", nil},
		{"execute mail", []string{"1|ada@example.com"}},
		{"begin", nil},
		{"declare c scroll cursor for select id, email from customers order by id", nil},
		{"declare f cursor for select id from customers where email like 'a%'", nil},
		{"declare b binary cursor for select email from customers where id = 1", nil},
		{"fetch c", []string{"1|ada@example.com"}},
	}.run(t, conn)
	w.ledger.become("analyst")
	dialogue{
		{"fetch c", []string{"2|b***@example.com"}},
		{"fetch prior from c", []string{"1|a***@example.com"}},
		{"fetch b", []string{"a***@example.com"}},
		{"fetch f", []string{"error 42501"}},
		{"rollback", nil},
		{"execute mail", []string{"1|a***@example.com"}},
		{"execute filter", []string{"error 42501"}},
		{"execute change", []string{"error 42501"}},
		{"prepare low as select lower(email) from customers", []string{"error 42501"}},
		{"prepare low2 as select id from customers order by email", []string{"error 42501"}},
		{"begin", nil},
		{"declare e cursor for select x.e, id from (select email as e, id from customers union all select 'free', 0) x", nil},
		{"fetch 2 from e", []string{"∅|∅", "∅|∅"}},
		{"declare e2 cursor for select upper(email), id from customers order by id", []string{"error 42501"}},
		{"rollback; begin", nil},
		{"declare g cursor for select 1 from customers group by email", []string{"error 42501"}},
		{"rollback", nil},
	}.run(t, conn)
	w.ledger.become("nobody")
	dialogue{{"execute mail", []string{"error 42501"}}}.run(t, conn)
	if got := w.pg.Value("select note from orders where id = 2"); got != "order 2" {
		t.Errorf("a refused EXECUTE ran: %q", got)
	}
}

// TestCursorsGiveWhatTheirQueryMay covers names, ends and confusions of cursors and portals.
func TestCursorsGiveWhatTheirQueryMay(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App,
		"create function opens(refcursor) returns refcursor language plpgsql as 'begin open $1 for select email from customers; return $1; end'")
	w := worldOf(t, pg, []string{"clerk", "dba"})
	conn := w.connect()
	dialogue{
		{"begin; declare c cursor for select id from orders order by id; fetch 2 from c", []string{"1", "2"}},
		{"fetch from p1", []string{"error 34000"}},
		{"rollback; begin", nil},
		{"fetch c", []string{"error 34000"}},
		{"rollback", nil},
		{"fetch c", []string{"error 34000"}},
		{"begin", nil},
		{"declare c no scroll cursor for select id from orders order by id", nil},
		{"move 3 in c", nil},
		{"fetch forward 1 in c", []string{"4"}},
		{"update orders set note = 'here' where current of c", nil},
		{"update orders set note = 'there' where current of \"C\"", []string{"error 34000"}},
		{"rollback", nil},
		{"begin; declare c cursor for select id from orders where id = 4 for update; fetch c; update orders set note = 'here' where current of c; commit", []string{"4"}},
		{"begin; declare h cursor with hold for select id from orders order by id; commit", nil},
		{"fetch h", []string{"1"}},
		{"close h", nil},
		{"fetch h", []string{"error 34000"}},
		{"begin; select opens('ref')", []string{"ref"}},
		{"fetch all from ref", []string{"error 34000"}},
		{"close ref", []string{"error 34000"}},
		{"rollback", nil},
		{"begin; declare a cursor for select 1; declare b cursor for select 2; close all", nil},
		{"fetch a", []string{"error 34000"}},
		{"rollback", nil},
		{"begin; declare x cursor for select 'old'; close x; declare x cursor for select 'new'; fetch x; commit", []string{"new"}},
		{"declare x cursor for select 1", []string{"error 25P01"}},
		{"explain (costs off) declare x cursor for select 1", []string{"error 0A000"}},
	}.run(t, conn)
	if got := pg.Value("select note from orders where id = 4"); got != "here" {
		t.Errorf("UPDATE … WHERE CURRENT OF left %q", got)
	}
}

// TestCursorsAndPortalsShareTheirNames: by messages and by SQL, and what the target calls them is nobody's to use.
func TestCursorsAndPortalsShareTheirNames(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	f := w.frontend()
	for _, c := range []struct {
		name  string
		ready int
		send  []pgproto3.FrontendMessage
		want  []string
	}{
		{
			"a portal is fetched from and closed by SQL", 5,
			[]pgproto3.FrontendMessage{
				query("begin"), parse("", "select id from orders order by id"), bind("mine", ""), syncMsg,
				query("fetch 2 from mine"), query("fetch all from p1"), query("rollback"),
			},
			[]string{
				"BEGIN", "ready T", "ParseComplete", "BindComplete", "ready T", "fields 1", "row 1", "row 2", "FETCH 2", "ready T",
				"error 34000", "ready E", "ROLLBACK", "ready I",
			},
		},
		{
			"a cursor is described and executed by messages", 4,
			[]pgproto3.FrontendMessage{
				query("begin"), query("declare c cursor for select id, email from customers order by id"),
				&pgproto3.Describe{ObjectType: 'P', Name: "c"}, execute("c", 1), syncMsg, query("rollback"),
			},
			[]string{
				"BEGIN", "ready T", "DECLARE CURSOR", "ready T", "fields 2", "row 1|ada@example.com", "PortalSuspended", "ready T", "ROLLBACK", "ready I",
			},
		},
		{
			"everything in the extended protocol, in one go", 1,
			[]pgproto3.FrontendMessage{
				parse("", "begin"), bind("", ""), execute("", 0),
				parse("", "declare c cursor for select id from orders where id > $1 order by id"), bind("", "", "6"), execute("", 0),
				parse("", "fetch 2 from c"), bind("", ""), &pgproto3.Describe{ObjectType: 'P'}, execute("", 0),
				parse("", "close c"), bind("", ""), execute("", 0),
				parse("", "prepare z as select 26"), bind("", ""), execute("", 0),
				parse("", "execute z"), bind("", ""), execute("", 0),
				parse("", "deallocate z"), bind("", ""), execute("", 0),
				parse("", "commit"), bind("", ""), execute("", 0), syncMsg,
			},
			[]string{
				"ParseComplete", "BindComplete", "BEGIN", "ParseComplete", "BindComplete", "DECLARE CURSOR",
				"ParseComplete", "BindComplete", "fields 1", "row 7", "row 8", "FETCH 2", "ParseComplete", "BindComplete", "CLOSE CURSOR",
				"ParseComplete", "BindComplete", "PREPARE", "ParseComplete", "BindComplete", "row 26", "SELECT 1", "ParseComplete", "BindComplete", "DEALLOCATE",
				"ParseComplete", "BindComplete", "COMMIT", "ready I",
			},
		},
		{
			"prepared FETCH follows the name", 3,
			[]pgproto3.FrontendMessage{
				query("begin; declare c cursor for select 'one'"),
				parse("get", "fetch c"), bind("", "get"), execute("", 0),
				parse("", "close c"), bind("", ""), execute("", 0),
				parse("", "declare c cursor for select 'two'"), bind("", ""), execute("", 0),
				bind("", "get"), execute("", 0), syncMsg,
				query("rollback"),
			},
			[]string{
				"BEGIN", "DECLARE CURSOR", "ready T", "ParseComplete", "BindComplete", "row one", "FETCH 1",
				"ParseComplete", "BindComplete", "CLOSE CURSOR", "ParseComplete", "BindComplete", "DECLARE CURSOR",
				"BindComplete", "row two", "FETCH 1", "ready T", "ROLLBACK", "ready I",
			},
		},
		{
			"a FETCH that was bound doesn't follow the name", 4,
			[]pgproto3.FrontendMessage{
				query("begin; declare c cursor for select 'one'"),
				parse("get", "fetch c"), bind("held", "get"), syncMsg,
				query("close c; declare c cursor for select 'two'"),
				execute("held", 0), syncMsg,
			},
			[]string{
				"BEGIN", "DECLARE CURSOR", "ready T", "error 42P05", "ready E", "error 25P02", "ready E", "error 34000", "ready E",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, w.script(t, f, c.ready, c.send...)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestMoveRunsWhatWaitsInAPortal: MOVE over a portal that inserts would insert, so it is decided as the insert.
func TestMoveRunsWhatWaitsInAPortal(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	f := w.frontend()
	w.script(t, f, 2, query("begin"), parse("", "insert into orders values (900, 1, 1, 'moved') returning id"), bind("ins", ""), syncMsg)
	w.ledger.become("analyst")
	got := w.script(t, f, 2, query("move all from ins"), query("commit"))
	if diff := cmp.Diff([]string{"error 42501", "ready E", "ROLLBACK", "ready I"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if n := w.pg.Value("select count(*) from orders where id = 900"); n != "0" {
		t.Errorf("%s rows were inserted", n)
	}
}

// TestRowLimitsCountAcrossFetches: a cursor gives no more rows than one SELECT would.
func TestRowLimitsCountAcrossFetches(t *testing.T) {
	w := newWorld(t, []string{"limited"})
	conn := w.connect()
	dialogue{
		{"begin", nil},
		{"declare c scroll cursor for select id from orders order by id", nil},
		{"fetch 6 from c", []string{"1", "2", "3", "4", "5", "6"}},
		{"fetch backward 2 from c", []string{"5", "4"}},
		{"move absolute 20 in c", nil},
		{"fetch 3 from c", []string{"21", "22", "error 54000"}},
		{"rollback", nil},
		{"prepare q as select id from orders order by id", nil},
		{"execute q", append(strings.Split("1 2 3 4 5 6 7 8 9 10", " "), "error 54000")},
	}.run(t, conn)
	// By messages too, and both ways on one cursor.
	f := w.frontend()
	got := w.script(t, f, 3, query("begin"), query("declare c cursor for select id from orders order by id"), execute("c", 8), parse("", "fetch 3 from c"), bind("", ""), execute("", 0), syncMsg)
	want := []string{"BEGIN", "ready T", "DECLARE CURSOR", "ready T", "row 1", "row 2", "row 3", "row 4", "row 5", "row 6", "row 7", "row 8", "PortalSuspended",
		"ParseComplete", "BindComplete", "row 9", "row 10", "error 54000", "ready E"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestPgxCachesCursorStatements: pgx prepares every text once and uses it for cursors of the same name ever after.
func TestPgxCachesCursorStatements(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	ctx := t.Context()
	for i, want := range []string{"1", "101", "1"} {
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sql := "declare c cursor for select id from orders order by id"
		if i == 1 {
			sql = "declare c cursor for select id + 100 from orders order by id"
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
		var id int
		if err := tx.QueryRow(ctx, "fetch c").Scan(&id); err != nil || fmt.Sprint(id) != want {
			t.Errorf("round %d: %d %v, want %s", i, id, err, want)
		}
		if _, err := tx.Exec(ctx, "close c"); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var pgErr *pgconn.PgError
	if _, err := conn.Exec(ctx, "close c"); !errors.As(err, &pgErr) || pgErr.Code != "34000" {
		t.Errorf("closing what is closed: %v", err)
	}
}
