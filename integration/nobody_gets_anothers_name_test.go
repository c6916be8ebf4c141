package integration_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Names are the issuer's to give: a child's name is one plain word below its parent's, whatever it is asked for, and a ticket is
// good once, for who is where it was made.
func TestNobodyGetsAnothersName(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	dir, probe := openFolder(t, m), testmesh.Program(t, "agentprobe")
	set := attackAll(t, m, alice)

	t.Run("by asking", func(t *testing.T) {
		r := alice.Run(t, []string{"planner"}, "sh", "-c", set+probe+" names")
		if r.Code != 0 || !strings.Contains(r.Stdout, "over\n") || strings.Contains(r.Stdout, "SERVED") || strings.Count(r.Stdout, "\trefused: ") != 28 {
			t.Fatal(r)
		}
		own := regexp.MustCompile(`got \[spiffe://test\.example/agent/planner/[0-9a-f]{32}/wish/[0-9a-f]{32}\] \[\]\n`)
		if n := len(own.FindAllString(r.Stdout, -1)); n != 3 {
			t.Errorf("%d of 3 requests that asked for another name got a child's:\n%s", n, r.Stdout)
		}
		// Why they were refused: for what they are, not for the number of them.
		if strings.Count(r.Stdout, "want [a-z][a-z0-9-]{0,31}") < 20 {
			t.Error(r.Stdout)
		}
	})
	for _, flag := range []string{"--no-isolate", ""} {
		t.Run("with a ticket"+flag, func(t *testing.T) {
			file := filepath.Join(dir, "ticket"+flag)
			victim := testmesh.Begin(t, alice.Agents(t, []string{"planner " + flag}, "sh", "-c", set+"exec "+probe+" ticket "+file))
			victim.Await("shown\n", 1)
			r := alice.Run(t, []string{"planner " + flag}, "sh", "-c", set+probe+" steal "+file)
			if r.Code != 0 || strings.Contains(r.Stdout, "SERVED") || strings.Count(r.Stdout, "refused: ") != 6 {
				t.Errorf("the thief: %s", r)
			}
			if thief := testmesh.Exec(t, alice.Command("sh", "-c", set+probe+" steal "+file)); strings.Contains(thief.Stdout, "SERVED") || strings.Count(thief.Stdout, "refused: ") != 6 {
				t.Errorf("the thief outside: %s", thief)
			}
			// The theft shows: the ticket is of no use to anybody any more.
			victim.Type("\n")
			if r := victim.Wait(patience); strings.Contains(r.Stdout, "SERVED") || !strings.Contains(r.Stdout, "attach\trefused: attach: the ticket is unknown, used or has expired") {
				t.Errorf("the victim: %s", r)
			}
		})
	}
}
