package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Texts that break or occupy PostgreSQL's parser, and the death of its processes in the midst of their work, cost nobody but
// those whose texts they are: the proxy refuses these and goes on, in the same session too.
func TestHostileSQLKillsOnlyTheParser(t *testing.T) {
	a := newSQLAttacker(t, "CREATE TABLE payroll (x text)")
	before := a.Proxy.Pid()
	victim := func() func(stop context.Context) int {
		s := a.through(t, a.definer) // another user than the attacker
		return func(stop context.Context) int {
			n := 0
			for ; stop.Err() == nil; n++ {
				// A text that no cache has seen.
				if got := s.run(t, fmt.Sprintf("SELECT %d AS c%d", n, n)); got != fmt.Sprintf("%d|\nSELECT 1\n", n) {
					t.Errorf("somebody else got %s", got)
					return n
				}
			}
			return n
		}
	}

	t.Run("texts", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var served int
		var wg sync.WaitGroup
		work := victim()
		wg.Go(func() { served = work(ctx) })
		attackers := make(chan *sqlSession, 3)
		for range cap(attackers) {
			attackers <- a.through(t, a.reader)
		}
		var tries sync.WaitGroup
		for name, text := range hostileTexts() {
			tries.Go(func() {
				s := <-attackers
				defer func() { attackers <- s }()
				got := s.run(t, text)
				if !strings.Contains(got, "ERROR 42601 refused") && !strings.Contains(got, "ERROR 0A000 refused") && !strings.Contains(got, "ERROR 42501 refused") {
					t.Errorf("%s: %.200s", name, got)
				}
				if got := s.run(t, "SELECT 'still here'"); got != "still here|\nSELECT 1\n" {
					t.Errorf("after %s: %s", name, got)
				}
			})
		}
		tries.Wait()
		stop()
		wg.Wait()
		if served == 0 {
			t.Error("nobody else was served")
		}
	})

	t.Run("kill -9", func(t *testing.T) {
		s := a.through(t, a.reader)
		cost, deaths := 0, 0
		for i := range 20 {
			killed := killParsers(t, a.Proxy.Pid())
			deaths += killed
			// A text may be the one that meets a death, so no more of them are refused than parsers died.
			for refused := 0; ; refused++ {
				got := s.run(t, fmt.Sprintf("SELECT %d AS k%d_%d", i, i, refused))
				if got == fmt.Sprintf("%d|\nSELECT 1\n", i) {
					break
				}
				cost++
				if !strings.Contains(got, "ERROR 42601 refused") || refused >= killed {
					t.Fatalf("text %d after the death of %d parsers: %s", refused, killed, got)
				}
			}
		}
		if deaths == 0 || cost == deaths {
			t.Errorf("%d parsers died, which cost %d texts", deaths, cost)
		}
	})

	if a.Proxy.Ended() || a.Proxy.Pid() != before {
		t.Error("the proxy has ended")
	}
}

// hostileTexts are what the issues of PostgreSQL's parsers know to kill them, and what takes them long.
func hostileTexts() map[string]string {
	many, names := strings.Repeat, func(prefix string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%s%d,", prefix, i)
		}
		return b.String() + prefix
	}
	repeated := "1"
	for range 40 {
		repeated = "(WITH x AS (UPDATE t SET (a, a, a, a) = " + repeated + " RETURNING 1) SELECT 1)"
	}
	return map[string]string{
		"a sum":             "SELECT 1" + many("+1", 60_000),
		"a product":         "SELECT 1" + many("*1", 60_000),
		"signs":             "SELECT " + many("- ", 60_000) + "1",
		"signs in a row":    "SELECT 1" + many("+-", 60_000) + "1",
		"an operator":       "SELECT 1" + many("@", 120_000) + "1",
		"parentheses":       "SELECT " + many("(", 100_000) + "1" + many(")", 100_000),
		"open parentheses":  "SELECT " + many("(", 200_000),
		"queries":           many("SELECT (", 20_000) + "SELECT 1" + many(")", 20_000),
		"derived tables":    many("SELECT * FROM (", 10_000) + "SELECT 1" + many(") x", 10_000),
		"arrays":            "SELECT " + many("ARRAY[", 30_000) + "1" + many("]", 30_000),
		"brackets":          "SELECT " + many("[", 120_000) + many("]", 120_000),
		"calls":             "SELECT " + many("f(", 60_000) + many(")", 60_000),
		"cases":             "SELECT " + many("CASE WHEN a THEN ", 10_000) + "1" + many(" END", 10_000),
		"nots":              "SELECT " + many("NOT ", 50_000) + "true",
		"ands":              "SELECT true" + many(" AND true", 25_000),
		"unions":            "SELECT 1" + many(" UNION SELECT 1", 16_000),
		"joins":             "SELECT 1 FROM t" + many(" NATURAL JOIN t", 15_000),
		"casts":             "SELECT 1" + many("::int", 40_000),
		"collations":        "SELECT 'a'" + many(` COLLATE "C"`, 20_000),
		"tests":             "SELECT 1" + many(" IS NULL", 30_000),
		"withs":             many("WITH a AS (", 10_000) + "SELECT 1" + many(") SELECT 1", 10_000),
		"rows":              "SELECT " + many("ROW(", 40_000) + many(")", 40_000),
		"explains":          many("EXPLAIN ", 30_000) + "SELECT 1",
		"comments":          "SELECT 1" + many("/**/", 60_000),
		"nested comments":   "SELECT 1 " + many("/*", 60_000) + many("*/", 60_000),
		"an open comment":   "SELECT 1 " + many("/* ", 80_000),
		"an open string":    "SELECT '" + many("''", 100_000),
		"an open dollar":    "SELECT $a$" + many("$b$ ", 60_000),
		"repeated sources":  "UPDATE t SET a = " + repeated,
		"a wide assignment": "UPDATE t SET (" + names("a", 2_000) + ") = (SELECT " + names("b", 2_000) + ")",
		"wide scopes":       "SELECT " + names("c", 500) + " FROM " + names("t", 1_500),
		"many relations":    "SELECT 1 FROM " + names("t", 3_000),
		"many columns":      "SELECT " + names("c", 6_000),
		"many statements":   many("SELECT 1;", 20_000),
		"bytes of no text":  "SELECT 'a' -- \xff",
		"broken UTF-8":      "SELECT '\xed\xa0\x80'",
		"more than fits":    "SELECT '" + many("x", 300_000) + "'",
		"a JSON path":       "SELECT jsonb_path_query('{}', '$' " + many("|| '.a' ", 30_000) + ")",
		"types":             "SELECT 1::int" + many("[]", 100_000) + " +",
	}
}

// killParsers kills the parsers of a proxy with SIGKILL, each by its number, and says how many there were.
func killParsers(t *testing.T, proxy int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", proxy))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("the proxy's children: %v", err)
	}
	n := 0
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil || !bytes.Contains(command, []byte("sqlparse")) {
				continue
			}
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				n++
			}
		}
	}
	return n
}
