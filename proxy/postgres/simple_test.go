package postgres_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
