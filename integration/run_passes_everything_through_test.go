package integration_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// A program in nested agents behaves as without them: streams, exit status, signals and terminal pass
// through, and nothing of it is left when the run is gone.
func TestRunPassesEverythingThrough(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	t.Run("pipes", func(t *testing.T) {
		c := alice.Agents(t, testmesh.Nested, "sh", "-c", "tr a-z A-Z; echo err >&2")
		c.Stdin = strings.Repeat("through the pipe\n", 10000)
		r := testmesh.Exec(t, c)
		if r.Code != 0 || r.Stdout != strings.ToUpper(c.Stdin) || r.Stderr != "err\n" {
			t.Errorf("%d bytes came back of %d: %s", len(r.Stdout), len(c.Stdin), r)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -KILL $$": 128 + 9} {
			if r := alice.Run(t, testmesh.Nested, "sh", "-c", script); r.Code != want {
				t.Errorf("%s: want exit %d: %s", script, want, r)
			}
		}
		if r := alice.Run(t, testmesh.Nested, "/no/such/program"); r.Code != 127 || !strings.Contains(r.Stderr, "/no/such/program") {
			t.Errorf("a program that isn't there: %s", r)
		}
	})
	t.Run("signals", func(t *testing.T) {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
			live := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, "sh", "-c",
				`trap 'echo caught; exit 5' TERM INT HUP USR1; echo ready; while :; do sleep 0.05; done`))
			live.Await("ready", 1)
			live.Signal(s)
			if r := live.Wait(patience); r.Code != 5 || !strings.Contains(r.Stdout, "caught") {
				t.Errorf("%s: %s", s, r)
			}
		}
	})
	t.Run("terminal", func(t *testing.T) {
		c := alice.Agents(t, testmesh.Nested, "sh", "-c", `test -t 0 && test -t 1 && test -t 2 && echo is a terminal; trap 'echo interrupted; exit 3' INT; echo ready; read line; echo "read $line"; while :; do sleep 0.05; done`)
		c.TTY = true
		live := testmesh.Begin(t, c)
		live.Await("ready", 1)
		live.Type("a line\n")
		live.Await("read a line", 1)
		live.Type("\x03")
		if r := live.Wait(patience); r.Code != 3 || !strings.Contains(r.Stdout, "is a terminal") || !strings.Contains(r.Stdout, "interrupted") {
			t.Errorf("on a terminal: %s", r)
		}
	})
	t.Run("killed", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, "sh", "-c", `echo pid $$ ready; exec sleep 1000.4242`))
		live.Await("ready", 1)
		live.Signal(syscall.SIGKILL)
		live.Wait(patience)
		awaitNoProcess(t, "1000.4242")
	})
	t.Run("a background process ends with its agent", func(t *testing.T) {
		r := alice.Run(t, testmesh.Nested, "sh", "-c", `setsid -f sleep 1000.2424 >/dev/null 2>&1 </dev/null; echo done`)
		if r.Code != 0 || strings.TrimSpace(r.Stdout) != "done" {
			t.Fatalf("the agent: %s", r)
		}
		awaitNoProcess(t, "1000.2424")
	})
}
