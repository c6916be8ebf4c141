package postgres_test

import (
	"testing"

	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/proxy/postgres"
)

// TestNoNameHidesAMaskedRow tries names that PostgreSQL resolves in one way and a reader of the text easily in another: the
// alias of a join is a row of all that is joined, ON sees only what is joined, the alias of a join hides names inside it, no
// alias goes with a schema, and a join has no system columns.
func TestNoNameHidesAMaskedRow(t *testing.T) {
	pg := testpg.Start(t)
	shapes(pg)
	w := worldOf(t, pg, []string{"analyst"})
	conn := w.connect()
	for _, sql := range []string{
		"select row_to_json(j) from (customers a join orders b on a.id = b.id) as j",
		"select j::text from (customers a join orders b on a.id = b.id) as j",
		"select upper((j).email) from (customers a join orders b on a.id = b.id) as j",
		"select 1 from (customers a cross join orders b) as j where j::text like '%ada@%'",
		"select row_to_json(ctid) from customers as ctid join orders o on o.id = ctid.id",
		"select row_to_json(tableoid) from (customers a join orders b on a.id = b.id) as tableoid",
		"select count(*) from orders z, customers note join generate_series(1,1) b on note::text like '%ada@%'",
		"select (select count(*) from orders z, (select 1) a join (select 2) b on z.email like 'ada@%') from customers z",
		"select (select count(*) from (orders z join orders b on true) as j where z.email like 'ada@%') from customers z",
		"select (select max(public.customers.email) from orders customers) from public.customers",
		"select (select max(public.customers.email) from other.customers) from public.customers",
		"select (select count(*) from orders o left join (orders z join orders b on true) as j on z.email like 'ada%' where o.id = 1) from customers z",
	} {
		got, err := table(t.Context(), conn, sql)
		if sqlState(err) != "42501" {
			t.Errorf("%s: %v %v", sql, got, err)
		}
	}
	for _, sql := range []string{
		"select row_to_json(j) from (orders a join orders b on a.id = b.id) as j",
		"select j.name from (customers a join orders b on a.id = b.customer) as j where j.name is null",
		"select note from orders note where note.note is not null",
		"select name, count(*) from customers c join orders o on o.customer = c.id and o.note is not null group by 1",
	} {
		if _, err := table(t.Context(), conn, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	got, err := table(t.Context(), conn, "select j from (customers a join orders b on a.id = b.id) as j limit 1")
	if err != nil || len(got) != 1 || got[0] != "∅" {
		t.Errorf("the row of a join: %v %v", got, err)
	}
}

// TestASchemaThatTheAccountMayNotUseIsNotInItsPath: PostgreSQL passes over it, and a name means what the next schema has.
func TestASchemaThatTheAccountMayNotUseIsNotInItsPath(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("create schema closed", "create table closed.customers (id int, email int)", "create table closed.gone (id int)")
	w := worldOf(t, pg, []string{"analyst"}, func(c *postgres.Config) { c.Schemas = []string{"closed", "public"} })
	conn := w.connect()
	for _, sql := range []string{
		"select upper(email) from customers", "select row_to_json(customers) from customers", "select id from customers where email like 'ada@%'", "select id from gone",
	} {
		got, err := table(t.Context(), conn, sql)
		if sqlState(err) != "42501" {
			t.Errorf("%s: %v %v", sql, got, err)
		}
	}
	got, err := table(t.Context(), conn, "select upper(name), email from customers where id = 1")
	if err != nil || len(got) != 1 || got[0] != "ADA|a***@example.com" {
		t.Errorf("%v %v", got, err)
	}
}

// TestARefusedDefinitionMakesNoName: what was refused was never made, so a name that somebody else gives to a view later is looked up.
func TestARefusedDefinitionMakesNoName(t *testing.T) {
	pg := testpg.Start(t)
	w := worldOf(t, pg, []string{"analyst"})
	conn := w.connect()
	if _, err := conn.Exec(t.Context(), "create table later (email text)"); sqlState(err) != "42501" {
		t.Fatalf("create: %v", err)
	}
	pg.Exec("create view later as select * from customers", "grant select on later to public")
	if got, err := table(t.Context(), conn, "select email from later"); sqlState(err) != "42501" {
		t.Errorf("a view over masked columns: %v %v", got, err)
	}
}
