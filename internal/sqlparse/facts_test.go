package sqlparse_test

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

var update = flag.Bool("update", false, "write the facts of testdata/statements.txt anew, to be read before they are committed")

const statementsFile = "testdata/statements.txt"

// TestFacts holds the facts of every statement in testdata/statements.txt: a line that starts with
// "> " is SQL, the lines behind it are its facts as render writes them.
func TestFacts(t *testing.T) {
	p := newPool(t, sqlparse.Config{CacheBytes: -1})
	cases := readCases(t)
	if len(cases) < 150 {
		t.Fatalf("only %d statements", len(cases))
	}
	var out strings.Builder
	for _, c := range cases {
		got := renderAll(p.Parse(t.Context(), c.sql))
		if c.comment != "" {
			fmt.Fprintf(&out, "%s\n", c.comment)
		}
		fmt.Fprintf(&out, "> %s\n%s\n", c.sql, got)
		if diff := cmp.Diff(c.want, got); diff != "" && !*update {
			t.Errorf("%s (-want +got)\n%s", c.sql, diff)
		}
	}
	if *update {
		if err := os.WriteFile(statementsFile, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// statementCase is one entry of the file.
type statementCase struct{ comment, sql, want string }

func readCases(t testing.TB) []statementCase {
	t.Helper()
	f, err := os.Open(statementsFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cases []statementCase
	comment := ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		switch line := sc.Text(); {
		case strings.HasPrefix(line, "# "):
			comment = line
		case strings.HasPrefix(line, "> "):
			cases = append(cases, statementCase{comment: comment, sql: strings.TrimPrefix(line, "> ")})
			comment = ""
		case line != "":
			cases[len(cases)-1].want += line + "\n"
		}
	}
	return cases
}

// renderAll writes facts for people.
func renderAll(statements []sqlparse.Statement, err error) string {
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	if len(statements) == 0 {
		return "nothing\n"
	}
	var b strings.Builder
	for i := range statements {
		b.WriteString(render(&statements[i]))
	}
	return b.String()
}

func render(s *sqlparse.Statement) string {
	var b strings.Builder
	word := func(format string, args ...any) { fmt.Fprintf(&b, " "+format, args...) }
	b.WriteString("  " + string(s.Kind))
	if s.Inner != "" {
		word("of %s", s.Inner)
	}
	word("(%s)", s.Tag)
	if s.Object != "" {
		word("object=%s", s.Object)
	}
	if s.Cursor != "" {
		word("cursor=%s", s.Cursor)
	}
	if h := s.Handle; h != [2]int{} {
		word("at %d %s", h[0], s.Text[h[0]:h[1]])
	}
	if s.Hold {
		word("HOLD")
	}
	if s.Binary {
		word("BINARY")
	}
	if s.Analyze {
		word("ANALYZE")
	}
	if s.WritesInside {
		word("WRITES")
	}
	if s.Locks {
		word("LOCKS")
	}
	if s.Wide {
		word("WIDE")
	}
	if s.Limited {
		word("limited")
	}
	if s.Parameters > 0 {
		word("$%d", s.Parameters)
	}
	if s.ReadOnly(sqlparse.Builtin{}) {
		word("read-only")
	}
	if s.Transaction != nil {
		word("%+v", *s.Transaction)
	}
	if s.Copy != nil {
		word("%+v", *s.Copy)
	}
	b.WriteString("\n")
	list := func(name string, items []string) {
		if len(items) > 0 {
			fmt.Fprintf(&b, "    %s: %s\n", name, strings.Join(items, ", "))
		}
	}
	list("relations", relationTexts(s))
	list("columns", columnTexts(s))
	list("functions", nameTexts(s.Functions))
	list("types", nameTexts(s.Types))
	list("operators", nameTexts(s.Operators))
	list("calls", s.Calls)
	list("outputs", outputTexts(s))
	list("roles", s.Roles)
	var settings []string
	for _, set := range s.Settings {
		settings = append(settings, fmt.Sprintf("%s %q%q local=%t", set.Op, set.Name, set.Values, set.Local))
	}
	list("settings", settings)
	list("opaque", s.Opaque)
	list("unknown", s.Unknown)
	return b.String()
}

func relationTexts(s *sqlparse.Statement) []string {
	var out []string
	for _, r := range s.Relations {
		t := sqlparse.Name{Schema: r.Schema, Name: r.Name}.String()
		if r.Catalog != "" {
			t = r.Catalog + "." + t
		}
		if r.Only {
			t = "only " + t
		}
		if r.Alias != "" {
			t += " as " + r.Alias
		}
		if r.Renamed {
			t += "(renamed)"
		}
		t += ":"
		for _, a := range []struct {
			access sqlparse.Access
			letter string
		}{{sqlparse.Read, "r"}, {sqlparse.Write, "w"}, {sqlparse.Define, "d"}} {
			if r.Access&a.access != 0 {
				t += a.letter
			}
		}
		out = append(out, t)
	}
	return out
}

func columnTexts(s *sqlparse.Statement) []string {
	var out []string
	for _, c := range s.Columns {
		path := c.Path
		if c.Star {
			path = append(append([]string(nil), path...), "*")
		}
		t := strings.Join(path, ".") + "=" + string(c.Use)
		for _, i := range c.From {
			t += fmt.Sprintf("<%d", i)
		}
		if c.Row {
			t += " row"
			for _, i := range c.RowOf {
				t += fmt.Sprintf("<%d", i)
			}
		}
		if c.Derived {
			t += " derived"
		}
		if c.Excluded {
			t += " excluded"
		}
		out = append(out, t)
	}
	return out
}

func outputTexts(s *sqlparse.Statement) []string {
	var out []string
	for _, o := range s.Outputs {
		t := string(o.Kind)
		if o.Name != "" {
			t = o.Name + " " + t
		}
		if len(o.Columns) > 0 {
			t += fmt.Sprint(o.Columns)
		}
		if o.SetOp {
			t += " setop"
		}
		if o.Derived {
			t += " derived"
		}
		out = append(out, t)
	}
	return out
}

func nameTexts(names []sqlparse.Name) []string {
	var out []string
	for _, n := range names {
		out = append(out, n.String())
	}
	return out
}

// TestNamesCanBeReplaced: with another name in the place that Handle gives, the statement says the same of that name.
func TestNamesCanBeReplaced(t *testing.T) {
	p := newPool(t, sqlparse.Config{CacheBytes: -1})
	n := 0
	for _, c := range readCases(t) {
		list, err := p.Parse(t.Context(), c.sql)
		if err != nil {
			continue
		}
		for _, s := range list {
			h := s.Handle
			if h == [2]int{} || len(s.Unknown) > 0 {
				continue
			}
			n++
			text := s.Text[:h[0]] + "d17" + s.Text[h[1]:]
			again, err := p.Parse(t.Context(), text)
			if err != nil || len(again) != 1 {
				t.Errorf("%s: %v", text, err)
				continue
			}
			want, got := s, again[0]
			if want.Cursor != "" {
				want.Cursor = "d17"
			} else {
				want.Object = "d17"
			}
			if a, b := want.Handle, got.Handle; a[0] != b[0] || b[1]-b[0] != 3 {
				t.Errorf("%s: the name moved from %v to %v", text, a, b)
			}
			want.Text, want.Start, want.Normalized, want.Handle = got.Text, got.Start, got.Normalized, got.Handle
			if want.Kind == sqlparse.KindExecute {
				want.Opaque = got.Opaque
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got)\n%s", text, diff)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d statements name something", n)
	}
}
