package integration_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// The issuer grades every hop by what the kernel shows: attested where the agent has a host uid that its
// parent can't reach, asserted everywhere else. The grade is in whoami, in the chain and in the record.
func TestNestedAgentsAreGraded(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	isolated := actor.Asserted
	if testmesh.Isolated() {
		isolated = actor.Attested
	}
	for _, c := range []struct {
		name   string
		agents []string
		want   []actor.Grade
	}{
		{"by default", []string{"planner", "researcher", "reader"}, []actor.Grade{isolated, isolated, isolated}},
		{"not isolated below", []string{"planner", "researcher --no-isolate"}, []actor.Grade{isolated, actor.Asserted}},
		{"not isolated at all", []string{"planner --no-isolate", "researcher --no-isolate"}, []actor.Grade{actor.Asserted, actor.Asserted}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := alice.Run(t, c.agents, "sh", "-c", testmesh.Deputy(t)+" whoami; id -u; exec "+m.PG.Bin("psql")+" -XAt -v VERBOSITY=verbose -c 'DROP TABLE orders'")
			if !strings.Contains(r.Stdout, fmt.Sprintf("grade      %s\n", c.want[len(c.want)-1])) {
				t.Fatalf("whoami: %s", r)
			}
			rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
			var got []actor.Grade
			uids := map[uint32]bool{}
			for _, hop := range rec.Chain.Hops[1:] {
				got = append(got, hop.Grade)
				if hop.Grade == actor.Attested {
					if hop.Evidence.SHA256 == "" || uids[hop.Evidence.UID] {
						t.Errorf("evidence of %s: %+v", hop.ID, hop.Evidence)
					}
					uids[hop.Evidence.UID] = true
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("grades (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("isolation that can't be had", func(t *testing.T) {
		r := alice.Run(t, []string{"planner", "researcher --isolate"}, testmesh.Deputy(t), "whoami")
		if testmesh.Isolated() {
			if r.Code != 0 || !strings.Contains(r.Stdout, "attested") {
				t.Errorf("--isolate as root: %s", r)
			}
		} else if r.Code == 0 || !strings.Contains(r.Stderr, "isolat") {
			t.Errorf("--isolate without root: %s", r)
		}
	})
	t.Run("a team in one process", func(t *testing.T) {
		r := alice.Run(t, []string{"planner"}, testmesh.Program(t, "team"))
		for _, line := range []string{
			fmt.Sprintf("planner (%s) works for sample-alice", isolated), "researcher (asserted) was started by the planner",
			"t***@example.net", "****0105", `policy "no-ddl-by-agents" forbids`, `"ddl" is not among the actions`,
		} {
			if !strings.Contains(r.Stdout, line) {
				t.Errorf("the team doesn't say %q", line)
			}
		}
		if r.Code != 0 {
			t.Errorf("the team: %s", r)
		}
	})
	t.Run("evidence of the sign-in", func(t *testing.T) {
		for _, rec := range m.Records(t, "proxy") {
			if _, ok := rec.Event.(*audit.Decision); ok && (rec.Chain.RootEvidence != actor.RootVerified || rec.Chain.Hops[0].Key == "") {
				t.Errorf("record %s: root evidence %s, login key %q", rec.ID, rec.Chain.RootEvidence, rec.Chain.Hops[0].Key)
			}
		}
	})
}
