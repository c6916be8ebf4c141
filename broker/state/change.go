package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/deputymesh/deputy/internal/feed"
)

// OpenSession lays a session down. If there is one of that txn already it is returned instead, and the
// caller compares. record is called once, before anything is written, for the session that will be
// opened; its error refuses.
func (s *State) OpenSession(ctx context.Context, want Session, record func() error) (Session, bool, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	if have, ok, err := s.Session(want.Txn); err != nil || ok {
		return have, false, err
	}
	if err := record(); err != nil {
		return Session{}, false, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.commit(ctx, Change{Open: &want}); err != nil {
		return Session{}, false, err
	}
	return want, true, nil
}

// BareSession finds the live session on the broker's word of one sign-in and first agent.
func (s *State) BareSession(rootHash string, agent feed.Match, now time.Time) (Session, bool, error) {
	all, err := s.SessionsOf(agent)
	if err != nil {
		return Session{}, false, err
	}
	for _, have := range all {
		if have.Bare() && have.RootHash == rootHash && have.EndedAt.IsZero() && now.Before(have.Ends) {
			return have, true, nil
		}
	}
	return Session{}, false, nil
}

// OpenBareSession is OpenSession for a session that is named by sign-in and agent instead of a txn.
func (s *State) OpenBareSession(ctx context.Context, want Session, record func() error) (Session, bool, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	agent := feed.Match{Kind: feed.Agent, Value: want.FirstAgent.String()}
	if have, ok, err := s.BareSession(want.RootHash, agent, s.now()); err != nil || ok {
		return have, false, err
	}
	if err := record(); err != nil {
		return Session{}, false, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.commit(ctx, Change{Open: &want}); err != nil {
		return Session{}, false, err
	}
	return want, true, nil
}

// Revoke puts a revocation in force and ends the sessions that it concerns for good. record is called before anything is
// written, with the revision that it will have; its error refuses. Of r the revision is filled in.
func (s *State) Revoke(ctx context.Context, r Revocation, record func(Revocation, []Session) error) (Revocation, error) {
	if err := r.Of.Check(); err != nil {
		return Revocation{}, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	ends, err := s.living(r.Of)
	if err != nil {
		return Revocation{}, err
	}
	r.Revision = s.revision + 1
	if err := record(r, ends); err != nil {
		return Revocation{}, err
	}
	return r, s.commit(ctx, Change{Revision: r.Revision, Revocation: &r, End: txns(ends), EndAt: r.IssuedAt})
}

// EndAgent says that an agent is no more, and returns the sessions that ended with it. One that is known to have
// ended already changes nothing.
func (s *State) EndAgent(ctx context.Context, e EndedAgent) ([]Session, error) {
	s.write.Lock()
	defer s.write.Unlock()
	db := s.reader()
	if db == nil {
		if err := s.load(ctx); err != nil {
			return nil, err
		}
		db = s.reader()
	}
	known, err := db.Txn(false).First(tableEnded, byID, e.ID)
	if err != nil {
		return nil, fmt.Errorf("looking for ended agents: %w", err)
	}
	if known != nil {
		return nil, nil
	}
	ends, err := s.living(feed.Match{Kind: feed.Agent, Value: e.ID})
	if err != nil {
		return nil, err
	}
	e.Revision = s.revision + 1
	return ends, s.commit(ctx, Change{Revision: e.Revision, Ended: &e, End: txns(ends), EndAt: e.EndedAt})
}

// IssuerRevision is up to where the issuer's ended agents are known.
func (s *State) IssuerRevision() uint64 {
	s.write.Lock()
	defer s.write.Unlock()
	return s.issuerRevision
}

// ForgetIssuerRevision makes the next reading of the issuer's ended agents start at the beginning.
func (s *State) ForgetIssuerRevision(ctx context.Context) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.commit(ctx, Change{ForgetIssuer: true})
}

// ErrOldPolicy says that a set isn't newer than the one in force.
var ErrOldPolicy = errors.New("the policy set is not newer than the one in force")

// PublishPolicy puts a set in force whose version is greater than the last. record is called before anything is written.
func (s *State) PublishPolicy(ctx context.Context, p Policy, record func() error) (revision uint64, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	if have := s.Policy(); have != nil && p.Version <= have.Version {
		return 0, fmt.Errorf("%w: version %d, in force is %d", ErrOldPolicy, p.Version, have.Version)
	}
	if err := record(); err != nil {
		return 0, err
	}
	revision = s.revision + 1
	return revision, s.commit(ctx, Change{Revision: revision, Policy: &p})
}

// UseProof uses up a proof; ErrReplayed if it was used before.
func (s *State) UseProof(ctx context.Context, p Proof) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.commit(ctx, Change{Proof: &p})
}

// Sweep forgets what is over, and returns the sessions that ended by themselves.
func (s *State) Sweep(ctx context.Context) ([]Session, error) {
	s.write.Lock()
	defer s.write.Unlock()
	now := s.now()
	db := s.reader()
	if db == nil {
		return nil, s.load(ctx)
	}
	it, err := db.Txn(false).Get(tableSessions, byID)
	if err != nil {
		return nil, fmt.Errorf("looking for sessions: %w", err)
	}
	var expired []Session
	for row := it.Next(); row != nil; row = it.Next() {
		if have := row.(*Session); have.Ends.Before(now) && have.EndedAt.IsZero() {
			expired = append(expired, *have)
		}
	}
	return expired, s.commit(ctx, Change{Forget: now, ForgetEnded: now.Add(-KeepEnded)})
}

// living lists the sessions that a revocation ends.
func (s *State) living(m feed.Match) ([]Session, error) {
	all, err := s.SessionsOf(m)
	if err != nil {
		return nil, err
	}
	out := all[:0]
	for _, have := range all {
		if have.EndedAt.IsZero() {
			out = append(out, have)
		}
	}
	return out, nil
}

func txns(sessions []Session) []string {
	var out []string
	for _, have := range sessions {
		out = append(out, have.Txn)
	}
	return out
}
