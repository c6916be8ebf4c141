//go:build bench

package load_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// parts of the measurement, in their order. BENCH selects by name.
var parts = []struct {
	name string
	run  func(*bench)
}{
	{"ladder", measureLadder},
	{"pgbench", measurePgbench},
	{"chains", measureChains},
	{"log", measureLog},
	{"exchange", measureExchanges},
	{"spawn", measureSpawn},
	{"memory", measureMemory},
	{"http", measureHTTP},
	{"tcp", measureTCP},
	{"ssh", measureSSH},
	{"mcp", measureMCP},
	{"kube", measureKube},
}

// TestMain makes the binary the programs that it measures as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		programs := map[string]func() error{
			rungArg:           rungMain,
			exchangeArg:       exchangeMain,
			spawnArg:          spawnMain,
			sitArg:            sitMain,
			sqlparse.ChildArg: func() error { return sqlparse.ChildMain(os.Stdin, os.Stdout) },
		}
		if run := programs[os.Args[1]]; run != nil {
			if err := run(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// settings come from the command line of make, by the environment.
type settings struct {
	only    []*regexp.Regexp // one per level of a measurement's name, as in go test -run
	seconds time.Duration    // of one measurement
	rounds  int
	profile string // folder for profiles; empty: none
	out     string // results.json
}

func TestBench(t *testing.T) {
	s := settings{
		seconds: time.Duration(number(t, "SECONDS", 5)) * time.Second,
		rounds:  number(t, "ROUNDS", 3), profile: os.Getenv("PROFILE"), out: os.Getenv("RESULTS"),
	}
	for _, level := range strings.Split(os.Getenv("BENCH"), "/") {
		s.only = append(s.only, regexp.MustCompile(level))
	}
	b := &bench{t: t, settings: s, began: time.Now()}
	b.build()
	for _, p := range parts {
		if b.wants(p.name) {
			b.note("%s", p.name)
			p.run(b)
			b.write()
		}
	}
	b.print()
}

// wants says whether BENCH selects a measurement, or some below it.
func (b *bench) wants(levels ...string) bool {
	for i, l := range levels {
		if i < len(b.only) && !b.only[i].MatchString(l) {
			return false
		}
	}
	return true
}

func number(t *testing.T, name string, usual int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return usual
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: a whole number above 0 is expected", name, v)
	}
	return n
}

// build builds the programs as they are shipped, without the race detector, and tells the harness where they are. With PROFILE
// a file is laid over deputy that lets its roles be profiled.
func (b *bench) build() {
	b.t.Helper()
	b.note("building the programs")
	dir, err := os.MkdirTemp("/tmp", "deputy-bench-")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b.dir = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	args := []string{"build", "-o", dir + "/"}
	if b.profile != "" {
		if b.profile, err = filepath.Abs(b.profile); err == nil {
			err = os.MkdirAll(b.profile, 0o755)
		}
		if err != nil {
			b.t.Fatal(err)
		}
		args = append(args, "-overlay", b.overlay())
	}
	cmd := exec.Command("go", append(args, "./cmd/deputy", "./integration/testdata/agentprobe")...)
	cmd.Dir = root(b.t)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("building the programs: %v\n%s", err, out)
	}
	b.t.Setenv("DEPUTY_TEST_PROGRAMS", dir)
}

// overlay names the file that lets roles be profiled, and the folder for their sockets.
func (b *bench) overlay() string {
	sockets := filepath.Join(b.dir, "p")
	if err := os.Mkdir(sockets, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(sockets, 0o1777); err != nil {
		b.t.Fatal(err)
	}
	b.t.Setenv(profileVariable, sockets)
	raw, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(root(b.t), "cmd", "deputy", "zz_profile.go"): filepath.Join(root(b.t), "integration", "load", "testdata", "profile", "profile.go"),
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	path := filepath.Join(b.dir, "overlay.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// root is the folder of go.mod; make starts the binary there.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above this folder; run make bench")
	return ""
}

// note says what happens now.
func (b *bench) note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench %5s  %s\n", time.Since(b.began).Round(time.Second), fmt.Sprintf(format, args...))
}
