package supervise_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// What an agent under a uid of its own leaves behind or holds must not take it to another uid.

// Uids of agents are used again. A set-uid program that an ended agent left on disk would make whoever runs it that
// uid, and so its next owner's neighbour, although nothing but the kernel's word separates the two.
func TestASetUIDProgramMakesNoAgentAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("agents share one uid without root, so there is none to get")
		return
	}
	mesh(t)
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o1777); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "id")
	r := exec(t, run("--isolate", sh("cp /usr/bin/id "+left+" && chmod 6755 "+left+" && id -u")...))
	owner := strings.TrimSpace(r.Stdout)
	if r.Code != 0 || owner == "" || owner == "0" {
		t.Fatal(r)
	}
	r = exec(t, run("--isolate", sh("id -u; "+left+" -u; "+left+" -g")...))
	ids := strings.Fields(r.Stdout)
	if r.Code != 0 || len(ids) != 3 || ids[0] == owner {
		t.Fatalf("want an agent under another uid than %s: %s", owner, r)
	}
	for _, got := range ids[1:] {
		if got != ids[0] {
			t.Errorf("the agent of uid %s became %s by a file of uid %s", ids[0], got, owner)
		}
	}
}

// With stdin from elsewhere, the agent's output may still be the user's terminal. Whoever holds that reads from it too.
func TestAnAgentCantReadTheTerminalThatItWritesTo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("without root the agent is the user's own uid, which can open the terminal by name")
		return
	}
	mesh(t)
	script := `test -t 1 && test -t 2 && ! test -t 0 && echo two terminals; echo up; got=$(timeout 1 head -n 1 <&1); echo "got <$got>"; exit 5`
	for name, args := range map[string][]string{
		"first":  run("--isolate", sh(script)...),
		"nested": run("--isolate", inner("child", "--isolate", sh(script)...)...),
	} {
		t.Run(name, func(t *testing.T) {
			l := testmesh.Begin(t, testmesh.Command{Args: sh("exec " + quote(args) + " </dev/null"), TTY: true})
			l.Await("up", 1)
			l.Type("a-password\n")
			r := l.Wait(20 * time.Second)
			if !strings.Contains(r.Stdout, "got <>") || !strings.Contains(r.Stdout, "two terminals") || r.Code != 5 {
				t.Errorf("%s", r)
			}
		})
	}
}
