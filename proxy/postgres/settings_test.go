package postgres_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/proxy/postgres"
)

const pinnedNow = "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where name in " +
	"('search_path','standard_conforming_strings','client_encoding','row_security','application_name','role','statement_timeout')"

// TestDiscardGoesBackToWhatIsPinned, even where the account has other defaults, and takes what was prepared along.
func TestDiscardGoesBackToWhatIsPinned(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("alter role "+testpg.App+" set standard_conforming_strings = off", "alter role "+testpg.App+" set search_path = pg_temp, other",
		"alter database shop set client_encoding = 'LATIN1'", "alter database shop set row_security = off")
	w := worldOf(t, pg, []string{"clerk"})
	conn := w.connect()
	before, err := table(t.Context(), conn, pinnedNow)
	if err != nil || !strings.Contains(before[0], `standard_conforming_strings=on`) || !strings.Contains(before[0], `search_path="public", pg_temp`) || !strings.Contains(before[0], "client_encoding=UTF8") {
		t.Fatalf("%v %v", before, err)
	}
	for _, discard := range []string{"discard all", "reset all", "reset search_path; reset standard_conforming_strings; reset client_encoding; reset row_security; reset statement_timeout; reset application_name"} {
		dialogue{
			{"set statement_timeout = 4321", nil},
			{discard, nil},
			{pinnedNow, before},
		}.run(t, conn)
	}
	f := w.frontend()
	got := w.script(t, f, 4, parse("mine", "select 1"), parse("", "select 2"), syncMsg, query("prepare p as select 3"), query("discard all"), bind("", "mine"), syncMsg)
	want := []string{"ParseComplete", "ParseComplete", "ready I", "PREPARE", "ready I", "DISCARD ALL", "ready I", "error 26000", "ready I"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	dialogue{
		{"prepare p as select 4", nil},
		{"begin; discard all", []string{"error 25001"}},
		{"rollback", nil},
		{"execute p", []string{"4"}},
		{"discard plans", nil},
		{"discard sequences", nil},
		{"discard temp", nil},
		{"execute p", []string{"4"}},
		{"discard all", nil},
		{"execute p", []string{"error 26000"}},
		{"begin; declare h cursor with hold for select 1; commit; discard all", []string{"error 25001"}},
		{"fetch h", []string{"1"}},
		{"discard all", nil},
		{"fetch h", []string{"error 34000"}},
	}.run(t, conn)
}

// TestDiscardKeepsARoleThatASettingGave.
func TestDiscardKeepsARoleThatASettingGave(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("create role less nologin", "grant less to "+testpg.App, "alter role "+testpg.App+" set role = less")
	w := worldOf(t, pg, []string{"clerk"})
	dialogue{
		{"select current_user", []string{"less"}},
		{"discard all", nil},
		{"reset all", nil},
		{"select current_user", []string{"less"}},
	}.run(t, w.connect())
}

// TestStringsAreReadTheStandardWay: nothing turns standard_conforming_strings off, or the session ends with it.
func TestStringsAreReadTheStandardWay(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("set role "+testpg.App, "create view settings as select * from pg_settings", "create view over_settings as select name, setting from settings",
		"create function opens() returns text language sql as $$ select set_config('standard_conforming_strings', 'off', false) $$",
		"create table made (x text)")
	w := worldOf(t, pg, []string{"dba", "clerk"})
	conn := w.connect()
	const off = "standard_conforming_strings"
	for _, sql := range []string{
		"set " + off + " = off", "set local " + off + " to 'off'", "set session " + off + " = 0", "begin; set local " + off + " = false", "set " + off + " = default",
		"SET Standard_Conforming_Strings TO off", `set "STANDARD_conforming_strings" = off`,
		"select set_config('" + off + "', 'off', false)", "select pg_catalog.set_config(lower('STANDARD_CONFORMING_STRINGS'), 'off', true)",
		"alter role shop_app set " + off + " = off", "alter role all set " + off + " = off", "alter user current_user set " + off + " to off",
		"alter database shop set " + off + " = off", "alter role shop_app in database shop set " + off + " = off", "alter system set " + off + " = off",
		"create function f() returns int language sql set " + off + " = off as 'select 1'", "alter function opens() set " + off + " = off",
		"alter function opens() set search_path = x", "update pg_settings set setting = 'off' where name = '" + off + "'",
		"update pg_catalog.pg_settings set setting = 'off'", "update settings set setting = 'off' where name = '" + off + "'",
		"update over_settings set setting = 'off' where name = '" + off + "'", "create temp view v as select * from pg_settings",
		"create view v as select * from settings", "create rule r as on insert to made do also update pg_settings set setting = 'off'",
		"create rule r as on insert to made do also update over_settings set setting = 'off'",
		"prepare p as select set_config('" + off + "', 'off', false)", "execute q(set_config('" + off + "', 'off', false))",
		"declare c cursor for select set_config('" + off + "', 'off', false)", "copy (select set_config('" + off + "', 'off', false)) to stdout",
		"explain analyze select set_config('" + off + "', 'off', false)", "set session characteristics as transaction read only; set " + off + " = off",
	} {
		if _, err := table(t.Context(), conn, sql); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", sql, err)
		}
		if got, err := table(t.Context(), conn, "rollback; show "+off); err != nil || got[0] != "on" {
			t.Fatalf("after %s: %v %v", sql, got, err)
		}
	}
	// Code that a policy lets run can; then the session is over, before anything else runs.
	for _, sql := range []string{
		"do $$ begin set standard_conforming_strings = off; end $$", "do $$ begin set client_encoding = 'SQL_ASCII'; end $$",
		"do $$ begin perform set_config('session_authorization', 'shop_app', false); set standard_conforming_strings = off; end $$",
	} {
		f := w.frontend()
		f.Send(query(sql))
		f.Send(query(`insert into made values ('\'), ('); select 1 --')`))
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		_, err := f.Receive()
		for err == nil {
			_, err = f.Receive()
		}
		if got := pg.Value("select count(*) from made"); got != "0" {
			t.Errorf("%s: what was sent behind it ran: %s rows", sql, got)
		}
	}
	f := w.frontend()
	got := w.script(t, f, 1, parse("", "do $$ begin set standard_conforming_strings = off; end $$"), bind("", ""), execute("", 0),
		parse("", "select 1"), bind("", ""), execute("", 0), parse("", `insert into made values ('\'), ('); select 1 --')`), bind("", ""), execute("", 0), syncMsg)
	want := []string{"ParseComplete", "BindComplete", "DO", "ParseComplete", "BindComplete", "row 1", "SELECT 1", "error 42501", "ready I"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("in one batch (-want +got)\n%s", diff)
	}
	for _, e := range w.ledger.all("closed")[:2] {
		if !strings.Contains(e.text, "pinned") {
			t.Errorf("the record says %q %q", e.why, e.text)
		}
	}
}

// TestCodeMaySetTheApplicationsName, as audit triggers do.
func TestCodeMaySetTheApplicationsName(t *testing.T) {
	w := newWorld(t, []string{"dba"})
	dialogue{
		{"do $$ begin set application_name = 'from a trigger'; end $$", nil},
		{"select 1", []string{"1"}},
	}.run(t, w.connect())
}

// TestOptionsInTheStartupPacket, in every spelling.
func TestOptionsInTheStartupPacket(t *testing.T) {
	for options, ok := range map[string]bool{
		"-c statement_timeout=5s": true, "-cstatement_timeout=5s": true, "--statement_timeout=5s": true, "--statement-timeout=5s": true,
		"-c statement_timeout=5s  -c lock_timeout=1s": true, "--Lock-Timeout=1s": true, "": true, "   ": true,
		"-c standard_conforming_strings=on": true, "-c standard_conforming_strings=off": false, "-cstandard_conforming_strings=off": false,
		"--standard_conforming_strings=off": false, "--standard-conforming-strings=off": false, "-c Standard_Conforming_Strings=off": false,
		"-c standard_conforming_strings=on -c standard_conforming_strings=off": false, `-c standard\_conforming_strings=off`: false,
		`-c statement_timeout=5s\ -c\ standard_conforming_strings=off`: false, "-c\tsearch_path=x": false, "-c\nsearch_path=x": false,
		"-csearch_path": false, "-c": false, "--": false, "-": false, "statement_timeout=5s": false, "-e": false, "-E": false, "-W 10": false, "-o x": false, "-B 16": false, "-d 5": false,
		"-p 5": false, "-F": false, "-O": false, "-P": false, "-t pa": false, "-f s": false, "-S 64": false, "-r x": false, "-v 3": false,
		"-ec standard_conforming_strings=off": false, "-c session_replication_role=replica": false, "-c role=postgres": false, "-c row_security=off": true, // it fails where it would filter; it stays on
		"-c row_security=maybe":     false,
		"-c client_encoding=LATIN1": false, "-c local_preload_libraries=x": false, "-c extra.custom=1": false,
	} {
		_, err := postgres.ReadStartup(strings.NewReader(string(startupPacket(3<<16, "user", "a", "options", options))))
		if (err == nil) != ok {
			t.Errorf("options %q: %v", options, err)
		}
	}
}
