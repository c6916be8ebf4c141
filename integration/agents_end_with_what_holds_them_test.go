package integration_test

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

// An agent lives no longer than its supervisor, its launcher and the issuer's patience, whatever its program does to be left
// alone: filling the pipes that they speak through, stopping them, or leaving daemons behind.
func TestAgentsEndWithWhatHoldsThem(t *testing.T) {
	m := testmesh.Start(t)
	alice := m.Login(t, "alice")
	dir := openFolder(t, m)
	flags := []string{"--no-isolate"}
	if testmesh.Isolated() {
		flags = append(flags, "--isolate")
	}
	for _, flag := range flags {
		grade := strings.TrimLeft(flag, "-")
		t.Run("full pipes/"+grade, func(t *testing.T) {
			word := filepath.Join(dir, "full"+grade)
			c := alice.Agents(t, []string{"planner " + flag}, "sh", "-c", "touch "+word+"; yes >&2 & exec yes "+word)
			// Nobody reads what the agent, and its supervisor, write.
			c.Args = []string{"sh", "-c", quoted(c.Args) + " 2>&1 | sleep 600"}
			l := testmesh.Begin(t, c)
			awaitPath(t, word)
			m.Issuer.Kill()
			awaitNoProcess(t, "yes\x00"+word)
			m.Issuer.Begin()
			endPipeline(t, l)
			awaitServed(t, alice)
		})
		t.Run("a stopped supervisor/"+grade, func(t *testing.T) {
			l := testmesh.Begin(t, alice.Agents(t, []string{"planner " + flag}, "sh", "-c",
				"echo supervisor $PPID; kill -STOP $PPID; echo stopped; exec sleep 600"))
			l.Await("stopped\n", 1)
			supervisor, err := strconv.Atoi(strings.Fields(l.Output())[1])
			if err != nil {
				t.Fatal(err)
			}
			program := childOf(t, supervisor)
			// It holds up nobody else.
			awaitServed(t, alice)
			l.Signal(syscall.SIGTERM)
			if flag == "--no-isolate" {
				l.Signal(syscall.SIGCONT) // here the supervisor is the process that the user started, and signals are his to send
			}
			if r := l.Wait(patience); r.Code == 0 {
				t.Errorf("the run: %s", r)
			}
			if err := syscall.Kill(program, 0); err != syscall.ESRCH {
				t.Errorf("its program: %v", err)
			}
		})
		t.Run("a killed run/"+grade, func(t *testing.T) {
			word := filepath.Join(dir, "killed"+grade)
			l := testmesh.Begin(t, alice.Agents(t, []string{"planner " + flag, "researcher " + flag}, "sh", "-c",
				"setsid -f "+testmesh.Program(t, "agentprobe")+" sleep "+word+"-daemon </dev/null >/dev/null 2>&1; touch "+word+"; exec "+testmesh.Program(t, "agentprobe")+" sleep "+word+"-program"))
			awaitPath(t, word)
			notes := cgroupNotes(t, alice)
			l.Signal(syscall.SIGKILL)
			awaitNoProcess(t, word+"-program")
			awaitServed(t, alice)
			// Who killed it left nobody to end its daemons. The next run does, where they are in a control group of their own.
			if flag == "--isolate" && len(notes) > 0 {
				awaitNoProcess(t, word+"-daemon")
				for _, group := range notes {
					if _, err := os.Stat(group); !os.IsNotExist(err) {
						t.Errorf("a control group is left: %s: %v", group, err)
					}
				}
			}
			endDaemon(t, word+"-daemon")
		})
	}
}

// awaitServed runs other agents until they are served. After a restart of the issuer the broker refuses for a moment.
func awaitServed(t *testing.T, s *testmesh.Session) {
	t.Helper()
	for limit := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		r := s.SQL(t, testmesh.Nested, "SELECT 1")
		if r.Code == 0 {
			return
		}
		if time.Now().After(limit) || !strings.Contains(r.Stderr, "temporarily_unavailable") {
			t.Fatalf("other agents: %s", r)
		}
	}
}

// cgroupNotes are the control groups of a session's live agents.
func cgroupNotes(t *testing.T, s *testmesh.Session) []string {
	t.Helper()
	locks, err := filepath.Glob(filepath.Join(filepath.Dir(s.SessionDir()), "a", "*.lock"))
	if err != nil || len(locks) == 0 {
		t.Fatal(locks, err)
	}
	var out []string
	for _, l := range locks {
		raw, err := os.ReadFile(l)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > 0 {
			out = append(out, string(raw))
		}
	}
	return out
}

// quoted makes one word of a command line for a shell.
func quoted(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}

func awaitPath(t *testing.T, path string) {
	t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	t.Fatalf("%s did not come", path)
}

// childOf is the one child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if child, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// endPipeline ends a shell's pipeline whose last part waits for nothing.
func endPipeline(t *testing.T, l *testmesh.Live) {
	t.Helper()
	files, err := filepath.Glob("/proc/" + strconv.Itoa(l.Pid()) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, c := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(c); err == nil {
				_ = syscall.Kill(pid, syscall.SIGTERM)
			}
		}
	}
	l.Wait(patience)
}

// endDaemon ends this test's own daemon, if it is there.
func endDaemon(t *testing.T, word string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil && strings.Contains(string(raw), "sleep\x00"+word) {
			if pid, err := strconv.Atoi(strings.Split(f, "/")[2]); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}
