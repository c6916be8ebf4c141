package sqlparse_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// limited gives a command that runs a child behind ulimit.
func limited(t *testing.T, ulimit string) sqlparse.Config {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return sqlparse.Config{
		Command:  []string{"/bin/sh", "-c", ulimit + `; exec "$0" "$1"`, self, sqlparse.ChildArg},
		Children: 1, Timeout: 20 * time.Second, CacheBytes: -1,
	}
}

func TestChildSeesToItsStack(t *testing.T) {
	deep := "SELECT 1" + strings.Repeat("+1", 1_990)
	for _, ulimit := range []string{"ulimit -Ss 1024", "ulimit -Ss unlimited", "ulimit -Ss 8192"} {
		p, err := sqlparse.New(t.Context(), limited(t, ulimit))
		if err != nil {
			t.Errorf("%s: %v", ulimit, err)
			continue
		}
		if _, err := p.Parse(t.Context(), deep); err != nil {
			t.Errorf("%s: %v", ulimit, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := sqlparse.New(t.Context(), limited(t, "ulimit -Ss 1024; ulimit -Hs 1024")); !errors.Is(err, sqlparse.ErrNoChild) {
		t.Errorf("a child without room for a stack: %v, want ErrNoChild", err)
	}
}

func TestChildIsBounded(t *testing.T) {
	newPool(t, sqlparse.Config{Children: 1})
	for _, pid := range childPIDs(t) {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(string(limits), "\n") {
			f := strings.Fields(l)
			switch {
			case strings.HasPrefix(l, "Max core file size") && f[4] != "0",
				strings.HasPrefix(l, "Max data size") && f[3] == "unlimited":
				t.Errorf("the child isn't bounded: %s", l)
			}
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			t.Fatal(err)
		}
		if want := "GOTRACEBACK=none\x00"; string(env) != want {
			t.Errorf("the child's environment is %q, want %q", env, want)
		}
	}
}
