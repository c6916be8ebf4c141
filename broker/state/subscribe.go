package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/feed"
)

// backlog is how many changes a subscriber may lag behind before it is cut.
const backlog = 256

// Subscription gets every change with a revision, in order, from the snapshot on that came with it.
type Subscription struct {
	// Updates is closed when the subscriber was too slow or the state was read anew: subscribe again.
	Updates <-chan feed.Update

	updates chan feed.Update
	state   *State
}

// Subscribe returns everything as of now, and what comes after. Close the subscription when done.
func (s *State) Subscribe() (feed.Update, *Subscription, error) {
	s.write.Lock()
	defer s.write.Unlock()
	db := s.reader()
	if db == nil {
		return feed.Update{}, nil, errUnavailable
	}
	now := s.now()
	all := feed.Update{Revision: s.revision, SentAt: now, Kind: feed.Snapshot}
	txn := db.Txn(false)
	it, err := txn.Get(tableRevocations, byID)
	if err != nil {
		return feed.Update{}, nil, fmt.Errorf("listing revocations: %w", err)
	}
	for row := it.Next(); row != nil; row = it.Next() {
		if r := row.(*Revocation); now.Before(r.ExpiresAt) {
			all.Revocations = append(all.Revocations, r.Revocation)
		}
	}
	if it, err = txn.Get(tableEnded, byID); err != nil {
		return feed.Update{}, nil, fmt.Errorf("listing ended agents: %w", err)
	}
	for row := it.Next(); row != nil; row = it.Next() {
		e := row.(*EndedAgent).EndedAgent
		above, err := endedAbove(txn, e.ID)
		if err != nil {
			return feed.Update{}, nil, err
		}
		if !above {
			all.Ended = append(all.Ended, e)
		}
	}
	if p := s.Policy(); p != nil {
		all.PolicySet = p.Signed
	}
	c := make(chan feed.Update, backlog)
	sub := &Subscription{Updates: c, updates: c, state: s}
	s.subscribers[sub] = struct{}{}
	return all, sub, nil
}

// endedAbove says whether an agent above one has ended too, whose end covers it: a chain is asked for by every agent in
// it and above. So trees of many agents don't fill the snapshot.
func endedAbove(txn *memdb.Txn, id string) (bool, error) {
	a, err := actor.AgentIDFromString(id)
	if err != nil {
		return false, nil //nolint:nilerr // it can't be, and then it stands by itself
	}
	for up, ok := a.Parent(); ok; up, ok = up.Parent() {
		row, err := txn.First(tableEnded, byID, up.String())
		if err != nil {
			return false, fmt.Errorf("looking for ended agents: %w", err)
		}
		if row != nil {
			return true, nil
		}
	}
	return false, nil
}

// Close ends the subscription.
func (sub *Subscription) Close() {
	sub.state.write.Lock()
	defer sub.state.write.Unlock()
	sub.state.cut(sub)
}

// cut ends a subscription. The caller holds write.
func (s *State) cut(sub *Subscription) {
	if _, ok := s.subscribers[sub]; ok {
		delete(s.subscribers, sub)
		close(sub.updates)
	}
}

// publish tells a change to everybody. The caller holds write.
func (s *State) publish(c Change) {
	u := feed.Update{Revision: c.Revision, SentAt: s.now(), Kind: feed.Delta}
	if c.Revocation != nil {
		u.Revocations = []feed.Revocation{c.Revocation.Revocation}
	}
	if c.Ended != nil {
		u.Ended = []feed.EndedAgent{c.Ended.EndedAgent}
	}
	if c.Policy != nil {
		u.PolicySet = c.Policy.Signed
	}
	for sub := range s.subscribers {
		select {
		case sub.updates <- u:
		default:
			// It would hold everybody up, or miss this one unseen. It comes back for a snapshot.
			s.cut(sub)
		}
	}
}
