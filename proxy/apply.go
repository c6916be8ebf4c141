package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/policy"
)

// Errors of a feed that can't be believed. Both end the stream; a new one begins with a snapshot.
var (
	// ErrRollback says that the broker is behind what this proxy has seen already.
	ErrRollback = errors.New("the broker's feed went back")
	// ErrGap says that the broker left out a revision, which may have held a revocation.
	ErrGap = errors.New("the broker's feed left something out")
)

// keepEnded is how long the end of an agent is remembered: longer than any SVID lives, as the broker does.
const keepEnded = 4 * time.Hour

// Apply takes one update of the feed and returns how many live sessions it ended: Hear, and then Keep.
func (s *State) Apply(ctx context.Context, u feed.Update) (ended int, err error) {
	return s.Keep(ctx, s.Hear(u))
}

// Heard is an update whose revocations are in force.
type Heard struct {
	update feed.Update
	ended  int
}

// maxUnrecorded bounds the records that wait for a Keep.
const maxUnrecorded = 4096

// Hear puts the revocations of an update in force, at once: it waits for no disk and for no update before it. They take effect
// even where the update as a whole can't be believed, since they can only take away, unless the feed went back.
func (s *State) Hear(u feed.Update) Heard {
	h := Heard{update: u}
	if u.Kind != feed.Heartbeat {
		h.ended = s.revoke(u)
	}
	return h
}

// Keep takes the rest of an update, one at a time, in their order, and returns how many live sessions it had ended. What is
// wrong with a key or a policy set is reported and left out; an error means that the update as a whole can't be
// believed or kept, and that the stream must end.
func (s *State) Keep(ctx context.Context, h Heard) (ended int, err error) {
	u := h.update
	s.applying.Lock()
	defer s.applying.Unlock()
	s.recordRevoked()
	if err := s.order(u); err != nil {
		return h.ended, err
	}
	if u.Kind == feed.Heartbeat {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.freshen(u)
		return 0, nil
	}

	// 1. Keys, each under the certifying key.
	s.addKeys(ctx, u)

	// 2. The policy set, on disk before it is in force, so that its version can't fall over a restart.
	set := s.openPolicy(ctx, u.PolicySet)
	kept := keptState{Revision: u.Revision}
	s.mu.RLock()
	kept.PolicyVersion = s.kept.PolicyVersion
	s.mu.RUnlock()
	if set != nil {
		if err := writePolicy(s.cfg.Dir, u.PolicySet); err != nil {
			return h.ended, fmt.Errorf("keeping policy set %d: %w", set.Version(), err)
		}
		kept.PolicyVersion = set.Version()
	}
	if err := writeKept(s.cfg.Dir, kept); err != nil {
		return h.ended, fmt.Errorf("keeping revision %d of the feed: %w", u.Revision, err)
	}

	s.mu.Lock()
	s.kept = kept
	if set != nil {
		s.policy = set
	}
	if u.Kind == feed.Snapshot {
		s.complete = true
	}
	s.freshen(u)
	s.mu.Unlock()
	if set != nil {
		s.record(&audit.PolicyLoaded{Result: audit.Accepted, Version: int64(set.Version()), Digest: audit.Digest(set.Digest())})
	}
	return h.ended, nil
}

// order refuses what would take the proxy back in time, and deltas without a snapshot.
func (s *State) order(u feed.Update) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case u.Revision < s.kept.Revision:
		return fmt.Errorf("%w: it is at revision %d, this proxy has applied %d", ErrRollback, u.Revision, s.kept.Revision)
	case u.Kind == feed.Delta && u.Revision == s.kept.Revision:
		return fmt.Errorf("%w: a delta repeats revision %d", ErrRollback, u.Revision)
	case u.Kind != feed.Snapshot && !s.complete:
		return errors.New("the broker's feed must begin with a snapshot")
	case u.Kind == feed.Delta && u.Revision != s.kept.Revision+1, u.Kind == feed.Heartbeat && u.Revision != s.kept.Revision:
		return fmt.Errorf("%w: it is at revision %d, this proxy has applied %d", ErrGap, u.Revision, s.kept.Revision)
	}
	return nil
}

// freshen needs the lock. A message is as fresh as it was sent, so that one that was held back on the way
// doesn't pass for news; a sender's clock that is ahead gains nothing.
func (s *State) freshen(u feed.Update) {
	now := s.cfg.Now()
	fresh := now
	if u.SentAt.Before(now) {
		fresh = now.Add(-now.Sub(u.SentAt))
	}
	if fresh.After(s.heard) {
		s.heard = fresh
	}
}

// revoke ends what an update revokes, and leaves what is news to be recorded.
func (s *State) revoke(u feed.Update) (ended int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.Revision < s.kept.Revision {
		return 0
	}
	// A snapshot takes nothing back: what was once revoked stays so until its time is over (forget), whatever a
	// broker leaves out later.
	for _, r := range u.Revocations {
		until, old := s.revoked[r.Of]
		if !old || r.ExpiresAt.After(until) {
			s.revoked[r.Of] = r.ExpiresAt
		}
		n := s.end(r.Of)
		ended += n
		if news := n > 0 || (!old && u.Kind == feed.Delta); news && len(s.unrecorded) < maxUnrecorded {
			until := r.ExpiresAt.UTC()
			s.unrecorded = append(s.unrecorded, &audit.Revoked{
				ID: r.ID, Kind: string(r.Of.Kind), Issuer: r.Of.Issuer, Value: r.Of.Value, Delegate: r.Of.Delegate,
				Reason: r.Reason, Until: &until, Revision: int64(u.Revision), Sessions: n,
			})
		}
	}
	for _, a := range u.Ended {
		// The feed's conversion checked the id; one that is no agent matches nothing.
		m := feed.Match{Kind: feed.Agent, Value: a.ID}
		s.revoked[m] = s.cfg.Now().Add(keepEnded)
		ended += s.end(m)
	}
	return ended
}

// recordRevoked records what was heard since the last time.
func (s *State) recordRevoked() {
	s.mu.Lock()
	list := s.unrecorded
	s.unrecorded = nil
	s.mu.Unlock()
	for _, e := range list {
		s.record(e)
	}
}

// end needs the lock.
func (s *State) end(m feed.Match) int {
	if s.listener == nil {
		return 0
	}
	return s.listener([]feed.Match{m})
}

func (s *State) addKeys(ctx context.Context, u feed.Update) {
	now := s.cfg.Now()
	fresh := map[string]tokenKey{}
	for _, raw := range u.TokenKeyStatements {
		k, err := actor.ParseKeyStatement(raw, s.cfg.Certifying, s.cfg.Mesh)
		if err != nil {
			s.report(ctx, "the broker sent a token key that isn't certified for this mesh", err)
			s.cfg.Log.Count("token_key")
			continue
		}
		fresh[k.KeyID()] = tokenKey{k, raw}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.Kind != feed.Snapshot {
		for kid, k := range s.keys {
			if _, ok := fresh[kid]; !ok && now.Before(k.statement.Expires.Add(actor.Skew)) {
				fresh[kid] = k
			}
		}
	}
	if len(fresh) > maxTokenKeys {
		s.report(ctx, "the broker sent too many token keys; the old ones stay", fmt.Errorf("%d keys, at most %d", len(fresh), maxTokenKeys))
		return
	}
	s.keys = fresh
}

// openPolicy returns a set that may replace the one in force, or nil: then the old one stays.
func (s *State) openPolicy(ctx context.Context, signed string) *policy.Set {
	if signed == "" {
		return nil
	}
	s.mu.RLock()
	lowest, current, wrong := s.kept.PolicyVersion, s.policy, s.lastWrong
	s.mu.RUnlock()
	set, err := policy.Open(signed, s.cfg.PolicyKeys, lowest)
	if err == nil && current != nil && set.Version() == current.Version() {
		if set.Digest() == current.Digest() {
			return nil
		}
		err = fmt.Errorf("two different policy sets bear version %d; raise the version with every change", set.Version())
	}
	if err == nil {
		return set
	}
	s.report(ctx, "the broker sent a policy set that isn't good; the one in force stays", err)
	if signed != wrong {
		s.record(&audit.PolicyLoaded{Result: audit.Refusal, Reason: clip(err.Error(), 4096)})
		s.mu.Lock()
		s.lastWrong = signed
		s.mu.Unlock()
	}
	return nil
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
