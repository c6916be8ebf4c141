package sqlparse_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

func TestHostileTextIsRefusedOrKillsOnlyTheChild(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 1, MaxBytes: 1 << 20, Timeout: 20 * time.Second})
	nest := func(open, mid, end string, n int) string {
		return "SELECT " + strings.Repeat(open, n) + mid + strings.Repeat(end, n)
	}
	multi := "1"
	for range 40 {
		multi = "(WITH x AS (UPDATE t SET (a, a, a, a) = " + multi + " RETURNING 1) SELECT 1)"
	}
	tests := []struct {
		name, sql string
		want      error // nil: any error
	}{
		{"operators", "SELECT 1" + strings.Repeat("+1", 30_000), sqlparse.ErrTooComplex},
		{"parentheses", nest("(", "1", ")", 5_000), sqlparse.ErrTooComplex},
		{"brackets", nest("ARRAY[", "1", "]", 5_000), sqlparse.ErrTooComplex},
		{"unions", "SELECT 1" + strings.Repeat(" UNION SELECT 1", 20_000), sqlparse.ErrTooComplex},
		{"nots", "SELECT " + strings.Repeat("NOT ", 20_000) + "true", sqlparse.ErrTooComplex},
		{"statements", strings.Repeat("x;", 1_000), nil},
		{"many statements", strings.Repeat("TABLE t;", 1_000), sqlparse.ErrTooComplex},
		{"repeated sources", "UPDATE t SET a = " + multi, nil},
		{"columns", "SELECT " + strings.Repeat("a,", 5_000) + "b FROM " + strings.Repeat("t,", 1_500) + "t", nil},
		{"distinct columns", "SELECT " + manyNames(6_000), sqlparse.ErrTooComplex},
		{"wide scopes", "SELECT " + manyNames(500) + " FROM " + manyNames(1_500), sqlparse.ErrTooComplex},
		{"comments", "SELECT 1" + strings.Repeat("/**/", 60_000), sqlparse.ErrTooComplex},
		{"nested comments", "SELECT 1" + strings.Repeat("/*", 60_000) + strings.Repeat("*/", 60_000), sqlparse.ErrTooComplex},
		{"signs", "SELECT 1" + strings.Repeat("+-", 60_000) + "1", sqlparse.ErrTooComplex},
		{"operator", "SELECT 1" + strings.Repeat("@", 20_000) + "1", sqlparse.ErrTooComplex},
		{"relations", "SELECT 1 FROM " + manyNames(3_000), sqlparse.ErrTooComplex},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			statements, err := p.Parse(t.Context(), tt.sql)
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Parse = %d statements, %v; want %v", len(statements), err, tt.want)
			}
			if _, err := p.Parse(t.Context(), fmt.Sprintf("SELECT 1 AS %q", tt.name)); err != nil {
				t.Errorf("the next text failed: %v", err)
			}
		})
	}
}

func manyNames(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("n%d", i)
	}
	return strings.Join(names, ",")
}

func TestDeepestAllowedTextSurvives(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 1, Timeout: 20 * time.Second})
	for name, sql := range map[string]string{
		"operators":   "SELECT 1" + strings.Repeat("+1", 1_990),
		"parentheses": "SELECT " + strings.Repeat("(", 490) + "1" + strings.Repeat(")", 490),
		"subqueries":  strings.Repeat("SELECT (", 490) + "SELECT 1" + strings.Repeat(")", 490),
		"casts":       "SELECT 1" + strings.Repeat("::int", 900),
		"unions":      "SELECT 1" + strings.Repeat(" UNION SELECT 1", 990),
		"joins":       "SELECT 1 FROM t" + strings.Repeat(" NATURAL JOIN t", 300),
		"cases":       "SELECT " + strings.Repeat("CASE WHEN a THEN ", 450) + "1" + strings.Repeat(" END", 450),
		"in list":     "SELECT 1 WHERE a IN (1" + strings.Repeat(",1", 7_000) + ")",
		"rows":        "INSERT INTO t VALUES (1,NULL,'a')" + strings.Repeat(",(1,NULL,'a')", 1_000),
		"orders":      "SELECT a FROM t ORDER BY 1" + strings.Repeat(",1", 1_900),
	} {
		if _, err := p.Parse(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := p.Stats(); s.Deaths != 0 {
		t.Errorf("%d children died", s.Deaths)
	}
}

func TestLimitsAndText(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 1})
	if _, err := p.Parse(t.Context(), "SELECT '"+strings.Repeat("x", 256<<10)+"'"); !errors.Is(err, sqlparse.ErrTooLarge) {
		t.Errorf("a text over the limit: %v, want ErrTooLarge", err)
	}
	for _, sql := range []string{"SELECT 1\x00; DROP TABLE t", "SELECT '\xff'", "SELECT 'a'\x00"} {
		var syntax *sqlparse.SyntaxError
		if _, err := p.Parse(t.Context(), sql); !errors.As(err, &syntax) {
			t.Errorf("Parse(%q): %v, want a syntax error", sql, err)
		}
	}
	var syntax *sqlparse.SyntaxError
	if _, err := p.Parse(t.Context(), "SELECT 'é' FRM t WHERE"); !errors.As(err, &syntax) || syntax.Position != 16 {
		t.Errorf("syntax error %+v (%v), want position 16 in characters", syntax, err)
	}
}

func TestTextIsTheExactSlice(t *testing.T) {
	p := newPool(t, sqlparse.Config{})
	sql := "SELECT 'é' ; /* c; */ DELETE FROM \"tä;b\"; \n UPDATE t SET a = $$;$$ -- ;\n ;;"
	got, err := p.Parse(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	var texts, normalized []string
	for _, s := range got {
		texts = append(texts, s.Text)
		normalized = append(normalized, s.Normalized)
		if sql[s.Start:s.Start+len(s.Text)] != s.Text {
			t.Errorf("Start %d doesn't lead to %q", s.Start, s.Text)
		}
	}
	want := []string{"SELECT 'é' ", " /* c; */ DELETE FROM \"tä;b\"", " \n UPDATE t SET a = $$;$$ -- ;\n "}
	if diff := cmp.Diff(want, texts); diff != "" {
		t.Errorf("texts (-want +got)\n%s", diff)
	}
	want = []string{"SELECT $1", `DELETE FROM "tä;b"`, "UPDATE t SET a = $1"}
	if diff := cmp.Diff(want, normalized); diff != "" {
		t.Errorf("normalized (-want +got)\n%s", diff)
	}
}

func TestNormalizedHoldsNoLiteral(t *testing.T) {
	p := newPool(t, sqlparse.Config{})
	for sql, want := range map[string]string{
		"SELECT * FROM t WHERE a=$2 AND b IN (1,2.5,'x') AND c=E'y'": "SELECT * FROM t WHERE a=$2 AND b IN ($3,$4,$5) AND c=$6",
		"ALTER ROLE bob PASSWORD 'hunter2'":                          "ALTER ROLE bob PASSWORD $1",
		"SELECT 1 -- hunter2\n, $$hunter2$$ /* hunter2 */":           "SELECT $1 , $2",
		"DO 'hunter2'":        "DO $1",
		"NOTIFY c, 'hunter2'": "NOTIFY c, $1",
		"SET a.b = 'hunter2'": "SET a.b = $1",
		"SELECT U&'hunter2' UESCAPE '!', B'1', x'ff', N'hunter2'":  "SELECT $1 UESCAPE $2, $3, $4, N$5",
		"CREATE SUBSCRIPTION s CONNECTION 'hunter2' PUBLICATION p": "CREATE SUBSCRIPTION s CONNECTION $1 PUBLICATION p",
	} {
		got, err := p.Parse(t.Context(), sql)
		if err != nil {
			t.Errorf("%s: %v", sql, err)
			continue
		}
		if len(got) != 1 || got[0].Normalized != want {
			t.Errorf("%s: normalized %q, want %q", sql, got[0].Normalized, want)
		}
	}
}

func TestChildThatHangsOrLiesIsReplaced(t *testing.T) {
	for name, script := range map[string]string{
		"hangs":              `head -c 12 >/dev/null; sleep 60`,
		"ends":               `exit 1`,
		"answers nonsense":   `head -c 12 >/dev/null; printf '\000\000\000\002{]'; sleep 60`,
		"answers too much":   `head -c 12 >/dev/null; printf '\377\377\377\377'; sleep 60`,
		"answers more":       `head -c 12 >/dev/null; printf '\000\000\000\003{} '; sleep 60`,
		"knows other fields": `head -c 12 >/dev/null; printf '\000\000\000\013{"other":1}'; sleep 60`,
		"unknown kind":       `head -c 12 >/dev/null; s='{"statements":[{"kind":"x","tag":"","text":"","start":0,"normalized":""}],"ends":[1]}'; printf '\000\000\000\123%s' "$s"; sleep 60`,
		"outside":            `head -c 12 >/dev/null; s='{"statements":[{"kind":"do","tag":"","text":"","start":0,"normalized":""}],"ends":[99]}'; printf '\000\000\000\125%s' "$s"; sleep 60`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sqlparse.New(t.Context(), sqlparse.Config{
				Command: []string{"/bin/sh", "-c", script}, StartTimeout: 500 * time.Millisecond,
			})
			if !errors.Is(err, sqlparse.ErrNoChild) {
				t.Errorf("New = %v, want ErrNoChild", err)
			}
		})
	}
	if _, err := sqlparse.New(t.Context(), sqlparse.Config{Command: []string{"/does/not/exist"}}); err == nil {
		t.Error("New started a command that isn't there")
	}
	if _, err := sqlparse.New(t.Context(), sqlparse.Config{}); err == nil {
		t.Error("New took no command")
	}
}

// A start that takes longer than a text may isn't a text that kills the parser.
func TestAChildMayStartSlowly(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := sqlparse.New(t.Context(), sqlparse.Config{
		Command:  []string{"/bin/sh", "-c", `sleep 1; exec "$0" "$@"`, self, sqlparse.ChildArg},
		Children: 1, Timeout: 900 * time.Millisecond, CacheBytes: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	killChildren(t)
	_, _ = p.Parse(t.Context(), "SELECT 1") // of which the death may be noticed
	if _, err := p.Parse(t.Context(), "SELECT 2"); err != nil {
		t.Errorf("with a child that starts slowly: %v", err)
	}
}

func TestKilledChildIsReplaced(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 1, CacheBytes: -1})
	for i := range 3 {
		if n := killChildren(t); n == 0 {
			t.Fatal("no child runs")
		}
		// Killed at rest it is noticed before use or dies of the first text; the second is safe.
		_, _ = p.Parse(t.Context(), "SELECT 1")
		if _, err := p.Parse(t.Context(), fmt.Sprintf("SELECT %d", i)); err != nil {
			t.Errorf("after the death of a child: %v", err)
		}
	}
}

// killChildren kills the parsing children of this process.
func killChildren(t *testing.T) int {
	t.Helper()
	n := 0
	for _, pid := range childPIDs(t) {
		if c, err := os.FindProcess(pid); err == nil && c.Kill() == nil {
			n++
		}
	}
	return n
}

// childPIDs gives the processes that this one has started and that still run.
func childPIDs(t *testing.T) []int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, s := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Fatal("no child runs")
	}
	return pids
}

func TestParseEndsWithItsContext(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 1, CacheBytes: -1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Parse(ctx, "SELECT 1"); err == nil {
		t.Error("Parse went on without its context")
	}
	if _, err := p.Parse(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the pool didn't recover: %v", err)
	}
}

func TestCloseEndsParses(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 2, CacheBytes: -1})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				if _, err := p.Parse(t.Context(), "SELECT 1"+strings.Repeat("+1", 500)); err != nil {
					if !errors.Is(err, sqlparse.ErrClosed) {
						t.Errorf("Parse = %v, want ErrClosed", err)
					}
					return
				}
			}
		})
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestParsesInParallelGetTheirOwnFacts(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 2})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				name := fmt.Sprintf("t%d_%d", i, j%5)
				got, err := p.Parse(t.Context(), fmt.Sprintf("SELECT a FROM %s WHERE b = %d", name, j))
				if err != nil {
					t.Error(err)
					return
				}
				if got[0].Relations[0].Name != name || !strings.HasSuffix(got[0].Text, fmt.Sprintf("= %d", j)) {
					t.Errorf("facts of another text: %+v", got[0])
				}
			}
		})
	}
	wg.Wait()
	s := p.Stats()
	if s.TemplateHits == 0 || s.Parsed+s.TemplateHits != 400 {
		t.Errorf("stats %+v", s)
	}
}

// TestNobodyKeepsTheParsersFromOthers: whoever has texts under way that take their time waits for them, and others don't.
func TestNobodyKeepsTheParsersFromOthers(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 2, Timeout: 20 * time.Second, CacheBytes: -1})
	slow := "VALUES (1)" + strings.Repeat(",(1)", 60_000)
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := p.ParseFor(ctx, "mallory", slow); err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			}
		})
	}
	start := time.Now()
	if _, err := p.ParseFor(ctx, "mallory", slow); err != nil {
		t.Error(err)
	}
	behind := time.Since(start)
	start = time.Now()
	for i := range 20 {
		if _, err := p.ParseFor(t.Context(), "alice", fmt.Sprintf("SELECT %d", i)); err != nil {
			t.Error(err)
		}
	}
	// Twenty short texts of hers take less than the one that waits behind eight.
	if others := time.Since(start); others > behind {
		t.Errorf("alice waited %v, mallory %v", others, behind)
	}
	stop()
	wg.Wait()
}
