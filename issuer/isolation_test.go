package issuer_test

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/spawn"
)

func TestAnIsolatedAgentIsAttested(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		launcher, outside := m.start(command{}), m.start(command{})
		planner, a := launcher.isolated("planner", launcher)
		if a.Grade != "attested" || !agentUIDs.Contains(a.UID) {
			t.Fatalf("first level: %+v", a)
		}
		grade, evidence, err := actor.GradeFromCertificate(certificate(t, a.SVID))
		if err != nil || grade != actor.Attested || evidence.Kind != "unix" || evidence.UID != a.UID || evidence.GID != a.UID || len(evidence.SHA256) != 64 || evidence.Path != m.binary {
			t.Errorf("the SVID says %v %+v %v", grade, evidence, err)
		}
		worker, b := planner.isolated("worker", launcher)
		if b.Grade != "attested" || b.UID == a.UID || !agentID(t, b.ID).IsDirectChildOf(agentID(t, a.ID)) {
			t.Fatalf("second level: %+v", b)
		}
		// Its processes are known by their uid too: a daemon that nobody is an ancestor of isn't outside.
		program := worker.start(command{})
		daemon := worker.start(command{Orphan: true})
		for _, p := range []*process{program, daemon} {
			if r := m.where(outside, p); r.ID != b.ID || r.Super {
				t.Errorf("a process of the worker stands at %+v", r)
			}
			p.refused(command{Op: "register", Name: "planner"}, "PermissionDenied", "supervisor")
		}
		// An agent without isolation below an isolated one shares its uid, and its grade says so.
		sub := worker.start(command{})
		if r := worker.attach("helper", sub); r.Grade != "asserted" {
			t.Errorf("the unisolated child is graded %s", r.Grade)
		}
	})
}

func TestAnOrphanOfAKilledIsolatedSupervisorHasNoPlace(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		launcher, outside := m.start(command{}), m.start(command{})
		planner, a := launcher.isolated("planner", launcher)
		daemon := planner.start(command{Orphan: true})
		planner.kill()
		if e := m.gone(a.ID); e.Reason != spawn.ReasonExited {
			t.Errorf("it ended as %s", e.Reason)
		}
		daemon.refused(command{Op: "register", Name: "planner"}, "FailedPrecondition", "no live one")
		daemon.refused(command{Op: "fetch"}, "PermissionDenied", "no identity")
		if r := m.where(outside, daemon); r.Code != "FailedPrecondition" {
			t.Errorf("the orphan stands at %+v", r)
		}
		// And its uid goes to nobody while it runs.
		for range 40 {
			reg := launcher.must(command{Op: "register", Name: "planner", Isolate: true})
			r := launcher.do(command{Op: "claim", Ticket: reg.Ticket})
			if r.Code == "ResourceExhausted" {
				return
			}
			if r.UID == a.UID {
				t.Fatalf("uid %d was given away under a running process", a.UID)
			}
		}
		t.Error("the range never ran out")
	})
}

func TestOnlyRootOutsideEveryAgentClaims(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		launcher := m.start(command{})
		user := m.start(command{UID: userUID, GID: userUID, SetIDs: true})
		reg := user.must(command{Op: "register", Name: "planner", Isolate: true})
		user.refused(command{Op: "claim", Ticket: reg.Ticket}, "PermissionDenied", "root")

		// Root inside an agent isn't outside.
		rootAgent := m.start(command{})
		rootAgent.attach("planner", rootAgent)
		rootAgent.start(command{}).refused(command{Op: "claim", Ticket: reg.Ticket}, "PermissionDenied", "inside")
		rootAgent.refused(command{Op: "claim", Ticket: reg.Ticket}, "PermissionDenied", "inside")

		launcher.refused(command{Op: "claim", Ticket: []byte("a guess")}, "PermissionDenied", "ticket")
		plain := launcher.must(command{Op: "register", Name: "planner"})
		launcher.refused(command{Op: "claim", Ticket: plain.Ticket}, "FailedPrecondition", "without isolation")
		first := launcher.must(command{Op: "claim", Ticket: reg.Ticket})
		if first.ID != reg.ID || !agentUIDs.Contains(first.UID) {
			t.Errorf("claimed %+v", first)
		}
		launcher.refused(command{Op: "claim", Ticket: reg.Ticket}, "FailedPrecondition", "claimed")
	})
}

func TestIsolationIsCheckedNotBelieved(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		launcher := m.start(command{})
		planner, a := launcher.isolated("planner", launcher)
		claimed := func() (ticket []byte, uid uint32) {
			reg := planner.must(command{Op: "register", Name: "worker", Isolate: true})
			return reg.Ticket, launcher.must(command{Op: "claim", Ticket: reg.Ticket}).UID
		}
		attach := func(p *process, ticket []byte, word string) {
			t.Helper()
			p.refused(command{Op: "attach", Stream: "x", Ticket: ticket}, "PermissionDenied", word)
			p.refused(command{Op: "attach", Stream: "x", Ticket: ticket}, "PermissionDenied", "ticket") // it's used up
		}

		reg := planner.must(command{Op: "register", Name: "worker", Isolate: true})
		attach(launcher.start(command{}), reg.Ticket, "claimed")

		ticket, _ := claimed()
		attach(launcher.start(command{}), ticket, "uid") // the launcher itself, as root

		ticket, uid := claimed()
		attach(launcher.start(command{UID: uid, GID: 0, SetIDs: true}), ticket, "gid")

		ticket, _ = claimed()
		attach(planner.start(command{}), ticket, "uid") // a process of the parent

		if userNamespaces(t) {
			ticket, uid = claimed()
			attach(launcher.start(command{UID: uid, GID: uid, SetIDs: true, UserNS: true}), ticket, "user namespace")
		}
		ticket, uid = claimed()
		attach(launcher.start(command{UID: uid, GID: uid, SetIDs: true, Gains: true}), ticket, "no_new_privs")

		// Under the right uid, but started by a process inside another agent: that one could reach it.
		rootAgent := m.start(command{})
		rootAgent.attach("planner", rootAgent)
		ticket, uid = claimed()
		in := rootAgent.start(command{UID: uid, GID: uid, SetIDs: true})
		r := in.do(command{Op: "attach", Stream: "x", Ticket: ticket})
		if r.Code == ok {
			t.Errorf("a process inside another agent attached as %+v", r)
		}

		// A uid of the range that nobody claimed belongs to nobody.
		nobodys := agentUIDs.Last
		if nobodys == a.UID {
			nobodys = agentUIDs.First
		}
		stray := launcher.start(command{UID: nobodys, GID: nobodys, SetIDs: true})
		stray.refused(command{Op: "register", Name: "planner"}, "FailedPrecondition", "no live one")
		m.alive(a.ID)
	})
}

// userNamespaces says whether this machine lets anybody make one. Where it doesn't (in a chroot, by seccomp, by sysctl) an
// attack that needs one can't be made either, and the kernel must say so.
func userNamespaces(t *testing.T) bool {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	err := cmd.Run()
	if err == nil {
		return true
	}
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("making a user namespace: %v, want it made or refused", err)
	}
	t.Logf("no user namespaces on this machine (%v): nobody can come from one", err)
	return false
}

func TestAChildOfRootIsAtBestAsserted(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		launcher := m.start(command{})
		rootAgent := m.start(command{})
		rootAgent.attach("planner", rootAgent)
		if _, b := rootAgent.isolated("worker", launcher); b.Grade != "asserted" {
			t.Errorf("a parent that is root reaches its child, which is graded %s", b.Grade)
		}
	})
}

func TestWithoutPeerPidfdNobodyIsAttested(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t, func(c *issuer.Config) { c.IgnorePeerPidfd = true })
		launcher := m.start(command{})
		if _, a := launcher.isolated("planner", launcher); a.Grade != "asserted" {
			t.Errorf("graded %s by SO_PEERCRED alone", a.Grade)
		}
	})
}

func TestTicketsOfUnisolatedAgentsBindUIDAndPlace(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		root := m.start(command{})
		user := m.start(command{UID: userUID, GID: userUID, SetIDs: true})
		reg := user.must(command{Op: "register", Name: "planner"})
		root.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "uid")

		a := user.attach("planner", user)
		reg = user.must(command{Op: "register", Name: "worker"})
		root.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "inside")
		other := m.start(command{UID: userUID, GID: userUID, SetIDs: true})
		reg = user.must(command{Op: "register", Name: "worker"})
		other.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "inside")

		// A ticket for the first level is no way out for a process inside an agent.
		reg = other.must(command{Op: "register", Name: "planner"})
		user.start(command{}).refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "first-level")
		m.alive(a.ID)
	})
}

func TestACgroupOfItsOwnMarksAnAgent(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		dir, path := m.cgroup("planner")
		if dir == "" {
			// No cgroup of version 2 here: then no agent has one of its own, and uid and ancestry carry it alone.
			launcher := m.start(command{})
			_, a := launcher.isolated("planner", launcher)
			if _, e, err := actor.GradeFromCertificate(certificate(t, a.SVID)); err != nil || a.Grade != "attested" {
				t.Errorf("%v %+v", err, e)
			}
			return
		}
		launcher, outside := m.start(command{}), m.start(command{})
		planner, a := launcher.isolated("planner", launcher, func(c *command) { c.Cgroup = dir })
		if _, e, err := actor.GradeFromCertificate(certificate(t, a.SVID)); err != nil || e.Cgroup != path || a.Grade != "attested" {
			t.Fatalf("evidence %+v %v, want the cgroup %s", e, err, path)
		}
		// A process of root in that cgroup, which no agent is an ancestor of (a set-uid program whose parents are gone).
		escaped := m.start(command{Cgroup: dir})
		if r := m.where(outside, escaped); r.ID != a.ID || r.Super {
			t.Errorf("a process in the agent's cgroup stands at %+v", r)
		}
		escaped.refused(command{Op: "register", Name: "planner"}, "PermissionDenied", "supervisor")
		reg := launcher.must(command{Op: "register", Name: "planner", Isolate: true})
		escaped.refused(command{Op: "claim", Ticket: reg.Ticket}, "PermissionDenied", "inside")
		planner.kill()
		m.gone(a.ID)
		escaped.refused(command{Op: "register", Name: "planner"}, "FailedPrecondition", "ended")

		// The launcher's own cgroup is nobody's: a supervisor that shares it doesn't make it the agent's.
		shared, _ := m.cgroup("shared")
		crowd := m.start(command{Cgroup: shared})
		_, b := crowd.isolated("planner", crowd, func(c *command) { c.Cgroup = shared })
		if r := m.where(outside, crowd); r.ID != "" || r.Code != ok {
			t.Errorf("the launcher stands at %+v after %s attached in its cgroup", r, b.ID)
		}
	})
}

func TestWithoutARangeNobodyIsIsolated(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) { c.UIDs = spawn.UIDRange{} })
	m.start(command{}).refused(command{Op: "register", Name: "planner", Isolate: true}, "FailedPrecondition", "agent_uids")
}

func TestARestartKeepsUIDsCgroupsAndGrades(t *testing.T) {
	needsRoot(t, func(t *testing.T) {
		m := newMesh(t)
		dir, _ := m.cgroup("kept")
		launcher, outside := m.start(command{}), m.start(command{})
		planner, a := launcher.isolated("planner", launcher, func(c *command) { c.Cgroup = dir })
		daemon := planner.start(command{Orphan: true})
		m.restart()
		// Nobody has resumed yet, and still the daemon isn't outside.
		if r := m.where(outside, daemon); r.ID != a.ID || r.Super {
			t.Errorf("the daemon stands at %+v", r)
		}
		if r := planner.must(command{Op: "attach", Stream: "own", ID: a.ID}); r.Grade != "attested" {
			t.Errorf("resumed as %s", r.Grade)
		}
		for range agentUIDs.Last - agentUIDs.First {
			reg := launcher.must(command{Op: "register", Name: "planner", Isolate: true})
			if r := launcher.must(command{Op: "claim", Ticket: reg.Ticket}); r.UID == a.UID {
				t.Fatalf("uid %d was given to another agent", r.UID)
			}
		}
		if dir != "" {
			escaped := m.start(command{Cgroup: dir})
			if r := m.where(outside, escaped); r.ID != a.ID {
				t.Errorf("a process in the cgroup stands at %+v", r)
			}
		}
	})
}
