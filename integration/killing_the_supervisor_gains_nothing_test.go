package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// An agent that leaves a daemon behind and kills its own supervisor has ended. The daemon doesn't become the agent above it,
// nor its user, nor a new agent, whatever the kernel's tree says of who adopted it.
func TestKillingTheSupervisorGainsNothing(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	dir, probe := openFolder(t, m), testmesh.Program(t, "agentprobe")
	grades := []string{"--no-isolate"}
	if testmesh.Isolated() {
		grades = append(grades, "--isolate")
	}
	for _, flag := range grades {
		t.Run("nested"+flag, func(t *testing.T) {
			out := filepath.Join(dir, "nested"+flag)
			// The planner lives on, and its child's daemon knows all its sockets.
			r := alice.Run(t, []string{"planner " + flag}, "sh", "-c", attackAll(t, m, alice)+
				testmesh.Deputy(t)+" run --as researcher "+flag+" -- sh -c 'setsid -f "+probe+" sleep "+out+".left </dev/null >/dev/null 2>&1; while ! test -s "+out+".left; do sleep 0.02; done; setsid -f "+probe+" orphan "+out+" $PPID kill </dev/null >/dev/null 2>&1; exec sleep 60'\n"+
				"echo child $?; while test -d /proc/$(sed -n 's/daemon \\([0-9]*\\) .*/\\1/p' "+out+"); do sleep 0.02; done; "+
				// Its parent's supervisor ends what it left, which would sleep for long.
				"while test -d /proc/$(cat "+out+".left); do sleep 0.02; done; "+testmesh.Deputy(t)+" whoami")
			if !regexp.MustCompile(`child (125|137)\n`).MatchString(r.Stdout) || !strings.Contains(r.Stdout, "/agent/planner/") {
				t.Errorf("the child was to end by a signal, and its parent to live on: %s", r)
			}
			nothingServed(t, out)
		})
	}
	t.Run("first level", func(t *testing.T) {
		out := filepath.Join(dir, "first")
		before := roots(m.Records(t, "issuer"))
		r := alice.Run(t, []string{"planner --no-isolate"}, "sh", "-c", attackAll(t, m, alice)+
			"setsid -f "+probe+" orphan "+out+" $PPID kill </dev/null >/dev/null 2>&1; exec sleep 60")
		if r.Code == 0 {
			t.Errorf("the run was to end by a signal: %s", r)
		}
		if said := nothingServed(t, out); !strings.Contains(said, "over\n") {
			t.Errorf("nobody could end this one, so it was to say all:\n%s", said)
		}
		if after := roots(m.Records(t, "issuer")); after != before+1 {
			t.Errorf("%d first-level agents came of one run", after-before)
		}
	})
	// What tells a child's orphan from its parent's own processes: a restraint that it can't shed. A sandbox of the program's
	// own has one too, and is refused as well.
	t.Run("one restraint more", func(t *testing.T) {
		script := attackAll(t, m, alice) + probe + " attack | grep -v '^sign-in\\|^user grant' >" + dir + "/own; " + probe + " restrained " + probe + " attack >" + dir + "/more"
		if r := alice.Run(t, []string{"planner"}, "sh", "-c", script); r.Code != 0 {
			t.Fatal(r)
		}
		own, err := os.ReadFile(filepath.Join(dir, "own"))
		if err != nil {
			t.Fatal(err)
		}
		for _, mine := range []string{"describe", "credential", "spawn", "svid", "listener by path", "listener by port and password"} {
			if !strings.Contains(string(own), mine+"\tSERVED: ") {
				t.Errorf("%s was not served to the agent itself:\n%s", mine, own)
			}
		}
		more, err := os.ReadFile(filepath.Join(dir, "more"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(more), "SERVED") || strings.Count(string(more), "a sub-agent of this one started it, or it is in a sandbox") != 6 {
			t.Errorf("with one restraint more:\n%s", more)
		}
	})
}

// attackAll sets the variables that tell agentprobe what to attack: the sockets of the agent that the script runs in, the
// issuer's and the user's sign-in.
func attackAll(t *testing.T, m *testmesh.Mesh, s *testmesh.Session) string {
	t.Helper()
	return "export A_AGENT=$DEPUTY_AGENT_SOCKET A_PG=$PGHOST A_PASS=$PGPASSFILE A_DEPUTY=" + testmesh.Deputy(t) +
		" A_ISSUER=" + m.IssuerSocket() + " A_SESSIONS=" + s.SessionDir() + "\n"
}

// nothingServed returns what a daemon said, once it is gone.
func nothingServed(t *testing.T, out string) string {
	t.Helper()
	awaitNoProcess(t, out)
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if said := string(raw); !strings.Contains(said, "daemon ") || strings.Contains(said, "SERVED") {
		t.Errorf("the daemon said:\n%s", said)
	}
	return string(raw)
}

// openFolder is a folder that every uid may write to.
func openFolder(t *testing.T, m *testmesh.Mesh) string {
	t.Helper()
	dir, err := os.MkdirTemp(m.Root, "open")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}
