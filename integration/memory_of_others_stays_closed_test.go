package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Keys are in memory alone, and no agent gets into the memory of anybody outside itself: not of its own supervisor, its
// parent's, a sibling or the session helper. Under a uid of its own that is so on every kernel. Agents that share one are kept
// apart by Landlock, on kernels that have its scopes; elsewhere only what holds keys is closed.
func TestMemoryOfOthersStaysClosed(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	probe := testmesh.Program(t, "agentprobe")
	flags := []string{"--no-isolate"}
	if testmesh.Isolated() {
		flags = append(flags, "--isolate")
	}
	for _, flag := range flags {
		t.Run(strings.TrimLeft(flag, "-"), func(t *testing.T) {
			sibling := testmesh.Begin(t, alice.Agents(t, []string{"planner " + flag}, "sh", "-c", "echo $$ $PPID.; read stop"))
			sibling.Await(".", 1)
			theirs := strings.Fields(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(sibling.Output()), ".")))
			script := "PARENT=$$ SUPERVISOR=$PPID; export PARENT SUPERVISOR; " + testmesh.Deputy(t) + " run --as researcher " + flag +
				" -- sh -c '" + probe + " pry own-supervisor=$PPID parent-supervisor=$SUPERVISOR parent-program=$PARENT" +
				fmt.Sprintf(" sibling-program=%s sibling-supervisor=%s helper=%d", theirs[0], theirs[1], helperOf(t, alice)) + "'"
			r := alice.Run(t, []string{"planner " + flag}, "sh", "-c", script)
			sibling.Type("\n")
			if r.Code != 0 || !strings.Contains(r.Stdout, "over\n") || strings.Count(r.Stdout, "refused") < 30 {
				t.Fatalf("prying: %s", r)
			}
			for _, line := range testmesh.Lines(r.Stdout) {
				if strings.Contains(line, "SERVED") && closed(line, flag) {
					t.Error(line)
				}
			}
		})
	}
}

// closed says whether this kernel must refuse an attempt.
func closed(line, flag string) bool {
	name, _, _ := strings.Cut(line, "\t")
	switch root := os.Geteuid() == 0; {
	case flag == "--isolate":
		return true
	case root && (strings.HasSuffix(name, " environ") || strings.HasSuffix(name, " maps") || strings.HasSuffix(name, " auxv")):
		return false // who may profile the machine may see these of everybody
	case scopes():
		return true
	default:
		// Without the wall, root enters everything, and everybody enters programs of its own uid that don't close themselves.
		return !root && !strings.Contains(name, "-program ")
	}
}

// scopes says whether the kernel has Landlock with scopes.
func scopes() bool {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1)
	return errno == 0 && version >= 6
}

// helperOf finds the session helper of a sign-in.
func helperOf(t *testing.T, s *testmesh.Session) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(raw), "\x00session-helper\x00") || !strings.Contains(string(raw), s.Config) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(f, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatal("no session helper was found")
	return 0
}
