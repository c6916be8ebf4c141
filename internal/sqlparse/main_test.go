package sqlparse_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// TestMain makes the test binary its own parsing child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sqlparse.ChildArg {
		if err := sqlparse.ChildMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// newPool makes a pool of children of this test binary.
func newPool(t testing.TB, cfg sqlparse.Config) *sqlparse.Pool {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Command = []string{self, sqlparse.ChildArg}
	p, err := sqlparse.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}
