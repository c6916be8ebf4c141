package sqlite_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/issuer/sqlite"
)

var at = time.Unix(1_700_000_000, 123456789)

func id(t *testing.T, s string) actor.AgentID {
	t.Helper()
	a, err := actor.AgentIDFromString("spiffe://test.example/agent/" + s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

const (
	one   = "00000000000000000000000000000001"
	two   = "00000000000000000000000000000002"
	three = "00000000000000000000000000000003"
)

func open(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var equal = cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b actor.AgentID) bool { return a == b })}

func TestAgentsOutliveTheStore(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "issuer.db")
	s := open(t, path)
	parent := spawn.Record{ID: id(t, "planner/"+one), Registered: at, Isolate: true, Registrant: 1000}
	child := spawn.Record{ID: id(t, "planner/"+one+"/worker/"+two), Registered: at}
	for _, r := range []spawn.Record{child, parent} {
		if err := s.Create(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Create(ctx, parent); !errors.Is(err, spawn.ErrExists) {
		t.Errorf("the same agent twice: %v", err)
	}
	if err := s.Create(ctx, spawn.Record{ID: id(t, "other/"+one)}); !errors.Is(err, spawn.ErrExists) {
		t.Errorf("the same instance under another name: %v", err)
	}
	parent.Claimed, parent.UID, parent.LauncherCgroup = true, 4294967290, "/launcher"
	parent.Attached, parent.BootID, parent.PID, parent.Start, parent.ProcUID = true, "boot", 77, 1<<62, 4294967290
	parent.Cgroup, parent.Grade, parent.Key = "/own", actor.Attested, []byte{1, 2, 3}
	if err := s.Save(ctx, parent); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ctx, spawn.Record{ID: id(t, "never/"+three)}); err == nil {
		t.Error("an agent was saved that was never made")
	}
	s.Close()
	s = open(t, path)
	got, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]spawn.Record{parent, child}, got, equal); d != "" {
		t.Errorf("parents first (-want +got):\n%s", d)
	}
}

func TestEndsAreOrderedAndFinal(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "issuer.db")
	s := open(t, path)
	a, b, c := id(t, "planner/"+one), id(t, "planner/"+one+"/worker/"+two), id(t, "planner/"+three)
	for _, x := range []actor.AgentID{a, b, c} {
		if err := s.Create(ctx, spawn.Record{ID: x, Registered: at, Attached: x != c}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Revision(ctx); n != 0 || err != nil {
		t.Errorf("revision %d %v", n, err)
	}
	first, err := s.End(ctx, []actor.AgentID{a, b}, spawn.ReasonLost, at)
	if err != nil {
		t.Fatal(err)
	}
	want := []spawn.Ended{{Revision: 1, ID: a, Reason: spawn.ReasonLost, At: at}, {Revision: 2, ID: b, Reason: spawn.ReasonAncestor, At: at}}
	if d := cmp.Diff(want, first, equal); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// Once: what has ended has ended, and an agent that isn't there is no end.
	again, err := s.End(ctx, []actor.AgentID{b, id(t, "x/"+one)}, spawn.ReasonRevoked, at.Add(time.Hour))
	if err != nil || len(again) != 0 {
		t.Errorf("ended again: %v %v", again, err)
	}
	if _, err := s.End(ctx, []actor.AgentID{c}, spawn.ReasonExpired, at); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ctx, spawn.Record{ID: a}); err == nil {
		t.Error("an ended agent was saved")
	}
	s.Close()
	s = open(t, path)
	all, err := s.EndedAfter(ctx, 1, 10)
	want = []spawn.Ended{want[1], {Revision: 3, ID: c, Reason: spawn.ReasonExpired, At: at}}
	if d := cmp.Diff(want, all, equal); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if page, err := s.EndedAfter(ctx, 0, 1); err != nil || len(page) != 1 || page[0].Revision != 1 {
		t.Errorf("a page: %v %v", page, err)
	}
	if none, err := s.EndedAfter(ctx, 1<<63+5, 10); err != nil || len(none) != 0 {
		t.Errorf("beyond: %v %v", none, err)
	}
	// Attached ones stay until their process is forgotten.
	held := func() (out []string) {
		got, err := s.Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range got {
			if !r.Ended {
				t.Errorf("%s lives", r.ID)
			}
			out = append(out, r.ID.String())
		}
		return out
	}
	if d := cmp.Diff([]string{a.String(), b.String()}, held()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := s.Forget(ctx, a); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{b.String()}, held()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
