package spawn

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/issuer/attest"
)

// place is where a process stands in the tree.
type place struct {
	agent      *agent // the innermost agent; nil: outside every agent
	supervisor bool   // it is that agent's registered supervisor
	ancestry   *agent // by ancestors alone
	cgroup     *agent // by cgroup alone
}

// outside says that no fact puts the process into an agent.
func (p place) outside() bool { return p.agent == nil }

// placeAttempts bounds how often a place is looked for again because a supervisor died meanwhile.
const placeAttempts = 8

// place says where a process stands now. An error means that it has no place: refuse it, never take it for outside.
func (s *Server) place(p *attest.Process) (place, error) {
	for range placeAttempts {
		s.mu.Lock()
		before := s.removals
		s.mu.Unlock()
		chain, err := attest.Ancestry(p)
		if err != nil {
			return place{}, noPlace(err)
		}
		attrs, err := s.attestor.Place(p)
		if err != nil {
			return place{}, noPlace(err)
		}
		s.mu.Lock()
		if s.removals != before {
			s.mu.Unlock()
			continue
		}
		found, err := s.find(chain, attrs)
		s.mu.Unlock()
		return found, err
	}
	return place{}, noPlace(errors.New("supervisors come and go too fast"))
}

func noPlace(err error) error {
	if errors.Is(err, attest.ErrDead) {
		return refuse(codes.FailedPrecondition, classNoPlace, "the process has ended")
	}
	return refuse(codes.FailedPrecondition, classNoPlace, "the process can't be placed: %v", err)
}

// find combines ancestry, cgroup and uids. The caller holds s.mu.
func (s *Server) find(chain []attest.Ancestor, attrs attest.Attributes) (place, error) {
	var out place
	for i, anc := range chain {
		if a := s.held[anc]; a != nil {
			out.ancestry, out.supervisor = a, i == 0
			break
		}
	}
	if attrs.Cgroup != "" {
		// Not cleaned: a path above our cgroup namespace begins with /.. and must not be mistaken for one below.
		for p := attrs.Cgroup; p != ""; p = p[:max(strings.LastIndexByte(p, '/'), 0)] {
			if a := s.cgroups[p]; a != nil {
				out.cgroup = a
				break
			}
		}
	}
	candidates := []*agent{out.ancestry, out.cgroup}
	for _, uid := range append(attrs.UIDs[:], attrs.UID) {
		if !s.uidRange.Contains(uid) {
			continue
		}
		a := s.uids[uid]
		if a == nil {
			return place{}, refuse(codes.FailedPrecondition, classNoPlace, "the process runs under uid %d, which is kept for agents and belongs to no live one", uid)
		}
		candidates = append(candidates, a)
	}
	for _, a := range candidates {
		if a == nil {
			continue
		}
		if a.state == ended {
			return place{}, refuse(codes.FailedPrecondition, classNoPlace, "the process belongs to the agent %s, which has ended", a.id)
		}
		switch {
		case out.agent == nil || a.within(out.agent):
			out.agent = a
		case !out.agent.within(a):
			return place{}, refuse(codes.FailedPrecondition, classNoPlace, "ancestors, cgroup and uid of the process speak for different agents, %s and %s", out.agent.id, a.id)
		}
	}
	// A supervisor by ancestry, but deeper inside by uid or cgroup: not this agent's.
	out.supervisor = out.supervisor && out.ancestry == out.agent
	return out, nil
}

// Inside says whether a peer is inside an agent. An error means that it has no place.
func (s *Server) Inside(_ context.Context, p *attest.Peer) (bool, error) {
	at, err := s.place(p.Process)
	return !at.outside(), err
}
