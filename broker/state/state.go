package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/feed"
)

// KeepEnded is how long an ended agent is remembered: longer than any SVID lives, and no longer, since
// agents that come and go fast must not fill the snapshot of the proxies.
const KeepEnded = 4 * time.Hour

// State answers for the broker. Safe for concurrent use.
type State struct {
	store  Store
	now    func() time.Time
	logger *slog.Logger

	// opening serialises the opening of sessions, so that each is recorded once. It is taken before write.
	opening sync.Mutex
	// write serialises commits with the memory that follows them.
	write          sync.Mutex
	revision       uint64
	issuerRevision uint64
	subscribers    map[*Subscription]struct{}

	mu     sync.RWMutex
	db     *memdb.MemDB // nil while memory isn't in step with the store
	policy *Policy
}

// Open reads the whole state from the store.
func Open(ctx context.Context, store Store, now func() time.Time, logger *slog.Logger) (*State, error) {
	s := &State{store: store, now: now, logger: logger, subscribers: make(map[*Subscription]struct{})}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// load fills memory. The caller holds write, or is alone.
func (s *State) load(ctx context.Context) error {
	c, err := s.store.Load(ctx)
	if err != nil {
		return fmt.Errorf("reading the broker's state: %w", err)
	}
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		return fmt.Errorf("making the read model: %w", err)
	}
	txn := db.Txn(true)
	defer txn.Abort()
	for i := range c.Sessions {
		err = errors.Join(err, txn.Insert(tableSessions, &c.Sessions[i]))
	}
	for i := range c.Revocations {
		err = errors.Join(err, txn.Insert(tableRevocations, &c.Revocations[i]))
	}
	for i := range c.Ended {
		err = errors.Join(err, txn.Insert(tableEnded, &c.Ended[i]))
	}
	if err != nil {
		return fmt.Errorf("filling the read model: %w", err)
	}
	txn.Commit()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.db, s.policy, s.revision, s.issuerRevision = db, c.Policy, c.Revision, c.IssuerRevision
	return nil
}

// commit makes c durable and then visible. The caller holds write.
func (s *State) commit(ctx context.Context, c Change) error {
	if s.reader() == nil {
		if err := s.load(ctx); err != nil {
			return err
		}
	}
	// A change that was decided on is carried through even if who asked for it hangs up.
	err := s.store.Commit(context.WithoutCancel(ctx), c)
	if err == nil {
		return s.apply(c)
	}
	if errors.Is(err, ErrExists) || errors.Is(err, ErrReplayed) {
		return err
	}
	s.desync(ctx)
	return fmt.Errorf("writing the broker's state: %w", err)
}

// desync is for when memory may differ from the store: everybody starts again from what the store has.
func (s *State) desync(ctx context.Context) {
	s.mu.Lock()
	s.db = nil
	s.mu.Unlock()
	for sub := range s.subscribers {
		s.cut(sub)
	}
	if err := s.load(context.WithoutCancel(ctx)); err != nil {
		s.logger.ErrorContext(ctx, "state is unavailable; everything is refused until it can be read", "error", err)
	}
}

// apply brings memory in step with a committed change and tells the subscribers.
func (s *State) apply(c Change) error {
	txn := s.reader().Txn(true)
	defer txn.Abort()
	var err error
	if c.Open != nil {
		err = errors.Join(err, txn.Insert(tableSessions, c.Open))
	}
	for _, id := range c.End {
		row, e := txn.First(tableSessions, byID, id)
		err = errors.Join(err, e)
		if old, ok := row.(*Session); ok && old.EndedAt.IsZero() {
			ended := *old
			ended.EndedAt = c.EndAt
			err = errors.Join(err, txn.Insert(tableSessions, &ended))
		}
	}
	if c.Revocation != nil {
		err = errors.Join(err, txn.Insert(tableRevocations, c.Revocation))
	}
	if c.Ended != nil {
		err = errors.Join(err, txn.Insert(tableEnded, c.Ended))
	}
	if !c.Forget.IsZero() {
		err = errors.Join(err, forget(txn, c))
	}
	if err != nil {
		s.desync(context.Background())
		return fmt.Errorf("updating the read model: %w", err)
	}
	txn.Commit()
	if c.Ended != nil {
		s.issuerRevision = max(s.issuerRevision, c.Ended.IssuerRevision)
	}
	if c.ForgetIssuer {
		s.issuerRevision = 0
	}
	if c.Policy != nil {
		s.mu.Lock()
		s.policy = c.Policy
		s.mu.Unlock()
	}
	if c.Revision != 0 {
		s.revision = c.Revision
		s.publish(c)
	}
	return nil
}

func forget(txn *memdb.Txn, c Change) error {
	var drop []func() error
	all := func(table string, over func(any) bool) error {
		it, err := txn.Get(table, byID)
		if err != nil {
			return err
		}
		for row := it.Next(); row != nil; row = it.Next() {
			if over(row) {
				drop = append(drop, func() error { return txn.Delete(table, row) })
			}
		}
		return nil
	}
	err := errors.Join(
		all(tableSessions, func(r any) bool { return r.(*Session).Ends.Before(c.Forget) }),
		all(tableRevocations, func(r any) bool { return r.(*Revocation).ExpiresAt.Before(c.Forget) }),
		all(tableEnded, func(r any) bool { return r.(*EndedAgent).EndedAt.Before(c.ForgetEnded) }),
	)
	for _, d := range drop {
		err = errors.Join(err, d())
	}
	return err
}

func (s *State) reader() *memdb.MemDB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.db
}

// errUnavailable refuses whatever depends on the state.
var errUnavailable = errors.New("the broker's state can't be read at the moment")

// Check implements actor.Revocations, from memory.
func (s *State) Check(keys []actor.RevocationKey) error {
	db := s.reader()
	if db == nil {
		return errUnavailable
	}
	txn := db.Txn(false)
	now := s.now()
	for _, k := range keys {
		m := feed.MatchOf(k)
		it, err := txn.Get(tableRevocations, byMatch, matchKey(m))
		if err != nil {
			return fmt.Errorf("looking for revocations: %w", err)
		}
		for row := it.Next(); row != nil; row = it.Next() {
			if now.Before(row.(*Revocation).ExpiresAt) {
				return &actor.RevokedError{Key: k}
			}
		}
		if m.Kind != feed.Agent {
			continue
		}
		row, err := txn.First(tableEnded, byID, m.Value)
		if err != nil {
			return fmt.Errorf("looking for ended agents: %w", err)
		}
		if row != nil {
			return &actor.RevokedError{Key: k}
		}
	}
	return nil
}

// Session finds a session by its txn.
func (s *State) Session(txn string) (Session, bool, error) {
	db := s.reader()
	if db == nil {
		return Session{}, false, errUnavailable
	}
	row, err := db.Txn(false).First(tableSessions, byID, txn)
	if err != nil {
		return Session{}, false, fmt.Errorf("looking for a session: %w", err)
	}
	if row == nil {
		return Session{}, false, nil
	}
	return *row.(*Session), true, nil
}

// SessionsOf lists what a revocation of user, session, task or agent concerns; nothing for other kinds.
func (s *State) SessionsOf(m feed.Match) ([]Session, error) {
	db := s.reader()
	if db == nil {
		return nil, errUnavailable
	}
	var idx, arg string
	switch m.Kind {
	case feed.User:
		idx, arg = byUser, join(m.Issuer, m.Value)
	case feed.Session:
		idx, arg = bySID, m.Value
	case feed.Task:
		idx, arg = byID, m.Value
	case feed.Agent:
		idx, arg = byAgent, m.Value
	default:
		return nil, nil
	}
	it, err := db.Txn(false).Get(tableSessions, idx, arg)
	if err != nil {
		return nil, fmt.Errorf("looking for sessions: %w", err)
	}
	var out []Session
	for row := it.Next(); row != nil; row = it.Next() {
		out = append(out, *row.(*Session))
	}
	return out, nil
}

// RevokedAgents lists whom a revocation leaves without any authority, as SPIFFE IDs: the agent that it names, or the first
// agents of what it ends, unless another session of theirs lives. What lies below them ends with them.
func (s *State) RevokedAgents(m feed.Match) ([]string, error) {
	switch m.Kind {
	case feed.Agent:
		return []string{m.Value}, nil
	case feed.Edge:
		// An agent has one parent. To any other delegate this was one source of authority among others.
		delegate, err := actor.AgentIDFromString(m.Delegate)
		if err != nil {
			return nil, nil //nolint:nilerr // the edge is of no agent
		}
		if parent, ok := delegate.Parent(); !ok || parent.String() != m.Value {
			return nil, nil
		}
		return []string{m.Delegate}, nil
	}
	over, err := s.SessionsOf(m)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, have := range over {
		id := have.FirstAgent.String()
		others, err := s.living(feed.Match{Kind: feed.Agent, Value: id})
		if err != nil {
			return nil, err
		}
		if len(others) == 0 && !have.Bare() {
			out = append(out, id)
		}
	}
	return out, nil
}

// Policy is the signed set in force, or nil.
func (s *State) Policy() *Policy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.policy
}
