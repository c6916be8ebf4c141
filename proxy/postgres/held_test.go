package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/internal/testpg"
)

// TestAnInputFunctionNeedsItsRight: the check of a domain can run anything, also where the text doesn't name the domain: as
// the type of a parameter, and in a field of a composite type.
func TestAnInputFunctionNeedsItsRight(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create table ran (x text)",
		"create function spy(v int) returns bool language plpgsql as $$ begin insert into ran values (v); return true; end $$",
		"create domain trap as int check (spy(value))", "create type boxed as (a trap, b text)", "create type twice as (c boxed)",
		"create type plain as (a int, b text)", "create type mood as enum ('good')")
	w := worldOf(t, pg, []string{"analyst"})
	conn := w.connect()
	for _, sql := range []string{
		"select '5'::trap", "select '(5,x)'::boxed", "select array['(5,x)']::boxed[]", "select '{\"(5,x)\"}'::_boxed", "select '(\"(5,x)\")'::twice",
		"select jsonb_populate_record(null::boxed, '{\"a\":7}')", "select a from jsonb_to_recordset('[{\"a\":1}]') as x(a trap)",
	} {
		_, err := table(t.Context(), conn, sql)
		if err == nil {
			t.Errorf("%s ran", sql)
		}
	}
	oid := func(name string) uint32 {
		t.Helper()
		var n uint32
		got, err := table(t.Context(), conn, "select oid from pg_type where typname = '"+name+"'")
		if err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
		if _, err := fmt.Sscan(got[0], &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for name, value := range map[string]string{"trap": "5", "_trap": "{5}", "boxed": "(5,x)", "_boxed": `{"(5,x)"}`} {
		r := conn.PgConn().ExecParams(t.Context(), "select $1::text", [][]byte{[]byte(value)}, []uint32{oid(name)}, nil, nil).Read()
		wantState(t, r.Err, "0A000", "parameter")
	}
	for name, value := range map[string]string{"plain": "(5,x)", "mood": "good", "text": "5"} {
		r := conn.PgConn().ExecParams(t.Context(), "select $1::text", [][]byte{[]byte(value)}, []uint32{oid(name)}, nil, nil).Read()
		if r.Err != nil || string(r.Rows[0][0]) != value {
			t.Errorf("%s: %v %v", name, r.Rows, r.Err)
		}
	}
	if got, err := table(t.Context(), conn, "select x from ran"); err != nil || len(got) > 0 {
		t.Errorf("it ran: %v %v", got, err)
	}
}

func TestGeneratedColumnsAreAsMaskedAsWhatTheyAreMadeOf(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "alter table customers add column lower_email text generated always as (lower(email)) stored",
		"alter table customers add column search tsvector generated always as (to_tsvector('simple', name || ' ' || coalesce(phone, ''))) stored",
		"alter table customers add column loud text generated always as (upper(name)) stored")
	conn := worldOf(t, pg, []string{"analyst"}).connect()
	got, err := table(t.Context(), conn, "select lower_email, search, loud from customers where id = 1")
	if err != nil || len(got) != 1 || got[0] != "∅|∅|ADA" {
		t.Errorf("%v %v", got, err)
	}
	for _, sql := range []string{"select upper(lower_email) from customers", "select id from customers where search @@ 'ada'"} {
		_, err := table(t.Context(), conn, sql)
		wantState(t, err, "42501", "masked")
	}
}

// TestASessionHoldsBoundedStatements: statements that are never executed, or never closed, cost the proxy memory that
// everybody shares.
func TestASessionHoldsBoundedStatements(t *testing.T) {
	w := newWorld(t, []string{"analyst"})
	for _, named := range []bool{false, true} {
		h, err := w.connect().PgConn().Hijack()
		if err != nil {
			t.Fatal(err)
		}
		text := "select '" + strings.Repeat("x", 15<<10) + "'"
		const most = 700
		refused := make(chan int, 1)
		go func() {
			n := 0
			for {
				m, err := h.Frontend.Receive()
				if err != nil {
					refused <- -1
					return
				}
				switch m := m.(type) {
				case *pgproto3.ParseComplete:
					n++
				case *pgproto3.ErrorResponse:
					if m.Code != "54000" {
						n = -1
					}
					refused <- n
					return
				}
			}
		}()
		for i := range most {
			name := ""
			if named {
				name = fmt.Sprint("s", i)
			}
			h.Frontend.SendParse(&pgproto3.Parse{Name: name, Query: text})
			if named {
				h.Frontend.SendSync(&pgproto3.Sync{})
			}
			if i%50 == 0 {
				if err := h.Frontend.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		h.Frontend.SendSync(&pgproto3.Sync{})
		if err := h.Frontend.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case n := <-refused:
			if n < 300 || n > 600 {
				t.Errorf("named %t: %d statements of 15 KiB were taken before one was refused", named, n)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("named %t: none was refused", named)
		}
		_ = h.Conn.Close()
	}
}

// TestAPassDoesNotOutliveThePolicy: a batch can be kept open for as long as one likes; what it executes late is decided late.
func TestAPassDoesNotOutliveThePolicy(t *testing.T) {
	w := newWorld(t, []string{"analyst"})
	h, err := w.connect().PgConn().Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Conn.Close()
	h.Frontend.SendParse(&pgproto3.Parse{Query: "select id from orders"})
	h.Frontend.Send(&pgproto3.Flush{})
	if err := h.Frontend.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := h.Frontend.Receive(); err != nil {
		t.Fatal(m, err)
	}
	decided := len(w.ledger.all("decided"))
	time.Sleep(2500 * time.Millisecond)
	h.Frontend.SendBind(&pgproto3.Bind{})
	h.Frontend.SendExecute(&pgproto3.Execute{})
	h.Frontend.SendSync(&pgproto3.Sync{})
	if err := h.Frontend.Flush(); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for done := false; !done; {
		m, err := h.Frontend.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m.(type) {
		case *pgproto3.DataRow:
			rows++
		case *pgproto3.ReadyForQuery:
			done = true
		}
	}
	if now := len(w.ledger.all("decided")); now != decided+1 || rows != 50 {
		t.Errorf("%d decisions for a late Execute, %d rows; want one more decision and 50 rows", now-decided, rows)
	}
}
