package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
)

// restarted is the state as a new process would find it.
func (m *mesh) restarted() (*proxy.State, error) {
	return proxy.NewState(proxy.StateConfig{
		Mesh: meshURL, Certifying: &m.certifying.PublicKey, PolicyKeys: []*ecdsa.PublicKey{&m.policyKey.PublicKey},
		Dir: m.stateDir, Log: m.log, Logger: slog.New(slog.DiscardHandler), Now: m.clock.Now,
	})
}

func TestTheFeedNeverGoesBack(t *testing.T) {
	m := serving(t)
	for range 3 {
		m.apply(m.update(feed.Delta, feed.Changes{}))
	}
	old := feed.Update{Revision: m.revision - 1, SentAt: m.clock.Now(), Kind: feed.Snapshot}
	check := func(s *proxy.State) {
		t.Helper()
		for _, kind := range []feed.MessageKind{feed.Snapshot, feed.Delta, feed.Heartbeat} {
			old.Kind = kind
			if _, err := s.Apply(context.Background(), old); !errors.Is(err, proxy.ErrRollback) {
				t.Errorf("kind %d: %v, want ErrRollback", kind, err)
			}
		}
		again := feed.Update{Revision: m.revision, SentAt: m.clock.Now(), Kind: feed.Delta}
		if _, err := s.Apply(context.Background(), again); err == nil {
			t.Error("a delta was applied twice")
		}
	}
	check(m.state)
	after, err := m.restarted()
	if err != nil {
		t.Fatal(err)
	}
	if revision, version := after.Position(); revision != m.revision || version != 1 {
		t.Errorf("after a restart: revision %d, policy version %d", revision, version)
	}
	check(after)
}

func TestARevisionThatIsLeftOutEndsTheStream(t *testing.T) {
	m := serving(t)
	for _, kind := range []feed.MessageKind{feed.Delta, feed.Heartbeat} {
		u := feed.Update{Revision: m.revision + 2, SentAt: m.clock.Now(), Kind: kind}
		if _, err := m.state.Apply(context.Background(), u); !errors.Is(err, proxy.ErrGap) {
			t.Errorf("kind %d: %v, want ErrGap", kind, err)
		}
	}
	m.revision += 5
	m.apply(m.snapshot())
}

func TestAPolicySetNeverGoesBackAndABadOneChangesNothing(t *testing.T) {
	m := serving(t)
	send := func(signed string) { m.apply(m.update(feed.Delta, feed.Changes{PolicySet: signed})) }
	send(m.policySet(5, nil))
	if v := m.state.Policy().Version(); v != 5 {
		t.Fatalf("version %d in force", v)
	}
	ours := m.policyKey
	m.policyKey = testca.NewKey(t)
	foreign := m.policySet(9, nil)
	m.policyKey = ours
	for name, signed := range map[string]string{
		"an older version":  m.policySet(4, nil),
		"the same, changed": m.policySet(5, map[string]string{"more.cedar": "permit (principal, action, resource);"}),
		"another key's":     foreign,
		"not a policy set":  m.keyStatement(m.certifying),
		"not anything":      "x.y.z",
		"cut off":           m.policySet(7, nil)[:500],
	} {
		send(signed)
		if v := m.state.Policy().Version(); v != 5 {
			t.Errorf("%s: version %d in force", name, v)
		}
	}
	refused := 0
	for _, r := range audittest.Records(t, m.log) {
		if e, ok := r.Event.(*audit.PolicyLoaded); ok && e.Result == audit.Refusal && e.Reason != "" {
			refused++
		}
	}
	if refused != 6 {
		t.Errorf("%d refused sets recorded, want 6", refused)
	}
	after, err := m.restarted()
	if err != nil {
		t.Fatal(err)
	}
	if v := after.Policy().Version(); v != 5 {
		t.Errorf("after a restart version %d is in force", v)
	}
	if err := after.Ready(); err == nil {
		t.Error("a restarted proxy serves without a snapshot")
	}
	m.revision++
	u := feed.Update{Revision: m.revision, SentAt: m.clock.Now(), Kind: feed.Snapshot, Changes: feed.Changes{PolicySet: m.policySet(4, nil)}}
	if _, err := after.Apply(context.Background(), u); err != nil {
		t.Fatal(err)
	}
	if v := after.Policy().Version(); v != 5 {
		t.Errorf("after a restart the feed took the policy back to version %d", v)
	}
}

func TestTheFloorStaysWhenTheKeptSetIsDamaged(t *testing.T) {
	m := serving(t)
	m.apply(m.update(feed.Delta, feed.Changes{PolicySet: m.policySet(5, nil)}))
	if err := os.WriteFile(filepath.Join(m.stateDir, "policy.jws"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := m.restarted()
	if err != nil {
		t.Fatal(err)
	}
	m.revision++
	u := feed.Update{Revision: m.revision, SentAt: m.clock.Now(), Kind: feed.Snapshot, Changes: feed.Changes{PolicySet: m.policySet(4, nil)}}
	if _, err := after.Apply(context.Background(), u); err != nil {
		t.Fatal(err)
	}
	if after.Policy() != nil || after.Ready() == nil {
		t.Error("an older set came into force")
	}
	if err := os.WriteFile(filepath.Join(m.stateDir, "feed.json"), []byte(`{"revision":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.restarted(); err == nil {
		t.Error("started with a damaged floor")
	}
}

func TestATokenKeyCountsUnderTheCertifyingKeyOnly(t *testing.T) {
	m := newMesh(t)
	u := m.snapshot()
	u.TokenKeyStatements = []string{m.keyStatement(testca.NewKey(t)), "a.b.c", m.policySet(1, nil)}
	m.apply(u)
	_, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop)
	if r := refusal(t, err); r.Class != "token.key" {
		t.Errorf("got %+v, want token.key", r)
	}
	m.apply(m.update(feed.Delta, feed.Changes{TokenKeyStatements: []string{m.keyStatement(m.certifying)}}))
	m.open(m.flow())
	// A snapshot without the key takes it away.
	u = m.snapshot()
	u.TokenKeyStatements = nil
	m.apply(u)
	if _, err = m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop); err == nil {
		t.Error("a withdrawn key still counts")
	}
}

func TestRevocationsCountEvenWhereTheDiskFails(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	if err := os.RemoveAll(m.stateDir); err != nil {
		t.Fatal(err)
	}
	u := m.update(feed.Delta, feed.Changes{Revocations: []feed.Revocation{{ID: "r", Of: must(feed.MatchTask(m.txn)), IssuedAt: m.clock.Now(), ExpiresAt: m.clock.Now()}}})
	if _, err := m.state.Apply(context.Background(), u); err == nil {
		t.Error("a revision that couldn't be kept was acknowledged")
	}
	if e := over(t, s, soon); e.Class != proxy.ClassRevoked {
		t.Errorf("ended as %q", e.Class)
	}
}
