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

// Apply takes one update of the feed and returns how many live sessions it ended. What is wrong with a
// key or a policy set is reported and left out; an error means that the update as a whole can't be
// believed or kept, and that the stream must end. Revocations take effect even then, since they can only
// take away, unless the feed went back.
func (s *State) Apply(ctx context.Context, u feed.Update) (ended int, err error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := s.order(u); err != nil {
		return 0, err
	}
	if u.Kind == feed.Heartbeat {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.freshen(u)
		return 0, nil
	}

	// 1. Revocations first: nothing that follows may delay them.
	ended = s.revoke(u)

	// 2. Keys, each under the certifying key.
	s.addKeys(ctx, u)

	// 3. The policy set, on disk before it is in force, so that its version can't fall over a restart.
	set := s.openPolicy(ctx, u.PolicySet)
	kept := keptState{Revision: u.Revision}
	s.mu.RLock()
	kept.PolicyVersion = s.kept.PolicyVersion
	s.mu.RUnlock()
	if set != nil {
		if err := writePolicy(s.cfg.Dir, u.PolicySet); err != nil {
			return ended, fmt.Errorf("keeping policy set %d: %w", set.Version(), err)
		}
		kept.PolicyVersion = set.Version()
	}
	if err := writeKept(s.cfg.Dir, kept); err != nil {
		return ended, fmt.Errorf("keeping revision %d of the feed: %w", u.Revision, err)
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
	return ended, nil
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

func (s *State) revoke(u feed.Update) int {
	s.mu.Lock()
	// A snapshot takes nothing back: what was once revoked stays so until its time is over (forget), whatever a
	// broker leaves out later.
	type change struct {
		revocation feed.Revocation
		ended      int
	}
	var changes []change
	ended := 0
	for _, r := range u.Revocations {
		until, old := s.revoked[r.Of]
		if !old || r.ExpiresAt.After(until) {
			s.revoked[r.Of] = r.ExpiresAt
		}
		n := s.end(r.Of)
		ended += n
		if n > 0 || (!old && u.Kind == feed.Delta) {
			changes = append(changes, change{r, n})
		}
	}
	for _, a := range u.Ended {
		// The feed's conversion checked the id; one that is no agent matches nothing.
		m := feed.Match{Kind: feed.Agent, Value: a.ID}
		s.revoked[m] = s.cfg.Now().Add(keepEnded)
		ended += s.end(m)
	}
	s.mu.Unlock()
	for _, c := range changes {
		until := c.revocation.ExpiresAt.UTC()
		m := c.revocation.Of
		s.record(&audit.Revoked{
			ID: c.revocation.ID, Kind: string(m.Kind), Issuer: m.Issuer, Value: m.Value, Delegate: m.Delegate,
			Reason: c.revocation.Reason, Until: &until, Revision: int64(u.Revision), Sessions: c.ended,
		})
	}
	return ended
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
