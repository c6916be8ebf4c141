package supervise_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// The first process of a container, like some terminals' and systemd's, adopts orphans. Where it is the login session too, an
// agent's orphan stands right below it once its supervisor is dead: by its ancestors it is the user's own.
func TestAnOrphanThatTheLoginSessionAdoptsIsNotTheUsersOwn(t *testing.T) {
	mesh(t)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
	out := filepath.Join(t.TempDir(), "out")
	again := quote(run("--no-isolate", world.deputy, "whoami"))
	whoami := quote([]string{world.deputy, "whoami", "--config", world.config})
	orphan := `exec >` + out + ` 2>&1; sleep 0.3; kill -9 "$1"; while [ "$(ps -o ppid= -p $$ | tr -d " ")" != "$2" ]; do sleep 0.05; done; ` +
		`unset DEPUTY_AGENT_SOCKET SPIFFE_ENDPOINT_SOCKET; ` + whoami + `; ` + again + `; echo over`
	script := `setsid sh -c ` + quote([]string{orphan}) + ` sh $PPID ` + strconv.Itoa(os.Getpid()) + ` & sleep 20`
	r := exec(t, run("--no-isolate", sh(script)...))
	if r.Code == 0 {
		t.Fatalf("its supervisor lived: %s", r)
	}
	var said string
	for range 400 {
		raw, err := os.ReadFile(out)
		if said = string(raw); err == nil && strings.Contains(said, "over\n") {
			break
		}
		waitABit()
	}
	if strings.Count(said, "neither can use the user's sign-in") != 2 || strings.Contains(said, "spiffe://") || !strings.Contains(said, "over") {
		t.Errorf("the orphan was told:\n%s", said)
	}
}
