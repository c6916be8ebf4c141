package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/deputymesh/deputy/internal/testpg"
)

// TestAShortTextDecidesSoonHoweverManyChildrenATableHas: a text of a few kilobytes holds sixty thousand references to columns of a
// table, and each may be masked because of any of its children.
func TestAShortTextDecidesSoonHoweverManyChildrenATableHas(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "do $$ begin for i in 1..800 loop execute format('create table child%s () inherits (customers)', i); end loop; end $$")
	conn := worldOf(t, pg, []string{"analyst"}).connect()
	soonest := func(from string) time.Duration {
		var names, tables []string
		for i := range 400 {
			names = append(names, fmt.Sprint("n", i))
		}
		for i := range 130 {
			tables = append(tables, fmt.Sprint(from, " t", i))
		}
		best := time.Hour
		for range 3 {
			best = min(best, refusedIn(t, conn, "select 1 from "+strings.Join(tables, ",")+" where 1 in ("+strings.Join(names, ",")+")"))
		}
		return best
	}
	plain, masked := soonest("orders"), soonest("customers")
	if masked > 50*plain { // it was 250
		t.Errorf("%v with masked columns and %v without", masked, plain)
	}
}

// refusedIn is how long it takes to hear that there are no such columns.
func refusedIn(t *testing.T, conn *pgx.Conn, sql string) time.Duration {
	t.Helper()
	start := time.Now()
	_, err := table(t.Context(), conn, sql)
	wantState(t, err, "42703", "")
	return time.Since(start)
}
