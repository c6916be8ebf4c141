package postgres_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testpg"
)

// heard waits for the next notification.
func heard(t *testing.T, w *world, what func(context.Context) (string, error)) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := what(ctx)
	if err != nil {
		t.Fatalf("no notification: %v", err)
	}
	return got
}

// TestListenHearsItsChannelOnly: what is delivered was listened to, is permitted by name, and is on record.
func TestListenHearsItsChannelOnly(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App,
		"create function opens() returns text language plpgsql as 'begin listen secret; return 1; end'",
		"create function tell() returns trigger language plpgsql as 'begin perform pg_notify($$secret$$, new.email); perform pg_notify($$jobs$$, $$changed$$); return new; end'",
		"create trigger tell after insert on customers for each row execute function tell()")
	w := worldOf(t, pg, []string{"clerk", "listener", "notifier", "dba"})
	conn := w.connect()
	dialogue{
		{"listen other", []string{"error 42501"}}, // a database with masks: only by name
		{"listen \"Jobs\"", []string{"error 42501"}},
		{"listen jobs", nil},
		{"unlisten other", nil},
		{"select opens()", []string{"1"}}, // code that a policy lets run may listen, and hears nothing
	}.run(t, conn)
	pg.Exec("insert into customers values (77, 'New', 'new@example.com')")
	wait := func(ctx context.Context) (string, error) {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return "", err
		}
		return n.Channel + ":" + n.Payload, nil
	}
	if got := heard(t, w, wait); got != "jobs:changed" {
		t.Errorf("heard %q", got)
	}
	if o := w.ledger.outcome(t, `NOTIFICATION "jobs"`); o.Status != "ok" || o.Bytes == 0 {
		t.Errorf("outcome %+v", o)
	}
	dialogue{{"notify jobs, 'own'", nil}, {"select pg_notify('jobs', 'second')", []string{""}}}.run(t, conn)
	for _, want := range []string{"jobs:own", "jobs:second"} {
		if got := heard(t, w, wait); got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	// What a policy takes away isn't heard any more, though the target goes on telling.
	w.ledger.become("clerk")
	pg.Exec("notify jobs, 'withdrawn'", "notify jobs, 'again'")
	dialogue{
		{"notify jobs, 'x'", []string{"error 42501"}},
		{"select 1", []string{"1"}},
	}.run(t, conn)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n := 0
		for _, e := range w.ledger.all("refused") {
			if strings.HasPrefix(e.text, "NOTIFICATION") {
				n++
			}
		}
		if n == 1 {
			break
		}
		if n > 1 || time.Now().After(deadline) {
			t.Fatalf("%d refusals of notifications, want 1", n)
		}
	}
	w.ledger.become("clerk", "listener")
	dialogue{{"listen jobs", nil}}.run(t, conn)
	pg.Exec("notify jobs, 'back'")
	if got := heard(t, w, wait); got != "jobs:back" {
		t.Errorf("heard %q", got)
	}
	dialogue{{"unlisten *", nil}, {"listen jobs", nil}, {"discard all", nil}}.run(t, conn)
	pg.Exec("notify jobs, 'nobody'")
	dialogue{{"select 1", []string{"1"}}}.run(t, conn)
	for _, e := range w.ledger.all("decided") {
		if strings.Contains(e.text, "NOTIFICATION") && !strings.Contains(e.text, `"jobs"`) {
			t.Errorf("delivered %q", e.text)
		}
	}
}

// TestNotificationsAreBounded: a flood from the target isn't passed on, and the agent hears that it wasn't.
func TestNotificationsAreBounded(t *testing.T) {
	w := newWorld(t, []string{"clerk", "listener"})
	f := w.frontend()
	w.script(t, f, 1, query("listen jobs"))
	w.pg.Exec("select count(pg_notify('jobs', i::text)) from generate_series(1, 3000) i")
	got := w.script(t, f, 1, query("select 1"))
	n, warned := 0, 0
	for len(got) > 0 {
		for _, line := range got {
			switch line {
			case "NotificationResponse":
				n++
			case "NoticeResponse":
				warned++
			}
		}
		if warned > 0 {
			break
		}
		got = w.script(t, f, 1, query("select 1"))
	}
	if n < 1000 || n > 2500 || warned != 1 {
		t.Errorf("%d notifications and %d warnings", n, warned)
	}
}

// TestFunctionCallsAreDecidedAsSelects of the function that the OID means.
func TestFunctionCallsAreDecidedAsSelects(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App,
		"create function add_one(int) returns int language plpgsql as 'begin return $1 + 1; end'",
		"create function fails() returns int language plpgsql as 'begin raise $$no$$; end'",
		"create function first_email() returns text language sql stable as 'select email from customers limit 1'")
	oid := func(name string) uint32 {
		var n uint32
		if _, err := fmt.Sscan(pg.Value("select '"+name+"'::regprocedure::oid"), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	w := worldOf(t, pg, []string{"clerk", "caller"})
	f := w.frontend()
	call := func(oid uint32, args ...[]byte) *pgproto3.FunctionCall {
		return &pgproto3.FunctionCall{Function: oid, ArgFormatCodes: []uint16{1}, Arguments: args, ResultFormatCode: 1}
	}
	four := binary.BigEndian.AppendUint32(nil, 4)
	for _, c := range []struct {
		name  string
		ready int
		send  []pgproto3.FrontendMessage
		want  []string
	}{
		{"PostgreSQL's own and harmless", 1, []pgproto3.FrontendMessage{call(oid("int4pl(int,int)"), four, four)}, []string{"result 00000008", "ready I"}},
		{"permitted by name", 1, []pgproto3.FrontendMessage{call(oid("add_one(int)"), four)}, []string{"result 00000005", "ready I"}},
		{"not permitted", 2, []pgproto3.FrontendMessage{call(oid("first_email()")), query("select 1")}, []string{"error 42501", "ready I", "fields 1", "row 1", "SELECT 1", "ready I"}},
		{"never permitted", 1, []pgproto3.FrontendMessage{call(oid("set_config(text,text,boolean)"), []byte("x"), []byte("y"), []byte{1})}, []string{"error 42501", "ready I"}},
		{"a file of the server", 1, []pgproto3.FrontendMessage{call(oid("lo_import(text)"), []byte("/etc/passwd"))}, []string{"error 42501", "ready I"}},
		{"unknown", 1, []pgproto3.FrontendMessage{call(4000000000)}, []string{"error 0A000", "ready I"}},
		{"wrong number of arguments", 2, []pgproto3.FrontendMessage{call(oid("int4pl(int,int)"), four), query("select 2")}, []string{"error 08P01", "ready I", "fields 1", "row 2", "SELECT 1", "ready I"}},
		{"in a transaction", 3, []pgproto3.FrontendMessage{query("begin"), call(oid("fails()")), query("rollback")}, []string{"BEGIN", "ready T", "error 42501", "ready E", "ROLLBACK", "ready I"}},
		{"among extended messages", 2, []pgproto3.FrontendMessage{parse("", "select 3"), bind("", ""), execute("", 0), call(oid("int4pl(int,int)"), four, four), syncMsg},
			[]string{"ParseComplete", "BindComplete", "row 3", "SELECT 1", "result 00000008", "ready I", "ready I"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, w.script(t, f, c.ready, c.send...)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if !w.ledger.decidedWith("FUNCTION CALL public.add_one", "FUNCTION CALL public.add_one") {
		t.Error("no record names the function")
	}
	w.ledger.become("clerk")
	if got := w.script(t, f, 1, call(oid("add_one(int)"), four)); got[0] != "error 42501" {
		t.Errorf("after the permit was taken away: %v", got)
	}
}
