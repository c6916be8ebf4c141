package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// An agent's sockets and listeners serve its own processes, whatever way another one comes by them: by path, with their password,
// over a connection that it was left, or under a process id that was one of theirs.
func TestSocketsServeTheirOwnAgentOnly(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	dir, probe, deputy := openFolder(t, m), testmesh.Program(t, "agentprobe"), testmesh.Deputy(t)
	flags := []string{"--no-isolate"}
	if testmesh.Isolated() {
		flags = append(flags, "--isolate")
	}
	for _, flag := range flags {
		grade := strings.TrimLeft(flag, "-")
		run, known := deputy+" run "+flag+" --as ", filepath.Join(dir, "sibling"+grade)
		for _, c := range []struct{ name, script string }{
			{"parent", run + "researcher -- " + probe + " attack"},
			{"ancestor", run + "researcher -- " + run + "reader -- " + probe + " attack"},
			{"sibling", run + "researcher -- sh -c 'echo $DEPUTY_AGENT_SOCKET $PGHOST $PGPASSFILE >" + known + ".new; mv " + known + ".new " + known + "; exec " + probe + " sleep x' & " +
				"while ! test -e " + known + "; do sleep 0.02; done; read A_AGENT A_PG A_PASS <" + known + "; " + run + "thief -- " + probe + " attack; kill $!; wait; true"},
		} {
			t.Run(c.name+"/"+grade, func(t *testing.T) {
				r := alice.Run(t, []string{"planner " + flag}, "sh", "-c", attackAll(t, m, alice)+"unset A_DEPUTY\n"+c.script)
				if r.Code != 0 || !strings.Contains(r.Stdout, "over\n") || strings.Contains(r.Stdout, "SERVED") ||
					strings.Count(r.Stdout, "this socket belongs to")+strings.Count(r.Stdout, "permission denied")+strings.Count(r.Stdout, "no process of this agent") < 6 {
					t.Error(r)
				}
			})
		}
	}
	t.Run("the opener became the child's supervisor", func(t *testing.T) {
		r := alice.Run(t, []string{"planner --no-isolate"}, "sh", "-c",
			probe+` lend "${DEPUTY_AGENT_SOCKET#unix://}" `+deputy+" run --no-isolate --as researcher -- "+probe+" borrow")
		if r.Code != 0 || strings.Contains(r.Stdout, "SERVED") || strings.Count(r.Stdout, "is inside spiffe://") != 4 {
			t.Error(r)
		}
	})
	t.Run("the opener is gone", func(t *testing.T) {
		r := alice.Run(t, []string{"planner --no-isolate"}, "sh", "-c",
			probe+` lend "${DEPUTY_AGENT_SOCKET#unix://}" /bin/sh -c '(while test -d /proc/$$; do sleep 0.01; done; `+
				deputy+" run --no-isolate --as researcher -- "+probe+" borrow; touch "+dir+"/gone) & exit'; while ! test -e "+dir+"/gone; do sleep 0.01; done")
		if r.Code != 0 || strings.Contains(r.Stdout, "SERVED") || strings.Count(r.Stdout, "has ended") != 4 {
			t.Error(r)
		}
	})
	t.Run("the opener's process id changed hands", func(t *testing.T) {
		if !testmesh.Isolated() {
			t.Log("only root chooses process ids; as root this is tried")
			return
		}
		reuse := m.Share(t, "testdata/reuse.py")
		fifo := filepath.Join(dir, "reuse")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(dir, "victim")
		victim := testmesh.Begin(t, alice.Agents(t, []string{"planner --no-isolate"}, "sh", "-c", "echo ${DEPUTY_AGENT_SOCKET#unix://} >"+socket+".new; mv "+socket+".new "+socket+"; exec python3 "+reuse+" own "+fifo))
		awaitPath(t, socket)
		path, err := os.ReadFile(socket)
		if err != nil {
			t.Fatal(err)
		}
		r := alice.Run(t, []string{"planner --no-isolate"}, "python3", reuse, "thief", fifo, strings.TrimSpace(string(path)), probe)
		if r.Code != 0 || !strings.Contains(r.Stdout, "reused ") || strings.Contains(r.Stdout, "SERVED") || !strings.Contains(r.Stdout, "over\n") {
			t.Error(r)
		}
		t.Log(r.Stdout)
		victim.Signal(syscall.SIGTERM)
	})
}
