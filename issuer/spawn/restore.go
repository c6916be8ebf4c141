package spawn

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"golang.org/x/time/rate"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer/attest"
)

// record is an agent as it is kept. The caller holds s.mu, or nobody else has the agent yet.
func (a *agent) record(boot string) Record {
	r := Record{
		ID: a.id, Registered: a.registered, Isolate: a.isolate, Claimed: a.claimed, UID: a.uid,
		Registrant: a.registrant, LauncherCgroup: a.launcherCgroup,
		Relayed: a.relayed, Cgroup: a.cgroup, Grade: a.grade, ProcUID: a.procUID,
	}
	if a.process != nil {
		r.Attached, r.BootID, r.PID, r.Start = true, boot, a.process.PID(), a.process.StartTime()
	}
	return r
}

// restore takes up what the store kept, before anybody is served. Whoever can't be taken up ends.
func (s *Server) restore(ctx context.Context) error {
	records, err := s.store.Load(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := map[actor.AgentID]*agent{}
	var lost []*agent
	for _, r := range records {
		a, err := s.revive(r, known)
		if err != nil {
			return fmt.Errorf("agent %s: %w", r.ID, err)
		}
		if a == nil {
			continue
		}
		known[a.id] = a
		if a.state == ended {
			continue
		}
		if a.process == nil {
			lost = append(lost, a)
			continue
		}
		a.state = broken
		s.endAfter(a, s.grace, ReasonLost)
	}
	for _, a := range lost {
		reason := ReasonLost
		if a.key == nil {
			reason = ReasonExpired
		}
		s.endLocked(a, reason) // unless an agent above it took it along
	}
	return nil
}

// revive puts one kept agent back: into the tree if it lives, as a mark if it has ended and its process hasn't. The caller
// holds s.mu.
func (s *Server) revive(r Record, known map[actor.AgentID]*agent) (*agent, error) {
	a := &agent{
		id: r.ID, isolate: r.Isolate, registrant: r.Registrant, registered: r.Registered, claimed: r.Claimed, uid: r.UID,
		launcherCgroup: r.LauncherCgroup, relayed: r.Relayed, procUID: r.ProcUID, cgroup: r.Cgroup, grade: r.Grade,
		done: make(chan struct{}), children: map[*agent]struct{}{},
		renewals: rate.NewLimiter(renewalsPerSecond, renewalBurst),
	}
	if r.Ended {
		a.state, a.reason = ended, ReasonLost
		close(a.done)
		if !s.rehold(a, r) {
			s.writer.forget(a.id)
			return nil, nil
		}
		if a.cgroup != "" {
			s.cgroups[a.cgroup] = a
			s.oldPaths = append(s.oldPaths, a.cgroup)
		}
		return a, nil
	}
	if parent, ok := a.id.Parent(); ok {
		if a.parent = known[parent]; a.parent == nil || a.parent.state == ended {
			// It was named while the agent above it ended.
			s.writer.end([]actor.AgentID{a.id}, ReasonAncestor, s.now())
			return nil, nil
		}
		a.root = a.parent.root
		a.parent.children[a] = struct{}{}
	} else {
		a.root, a.spawns = a, s.limits.newPace()
		s.firsts[a.registrant]++
	}
	a.root.size++
	s.agents[a.id] = a
	if a.claimed {
		s.uids[a.uid] = a
	}
	if !r.Attached {
		return a, nil
	}
	pub, err := x509.ParsePKIXPublicKey(r.Key)
	if err != nil {
		return nil, fmt.Errorf("its key: %w", err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("its key is a %T", pub)
	}
	a.key = key
	a.digest = sha256.Sum256(r.Key)
	s.keys[a.digest] = a
	if a.cgroup != "" {
		s.cgroups[a.cgroup] = a
	}
	if a.relayed {
		a.process = a.parent.process
		return a, nil
	}
	s.rehold(a, r)
	return a, nil
}

// rehold finds the process of a kept agent, if it is still the same one. The caller holds s.mu.
func (s *Server) rehold(a *agent, r Record) bool {
	if !r.Attached || r.Relayed || r.BootID != s.bootID {
		return false
	}
	p, err := attest.Open(r.PID)
	if err != nil {
		return false
	}
	if p.StartTime() != r.Start {
		p.Close()
		return false
	}
	s.hold(a, p)
	return true
}
