package state_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/broker/storetest"
	"github.com/deputymesh/deputy/internal/feed"
)

// faulty is a store that fails: before the write, or after it (done but reported failed).
type faulty struct {
	state.Store
	before, after, loading error
}

func (f *faulty) Commit(ctx context.Context, c state.Change) error {
	if f.before != nil {
		return f.before
	}
	if err := f.Store.Commit(ctx, c); err != nil {
		return err
	}
	return f.after
}

func (f *faulty) Load(ctx context.Context) (state.Contents, error) {
	if f.loading != nil {
		return state.Contents{}, f.loading
	}
	return f.Store.Load(ctx)
}

func open(t *testing.T) (*state.State, *faulty) {
	t.Helper()
	store, err := sqlite.Open(filepath.Join(t.TempDir(), "b.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	f := &faulty{Store: store}
	s, err := state.Open(t.Context(), f, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

func task(txn string) state.Revocation {
	now := time.Now().Truncate(time.Microsecond).UTC()
	return state.Revocation{Revocation: feed.Revocation{ID: actor.NewHexID(), Of: feed.Match{Kind: feed.Task, Value: txn}, IssuedAt: now, ExpiresAt: now.Add(time.Hour)}}
}

func yes(state.Revocation, []state.Session) error { return nil }

func keys(txn string) []actor.RevocationKey {
	return []actor.RevocationKey{{Kind: actor.RevokeSubject, Issuer: "i", Value: "s"}, {Kind: actor.RevokeTxn, Value: txn}}
}

func revoked(err error) bool {
	var r *actor.RevokedError
	return errors.As(err, &r)
}

func TestAStoreThatFailsIsReadAgain(t *testing.T) {
	s, f := open(t)
	snapshot, sub, err := s.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")

	// It failed and nothing was written.
	f.before = boom
	if _, err := s.Revoke(t.Context(), task("a"), yes); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := s.Check(keys("a")); err != nil {
		t.Errorf("a revocation that never was: %v", err)
	}
	if u, open := <-sub.Updates; open {
		t.Errorf("the subscriber was told %+v", u)
	}

	// It was done but reported failed: it is in force all the same, and the next revision follows it.
	f.before, f.after = nil, boom
	if _, err := s.Revoke(t.Context(), task("b"), yes); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := s.Check(keys("b")); !revoked(err) {
		t.Errorf("a revocation that was stored isn't in force: %v", err)
	}
	f.after = nil
	next, err := s.Revoke(t.Context(), task("c"), yes)
	if err != nil || next.Revision != snapshot.Revision+2 {
		t.Errorf("revision %d, %v", next.Revision, err)
	}

	// It can't even be read: everything is refused, until it can.
	f.before, f.loading = boom, boom
	if _, err := s.Revoke(t.Context(), task("d"), yes); err == nil {
		t.Error("it was revoked")
	}
	if err := s.Check(keys("x")); err == nil || revoked(err) {
		t.Errorf("unknown was taken for known: %v", err)
	}
	if _, _, err := s.Session("x"); err == nil {
		t.Error("sessions were found without a state")
	}
	if _, _, err := s.Subscribe(); err == nil {
		t.Error("a snapshot was made of nothing")
	}
	f.before, f.loading = nil, nil
	if err := s.UseProof(t.Context(), state.Proof{Issuer: "i", ID: "j", Expires: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(keys("c")); !revoked(err) {
		t.Errorf("after it came back: %v", err)
	}
}

func TestEvidenceComesFirst(t *testing.T) {
	s, _ := open(t)
	no := errors.New("no record")
	if _, err := s.Revoke(t.Context(), task("a"), func(state.Revocation, []state.Session) error { return no }); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	if err := s.Check(keys("a")); err != nil {
		t.Errorf("it is in force without a record: %v", err)
	}
	sess := storetest.Session(t, time.Now())
	if _, _, err := s.OpenSession(t.Context(), sess, func() error { return no }); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	if _, found, _ := s.Session(sess.Txn); found {
		t.Error("a session without a record")
	}
}

func TestRevocationsCoverWhatTheySay(t *testing.T) {
	s, _ := open(t)
	sess := storetest.Session(t, time.Now())
	if _, _, err := s.OpenSession(t.Context(), sess, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	var ended []state.Session
	r := task("")
	r.Of = feed.Match{Kind: feed.User, Issuer: sess.User.Issuer, Value: sess.User.Subject}
	if _, err := s.Revoke(t.Context(), r, func(_ state.Revocation, ends []state.Session) error { ended = ends; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(ended) != 1 || ended[0].Txn != sess.Txn {
		t.Errorf("it ends %+v", ended)
	}
	if have, _, _ := s.Session(sess.Txn); have.EndedAt.IsZero() {
		t.Error("the session goes on")
	}
	// Parts that run into each other are different users.
	if err := s.Check([]actor.RevocationKey{{Kind: actor.RevokeSubject, Issuer: sess.User.Issuer + "a", Value: sess.User.Subject[1:]}}); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
	if err := s.Check([]actor.RevocationKey{{Kind: actor.RevokeSubject, Issuer: sess.User.Issuer, Value: sess.User.Subject}}); !revoked(err) {
		t.Errorf("the user: %v", err)
	}
}

func TestSubscribersSeeEveryRevisionOnce(t *testing.T) {
	s, _ := open(t)
	if _, err := s.Revoke(t.Context(), task("first"), yes); err != nil {
		t.Fatal(err)
	}
	snapshot, sub, err := s.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	if snapshot.Kind != feed.Snapshot || len(snapshot.Revocations) != 1 {
		t.Errorf("snapshot: %+v", snapshot)
	}
	want := []uint64{snapshot.Revision + 1, snapshot.Revision + 2, snapshot.Revision + 3}
	if _, err := s.Revoke(t.Context(), task("second"), yes); err != nil {
		t.Fatal(err)
	}
	agent := storetest.Session(t, time.Now()).FirstAgent.String()
	for range 2 { // the second time changes nothing
		if _, err := s.EndAgent(t.Context(), state.EndedAgent{EndedAgent: feed.EndedAgent{ID: agent, EndedAt: time.Now()}, IssuerRevision: 5}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.PublishPolicy(t.Context(), state.Policy{Version: 2, Signed: "p"}, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PublishPolicy(t.Context(), state.Policy{Version: 2, Signed: "q"}, func() error { return nil }); !errors.Is(err, state.ErrOldPolicy) {
		t.Errorf("an old set: %v", err)
	}
	var got []uint64
	for range 3 {
		got = append(got, (<-sub.Updates).Revision)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if s.IssuerRevision() != 5 {
		t.Errorf("issuer's revision %d", s.IssuerRevision())
	}
	// One that doesn't listen is cut, and holds nobody up.
	for range 300 {
		if _, err := s.Revoke(t.Context(), task("x"), yes); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for range sub.Updates {
		n++
	}
	if n >= 300 {
		t.Errorf("%d changes were kept for it", n)
	}
	sub.Close()
}

func TestSweepForgetsWhatIsOver(t *testing.T) {
	s, f := open(t)
	sess := storetest.Session(t, time.Now())
	sess.Ends = time.Now().Add(-time.Second)
	if _, _, err := s.OpenSession(t.Context(), sess, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	r := task("a")
	r.ExpiresAt = time.Now().Add(-time.Second)
	if _, err := s.Revoke(t.Context(), r, yes); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(keys("a")); err != nil {
		t.Errorf("a revocation that has expired: %v", err)
	}
	over, err := s.Sweep(t.Context())
	if err != nil || len(over) != 1 || over[0].Txn != sess.Txn {
		t.Errorf("swept %+v %v", over, err)
	}
	c, err := f.Load(t.Context())
	if err != nil || len(c.Sessions)+len(c.Revocations) != 0 || c.Revision != 1 {
		t.Errorf("left: %+v %v", c, err)
	}
	if _, found, _ := s.Session(sess.Txn); found {
		t.Error("it is still in memory")
	}
}

// A tree of many agents that has ended is one line for a proxy.
func TestASnapshotNamesTheHighestEndedAgentsOnly(t *testing.T) {
	s, _ := open(t)
	root := storetest.Session(t, time.Now()).FirstAgent
	var below []actor.AgentID
	end := func(a actor.AgentID) {
		t.Helper()
		if _, err := s.EndAgent(t.Context(), state.EndedAgent{EndedAgent: feed.EndedAgent{ID: a.String(), EndedAt: time.Now()}}); err != nil {
			t.Fatal(err)
		}
	}
	ended := func() []string {
		t.Helper()
		snapshot, sub, err := s.Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		sub.Close()
		var out []string
		for _, e := range snapshot.Ended {
			out = append(out, e.ID)
		}
		return out
	}
	for range 5 {
		child, err := root.Child("worker", actor.NewHexID())
		if err != nil {
			t.Fatal(err)
		}
		deeper, err := child.Child("helper", actor.NewHexID())
		if err != nil {
			t.Fatal(err)
		}
		below = append(below, child, deeper)
		end(child)
		end(deeper)
	}
	if got := ended(); len(got) != 5 {
		t.Errorf("five workers ended, the snapshot names %v", got)
	}
	end(root)
	if diff := cmp.Diff([]string{root.String()}, ended()); diff != "" {
		t.Error(diff)
	}
	for _, a := range below {
		if err := s.Check([]actor.RevocationKey{{Kind: actor.RevokeActor, Value: a.String()}}); !revoked(err) {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// An agent is without authority when it is named, or when every session that it began was ended by revocations. One that
// serves others too isn't.
func TestWhomARevocationLeavesWithoutAuthority(t *testing.T) {
	s, _ := open(t)
	open := func(change func(*state.Session)) state.Session {
		t.Helper()
		sess := storetest.Session(t, time.Now())
		sess.Txn, sess.SID = actor.NewHexID(), actor.NewHexID()
		change(&sess)
		if _, _, err := s.OpenSession(t.Context(), sess, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		return sess
	}
	agent := func(name string) actor.AgentID {
		id, err := actor.AgentIDFromString("spiffe://corp.example/agent/" + name + "/" + actor.NewHexID())
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	own, gateway, bare := agent("own"), agent("gateway"), agent("bare")
	one := open(func(x *state.Session) { x.FirstAgent = own })
	mine := open(func(x *state.Session) { x.FirstAgent, x.User.Subject = gateway, "mine" })
	open(func(x *state.Session) { x.FirstAgent, x.User.Subject = gateway, "yours" })
	onWord := open(func(x *state.Session) { x.FirstAgent, x.LoginKey = bare, "" })
	child, err := own.Child("helper", actor.NewHexID())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of   feed.Match
		want []string
	}{
		{feed.Match{Kind: feed.Task, Value: one.Txn}, []string{own.String()}},
		{feed.Match{Kind: feed.Session, Value: mine.SID}, nil},
		{feed.Match{Kind: feed.Task, Value: onWord.Txn}, nil},
		{feed.Match{Kind: feed.User, Issuer: mine.User.Issuer, Value: "mine"}, nil},
		{feed.Match{Kind: feed.User, Issuer: mine.User.Issuer, Value: "yours"}, []string{gateway.String()}}, // the last one
		{feed.Match{Kind: feed.Agent, Value: child.String()}, []string{child.String()}},
		{feed.Match{Kind: feed.Edge, Value: own.String(), Delegate: child.String()}, []string{child.String()}},
		{feed.Match{Kind: feed.Edge, Value: gateway.String(), Delegate: child.String()}, nil},
		{feed.Match{Kind: feed.Edge, Value: own.String(), Delegate: gateway.String()}, nil},
		{feed.Match{Kind: feed.Grant, Issuer: own.String(), Value: "x"}, nil},
		{feed.Match{Kind: feed.Target, Value: "orders-db"}, nil},
	} {
		now := time.Now().Truncate(time.Microsecond).UTC()
		r := state.Revocation{Revocation: feed.Revocation{ID: actor.NewHexID(), Of: c.of, IssuedAt: now, ExpiresAt: now.Add(time.Hour)}}
		if _, err := s.Revoke(t.Context(), r, yes); err != nil {
			t.Fatal(err)
		}
		got, err := s.RevokedAgents(c.of)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%+v: %v %s", c.of, err, diff)
		}
	}
}
