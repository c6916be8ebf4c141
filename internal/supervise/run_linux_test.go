package supervise_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

func waitABit() { time.Sleep(50 * time.Millisecond) } // between looks at a process that can't be waited for

func exec(t *testing.T, args []string) testmesh.Result {
	t.Helper()
	return testmesh.Exec(t, testmesh.Command{Args: args})
}

// A target that is named twice is one target.
func TestATargetMayBeNamedTwice(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		args := run(flag, sh(`ls -d "$PGHOST"/.s.PGSQL.5432`)...)
		at := slices.Index(args, "--as")
		args = slices.Insert(args, at, "--target", testmesh.Target, "--target", testmesh.Target)
		if r := exec(t, args); r.Code != 0 || !strings.HasSuffix(strings.TrimSpace(r.Stdout), "/.s.PGSQL.5432") {
			t.Error(r)
		}
	})
}

func TestExitStatusIsTheProgramsOwn(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
			if r := exec(t, run(flag, sh(script)...)); r.Code != want {
				t.Errorf("%s: want %d, %s", script, want, r)
			}
		}
		if r := exec(t, run(flag, "/nonexistent/program")); r.Code != 127 {
			t.Errorf("no such program: want 127, %s", r)
		}
		if r := exec(t, run(flag, "/etc/passwd")); r.Code != 126 {
			t.Errorf("not a program: want 126, %s", r)
		}
		if r := exec(t, run(flag, inner("child", flag, sh("exit 9")...)...)); r.Code != 9 {
			t.Errorf("nested: want 9, %s", r)
		}
	})
}

func TestPipesPassThrough(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		for name, args := range map[string][]string{
			"first":  run(flag, sh("cat; echo to-stderr >&2")...),
			"nested": run(flag, inner("child", flag, sh("cat; echo to-stderr >&2")...)...),
		} {
			r := testmesh.Exec(t, testmesh.Command{Args: args, Stdin: "some\x00input\n"})
			if r.Code != 0 || r.Stdout != "some\x00input\n" || !strings.Contains(r.Stderr, "to-stderr") {
				t.Errorf("%s: %s", name, r)
			}
		}
	})
}

func TestNestedAgentsAreBelowTheirParents(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		r := exec(t, run(flag, inner("researcher", flag, world.deputy, "whoami")...))
		path := regexp.MustCompile(`(?m)^agent +spiffe://corp\.test/agent/planner/[0-9a-f]{32}/researcher/[0-9a-f]{32}$`)
		grade := "attested"
		if flag == "--no-isolate" {
			grade = "asserted"
		}
		if r.Code != 0 || !path.MatchString(r.Stdout) || !strings.Contains(r.Stdout, "sample-alice") || !regexp.MustCompile(`(?m)^grade +`+grade+`$`).MatchString(r.Stdout) {
			t.Errorf("%s", r)
		}
	})
}

func TestEachAgentSeesItsOwnVariablesOnly(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		script := `env | grep -E '^(DEPUTY_AGENT_SOCKET|SPIFFE_ENDPOINT_SOCKET|PG[A-Z]*)=' | sort`
		env := []string{"PGPASSWORD=users-own", "PGSSLMODE=verify-full", "PGHOSTADDR=10.0.0.1", "PGSERVICE=users-own"}
		outer := testmesh.Exec(t, testmesh.Command{Args: run(flag, sh(script)...), Env: env})
		both := testmesh.Exec(t, testmesh.Command{Args: run(flag, sh(script+"; echo ---; "+quote(inner("child", flag, sh(script)...)))...), Env: env})
		if outer.Code != 0 || both.Code != 0 {
			t.Fatalf("%s\n%s", outer, both)
		}
		for _, own := range []string{"users-own", "verify-full", "10.0.0.1"} {
			if strings.Contains(outer.Stdout, own) {
				t.Errorf("the user's own variable %s leads an agent elsewhere:\n%s", own, outer.Stdout)
			}
		}
		parent, child, ok := strings.Cut(both.Stdout, "---\n")
		if !ok || !strings.Contains(child, "DEPUTY_AGENT_SOCKET=unix:///") || !strings.Contains(child, "PGHOST=/") {
			t.Fatalf("%s", both)
		}
		for _, line := range strings.Split(strings.TrimSpace(parent), "\n") {
			name, value, _ := strings.Cut(line, "=")
			if strings.HasPrefix(value, "/") || strings.HasPrefix(value, "unix:") {
				if strings.Contains(child, value) {
					t.Errorf("the child has its parent's %s:\n%s", name, child)
				}
			}
		}
		// The service file is for its agent alone.
		r := exec(t, run(flag, sh(`stat -c %a "$PGSERVICEFILE" "$PGPASSFILE"; stat -c %a "$(dirname "$PGSERVICEFILE")"; grep -c '^\[orders-db\]' "$PGSERVICEFILE"`)...))
		if r.Stdout != "600\n600\n700\n1\n" {
			t.Errorf("modes and services: %s", r)
		}
	})
}

func TestSignalsReachTheProgram(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		script := `for s in INT TERM HUP QUIT USR1 USR2; do trap "echo got-$s" $s; done; echo up; while :; do sleep 0.05; done`
		for name, args := range map[string][]string{"first": run(flag, sh(script)...), "nested": run(flag, inner("child", flag, sh(script)...)...)} {
			t.Run(name, func(t *testing.T) {
				l := testmesh.Begin(t, testmesh.Command{Args: args})
				l.Await("up", 1)
				for _, s := range []struct {
					signal syscall.Signal
					name   string
				}{{syscall.SIGINT, "INT"}, {syscall.SIGTERM, "TERM"}, {syscall.SIGHUP, "HUP"}, {syscall.SIGQUIT, "QUIT"}, {syscall.SIGUSR1, "USR1"}, {syscall.SIGUSR2, "USR2"}} {
					if err := syscall.Kill(l.Pid(), s.signal); err != nil {
						t.Fatal(err)
					}
					l.Await("got-"+s.name, 1)
				}
			})
		}
	})
}

func TestTerminalPassesThrough(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		script := `test -t 0 && test -t 1 && test -t 2 && echo all-terminals; stty -echo; echo up; read x; echo "read <$x>"; trap 'echo interrupted; exit 42' INT; echo waiting; while :; do sleep 0.05; done`
		for name, args := range map[string][]string{"first": run(flag, sh(script)...), "nested": run(flag, inner("child", flag, sh(script)...)...)} {
			t.Run(name, func(t *testing.T) {
				l := testmesh.Begin(t, testmesh.Command{Args: args, TTY: true})
				l.Await("up", 1)
				l.Type("hello\n")
				l.Await("waiting", 1)
				l.Type("\x03")
				r := l.Wait(20 * time.Second)
				for _, want := range []string{"all-terminals", "read <hello>", "interrupted"} {
					if !strings.Contains(r.Stdout, want) {
						t.Errorf("no %q: %s", want, r)
					}
				}
				if r.Code != 42 {
					t.Errorf("want 42: %s", r)
				}
			})
		}
	})
}

func TestNothingOutlivesItsAgent(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		pids := filepath.Join(t.TempDir(), "pids")
		os.WriteFile(pids, nil, 0o666)
		os.Chmod(pids, 0o666)
		for dir := filepath.Dir(pids); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
			os.Chmod(dir, 0o755)
		}
		// A double fork into a session of its own, and a nested agent in the background.
		script := `(setsid sh -c 'echo $$ >> ` + pids + `; exec sleep 300' &) ; ` +
			quote(inner("child", flag, sh(`echo $$ >> `+pids+`; exec sleep 300`)...)) + ` & ` +
			`for i in $(seq 400); do test "$(wc -l < ` + pids + `)" = 2 && exit 5; sleep 0.05; done`
		r := exec(t, run(flag, sh(script)...))
		if r.Code != 5 {
			t.Fatalf("want 5: %s", r)
		}
		awaitDead(t, readPids(t, pids, 2))
		if left, _ := filepath.Glob(filepath.Join(world.dir, "r", "a", "*")); len(left) > 0 {
			exec(t, run(flag, "true")) // a killed supervisor's folder goes with the next run
			if left, _ = filepath.Glob(filepath.Join(world.dir, "r", "a", "*")); len(left) > 0 {
				t.Errorf("folders are left: %v", left)
			}
		}
	})
}

func readPids(t *testing.T, path string, n int) []int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range strings.Fields(string(raw)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pid)
	}
	if len(out) != n {
		t.Fatalf("%d processes wrote their ids, want %d", len(out), n)
	}
	return out
}

func awaitDead(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		alive := true
		for range 200 {
			raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err != nil || strings.Contains(string(raw), ") Z ") {
				alive = false
				break
			}
			waitABit()
		}
		if alive {
			t.Errorf("process %d still lives", pid)
		}
	}
}
