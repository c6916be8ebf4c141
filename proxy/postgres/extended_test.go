package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

// script sends messages in one go and gives what comes back up to the n-th ReadyForQuery, one line per message.
func (w *world) script(t *testing.T, f *pgproto3.Frontend, ready int, msgs ...pgproto3.FrontendMessage) []string {
	t.Helper()
	for _, m := range msgs {
		f.Send(m)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for ready > 0 {
		m, err := f.Receive()
		if err != nil {
			t.Fatalf("after %v: %v", out, err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			out = append(out, "error "+m.Code)
		case *pgproto3.DataRow:
			out = append(out, "row "+strings.Join(rowsText([][][]byte{m.Values}), ""))
		case *pgproto3.CommandComplete:
			out = append(out, string(m.CommandTag))
		case *pgproto3.FunctionCallResponse:
			out = append(out, fmt.Sprintf("result %x", m.Result))
		case *pgproto3.CopyData:
			out = append(out, "data "+string(m.Data))
		case *pgproto3.ReadyForQuery:
			out = append(out, "ready "+string(m.TxStatus))
			ready--
		case *pgproto3.RowDescription:
			out = append(out, fmt.Sprintf("fields %d", len(m.Fields)))
		case *pgproto3.ParameterDescription:
			out = append(out, fmt.Sprintf("parameters %d", len(m.ParameterOIDs)))
		default:
			out = append(out, strings.TrimPrefix(fmt.Sprintf("%T", m), "*pgproto3."))
		}
	}
	return out
}

func parse(name, sql string) *pgproto3.Parse { return &pgproto3.Parse{Name: name, Query: sql} }
func bind(portal, name string, params ...string) *pgproto3.Bind {
	b := &pgproto3.Bind{DestinationPortal: portal, PreparedStatement: name}
	for _, p := range params {
		b.Parameters = append(b.Parameters, []byte(p))
	}
	return b
}
func execute(portal string, rows uint32) *pgproto3.Execute {
	return &pgproto3.Execute{Portal: portal, MaxRows: rows}
}

var syncMsg = &pgproto3.Sync{}

func (w *world) frontend() *pgproto3.Frontend {
	w.t.Helper()
	conn := w.connect()
	h, err := conn.PgConn().Hijack()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = h.Conn.Close() })
	return h.Frontend
}

func TestPipelines(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	f := w.frontend()
	for _, c := range []struct {
		name  string
		ready int
		send  []pgproto3.FrontendMessage
		want  []string
	}{
		{
			"two batches, the first with a refusal: its update is undone, the second runs", 2,
			[]pgproto3.FrontendMessage{
				parse("", "update orders set note = 'refused' where id = 1"), bind("", ""), execute("", 0),
				parse("", "drop table orders"), bind("", ""), execute("", 0), syncMsg,
				parse("", "select note from orders where id = 1"), bind("", ""), execute("", 0), syncMsg,
			},
			[]string{"ParseComplete", "BindComplete", "UPDATE 1", "error 42501", "ready I", "ParseComplete", "BindComplete", "row order 1", "SELECT 1", "ready I"},
		},
		{
			"a refusal after an error of the target is skipped", 1,
			[]pgproto3.FrontendMessage{
				parse("", "select 1/0"), bind("", ""), execute("", 0), parse("", "drop table orders"), bind("", ""), execute("", 0), syncMsg,
			},
			[]string{"ParseComplete", "error 22012", "ready I"},
		},
		{
			"in a transaction a refusal leaves it aborted", 3,
			[]pgproto3.FrontendMessage{
				&pgproto3.Query{String: "begin"}, parse("", "drop table orders"), syncMsg, &pgproto3.Query{String: "rollback"},
			},
			[]string{"BEGIN", "ready T", "error 42501", "ready E", "ROLLBACK", "ready I"},
		},
		{
			"a statement prepared and described, then executed twice in another batch", 2,
			[]pgproto3.FrontendMessage{
				parse("s", "select id from orders where id = $1"), &pgproto3.Describe{ObjectType: 'S', Name: "s"}, syncMsg,
				bind("", "s", "4"), execute("", 0), bind("", "s", "5"), execute("", 0), syncMsg,
			},
			[]string{
				"ParseComplete", "parameters 1", "fields 1", "ready I",
				"BindComplete", "row 4", "SELECT 1", "BindComplete", "row 5", "SELECT 1", "ready I",
			},
		},
		{
			"the same name again", 2,
			[]pgproto3.FrontendMessage{parse("s", "select 1"), syncMsg, &pgproto3.Close{ObjectType: 'S', Name: "s"}, parse("s", "select 7"), bind("", "s"), execute("", 0), syncMsg},
			[]string{"error 42P05", "ready I", "CloseComplete", "ParseComplete", "BindComplete", "row 7", "SELECT 1", "ready I"},
		},
		{
			"a name that failed can be used again", 2,
			[]pgproto3.FrontendMessage{parse("bad", "select nothing from orders"), syncMsg, parse("bad", "select 8"), bind("", "bad"), execute("", 0), syncMsg},
			[]string{"error 42703", "ready I", "ParseComplete", "BindComplete", "row 8", "SELECT 1", "ready I"},
		},
		{
			"unknown names", 3,
			[]pgproto3.FrontendMessage{bind("", "nobody"), syncMsg, execute("nobody", 0), syncMsg, &pgproto3.Describe{ObjectType: 'P', Name: "nobody"}, syncMsg},
			[]string{"error 26000", "ready I", "error 34000", "ready I", "error 34000", "ready I"},
		},
		{
			"a portal in parts", 3,
			[]pgproto3.FrontendMessage{
				&pgproto3.Query{String: "begin"}, parse("", "select id from orders order by id limit 5"), bind("p", ""),
				execute("p", 2), execute("p", 2), syncMsg, execute("p", 2), execute("p", 2), syncMsg,
			},
			[]string{
				"BEGIN", "ready T", "ParseComplete", "BindComplete", "row 1", "row 2", "PortalSuspended", "row 3", "row 4", "PortalSuspended",
				"ready T", "row 5", "SELECT 1", "SELECT 0", "ready T",
			},
		},
		{
			"a portal ends with its transaction", 2,
			[]pgproto3.FrontendMessage{&pgproto3.Query{String: "commit"}, execute("p", 2), syncMsg},
			[]string{"COMMIT", "ready I", "error 34000", "ready I"},
		},
		{
			"an empty statement", 1,
			[]pgproto3.FrontendMessage{parse("", ""), bind("", ""), &pgproto3.Describe{ObjectType: 'P'}, execute("", 0), syncMsg},
			[]string{"ParseComplete", "BindComplete", "NoData", "EmptyQueryResponse", "ready I"},
		},
		{
			"several commands in one Parse", 1,
			[]pgproto3.FrontendMessage{parse("", "select 1; select 2"), bind("", ""), execute("", 0), syncMsg},
			[]string{"error 42601", "ready I"},
		},
		{
			"a Query among extended messages", 2,
			[]pgproto3.FrontendMessage{
				parse("", "select 1"), bind("", ""), execute("", 0), &pgproto3.Query{String: "select 2"}, syncMsg,
			},
			[]string{"ParseComplete", "BindComplete", "row 1", "SELECT 1", "fields 1", "row 2", "SELECT 1", "ready I", "ready I"},
		},
		{
			"a Query behind an error is skipped", 1,
			[]pgproto3.FrontendMessage{parse("", "select nothing"), &pgproto3.Query{String: "select 2"}, syncMsg},
			[]string{"error 42703", "ready I"},
		},
		{
			"queries without waiting", 3,
			[]pgproto3.FrontendMessage{&pgproto3.Query{String: "select 1"}, &pgproto3.Query{String: "drop table orders"}, &pgproto3.Query{String: "select 3"}},
			[]string{"fields 1", "row 1", "SELECT 1", "ready I", "error 42501", "ready I", "fields 1", "row 3", "SELECT 1", "ready I"},
		},
		{
			"the unnamed statement of a batch that failed is not what was parsed behind the failure", 3,
			[]pgproto3.FrontendMessage{
				parse("", "select 'first'"), syncMsg,
				execute("nobody", 0), parse("", "select 'second'"), syncMsg,
				bind("", ""), execute("", 0), syncMsg,
			},
			[]string{"ParseComplete", "ready I", "error 34000", "ready I", "BindComplete", "row first", "SELECT 1", "ready I"},
		},
		{
			"LISTEN to what no policy names and fast-path calls that it can't see through are refused, and the session goes on", 3,
			[]pgproto3.FrontendMessage{
				&pgproto3.Query{String: "listen x"}, &pgproto3.FunctionCall{Function: 1598}, &pgproto3.Query{String: "select 1"},
			},
			[]string{
				"error 42501", "ready I", "error 42501", "ready I",
				"fields 1", "row 1", "SELECT 1", "ready I",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, w.script(t, f, c.ready, c.send...)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if got := w.pg.Value("select note from orders where id = 1"); got != "order 1" {
		t.Errorf("the update of a refused batch stayed: %q", got)
	}
}

// TestEachExecuteIsDecided: one prepared statement executed three times makes three decisions besides that of its Parse.
func TestEachExecuteIsDecided(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	f := w.frontend()
	const sql = "select id from orders where id = $1"
	w.script(t, f, 1, parse("s", sql), syncMsg)
	for range 3 {
		w.script(t, f, 1, bind("", "s", "4"), execute("", 0), syncMsg)
	}
	n := 0
	for _, e := range w.ledger.all("decided") {
		if e.text == sql {
			n++
		}
	}
	if n != 4 {
		t.Errorf("%d decisions, want 4", n)
	}
	// Parse and Execute in one batch are one command.
	const once = "select 'once'"
	w.script(t, f, 1, parse("", once), bind("", ""), execute("", 0), syncMsg)
	n = 0
	for _, e := range w.ledger.all("decided") {
		if e.text == once {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d decisions for one batch, want 1", n)
	}
}

func TestLimitCutsWithAnError(t *testing.T) {
	w := newWorld(t, []string{"limited"})
	f := w.frontend()
	q := func(sql string) *pgproto3.Query { return &pgproto3.Query{String: sql} }
	rows := func(n int) []string {
		var out []string
		for i := 1; i <= n; i++ {
			out = append(out, fmt.Sprintf("row %d", i))
		}
		return out
	}
	const ids = "select id from orders order by id"
	for _, c := range []struct {
		name  string
		ready int
		send  []pgproto3.FrontendMessage
		want  []string
	}{
		{"simple, within", 1, []pgproto3.FrontendMessage{q(ids + " limit 10")}, append(append([]string{"fields 1"}, rows(10)...), "SELECT 10", "ready I")},
		{"simple, beyond", 1, []pgproto3.FrontendMessage{q(ids)}, append(append([]string{"fields 1"}, rows(10)...), "error 54000", "ready I")},
		{"simple, in a transaction", 3, []pgproto3.FrontendMessage{q("begin"), q(ids), q("rollback")},
			append(append([]string{"BEGIN", "ready T", "fields 1"}, rows(10)...), "error 54000", "ready E", "ROLLBACK", "ready I")},
		{"an update that returns too much is undone", 1, []pgproto3.FrontendMessage{q("update orders set note = 'cut' returning 1")},
			append(append([]string{"fields 1"}, strings.Split(strings.Repeat("row 1,", 10), ",")[:10]...), "error 54000", "ready I")},
		{"an update without rows has no limit", 1, []pgproto3.FrontendMessage{q("update orders set amount = amount")}, []string{"UPDATE 50", "ready I"}},
		{"an error of the target", 1, []pgproto3.FrontendMessage{q("select nothing from orders")}, []string{"error 42703", "ready I"}},
		{"extended, beyond, with more behind", 1, []pgproto3.FrontendMessage{parse("", ids), bind("", ""), execute("", 0), parse("", "select 1"), bind("", ""), execute("", 0), syncMsg},
			append(append([]string{"ParseComplete", "BindComplete"}, rows(10)...), "error 54000", "ready I")},
		{"in parts", 3, []pgproto3.FrontendMessage{q("begin"), parse("", ids), bind("p", ""), execute("p", 4), execute("p", 4), execute("p", 4), syncMsg, q("rollback")},
			[]string{
				"BEGIN", "ready T", "ParseComplete", "BindComplete", "row 1", "row 2", "row 3", "row 4", "PortalSuspended", "row 5", "row 6", "row 7", "row 8", "PortalSuspended",
				"row 9", "row 10", "error 54000", "ready E", "ROLLBACK", "ready I",
			}},
		{"several statements at once", 1, []pgproto3.FrontendMessage{q("select 2; " + ids + "; select 3")},
			append(append([]string{"fields 1", "row 2", "SELECT 1", "fields 1"}, rows(10)...), "error 54000", "ready I")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, w.script(t, f, c.ready, c.send...)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if got := w.pg.Value("select count(*) from orders where note = 'cut'"); got != "0" {
		t.Errorf("%s rows of a cut update stayed", got)
	}
	if o := w.ledger.outcome(t, "returning 1"); o.Status != "cut" || o.Limit != "rows=10" || o.Rows != 10 {
		t.Errorf("outcome %+v", o)
	}
}

// TestNothingRunsBeforeItsDecisionIsDurable holds decisions back and looks at what reaches either side.
func TestNothingRunsBeforeItsDecisionIsDurable(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	ctx := t.Context()
	if _, err := table(ctx, conn, "select 1"); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"select id from orders where id = 1", "update orders set note = 'early' where id = 9"} {
		hold, seen := make(chan struct{}), make(chan struct{})
		w.ledger.mu.Lock()
		w.ledger.durable = func(context.Context, cmdOf) error { close(seen); <-hold; return nil }
		w.ledger.mu.Unlock()
		done := make(chan error, 1)
		go func() { _, err := table(ctx, conn, sql); done <- err }()
		<-seen
		select {
		case err := <-done:
			t.Fatalf("%s was answered before its decision was durable: %v", sql, err)
		case <-afterMillis(300):
		}
		if got := w.pg.Value("select count(*) from orders where note = 'early'"); got != "0" {
			t.Errorf("the update ran before its decision was durable")
		}
		close(hold)
		if err := <-done; err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if got := w.pg.Value("select count(*) from orders where note = 'early'"); got != "1" {
		t.Errorf("the update didn't run")
	}
}
