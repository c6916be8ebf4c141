package issuer_test

import (
	"os"
	"testing"
	"time"

	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/spawn"
)

func TestATreeOfAgentsStandsWhereTheKernelShowsIt(t *testing.T) {
	m := newMesh(t)
	outside := m.start(command{})
	planner := m.start(command{})
	a := planner.attach("planner", planner)
	if a.Grade != "asserted" {
		t.Errorf("an unisolated agent is graded %s", a.Grade)
	}
	program := planner.start(command{})
	worker := program.start(command{})
	b := planner.attach("worker", worker)
	if id := agentID(t, b.ID); !id.IsDirectChildOf(agentID(t, a.ID)) || b.Grade != "asserted" {
		t.Errorf("the child is %s (%s)", b.ID, b.Grade)
	}
	inner := worker.start(command{})
	for _, tc := range []struct {
		name  string
		p     *process
		id    string
		super bool
	}{
		{"outside", outside, "", false},
		{"the supervisor", planner, a.ID, true},
		{"a program", program, a.ID, false},
		{"the child's supervisor", worker, b.ID, true},
		{"the child's program", inner, b.ID, false},
	} {
		if r := m.where(outside, tc.p); r.Code != ok || r.ID != tc.id || r.Super != tc.super {
			t.Errorf("%s: %+v, want %q %v", tc.name, r, tc.id, tc.super)
		}
	}
	outside.refused(command{Op: "locate", PID: inner.pid, Start: inner.startTicks + 1}, "FailedPrecondition", "ended")
	outside.refused(command{Op: "locate", PID: inner.pid}, "InvalidArgument", "start_time")
	outside.refused(command{Op: "locate", PID: -1, Start: 1}, "InvalidArgument", "pid")
}

func TestOnlyTheSupervisorRegistersChildren(t *testing.T) {
	m := newMesh(t)
	planner := m.start(command{})
	planner.attach("planner", planner)
	program := planner.start(command{})
	program.refused(command{Op: "register", Name: "worker"}, "PermissionDenied", "supervisor")
	// Nor does a process inside an agent become a first-level agent by asking for one that has an entry.
	program.refused(command{Op: "register", Name: "planner"}, "PermissionDenied", "supervisor")
	// The supervisor's own "planner" is a child, whatever entries say.
	if r := planner.must(command{Op: "register", Name: "planner"}); agentID(t, r.ID).Depth() != 2 {
		t.Errorf("the supervisor registered %s", r.ID)
	}
}

func TestADoubleForkDoesNotLeadOut(t *testing.T) {
	m := newMesh(t)
	outside := m.start(command{})
	planner := m.start(command{})
	planner.must(command{Op: "subreaper"})
	a := planner.attach("planner", planner)
	orphan := planner.start(command{}).start(command{Orphan: true})
	if r := m.where(outside, orphan); r.ID != a.ID || r.Super {
		t.Errorf("the orphan stands at %+v, want inside %s", r, a.ID)
	}
	orphan.refused(command{Op: "register", Name: "planner"}, "PermissionDenied", "supervisor")
}

func TestAnEndedAgentsProcessesArentOutside(t *testing.T) {
	m := newMesh(t)
	outside := m.start(command{})
	planner := m.start(command{})
	a := planner.attach("planner", planner)
	program := planner.start(command{})
	planner.must(command{Op: "done", Stream: "own"})
	m.gone(a.ID)
	for _, p := range []*process{planner, program} {
		p.refused(command{Op: "register", Name: "planner"}, "FailedPrecondition", "ended")
		if r := m.where(outside, p); r.Code != "FailedPrecondition" {
			t.Errorf("a process of an ended agent: %+v", r)
		}
	}
	// Even after a restart, for as long as the supervisor's process lives.
	m.restart()
	program.refused(command{Op: "register", Name: "planner"}, "FailedPrecondition", "ended")
}

func TestRegistrationNeedsAnEntryThatMatches(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) {
		c.Agents = append(c.Agents, spawn.Entry{Name: "other", Selectors: attest.Selectors{UID: uid(4242)}},
			spawn.Entry{Name: "hashed", Selectors: attest.Selectors{UID: c.Agents[0].UID, SHA256: "00000000000000000000000000000000000000000000000000000000000000ff"}})
	})
	p := m.start(command{})
	p.refused(command{Op: "register", Name: "unknown"}, "PermissionDenied", "no first-level agent")
	p.refused(command{Op: "register", Name: "other"}, "PermissionDenied", "selectors")
	p.refused(command{Op: "register", Name: "hashed"}, "PermissionDenied", "selectors")
	for _, bad := range []string{"", "Planner", "9lives", "a/b", "..", "planner\n", "x234567890123456789012345678901234"} {
		p.refused(command{Op: "register", Name: bad}, "InvalidArgument", "name")
	}
	p.refused(command{Op: "register", Name: "planner", Unknown: true}, "InvalidArgument", "fields")
	first, second := p.must(command{Op: "register", Name: "planner"}), p.must(command{Op: "register", Name: "planner"})
	if first.ID == second.ID || string(first.Ticket) == string(second.Ticket) || len(first.Ticket) != 32 {
		t.Errorf("two registrations: %+v %+v", first, second)
	}
}

func TestLimits(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) {
		c.Limits = spawn.Limits{Depth: 2, Children: 3, Subtree: 4, FirstLevel: 2, SpawnRate: 1000, SpawnBurst: 1000}
	})
	planner := m.start(command{})
	planner.attach("planner", planner)
	worker := planner.start(command{})
	b := planner.attach("worker", worker)
	worker.refused(command{Op: "register", Name: "deeper"}, "ResourceExhausted", "levels")
	planner.must(command{Op: "register", Name: "worker"})
	planner.must(command{Op: "register", Name: "worker"})
	planner.refused(command{Op: "register", Name: "worker"}, "ResourceExhausted", "children")
	worker.must(command{Op: "done", Stream: "own"})
	m.gone(b.ID)
	planner.must(command{Op: "register", Name: "worker"}) // an end makes room

	other := m.start(command{})
	other.must(command{Op: "register", Name: "planner"})
	other.refused(command{Op: "register", Name: "planner"}, "ResourceExhausted", "first-level")
}

func TestSubtreeAndRateAreLimited(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) {
		c.Limits = spawn.Limits{Subtree: 3, SpawnRate: 0.001, SpawnBurst: 3}
	})
	planner := m.start(command{})
	planner.attach("planner", planner)
	planner.must(command{Op: "register", Name: "worker"})
	planner.must(command{Op: "register", Name: "worker"})
	planner.refused(command{Op: "register", Name: "worker"}, "ResourceExhausted", "tree")

	other := m.start(command{})
	reg := other.must(command{Op: "register", Name: "planner"})
	other.must(command{Op: "register", Name: "planner"})
	other.refused(command{Op: "register", Name: "planner"}, "ResourceExhausted", "too fast")
	other.must(command{Op: "attach", Stream: "own", Ticket: reg.Ticket})
}

func TestAnUnusedTicketExpires(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) { c.TicketLife = 50 * time.Millisecond })
	p := m.start(command{})
	reg := p.must(command{Op: "register", Name: "planner"})
	if e := m.gone(reg.ID); e.Reason != spawn.ReasonExpired {
		t.Errorf("it ended as %s", e.Reason)
	}
	p.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "ticket")
}

func TestNoProcessIsHeldForEver(t *testing.T) {
	m := newMesh(t)
	held := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); to == "anon_inode:[pidfd]" {
				n++
			}
		}
		return n
	}
	outside := m.start(command{})
	outside.must(command{Op: "locate", PID: outside.pid, Start: outside.startTicks}) // connected: held while it is
	before := held()
	for range 3 {
		p := m.start(command{})
		p.attach("planner", p)
		m.where(outside, p.start(command{}))
		if held() <= before {
			t.Error("a live supervisor isn't held")
		}
		p.kill()
	}
	for end := time.Now().Add(20 * time.Second); held() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d handles on processes, %d before", held(), before)
		}
	}
}

// Whoever adopts it: what an agent started, and left behind, never becomes a first-level agent.
func TestWhatAnAgentStartedIsNobodysFirstLevelAgent(t *testing.T) {
	m := newMesh(t)
	outside, marked := m.start(command{}), m.start(command{Marked: true})
	if r := m.where(outside, marked); r.ID != "" {
		t.Fatalf("it stands at %+v", r)
	}
	marked.refused(command{Op: "register", Name: "planner"}, "PermissionDenied", "an agent started the caller")
	marked.start(command{}).refused(command{Op: "register", Name: "planner"}, "PermissionDenied", "an agent started the caller")
	outside.must(command{Op: "register", Name: "planner"})
}
