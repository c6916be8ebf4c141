package integration_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// masked are the shop's customers as an analyst sees them.
var masked = []string{
	"1|Ines Albrecht|i***@example.com|****0101",
	"2|Tomas Okafor|t***@example.net|****0102",
	"3|Mai Lindqvist|m***@example.org|****0103",
	"4|Rahul Banerjee|r***@example.com|****0104",
	"5|Carla Nunes|c***@example.net|****0105",
}

// Clients that know nothing of Deputy find their target by the run's environment and files, and get masked
// rows and refusals in their own terms, in text and in binary.
func TestUnmodifiedClients(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	t.Run("psql", func(t *testing.T) {
		r := alice.SQL(t, testmesh.Nested, "SELECT id, name, email, phone FROM customers ORDER BY id")
		if diff := cmp.Diff(masked, testmesh.Lines(r.Stdout)); diff != "" || r.Code != 0 {
			t.Errorf("rows (-want +got):\n%s%s", diff, r)
		}
	})
	for _, locale := range []string{"C.UTF-8", "C"} {
		t.Run("psql on a terminal with the locale "+locale, func(t *testing.T) {
			c := alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq", "-P", "pager=off")
			c.TTY = true
			c.Env = append(c.Env, "LC_ALL="+locale)
			psql := testmesh.Begin(t, c)
			psql.Await("=>", 1)
			psql.Type("SELECT email FROM customers WHERE id = 3;\n")
			psql.Await("m***@example.org", 1)
			psql.Type("\\conninfo\nSHOW client_encoding;\n\\q\n")
			if r := psql.Wait(patience); r.Code != 0 || !strings.Contains(r.Stdout, `database "shop"`) || !strings.Contains(r.Stdout, "UTF8") {
				t.Errorf("psql on a terminal: %s", r)
			}
		})
	}
	t.Run("pgx", func(t *testing.T) {
		r := alice.Run(t, testmesh.Nested, testmesh.Program(t, "agentprobe"), "pgx")
		var want []string
		for _, mode := range []string{"simple", "exec", "describe", "prepared", "prepared again", "binary", "text"} {
			want = append(want, mode+" "+masked[0], mode+" "+masked[1])
		}
		checkLines(t, r, append(want, "refused 42501 *", "count 5", "count 6"))
	})
	t.Run("psycopg2", func(t *testing.T) {
		script := m.Share(t, filepath.Join("testdata", "psycopg_client.py"))
		r := alice.Run(t, testmesh.Nested, "/usr/bin/python3", script)
		checkLines(t, r, []string{"row " + masked[0], "row " + masked[1], "refused 42501 *", "count 5"})
	})
	t.Run("jdbc", func(t *testing.T) {
		source := m.Share(t, filepath.Join("testdata", "Jdbc.java"))
		r := alice.Run(t, testmesh.Nested, "java", "-XX:TieredStopAtLevel=1", "-Djava.io.tmpdir=/tmp", "-cp", "/usr/share/java/postgresql.jar", source, testmesh.Target)
		var want []string
		for i := range 8 {
			want = append(want, "row "+masked[i%5])
		}
		checkLines(t, r, append(want, "refused 42501 *", "count 5", "fetched 6"))
	})
	t.Run("pgbench", func(t *testing.T) { pgbench(t, m) })
	m.Verify(t)
}

// checkLines compares a client's output with what is wanted; a line that ends in * is a beginning.
func checkLines(t *testing.T, r testmesh.Result, want []string) {
	t.Helper()
	got := testmesh.Lines(r.Stdout)
	for i, w := range want {
		if head, ok := strings.CutSuffix(w, "*"); ok && i < len(got) && strings.HasPrefix(got[i], head) {
			if !strings.Contains(got[i], `policy "no-ddl-by-agents"`) || !strings.Contains(got[i], "(record: ") {
				t.Errorf("the refusal names no policy and record: %s", got[i])
			}
			got[i] = w
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || r.Code != 0 {
		t.Errorf("lines (-want +got):\n%s%s", diff, r)
	}
}

// pgbench fails no transaction in any protocol, and each one left its records.
func pgbench(t *testing.T, m *testmesh.Mesh) {
	server := testmesh.Exec(t, testmesh.Command{
		Args: []string{m.PG.Bin("pgbench"), "-i", "-q", "-s", "1", m.PG.DSN(testpg.App, testpg.AppPassword, testmesh.Database)},
	})
	if server.Code != 0 {
		t.Fatalf("pgbench -i: %s", server)
	}
	ben := m.Login(t, "ben")
	const clients, each = 2, 25
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, script := range []struct {
			name, flag string
			actions    map[string]int // decisions per transaction
		}{
			{"select only", "-S", map[string]int{"postgres:select": 1}},
			{"TPC-B", "-N", map[string]int{"postgres:select,postgres:update": 1, "postgres:select": 1, "postgres:insert": 1}},
		} {
			t.Run(mode+" "+script.name, func(t *testing.T) {
				purpose := fmt.Sprintf("%s %s", mode, script.name)
				c := ben.Agents(t, []string{"planner"}, m.PG.Bin("pgbench"), "-n", script.flag, "-M", mode,
					"-c", strconv.Itoa(clients), "-t", strconv.Itoa(each))
				for i, a := range c.Args {
					if a == testmesh.Purpose {
						c.Args[i] = purpose
					}
				}
				r := testmesh.Exec(t, c)
				if r.Code != 0 || !strings.Contains(r.Stdout, "number of failed transactions: 0 ") || processed(r.Stdout) != clients*each {
					t.Fatalf("pgbench: %s", r)
				}
				got := outcomes(m.SettledRecords(t, "proxy"), purpose)
				want := map[string]int{}
				for action, n := range script.actions {
					want[action+" ok"] = n * clients * each
					if mode == "prepared" { // each client prepares it once
						want[action+" ok"] += n * clients
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("decisions (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// outcomes counts the transactions' own commands of the runs with a purpose, by action and outcome.
func outcomes(records []*audit.Record, purpose string) map[string]int {
	actions, counts := map[audit.RecordID]string{}, map[string]int{}
	for _, rec := range records {
		switch e := rec.Event.(type) {
		case *audit.Decision:
			if rec.Chain != nil && rec.Chain.Purpose == purpose && onBench(e) {
				actions[rec.ID] = e.Action
				counts[e.Action+" open"]++
			}
		case *audit.Completed:
			if action := actions[rec.Decision]; action != "" {
				counts[action+" "+e.Status]++
				if counts[action+" open"]--; counts[action+" open"] == 0 {
					delete(counts, action+" open")
				}
			}
		}
	}
	return counts
}

// onBench says whether a decision is about a transaction's own statement.
func onBench(d *audit.Decision) bool {
	for _, o := range d.Objects {
		if strings.HasSuffix(o.Name, "pgbench_accounts") || strings.HasSuffix(o.Name, "pgbench_history") {
			return true
		}
	}
	return false
}

var processedLine = regexp.MustCompile(`number of transactions actually processed: (\d+)`)

func processed(out string) int {
	f := processedLine.FindStringSubmatch(out)
	if f == nil {
		return -1
	}
	n, _ := strconv.Atoi(f[1])
	return n
}
