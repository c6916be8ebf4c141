package issuer_test

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/issuer/sqlite"
	"github.com/deputymesh/deputy/issuer/workloadapi"
)

// withBroker registers whoever runs the tests as the broker.
func withBroker(c *issuer.Config) {
	c.Roles = append(c.Roles, workloadapi.Entry{
		ID:        spiffeid.RequireFromPath(c.CA.TrustDomain(), issuer.BrokerPath),
		Selectors: attest.Selectors{UID: uid(uint32(os.Geteuid()))},
	})
}

func TestTheBrokerHearsOfEveryEndInOrder(t *testing.T) {
	m := newMesh(t, withBroker)
	broker, p := m.start(command{}), m.start(command{})
	if r := broker.must(command{Op: "ended"}); len(r.Ended) != 1 || !r.Ended[0].Live || r.Ended[0].ID != "" {
		t.Fatalf("an empty past: %+v", r.Ended)
	}
	a := p.attach("planner", p)
	q := p.start(command{})
	b := p.attach("worker", q)
	p.kill()
	r := broker.must(command{Op: "ended", ID: b.ID})
	if len(r.Ended) != 2 || r.Ended[0].ID != a.ID || r.Ended[0].Reason != spawn.ReasonExited || r.Ended[1].Reason != spawn.ReasonAncestor ||
		!r.Ended[0].Live || r.Ended[0].Revision != 1 || r.Ended[1].Revision != 2 {
		t.Errorf("heard %+v", r.Ended)
	}
	// The past again, from any revision, also after a restart; then the mark.
	for range 2 {
		r = broker.must(command{Op: "ended", After: 1})
		if len(r.Ended) != 2 || r.Ended[0].ID != b.ID || r.Ended[0].Live || !r.Ended[1].Live || r.Ended[1].Revision != 2 {
			t.Errorf("replayed %+v", r.Ended)
		}
		m.restart()
	}
	broker.refused(command{Op: "ended", After: 3}, "FailedPrecondition", "ahead")
}

func TestNobodyElseHearsOfEnds(t *testing.T) {
	m := newMesh(t)
	m.start(command{}).refused(command{Op: "ended"}, "PermissionDenied", "broker")

	m = newMesh(t, withBroker)
	p := m.start(command{})
	p.attach("planner", p)
	p.refused(command{Op: "ended"}, "PermissionDenied", "broker")
	p.start(command{}).refused(command{Op: "ended"}, "PermissionDenied", "broker")
}

// failingStore fails to write ends for a while.
type failingStore struct {
	*sqlite.Store
	fail  atomic.Bool
	tried atomic.Int64
}

func (f *failingStore) End(ctx context.Context, ids []actor.AgentID, reason string, at time.Time) ([]spawn.Ended, error) {
	f.tried.Add(1)
	if f.fail.Load() {
		return nil, errors.New("the disk is full")
	}
	return f.Store.End(ctx, ids, reason, at)
}

func TestAnEndIsWrittenAsSoonAsTheStoreWorks(t *testing.T) {
	var store failingStore
	store.fail.Store(true)
	m := newMesh(t, func(c *issuer.Config) {
		var err error
		if store.Store, err = sqlite.Open(t.TempDir() + "/other.db"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Store.Close() })
		c.Store = &store
	}, withBroker)
	m.store.Close()
	m.store = store.Store
	broker, p := m.start(command{}), m.start(command{})
	broker.must(command{Op: "ended"})
	a := p.attach("planner", p)
	p.must(command{Op: "done", Stream: "own"})
	for end := time.Now().Add(10 * time.Second); store.tried.Load() < 2 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	// Dead here at once, whatever the store says.
	p.refused(command{Op: "register", Name: "x"}, "FailedPrecondition", "ended")
	store.fail.Store(false)
	if r := broker.must(command{Op: "ended", ID: a.ID}); len(r.Ended) != 1 {
		t.Errorf("heard %+v", r.Ended)
	}
}
