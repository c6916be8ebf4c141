package spawn

import (
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer/attest"
)

// judgeNew grades a supervisor that brings an agent's ticket, or refuses it. The caller holds s.mu.
func (s *Server) judgeNew(a *agent, relayed bool, at place, attrs attest.Attributes) (actor.Grade, error) {
	denied := func(format string, args ...any) (actor.Grade, error) {
		return "", refuse(codes.PermissionDenied, classIsolation, format, args...)
	}
	switch {
	case relayed:
		// An in-process sub-agent: its parent's supervisor speaks for it, so nothing can be said about it.
		if a.parent == nil || !at.supervisor || at.agent != a.parent {
			return denied("only the supervisor of the parent may relay a sub-agent's request")
		}
		if a.isolate {
			return denied("the agent was registered with isolation, which a relayed sub-agent can't have")
		}
		return actor.Asserted, nil

	case at.supervisor:
		return "", refuse(codes.PermissionDenied, classLineage, "the caller is the supervisor of %s already", at.agent.id)

	case a.isolate:
		return s.judgeIsolated(a, at, attrs)

	case a.parent == nil:
		if !at.outside() {
			return denied("the caller is inside the agent %s, but the ticket is for a first-level agent", at.agent.id)
		}
		if attrs.UID != a.registrant || !attrs.OneUID() {
			return denied("the caller runs as uid %d, but uid %d registered the agent", attrs.UID, a.registrant)
		}
		return actor.Asserted, nil

	default:
		if at.agent != a.parent {
			return denied("the caller isn't inside the parent agent %s", a.parent.id)
		}
		if attrs.UID != a.parent.procUID || !attrs.OneUID() {
			return denied("the caller runs as uid %d, its parent's supervisor as uid %d; a child under another uid is registered with isolation", attrs.UID, a.parent.procUID)
		}
		return actor.Asserted, nil
	}
}

// judgeIsolated grades a supervisor under a claimed uid. The caller holds s.mu.
func (s *Server) judgeIsolated(a *agent, at place, attrs attest.Attributes) (actor.Grade, error) {
	denied := func(format string, args ...any) (actor.Grade, error) {
		return "", refuse(codes.PermissionDenied, classIsolation, format, args...)
	}
	if !a.claimed {
		return denied("the agent was registered with isolation, and no launcher has claimed a uid for it")
	}
	// All four: a process that could still change back to another uid isn't isolated from it. The connection's own
	// uid too: it was opened under it.
	if attrs.UID != a.uid || !attrs.OneUID() || attrs.GID != a.uid || !attrs.OneGID() {
		return denied("the caller must run under uid and gid %d alone (real, effective, saved and file-system); it runs under uids %v and gids %v", a.uid, attrs.UIDs, attrs.GIDs)
	}
	if !attrs.SharedUserNamespace {
		return denied("the caller lives in another user namespace, whose owner can enter it")
	}
	// Uids are used again: with a set-uid file that an ended agent left behind, this one could become its successor there.
	if !attrs.NoNewPrivileges {
		return denied("the caller could still gain from set-uid programs; the launcher must start it with no_new_privs")
	}
	if at.ancestry != nil {
		return denied("the caller descends from the supervisor of %s; a launcher outside every agent must start it", at.ancestry.id)
	}
	// The agent's own cgroup may lie in that of an agent above it, so that both are killed together; it gives no reach.
	if at.agent != a || at.cgroup != nil && !a.within(at.cgroup) {
		return denied("the caller is inside another agent")
	}
	if !attrs.Exact {
		return actor.Asserted, nil // the pid may have changed hands between connect and pidfd_open
	}
	for p := a.parent; p != nil; p = p.parent {
		if p.procUID == 0 {
			return actor.Asserted, nil // root reaches everybody
		}
	}
	return actor.Attested, nil
}

// judgeAgain holds a supervisor to what it was when it attached: a process changes by exec and setuid, an agent doesn't.
// A grade never rises. The caller holds s.mu.
func (s *Server) judgeAgain(a *agent, at place, attrs attest.Attributes) (actor.Grade, error) {
	holder := a
	if a.relayed {
		holder = a.parent
	}
	if !at.supervisor || at.agent != holder {
		return "", refuse(codes.PermissionDenied, classNotSuper, "the caller is no longer the supervisor of %s", holder.id)
	}
	if attrs.UID != a.procUID || !attrs.OneUID() {
		return "", refuse(codes.PermissionDenied, classIsolation, "the supervisor attached as uid %d and runs under uids %v now", a.procUID, attrs.UIDs)
	}
	if a.grade == actor.Attested && (!attrs.Exact || !attrs.SharedUserNamespace || !attrs.OneGID()) {
		return actor.Asserted, nil
	}
	return a.grade, nil
}

// evidence is what stands in the SVID. What can't be said in a certificate is left out, never bent.
func evidence(attrs attest.Attributes) actor.Evidence {
	e := actor.Evidence{Kind: "unix", UID: attrs.UID, GID: attrs.GID, Cgroup: printable(attrs.Cgroup)}
	if x := attrs.Executable; x != nil {
		e.Path, e.SHA256 = printable(x.Path), hex.EncodeToString(x.SHA256[:])
	}
	return e
}

// printable returns a path that a certificate can carry as text, or nothing.
func printable(s string) string {
	const longest = 1024
	if len(s) > longest || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}

// ownCgroup returns the supervisor's cgroup if it is the agent's alone: made for it by the launcher, which stands outside.
// A cgroup that the launcher, the issuer or another agent shares says nothing about who is inside. The caller holds s.mu.
func (s *Server) ownCgroup(a *agent, attrs attest.Attributes) string {
	p := attrs.Cgroup
	if !a.claimed || p == "" || p == "/" || !strings.HasPrefix(p, "/") || strings.Contains(p, "/..") {
		return ""
	}
	if old := s.cgroups[p]; old != nil && old.state != ended {
		return ""
	}
	for _, shared := range []string{a.launcherCgroup, s.ownPath} {
		if shared == p || strings.HasPrefix(shared, p+"/") {
			return ""
		}
	}
	return p
}
