package supervise_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Where a process is, the kernel says: no variable, fork or socket of somebody else leads out of an agent.

func TestUnsettingVariablesLeadsNowhere(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		again := quote(run(flag, "echo", "escaped"))
		for name, script := range map[string]string{
			"unset":             "unset DEPUTY_AGENT_SOCKET SPIFFE_ENDPOINT_SOCKET; " + again,
			"empty environment": "env -i PATH=$PATH " + again,
			"double fork":       "unset DEPUTY_AGENT_SOCKET; (setsid " + again + " 2>&1 &) | cat",
			"helper alone":      "unset DEPUTY_AGENT_SOCKET; " + quote([]string{world.deputy, "whoami", "--config", world.config}),
			"helper ended":      "unset DEPUTY_AGENT_SOCKET; " + quote([]string{world.deputy, "logout", "--config", world.config}),
			"own sign-in": "unset DEPUTY_AGENT_SOCKET; " + quote([]string{world.deputy, "login", "--config", world.config,
				"--script-user", "alice", "--script-password-file", "/dev/null"}),
		} {
			t.Run(name, func(t *testing.T) {
				r := exec(t, run(flag, sh(script)...))
				said := r.Stdout + r.Stderr
				if strings.Contains(r.Stdout, "escaped") || strings.Contains(r.Stdout, "sample-alice") || strings.Contains(r.Stdout, "Signed") {
					t.Fatalf("a process led itself out of its agent: %s", r)
				}
				// Isolated, the agent's uid can't even reach the helper's folder or read agent.yaml.
				for _, why := range []string{"is inside the agent", "nobody is signed in in this session", "permission denied"} {
					if strings.Contains(said, why) {
						return
					}
				}
				t.Errorf("no reason was given: %s", r)
			})
		}
	})
	// The sign-in is still there for its user.
	if r := exec(t, []string{world.deputy, "whoami", "--config", world.config}); r.Code != 0 || !strings.Contains(r.Stdout, "sample-alice") {
		t.Errorf("%s", r)
	}
}

func TestAnAgentsSocketServesItsOwnProcessesOnly(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		dir := shared(t)
		where := filepath.Join(dir, "socket")
		l := testmesh.Begin(t, testmesh.Command{Args: run(flag, sh(`echo "$DEPUTY_AGENT_SOCKET $PGHOST" > `+where+`; echo up; read stop`)...)})
		l.Await("up", 1)
		raw, err := os.ReadFile(where)
		if err != nil {
			t.Fatal(err)
		}
		socket, pghost, _ := strings.Cut(strings.TrimSpace(string(raw)), " ")
		whoami := "DEPUTY_AGENT_SOCKET=" + socket + " " + quote([]string{world.deputy, "whoami"})
		psql := "psql 'host=" + pghost + " user=x dbname=x' -c 'select 1'"
		for name, args := range map[string][]string{
			"outside": sh(whoami + "; " + psql),
			"sibling": run(flag, sh(whoami+"; "+psql)...),
			"inner":   run(flag, sh(`S=$DEPUTY_AGENT_SOCKET; P=$PGHOST; export S P; `+quote(inner("child", flag, sh(`DEPUTY_AGENT_SOCKET=$S `+quote([]string{world.deputy, "whoami"})+`; psql "host=$P user=x dbname=x" -c "select 1"`)...)))...),
		} {
			t.Run(name, func(t *testing.T) {
				r := exec(t, args)
				if r.Code == 0 || strings.Contains(r.Stdout, "sample-alice") {
					t.Fatalf("another agent's socket served: %s", r)
				}
				refused := strings.Count(r.Stderr, "this socket belongs to") + strings.Count(strings.ToLower(r.Stderr), "permission denied")
				if refused < 2 {
					t.Errorf("want both the agent's and the listener's refusal: %s", r)
				}
			})
		}
		l.Type("\n")
		if r := l.Wait(20 * time.Second); r.Code != 0 {
			t.Errorf("the agent itself: %s", r)
		}
	})
}

func TestLoopbackPortWantsThePassword(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		script := `p=$(sed -n s/^port=//p "$PGSERVICEFILE"); unset PGPASSFILE; PGPASSWORD=guess psql -w "host=127.0.0.1 port=$p user=x dbname=x sslmode=disable" -c "select 1"`
		r := exec(t, run(flag, sh(script)...))
		if r.Code == 0 || !strings.Contains(r.Stderr, "wrong password for the local listener") {
			t.Errorf("%s", r)
		}
	})
}

// shared is a folder that agents under other uids can write to.
func shared(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dsvt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAKilledSupervisorTakesItsAgentAlong(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		dir := shared(t)
		pids := filepath.Join(dir, "pids")
		os.WriteFile(pids, nil, 0o666)
		os.Chmod(pids, 0o666)
		orphan := filepath.Join(dir, "orphan")
		// The program, a nested agent's program, and an orphan that tries to use the sign-in afterwards.
		late := `sleep 2; unset DEPUTY_AGENT_SOCKET; ` + quote(run(flag, "echo", "escaped")) + ` > ` + orphan + ` 2>&1; ` + quote([]string{world.deputy, "whoami", "--config", world.config}) + ` >> ` + orphan + ` 2>&1; echo done >> ` + orphan
		script := `(setsid sh -c ` + quote([]string{late}) + ` >/dev/null 2>&1 &); echo $$ >> ` + pids + `; ` +
			quote(inner("child", flag, sh(`echo $$ >> `+pids+`; echo up; exec sleep 300`)...))
		l := testmesh.Begin(t, testmesh.Command{Args: run(flag, sh(script)...)})
		l.Await("up", 1)
		both := readPids(t, pids, 2)
		supervisor := l.Pid()
		if flag == "--isolate" {
			supervisor = parentOf(t, both[0]) // the first process is the launcher; this one holds the agent
		}
		began := time.Now()
		if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r := l.Wait(20 * time.Second)
		if r.Code == 0 {
			t.Errorf("the run ended well: %s", r)
		}
		awaitDead(t, both)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		if flag == "--isolate" {
			return // its cgroup was ended whole: no orphan is left to try anything
		}
		for range 400 {
			if raw, _ := os.ReadFile(orphan); strings.Contains(string(raw), "done") {
				break
			}
			waitABit()
		}
		raw, _ := os.ReadFile(orphan)
		if said := string(raw); !strings.Contains(said, "done") || strings.Contains(said, "escaped") || strings.Contains(said, "sample-alice") {
			t.Errorf("an orphan of a killed supervisor counts as the user's own: %q", said)
		}
	})
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			ppid, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				t.Fatal(err)
			}
			return ppid
		}
	}
	t.Fatal("no parent")
	return 0
}

func TestDelegationOnlyNarrows(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		parent := func(flags []string, more ...string) []string {
			args := append([]string{world.deputy, "run", "--config", world.config, "--as", "planner", flag}, flags...)
			return append(append(args, "--"), more...)
		}
		child := func(flags ...string) []string {
			args := append([]string{world.deputy, "run", "--as", "child", flag}, flags...)
			return append(args, "--", world.deputy, "whoami")
		}
		for name, tt := range map[string]struct {
			args []string
			want string
		}{
			"left 0":         {parent([]string{"--left", "0"}, child()...), "may not delegate any further"},
			"more left":      {parent([]string{"--left", "1"}, child("--left", "1")...), "left would be 1 after 1"},
			"wider cap":      {parent([]string{"--allow", "orders-db:select:shop:public.orders"}, child("--allow", "orders-db:select:shop:public.*")...), "is wider"},
			"another target": {parent(nil, child("--target", "payroll")...), `names no target "payroll"`},
			"unknown name":   {[]string{world.deputy, "run", "--config", world.config, "--as", "stranger", flag, "--", "true"}, "no first-level agent"},
			"bad capability": {parent([]string{"--allow", "orders-db:fly"}, "true"), `unknown action "fly"`},
		} {
			if r := exec(t, tt.args); r.Code != 125 || !strings.Contains(r.Stderr, tt.want) {
				t.Errorf("%s: want 125 and %q: %s", name, tt.want, r)
			}
		}
		r := exec(t, parent([]string{"--purpose", "q3 refunds", "--left", "2"}, child("--allow", "orders-db:select:shop:public.orders")...))
		for _, want := range []string{"/planner/", "/child/", "left       1", "purpose    q3 refunds"} {
			if !strings.Contains(r.Stdout, want) {
				t.Errorf("no %q: %s", want, r)
			}
		}
	})
}
