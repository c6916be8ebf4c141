package postgres_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testpg"
)

// TestTheCatalogueIsReadAndNothingBehindIt: what tools ask of the catalogue is answered to whoever may read the database, and
// neither values of tables nor passwords come out that way.
func TestTheCatalogueIsReadAndNothingBehindIt(t *testing.T) {
	pg := testpg.Start(t)
	shapes(pg)
	pg.Exec("create extension postgres_fdw", "create server far foreign data wrapper postgres_fdw",
		"create user mapping for "+testpg.App+" server far options (user 'x', password 'gEhEiM')",
		"create view xml_view as select query_to_xml('select email from customers', true, true, '') as x",
		"create view over_xml as select x from xml_view",
		"create view stat_view as select stavalues1::text from pg_statistic",
		"create view hash_view as select rolpassword from pg_authid",
		"create view mapping_view as select umoptions from pg_user_mapping",
		"create view watch_view as select query from pg_stat_get_activity(null)",
		"create view size_view as select relname, pg_table_size(oid) as bytes, lower(relname), now() from pg_class",
		"grant select on all tables in schema public to "+testpg.App,
	)
	w := worldOf(t, pg, []string{"analyst"})
	conn := w.connect()
	for _, sql := range []string{
		"select * from xml_view", "select x from over_xml", "select * from stat_view", "select * from hash_view", "select * from mapping_view", "select * from watch_view",
		"select * from information_schema.user_mapping_options", "select * from information_schema._pg_user_mappings", "select * from information_schema.user_mappings",
		"select * from pg_user_mappings", "select * from pg_authid", "select * from pg_shadow", "lock table xml_view in access share mode",
		"select pg_relation_filepath('customers')", "select pg_stat_file('PG_VERSION')", "select information_schema.no_such(1)",
		"lock table orders", "lock table orders in row share mode", "lock table only orders in share mode",
	} {
		got, err := table(t.Context(), conn, sql)
		if sqlState(err) != "42501" {
			t.Errorf("%s: %v %v", sql, got, err)
		}
	}
	for _, sql := range []string{
		"select bytes from size_view where relname = 'customers'", "select pg_database_size(current_database()), pg_total_relation_size('customers')",
		"select pg_tablespace_location(oid) from pg_tablespace", "select table_name, column_name, column_default from information_schema.columns",
		"select pg_is_in_recovery()", "select * from information_schema.table_constraints", "select * from information_schema.views", "select * from information_schema.routines",
		"select (information_schema._pg_expandarray(i.indkey)).n from pg_index i limit 1",
		"begin", "lock table orders, only customers in access share mode", "commit", "set row_security = off", "set row_security = on",
	} {
		if _, err := table(t.Context(), conn, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	// Every helper that initdb puts into information_schema is a function of its arguments or reads the catalogue.
	want := pg.Value("select string_agg(proname, ',' order by proname collate \"C\") from pg_proc p join pg_language l on l.oid = p.prolang " +
		"where pronamespace = 'information_schema'::regnamespace and lanname = 'sql' and provolatile in ('i', 's')")
	for _, name := range strings.Split(want, ",") {
		if _, err := table(t.Context(), conn, "select information_schema."+name+"()"); sqlState(err) != "42883" {
			t.Errorf("%s isn't judged by its name: %v", name, err)
		}
	}
	if n := strings.Count(want, ",") + 1; n != 11 {
		t.Errorf("information_schema has %d helpers: %s", n, want)
	}
}

// TestAnEmptiedSearchPathMisleadsNobody: pg_dump empties the path, so that every name comes with its schema. From then on no
// name without one is decided, however the path may have come back.
func TestAnEmptiedSearchPathMisleadsNobody(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	w.pg.Exec("create table secrets (x text)", "insert into secrets values ('hidden')", "grant select on secrets to "+testpg.App)
	for name, back := range map[string][]string{
		"emptied":                  nil,
		"given back by RESET":      {"reset search_path"},
		"given back by a rollback": {"rollback"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := w.connect()
			do := func(sql string) error { _, err := table(t.Context(), conn, sql); return err }
			for _, sql := range append([]string{"begin", "SELECT pg_catalog.set_config('search_path', '', false);", "select 1"}, back...) {
				if err := do(sql); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			if err := do("select amount, lower(note) from public.orders where id in (select oid from pg_class)"); err != nil {
				t.Errorf("with its schema: %v", err)
			}
			if got, err := table(t.Context(), conn, "show search_path"); err != nil || back == nil && got[0] != "" || back != nil && got[0] != `"public", pg_temp` {
				t.Errorf("search_path: %v %v", got, err)
			}
			if back == nil {
				if err := do("commit"); err != nil {
					t.Fatal(err)
				}
			} else {
				_ = do("rollback")
			}
			for _, sql := range []string{
				"select * from orders", "select * from secrets", "select 1 from pg_class where exists (select from secrets)", "insert into orders (id) values (99)",
				"create table fresh (a int)", "select * from public.secrets", "lock table secrets in access share mode",
			} {
				if err := do(sql); sqlState(err) != "42501" {
					t.Errorf("%s: %v, want 42501", sql, err)
				}
			}
		})
	}
	for _, e := range w.ledger.all("decided") {
		if e.cmd.ReadOnly && strings.Contains(e.text, "public.orders") {
			t.Errorf("%q was taken for read-only where a temporary object may be meant", e.text)
		}
	}
	conn := w.connect()
	for _, sql := range []string{
		"SELECT pg_catalog.set_config('search_path', '', true)", "SELECT pg_catalog.set_config('search_path', 'other', false)", "SELECT set_config('search_path', '', false)",
		"SELECT pg_catalog.set_config('search_path', '', false), set_config('role', 'postgres', false)", "SELECT pg_catalog.set_config('row_security', '', false)",
		"SET search_path = ''",
	} {
		if _, err := table(t.Context(), conn, sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v, want 42501", sql, err)
		}
	}
	if _, err := table(t.Context(), conn, "select * from orders limit 1"); err != nil {
		t.Errorf("what was refused changed the session: %v", err)
	}
}
