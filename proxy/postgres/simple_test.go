package postgres_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLimitsHoldForEachStatementOfAText, and the text is one transaction all the same.
func TestLimitsHoldForEachStatementOfAText(t *testing.T) {
	w := newWorld(t, []string{"limited"})
	conn := w.connect()
	ten := strings.Split("1 2 3 4 5 6 7 8 9 10", " ")
	dialogue{
		{"select 1; select 2", []string{"1", "2"}},
		{"select id from orders where id < 4; select id from orders order by id limit 10; select 3", append(append([]string{"1", "2", "3"}, ten...), "3")},
		{"update orders set note = 'cut' where id = 1; select id from orders order by id; update orders set note = 'never' where id = 2", append(slices.Clone(ten), "error 54000")},
		{"select note from orders where id in (1, 2) order by id", []string{"order 1", "order 2"}},
		{"update orders set note = 'cut' where id = 1; select 1/0; select 5", []string{"error 22012"}},
		{"begin; update orders set note = 'kept' where id = 1; commit; select 1/0", []string{"error 22012"}},
		{"select note from orders where id in (1, 2) order by id", []string{"kept", "order 2"}},
		{"select nothing; select 1", []string{"error 42703"}},
		{"begin; declare c cursor for select id from orders order by id; fetch 9 from c; fetch 2 from c", append(slices.Clone(ten), "error 54000")},
		{"rollback; select 1", []string{"1"}},
		{"prepare q as select 7; execute q; execute q", []string{"7", "7"}},
		{"select 1; copy orders from stdin", []string{"error 0A000"}},
		{"copy (select 1) to stdout; select 2", []string{"2"}},
		{"select 9", []string{"9"}},
	}.run(t, conn)
	for _, e := range w.ledger.all("completed") {
		if strings.Contains(e.text, "'never'") && e.out.Status != "not_sent" {
			t.Errorf("behind the limit: %+v", e.out)
		}
	}
	if o := w.ledger.outcome(t, "select 1/0"); o.Status != "error" || o.Code != "22012" {
		t.Errorf("outcome %+v", o)
	}
}

func TestSimpleQueries(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := w.connect()
	ctx := t.Context()
	got, err := table(ctx, conn, "select id, name, email from customers order by id")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1|Ada|ada@example.com", "2|Bob|bob@example.com", "3|Carol|∅"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := table(ctx, conn, "update orders set amount = 1 where id = 1; select 1"); err != nil {
		t.Error(err)
	}
	_, err = table(ctx, conn, "drop table orders")
	wantState(t, err, "42501", "no policy permits postgres:ddl")
	// The session stays usable, and a refusal inside a transaction aborts it.
	if _, err := table(ctx, conn, "begin; update orders set amount = 77 where id = 2"); err != nil {
		t.Fatal(err)
	}
	_, err = table(ctx, conn, "drop table orders")
	wantState(t, err, "42501", "record: rec-refused")
	if got := conn.PgConn().TxStatus(); got != 'E' {
		t.Errorf("transaction status %q after a refusal, want E", got)
	}
	_, err = table(ctx, conn, "select 1")
	wantState(t, err, "25P02", "current transaction is aborted")
	if _, err := table(ctx, conn, "commit"); err != nil {
		t.Fatal(err)
	}
	if got := w.pg.Value("select amount from orders where id = 2"); got != "3.00" {
		t.Errorf("the aborted transaction left amount %s, want 3.00", got)
	}
	// One refused statement refuses the whole text before anything is sent.
	_, err = table(ctx, conn, "update orders set amount = 88 where id = 3; drop table orders")
	wantState(t, err, "42501", "")
	if got := w.pg.Value("select amount from orders where id = 3"); got != "4.50" {
		t.Errorf("a statement of a refused text ran: amount %s", got)
	}
	if got, err := table(ctx, conn, ";"); err != nil || len(got) != 0 {
		t.Errorf("empty query: %v %v", got, err)
	}
	o := w.ledger.outcome(t, "select id, name, email")
	if o.Status != "ok" || o.Command != "SELECT 3" || o.Rows != 3 {
		t.Errorf("outcome %+v", o)
	}
}
