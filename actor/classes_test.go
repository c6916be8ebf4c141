package actor_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
)

// classes are the constants of errors.go.
func classes(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Class" {
			s, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, s)
		}
		return true
	})
	return out
}

func TestEveryClassIsDistinctSpecifiedAndViolatedByAVector(t *testing.T) {
	spec, err := os.ReadFile("../docs/spec/credential.md")
	if err != nil {
		t.Fatal(err)
	}
	violated := map[string]bool{
		// These have vectors in files of their own, or tests where a vector can't say it.
		string(actor.ClassWider): true, string(actor.ClassOutside): true, string(actor.ClassKeyStatement): true,
		string(actor.ClassOperatorRequest): true, string(actor.ClassChain): true, string(actor.ClassExpired): true, string(actor.ClassRevocationUnknown): true,
	}
	for _, v := range readVectors[credentialFile](t, "credentials-invalid.json").Vectors {
		violated[v.Class] = true
	}
	for _, v := range readVectors[subjectFile](t, "subjects.json").Vectors {
		violated[v.Class] = true
	}
	seen := map[string]bool{}
	all := classes(t)
	for _, c := range all {
		if seen[c] {
			t.Errorf("%s stands for two rules", c)
		}
		seen[c] = true
		if !strings.Contains(string(spec), "`"+c+"`") {
			t.Errorf("%s is not in the specification", c)
		}
		if !violated[c] {
			t.Errorf("no vector violates %s", c)
		}
	}
	if len(all) < 60 {
		t.Errorf("only %d classes were found", len(all))
	}
}
