package postgres_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/deputymesh/deputy/internal/testpg"
)

// shapes makes views, partitions, functions and a second schema around the masked table.
func shapes(pg *testpg.Server) {
	pg.Exec("set role "+testpg.App,
		"create view plain_view as select email as e, id from customers",
		"create view named_view as select email as e, id from customers",
		"create view over_view as select * from plain_view",
		"create view harmless_view as select id, amount from orders",
		"create materialized view stored_view as select email from customers",
		"create table people (like customers) partition by range (id)",
		"create schema other", "create table other.customers (id int, email text)", "insert into other.customers values (1,'eve@example.com')",
		"create table customers_child () inherits (customers)",
		"insert into customers_child values (9,'Nine','nine@example.com','999999999',null,null)",
		"create function first_email() returns text language sql stable as 'select email from customers limit 1'",
		"create function row_text(c customers) returns text language sql stable as 'select c.email'",
		"create table secrets (x text)", "insert into secrets values ('hidden')",
	)
}

func TestMaskedColumnsAreHiddenHoweverTheyAreSelected(t *testing.T) {
	pg := testpg.Start(t)
	shapes(pg)
	w := worldOf(t, pg, []string{"analyst"})
	conn := w.connect()
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{"select id, email from only customers order by id", []string{"1|a***@example.com", "2|b***@example.com", "3|∅"}},
		{"select email as id from customers where id = 1", []string{"a***@example.com"}},
		{"select * from customers where id = 1", []string{"1|Ada|a***@example.com|****|∅|\"****\""}},
		{"select c.*, 1 from customers c where c.id = 1", []string{"1|Ada|a***@example.com|****|∅|\"****\"|1"}},
		{"table customers limit 1", []string{"1|Ada|a***@example.com|****|∅|\"****\""}},
		{"select c from customers c where id = 1", []string{"∅"}},
		{"select x.e from (select email as e from customers where id = 2) x", []string{"b***@example.com"}},
		{"with x as (select id, email from customers where id = 2) select email from x", []string{"b***@example.com"}},
		{"select email from customers where id = 1 union all select 'free'", []string{"∅", "∅"}},
		{"select c.row_to_json, c.id from customers c where id = 1", []string{"∅|1"}},
		{"select o.id, c.email from orders o join customers c on c.id = o.customer where o.id = 1", []string{"1|b***@example.com"}},
		{"select count(*), max(id), 'x' from customers", []string{"4|9|x"}},
		{"select upper(name) from customers where id = 1", []string{"ADA"}},
		{"select email from other.customers", []string{"eve@example.com"}},
		{"select phone from customers_child", []string{"****"}},
		{"select e from named_view where id = 1", []string{"ada@example.com"}},
		{"select amount from harmless_view where id = 1", []string{"1.50"}},
		{"select lateral_x.email from orders o, lateral (select email from customers where id = o.customer) lateral_x where o.id = 1", []string{"b***@example.com"}},
		{"explain (costs off) select email from customers", []string{"Append", "  ->  Seq Scan on customers customers_1", "  ->  Seq Scan on customers_child customers_2"}},
	} {
		got, err := table(t.Context(), conn, c.sql)
		if err != nil {
			t.Errorf("%s: %v", c.sql, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.sql, diff)
		}
	}
	o := w.ledger.outcome(t, "select id, email from only customers")
	if len(o.Masked) != 1 || o.Masked[0].Rule != "email" || o.Masked[0].Column != "public.customers.email" || o.Masked[0].Values != 2 {
		t.Errorf("masked counts %+v", o.Masked)
	}
}

func TestMaskedColumnsAreRefusedInAnyOtherPlace(t *testing.T) {
	pg := testpg.Start(t)
	shapes(pg)
	w := worldOf(t, pg, []string{"analyst"})
	conn := w.connect()
	for _, sql := range []string{
		"select id from customers where email = 'ada@example.com'",
		"select id from customers where email like 'a%'",
		"select id from customers c where c.email is null",
		"select upper(email) from customers",
		"select email || '' from customers",
		"select email::varchar(200) from customers",
		"select count(email) from customers",
		"select string_agg(email, ',') from customers",
		"select id from customers order by email",
		"select id, email from customers order by 2",
		"select email from customers group by email",
		"select distinct email from customers",
		"select a.id from customers a join customers b on a.email = b.email",
		"select a.id from customers a join customers b using (email)",
		"select 1 from customers a natural join customers b",
		"select email from customers union select 'x'",
		"select email from customers except select 'ada@example.com'",
		"select row_number() over (order by email) from customers",
		"select x.e from (select email e from customers) x where x.e like 'a%'",
		"with x as (select email e from customers) select 1 from x where e > 'b'",
		"select 1 where 'ada@example.com' in (select email from customers)",
		"select 1 where (select email from customers limit 1) > 'a'",
		"select length((select email from customers limit 1))",
		"select array(select email from customers)",
		"select case when email = 'a' then 1 end from customers",
		"select c::text from customers c",
		"select row_to_json(c) from customers c",
		"select to_jsonb(c) from customers c",
		"select (select email from customers where id = 1), 5",
		"select (c).email from customers c where (c).email > 'a'",
		"select json_agg(x) from (select * from customers) x",
		"select x from (select * from customers) x where x::text like '%ada%'",
		"select id from customers c(a, b, x) where x like 'a%'",
		"select json_build_object('e', email) from customers",
		"select coalesce(email, 'x') from customers",
		"select id from customers where row(id, email) > row(1, 'a')",
		"select id from customers where attributes @> '{\"k\":1}'",
		"select * from customers, unnest(array[email]) x",
		"select 1 / (case when substr(email,1,1) = 'a' then 0 else 1 end) from customers",
		"select name from customers limit (select length(email) from customers limit 1)",
		"create table t as select email from customers",
	} {
		_, err := table(t.Context(), conn, sql)
		if code := sqlState(err); code != "42501" {
			// Withholding the value is as good as refusing, except where it decides what is shown.
			t.Errorf("%s: error %v, want 42501", sql, err)
		} else if strings.Contains(err.Error(), "ada@") {
			t.Errorf("%s: the error tells a value: %v", sql, err)
		}
	}
	// Relations that could show masked columns under other names need a policy of their own.
	for _, sql := range []string{
		"select e from plain_view", "select * from over_view", "select email from stored_view", "select * from pg_stats",
		"select most_common_vals from pg_catalog.pg_stats where tablename = 'customers'", "select x from secrets",
		"select first_email()", "select c.row_text from customers c", "select query_to_xml('select email from customers', true, true, '')",
		"select table_to_xml('customers', true, true, '')", "select database_to_xml(true, true, '')",
		"select umoptions from pg_user_mappings",
	} {
		_, err := table(t.Context(), conn, sql)
		wantState(t, err, "42501", "")
	}
	if got, err := table(t.Context(), conn, "select name from customers where id = 1"); err != nil || got[0] != "Ada" {
		t.Errorf("the session isn't usable any more: %v %v", got, err)
	}
}

func TestFilterRuleAllowsFilters(t *testing.T) {
	w := newWorld(t, []string{"filterer"})
	conn := w.connect()
	for _, sql := range []string{
		"select id from customers where email = 'ada@example.com'", "select distinct email from customers",
		"select id from customers order by email", "select a.id from customers a join customers b using (email)",
	} {
		if _, err := table(t.Context(), conn, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{"select upper(email) from customers", "create table x as select email from customers"} {
		_, err := table(t.Context(), conn, sql)
		wantState(t, err, "42501", "")
	}
	got, err := table(t.Context(), conn, "select email from customers where email is not null order by id")
	if err != nil || len(got) != 2 || len(got[0]) != 16 || got[0] == got[1] {
		t.Errorf("hashed: %v %v", got, err)
	}
}

func TestMaskingInTheExtendedProtocol(t *testing.T) {
	w := newWorld(t, []string{"analyst"})
	conn := w.connect()
	ctx := t.Context()
	// 1. Described once, executed later, in both formats.
	if _, err := conn.Prepare(ctx, "by_id", "select id, email, born, name from customers where id = $1"); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		for range 2 {
			var id int
			var email, name string
			var born pgtype.Date
			sql := "select id, email, born, name from customers where id = $1"
			if mode == pgx.QueryExecModeCacheStatement {
				sql = "by_id"
			}
			if err := conn.QueryRow(ctx, sql, mode, 1).Scan(&id, &email, &born, &name); err != nil {
				t.Fatalf("mode %v: %v", mode, err)
			}
			if email != "a***@example.com" || born.Valid || name != "Ada" || id != 1 {
				t.Errorf("mode %v: %d %q %v %q", mode, id, email, born, name)
			}
		}
	}
	// 2. Binary and text asked for by hand, without any Describe.
	for format := range int16(2) {
		r := conn.PgConn().ExecPrepared(ctx, "by_id", [][]byte{[]byte("2")}, []int16{0}, []int16{format}).Read()
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		if got := string(r.Rows[0][1]); got != "b***@example.com" || r.Rows[0][2] != nil {
			t.Errorf("format %d: %q %q", format, got, r.Rows[0][2])
		}
	}
	// 3. What may not be prepared isn't described either.
	_, err := conn.Prepare(ctx, "leak", "select id from customers where email = $1")
	wantState(t, err, "42501", "masked")
	_, err = conn.Prepare(ctx, "gone", "drop table customers")
	wantState(t, err, "42501", "")
	var n int
	if err := conn.QueryRow(ctx, "select count(*) from customers").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d %v", n, err)
	}
}

func TestErrorsOfMaskedTablesTellNoValues(t *testing.T) {
	w := newWorld(t, []string{"analyst", "clerk"})
	conn := w.connect()
	_, err := table(t.Context(), conn, "insert into customers (id, name, email) values (10, 'Z', 'ada@example.com')")
	wantState(t, err, "23505", "withheld")
	if s := err.Error(); strings.Contains(s, "ada@") || strings.Contains(s, "customers") {
		t.Errorf("the error tells too much: %s", s)
	}
	// Elsewhere errors are whole.
	_, err = table(t.Context(), conn, "insert into orders (id) values (1)")
	wantState(t, err, "23505", "orders_pkey")
	_, err = conn.Exec(t.Context(), "insert into customers (id, name, email) values ($1, 'Z', $2)", 10, "bob@example.com")
	wantState(t, err, "23505", "withheld")
}

// TestNothingCarriesAMaskedColumnAway: whoever may define and write still can't put masked values where no rule finds them.
func TestNothingCarriesAMaskedColumnAway(t *testing.T) {
	w := newWorld(t, []string{"analyst", "dba", "clerk"})
	conn := w.connect()
	for _, sql := range []string{
		"create table t as select * from customers", "select email into t from customers",
		"create materialized view m as select email from customers", "insert into orders (id, note) select 100 + id, email from customers",
		"insert into orders (id, note) values (101, (select email from customers limit 1))", "update customers set name = email",
		"update orders set note = c.email from customers c where c.id = orders.customer", "update customers set (name, phone) = (select email, phone from customers limit 1)",
		"with x as (update customers set name = name returning email) insert into orders (id, note) select 102, email from x",
		"insert into customers (id, name) values (1, 'x') on conflict (id) do update set name = customers.email",
		"merge into orders o using customers c on o.customer = c.id when matched then update set note = c.email",
		"create rule r as on update to orders do also insert into orders (id, note) select 1, email from customers",
		"delete from orders using customers c where c.email like 'a%'",
	} {
		_, err := table(t.Context(), conn, sql)
		if sqlState(err) != "42501" || !strings.Contains(err.Error(), "masked column") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	got, err := table(t.Context(), conn, "update customers set name = name where id = 1 returning email, id")
	if err != nil || got[0] != "a***@example.com|1" {
		t.Errorf("RETURNING: %v %v", got, err)
	}
	// No view is made over a masked column. Of the others nobody knows before they are committed what they show.
	for _, sql := range []string{"create view v as select email as e from customers", "create view v as select id from (select * from customers) x"} {
		_, err = table(t.Context(), conn, sql)
		wantState(t, err, "42501", "a view would show it")
	}
	got, err = table(t.Context(), conn, "begin; create view v as select name as e from customers; select e from v")
	if err != nil || len(got) != 3 || got[0] != "∅" {
		t.Errorf("a new view: %v %v", got, err)
	}
	for _, sql := range []string{"select upper(e) from v", "select 1 from v where e like 'a%'"} {
		_, err = table(t.Context(), conn, "rollback; begin; create view v as select name as e from customers; "+sql)
		wantState(t, err, "42501", "masked")
	}
	if _, err := table(t.Context(), conn, "rollback; create view v as select name as e from customers"); err != nil {
		t.Fatal(err)
	}
	_, err = table(t.Context(), conn, "select e from v")
	wantState(t, err, "42501", "exactly that")
	_, err = table(t.Context(), conn, "insert into customers (id, name, email) values (50, 'Dup', 'dup@example.com'), (51, 'Dup', null)")
	if err != nil {
		t.Fatal(err)
	}
	_, err = table(t.Context(), conn, "create unique index twice on customers (name)")
	wantState(t, err, "23505", "withheld")
	// Made in the open transaction: the catalogue doesn't know it yet, so what it shows is withheld.
	got, err = table(t.Context(), conn, "begin; create table fresh as select name from customers; select name from fresh")
	if err != nil || len(got) != 5 || got[0] != "∅" {
		t.Errorf("in the transaction that made it: %v %v", got, err)
	}
	if _, err := table(t.Context(), conn, "commit"); err != nil {
		t.Fatal(err)
	}
	got, err = table(t.Context(), conn, "select name from fresh order by 1")
	if err != nil || len(got) != 5 || got[0] != "Ada" {
		t.Errorf("afterwards: %v %v", got, err)
	}
}
