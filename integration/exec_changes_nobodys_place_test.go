package integration_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// A process that connects and then becomes another program is judged by what the kernel says when it asks. The registered
// program is a mask that everybody of the right uid can wear, so it never stands alone: whoever is inside an agent, or was left
// behind by one, stays what it is.
func TestExecChangesNobodysPlace(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	dir, probe := openFolder(t, m), testmesh.Program(t, "agentprobe")
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	set := attackAll(t, m, alice)

	t.Run("inside", func(t *testing.T) {
		r := alice.Run(t, []string{"planner --no-isolate"}, "sh", "-c", set+probe+" mask "+fifo+" | cat")
		if !strings.Contains(r.Stdout, "register\trefused: ") || !strings.Contains(r.Stdout, "isn't its supervisor") {
			t.Error(r)
		}
	})
	t.Run("left behind", func(t *testing.T) {
		out := filepath.Join(dir, "orphan")
		before := roots(m.Records(t, "issuer"))
		r := alice.Run(t, []string{"planner --no-isolate"}, "sh", "-c", set+
			"setsid -f "+probe+" orphan "+out+" $PPID kill "+fifo+" </dev/null >/dev/null 2>&1; exec sleep 60")
		if r.Code == 0 {
			t.Errorf("the run was to end by a signal: %s", r)
		}
		awaitNoProcess(t, "speak\x00")
		// It is refused, unless it was ended with all that its run left behind before it could ask.
		said := nothingServed(t, out)
		if _, answer, asked := strings.Cut(said, "register\t"); asked && !strings.Contains(answer, "an agent started the caller, and its supervisor is gone") && !strings.Contains(answer, "the process has ended") || !strings.Contains(said, "orphaned to ") {
			t.Errorf("the daemon said:\n%s", said)
		}
		if after := roots(m.Records(t, "issuer")); after != before+1 {
			t.Errorf("%d first-level agents came of one run", after-before)
		}
	})
	// This is no attack: such a user could as well start the program. It shows that the mask works, so that the others mean something.
	t.Run("the user's own process", func(t *testing.T) {
		r := testmesh.Exec(t, alice.Command("sh", "-c", set+probe+" mask "+fifo+" | cat"))
		if !strings.Contains(r.Stdout, "register\tSERVED: spiffe://test.example/agent/planner/") {
			t.Error(r)
		}
	})
}
