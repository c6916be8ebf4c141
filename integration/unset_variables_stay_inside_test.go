package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Whatever a process inside an agent does to its environment and its ancestry, it opens no root, reads no
// login, signs nobody in and reaches no other agent's listener.
func TestUnsetVariablesStayInside(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	deputy, config := testmesh.Deputy(t), "DEPUTY_CONFIG="+alice.Config
	password := filepath.Join(m.Root, "mallory.password")
	// As root the agent's uid could not read alice's own file; the agent shall fail by its place alone.
	raw, err := os.ReadFile(filepath.Join(m.Root, "alice.password"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(password, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	escapes := []struct{ name, prefix string }{
		{"unset", "env -u DEPUTY_AGENT_SOCKET -u SPIFFE_ENDPOINT_SOCKET " + config},
		{"empty environment", "env -i PATH=$PATH HOME=/tmp " + config},
		{"double fork", "setsid -f env -i PATH=$PATH HOME=/tmp " + config},
	}
	attempts := []struct{ name, command string }{
		{"a root", deputy + " run --as planner -- echo GOT OUT"},
		{"a clerk's root", deputy + " run --as clerk --no-isolate -- echo GOT OUT"},
		{"who is signed in", deputy + " whoami"},
		{"a revocation", deputy + " revoke --user x#y --reason z"},
		{"the end of the login", deputy + " logout"},
		{"a sign-in of its own", deputy + " login --script-user alice --script-password-file " + password},
	}
	for _, e := range escapes {
		t.Run(e.name, func(t *testing.T) {
			before := roots(m.Records(t, "issuer"))
			// Each attempt's output and status go to a file of its own, since setsid -f doesn't wait.
			text := "d=$(mktemp -d); cd $d\n"
			for i, a := range attempts {
				text += fmt.Sprintf("%s sh -c '%s >%d.out 2>&1; echo status $? >>%d.out; mv %d.out %d.done'\n", e.prefix, a.command, i, i, i, i)
			}
			text += fmt.Sprintf("for i in $(seq 300); do [ $(ls | grep -c done) = %d ] && break; sleep 0.1; done\n", len(attempts))
			for i := range attempts {
				text += fmt.Sprintf("echo == %d; cat %d.done\n", i, i)
			}
			r := alice.Run(t, testmesh.Nested, "sh", "-c", text+"cd /; rm -r $d")
			answers := sections(r.Stdout)
			for i, a := range attempts {
				answer, ok := answers[fmt.Sprint(i)]
				if !ok || !strings.Contains(answer, "status ") || strings.Contains(answer, "status 0") || strings.Contains(answer, "status 127") || strings.Contains(answer, "GOT OUT") || strings.Contains(answer, "sample-alice") {
					t.Errorf("%s: %q\n%s", a.name, answer, r)
				}
			}
			// One root and one child for the run itself.
			if after := roots(m.Records(t, "issuer")); after != before+1 {
				t.Errorf("%d first-level agents came of one run", after-before)
			}
		})
	}
	if r := alice.Deputy(t, "whoami"); r.Code != 0 || !strings.Contains(r.Stdout, "alice") {
		t.Errorf("the login after all that: %s", r)
	}
	t.Run("the parent's listener", func(t *testing.T) {
		// The planner hands its listener's folder and socket to the researcher.
		r := alice.Run(t, []string{"planner"}, "sh", "-c",
			`chmod -R a+rwX "$PGHOST" 2>/dev/null; exec "$0" run --as researcher -- env PGHOST="$PGHOST" DEPUTY_AGENT_SOCKET="$DEPUTY_AGENT_SOCKET" sh -c '`+
				strings.Join([]string{m.PG.Bin("psql") + ` -XAt -c "SELECT 1234"`, deputy + ` whoami`, deputy + ` run --as helper -- echo GOT OUT`}, "; ")+`'`, deputy)
		if r.Code == 0 || strings.Contains(r.Stdout, "1234") || strings.Contains(r.Stdout, "/agent/planner") || strings.Contains(r.Stdout, "GOT OUT") {
			t.Errorf("the child used its parent's sockets: %s", r)
		}
	})
	t.Run("no secret of the target", func(t *testing.T) {
		r := alice.Run(t, testmesh.Nested, "sh", "-c", `env; stat -c 'mode %a' "$PGSERVICEFILE" "$PGPASSFILE"; cat "$PGSERVICEFILE" "$PGPASSFILE"; cat /proc/$PPID/environ 2>/dev/null`)
		if strings.Contains(r.Stdout, "app-Pa55") || strings.Contains(r.Stdout, "shop_app") || !strings.Contains(r.Stdout, "PGHOST=") || strings.Count(r.Stdout, "mode 600\n") != 2 {
			t.Errorf("what an agent sees: %s", r)
		}
	})
}

// roots counts first-level agents in an issuer's log.
func roots(records []*audit.Record) int {
	n := 0
	for _, r := range records {
		if e, ok := r.Event.(*audit.Spawn); ok && strings.Count(strings.TrimPrefix(e.Agent, "spiffe://"), "/") == 3 {
			n++
		}
	}
	return n
}
