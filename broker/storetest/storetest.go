// Package storetest holds every implementation of state.Store to its contract.
package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
)

// Run tests the store that open returns. Each call of open with the same name opens the same, durable, store, after the
// one before was closed by close.
func Run(t *testing.T, open func(t *testing.T, name string) (s state.Store, close func())) {
	at := time.Date(2026, 11, 23, 7, 0, 0, 123456000, time.UTC)
	load := func(t *testing.T, s state.Store) state.Contents {
		t.Helper()
		c, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	same := func(t *testing.T, got, want state.Contents) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b actor.AgentID) bool { return a == b }),
			cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
			t.Errorf("contents differ (-want +got):\n%s", diff)
		}
	}
	commit := func(t *testing.T, s state.Store, c state.Change) {
		t.Helper()
		if err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("everything comes back after it was closed", func(t *testing.T) {
		s, done := open(t, "a")
		same(t, load(t, s), state.Contents{})
		one, two := Session(t, at), Session(t, at)
		revoked := state.Revocation{Revision: 1, By: "op", Revocation: feed.Revocation{
			ID: "r1", Of: feed.Match{Kind: feed.Edge, Value: one.FirstAgent.String(), Delegate: two.FirstAgent.String()}, IssuedAt: at, ExpiresAt: at.Add(time.Hour), Reason: "why 'not'"}}
		ended := state.EndedAgent{EndedAgent: feed.EndedAgent{ID: one.FirstAgent.String(), EndedAt: at}, Reason: "exited", Revision: 2, IssuerRevision: 41}
		policy := state.Policy{Version: 7, Signed: "a.b.c"}
		commit(t, s, state.Change{Open: &one})
		commit(t, s, state.Change{Open: &two})
		commit(t, s, state.Change{Revision: 1, Revocation: &revoked, End: []string{two.Txn, "unknown"}, EndAt: at.Add(time.Minute)})
		commit(t, s, state.Change{Revision: 2, Ended: &ended, End: []string{two.Txn}, EndAt: at.Add(time.Hour)})
		commit(t, s, state.Change{Revision: 3, Policy: &state.Policy{Version: 6, Signed: "old"}})
		commit(t, s, state.Change{Revision: 4, Policy: &policy})
		two.EndedAt = at.Add(time.Minute) // the first end counts
		want := state.Contents{Revision: 4, IssuerRevision: 41, Revocations: []state.Revocation{revoked}, Ended: []state.EndedAgent{ended}, Policy: &policy}
		want.Sessions = []state.Session{one, two}
		if one.Txn > two.Txn {
			want.Sessions = []state.Session{two, one}
		}
		same(t, load(t, s), want)
		done()
		s, done = open(t, "a")
		defer done()
		same(t, load(t, s), want)
		commit(t, s, state.Change{ForgetIssuer: true})
		want.IssuerRevision = 0
		same(t, load(t, s), want)
	})

	t.Run("all or nothing", func(t *testing.T) {
		s, done := open(t, "b")
		defer done()
		one := Session(t, at)
		commit(t, s, state.Change{Open: &one})
		commit(t, s, state.Change{Revision: 1, Policy: &state.Policy{Version: 1, Signed: "p"}})
		commit(t, s, state.Change{Proof: &state.Proof{Issuer: "i", ID: "j", Expires: at}})
		before := load(t, s)
		other := Session(t, at)
		again := one
		again.SID = "another"
		for name, tc := range map[string]struct {
			change state.Change
			want   error
		}{
			"a revision too late":  {state.Change{Revision: 1, Open: &other, Policy: &state.Policy{Version: 2, Signed: "q"}}, state.ErrConflict},
			"a revision too early": {state.Change{Revision: 3, Open: &other}, state.ErrConflict},
			"a session twice":      {state.Change{Revision: 2, Open: &again, Policy: &state.Policy{Version: 2, Signed: "q"}}, state.ErrExists},
			"a proof twice":        {state.Change{Revision: 2, Open: &other, Proof: &state.Proof{Issuer: "i", ID: "j", Expires: at.Add(time.Hour)}}, state.ErrReplayed},
		} {
			if err := s.Commit(t.Context(), tc.change); !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", name, err, tc.want)
			}
			same(t, load(t, s), before)
		}
		commit(t, s, state.Change{Proof: &state.Proof{Issuer: "other", ID: "j", Expires: at}})
	})

	t.Run("what is over is forgotten, nothing else", func(t *testing.T) {
		s, done := open(t, "c")
		defer done()
		var want state.Contents
		for i, end := range []time.Duration{-time.Minute, time.Minute} {
			sess := Session(t, at)
			sess.Ends = at.Add(end)
			r := state.Revocation{Revision: uint64(2*i + 1), Revocation: feed.Revocation{ID: fmt.Sprint(i), Of: feed.Match{Kind: feed.Task, Value: "x"}, IssuedAt: at, ExpiresAt: at.Add(end)}}
			e := state.EndedAgent{EndedAgent: feed.EndedAgent{ID: sess.FirstAgent.String(), EndedAt: at.Add(-time.Hour + end)}, Revision: uint64(2*i + 2), IssuerRevision: uint64(i + 1)}
			commit(t, s, state.Change{Open: &sess})
			commit(t, s, state.Change{Revision: r.Revision, Revocation: &r})
			commit(t, s, state.Change{Revision: e.Revision, Ended: &e})
			commit(t, s, state.Change{Proof: &state.Proof{Issuer: "i", ID: fmt.Sprint(i), Expires: at.Add(end)}})
			if i == 1 {
				want = state.Contents{Revision: 4, IssuerRevision: 2, Sessions: []state.Session{sess}, Revocations: []state.Revocation{r}, Ended: []state.EndedAgent{e}}
			}
		}
		commit(t, s, state.Change{Forget: at, ForgetEnded: at.Add(-time.Hour)})
		same(t, load(t, s), want)
		commit(t, s, state.Change{Proof: &state.Proof{Issuer: "i", ID: "0", Expires: at}})
		if err := s.Commit(t.Context(), state.Change{Proof: &state.Proof{Issuer: "i", ID: "1", Expires: at}}); !errors.Is(err, state.ErrReplayed) {
			t.Errorf("a proof that is still good was forgotten: %v", err)
		}
	})

	t.Run("of many at once one wins", func(t *testing.T) {
		s, done := open(t, "d")
		defer done()
		sess := Session(t, at)
		var mu sync.Mutex
		won := map[string]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for what, c := range map[string]state.Change{
					"session": {Open: &sess}, "proof": {Proof: &state.Proof{Issuer: "i", ID: "j", Expires: at}},
					"revision": {Revision: 1, Policy: &state.Policy{Version: 1, Signed: "x"}},
				} {
					if err := s.Commit(t.Context(), c); err == nil {
						mu.Lock()
						won[what]++
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		if diff := cmp.Diff(map[string]int{"session": 1, "proof": 1, "revision": 1}, won); diff != "" {
			t.Error(diff)
		}
	})
}

// Session makes a session of a fresh task.
func Session(t testing.TB, at time.Time) state.Session {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	agent, err := actor.NewAgentID(td, "planner", actor.NewHexID())
	if err != nil {
		t.Fatal(err)
	}
	where, err := actor.TargetID(td, "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	return state.Session{
		Txn: actor.NewHexID(), SID: "sid ünd mehr", RootHash: "h", User: actor.SubjectID{Issuer: "https://idp.example", Subject: "alice"}, LoginKey: "k",
		FirstAgent: agent, Cap: actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{where}, Actions: []string{"select"}, MaxRows: 3}},
		Purpose: "p", AuthTime: at.Add(-time.Minute), ACR: "phr", Opened: at, Ends: at.Add(12 * time.Hour),
	}
}
