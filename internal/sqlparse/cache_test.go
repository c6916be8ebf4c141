package sqlparse_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// TestTemplates says which pairs of texts share facts, and that those that must not don't.
func TestTemplates(t *testing.T) {
	tests := []struct {
		first, second string
		shared        bool
	}{
		{"SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 23", true},
		{"SELECT a FROM t WHERE b = 'x';", "SELECT a FROM t WHERE b = 'it''s -- /* $$';", true},
		{"SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 1", false},
		{"SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 1.5", false},
		{"SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 12345678901", false},
		{"SELECT a FROM t WHERE b = 1", "SELECT a FROM u WHERE b = 1", false},
		{"SELECT a FROM t WHERE b = $1 AND c = 1", "SELECT a FROM t WHERE b = $2 AND c = 1", false},
		{"SELECT a, b FROM t ORDER BY 1", "SELECT a, b FROM t ORDER BY 2", false},
		{"SELECT a, b FROM t GROUP BY 1", "SELECT a, b FROM t GROUP BY 2", false},
		{"SELECT DISTINCT ON (1) a, b FROM t", "SELECT DISTINCT ON (2) a, b FROM t", false},
		{"SELECT a FROM t LIMIT 1", "SELECT a FROM t LIMIT 2", false},
		{"SELECT 'a'::regclass", "SELECT 'b'::regclass", false},
		{"SELECT 1::float(3)", "SELECT 1::float(30)", false},
		{"SELECT set_config('a', 'b', false)", "SELECT set_config('search_path', 'b', false)", false},
		{"SELECT query_to_xml('a', true, true, '')", "SELECT query_to_xml('b', true, true, '')", false},
		{"SELECT E'a'", "SELECT E'b'", false},
		{"SELECT 'a\\'", "SELECT 'b\\'", false},
		{"SELECT $$a$$", "SELECT $$b$$", false},
		{"SELECT $a$1$a$", "SELECT $a$2$a$", false},
		{"SELECT U&'a'", "SELECT U&'b'", false},
		{"SELECT B'1'", "SELECT B'0'", false},
		{"SELECT 1 -- 1", "SELECT 1 -- 2", false},
		{"SELECT 'a'\n'b'", "SELECT 'a'\n'c'", false},
		{"SELECT 1 /* 1 */", "SELECT 1 /* 2 */", false},
		{"SELECT 0x1F", "SELECT 0x2F", false},
		{"SELECT 1_000", "SELECT 2_000", false},
		{"SELECT 1e5", "SELECT 2e5", false},
		{"SELECT .5", "SELECT .6", false},
		{`SELECT "a1"`, `SELECT "a2"`, false},
		{"SELECT a1", "SELECT a2", false},
		{"SELECT a$1", "SELECT a$2", false},
		{"SELECT é1", "SELECT é2", false},
		{"SET x = 1", "SET x = 2", false},
		{"DO 'a'", "DO 'b'", false},
		{"EXPLAIN (ANALYZE 1) SELECT 1", "EXPLAIN (ANALYZE 0) SELECT 1", false},
		{"SELECT 1; SELECT 1", "SELECT 2; SELECT 2", false},
		{"COPY t FROM 'a'", "COPY t FROM 'b'", false},
		{"INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')", true},
		{"UPDATE t SET a = 1 WHERE b = 'x'", "UPDATE t SET a = 2 WHERE b = 'y'", true},
		{"DELETE FROM t WHERE a = 1", "DELETE FROM t WHERE a = 2", true},
	}
	for _, tt := range tests {
		p := newPool(t, sqlparse.Config{Children: 1})
		_, err := p.Parse(t.Context(), tt.first)
		if err != nil {
			t.Errorf("%s: %v", tt.first, err)
			continue
		}
		got, err := p.Parse(t.Context(), tt.second)
		if err != nil {
			t.Errorf("%s: %v", tt.second, err)
			continue
		}
		if hit := p.Stats().TemplateHits == 1; hit != tt.shared {
			t.Errorf("%q and %q: shared = %t, want %t", tt.first, tt.second, hit, tt.shared)
		}
		if strings.TrimSuffix(tt.second, ";") != got[0].Text && tt.shared {
			t.Errorf("text of %q is %q", tt.second, got[0].Text)
		}
		if _, err := p.Parse(t.Context(), tt.first); err != nil {
			t.Error(err)
		}
		if s := p.Stats(); s.ExactHits+s.TemplateHits == 0 {
			t.Errorf("%q wasn't cached at all", tt.first)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	p := newPool(t, sqlparse.Config{Children: 1, CacheBytes: 64 << 10})
	for i := range 200 {
		if _, err := p.Parse(t.Context(), fmt.Sprintf("SELECT a FROM t%d ORDER BY 1", i)); err != nil {
			t.Fatal(err)
		}
	}
	before := p.Stats()
	for _, i := range []int{0, 199} {
		if _, err := p.Parse(t.Context(), fmt.Sprintf("SELECT a FROM t%d ORDER BY 1", i)); err != nil {
			t.Fatal(err)
		}
	}
	after := p.Stats()
	if after.ExactHits != before.ExactHits+1 || after.Parsed != before.Parsed+1 {
		t.Errorf("the oldest must be gone and the newest there: %+v, then %+v", before, after)
	}
}

// FuzzCacheAgainstFresh holds cached facts to fresh ones: the text, with its constants exchanged so
// that a template of it is in the cache already.
func FuzzCacheAgainstFresh(f *testing.F) {
	for _, c := range readCases(f) {
		f.Add(c.sql, 7, "x")
		f.Add(c.sql, 2147483648, "a'' OR b > ''")
	}
	for _, sql := range []string{
		"SELECT a FROM t WHERE b = E'1' OR c > '2'", `SELECT a FROM t WHERE b = E'\' OR c > '''`, "SELECT a FROM t WHERE b = '1'\n'2' OR c", "SELECT a FROM t WHERE b = $x1$'$x1$ OR c",
		"SELECT a FROM t WHERE b = U&'!0061' UESCAPE '!' OR c > '2'", "SELECT a /* ' */ FROM t WHERE b = 1 -- '\n OR c = 2", "SELECT '1'::regclass, regclass '1', interval '1' day, interval(1) '1'",
		"SELECT a FROM t ORDER BY 1, -1, 1 + 1", "SELECT 1., .1, 1.1, 1e1, 0x1, 1_1, 1a, 1 a", `SELECT "1", "a""1", a1, a$1, $1, é1 FROM t`, "SELECT B'1', x'1', N'1', n'1'", "SELECT a FROM t LIMIT 1 OFFSET 1",
	} {
		f.Add(sql, 12, "a")
		f.Add(sql, -3, "--")
	}
	f.Add("SELECT a FROM t WHERE b = 1 AND c = 'x'", 10, "''")
	f.Add("SELECT 'a''b', 1.5, -2, a-1, \"q''\" FROM t", 3, "y")
	cached := newPool(f, sqlparse.Config{Children: 1, CacheBytes: 1 << 20})
	fresh := newPool(f, sqlparse.Config{Children: 1, CacheBytes: -1})
	f.Fuzz(func(t *testing.T, sql string, number int, text string) {
		if len(sql) > 2_000 || len(text) > 100 {
			return
		}
		if _, err := cached.Parse(t.Context(), exchange(sql, number, text)); err != nil {
			_ = err // its own text may be wrong: only the next one is compared
		}
		got, gotErr := cached.Parse(t.Context(), sql)
		want, wantErr := fresh.Parse(t.Context(), sql)
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("%q: cached %v, fresh %v", sql, gotErr, wantErr)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%q: cached facts differ (-fresh +cached)\n%s", sql, diff)
		}
	})
}

// exchange replaces digits outside of words by a number and what stands between single quotes by a
// text, naively: it needn't understand SQL to be a good neighbour of it.
func exchange(sql string, number int, text string) string {
	var b strings.Builder
	for i := 0; i < len(sql); i++ {
		c := sql[i]
		switch {
		case c == '\'':
			end := strings.IndexByte(sql[i+1:], '\'')
			if end < 0 {
				b.WriteString(sql[i:])
				return b.String()
			}
			b.WriteString("'" + text + "'")
			i += end + 1
		case c >= '0' && c <= '9' && (i == 0 || strings.IndexByte(" (,=-+<>", sql[i-1]) >= 0):
			for i+1 < len(sql) && sql[i+1] >= '0' && sql[i+1] <= '9' {
				i++
			}
			fmt.Fprint(&b, number)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FuzzParse throws bytes at the child: it answers or is replaced, and the walker never panics.
func FuzzParse(f *testing.F) {
	for _, c := range readCases(f) {
		f.Add(c.sql)
	}
	p := newPool(f, sqlparse.Config{Children: 1, CacheBytes: -1})
	f.Fuzz(func(t *testing.T, sql string) {
		statements, err := p.Parse(t.Context(), sql)
		if err != nil && strings.Contains(err.Error(), "internal error") {
			t.Fatalf("%q: %v", sql, err)
		}
		if d := p.Stats().Deaths; d > 0 {
			t.Fatalf("%q killed the child", sql)
		}
		for _, s := range statements {
			if s.Kind == sqlparse.KindOther && len(s.Unknown) == 0 {
				t.Fatalf("%q: kind other with nothing unknown", sql)
			}
			for _, o := range s.Outputs {
				if o.Kind == sqlparse.OutputColumn && len(o.Columns) == 0 {
					t.Fatalf("%q: a column output that nothing feeds", sql)
				}
			}
		}
	})
}
