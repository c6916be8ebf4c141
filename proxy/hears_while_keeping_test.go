package proxy_test

import (
	"context"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/proxy"
)

// What an update revokes is over when it was heard. Its record comes with the next update that is kept, whichever that is.
func TestARevocationWaitsForNoDisk(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	now := m.clock.Now()
	heard := m.update(feed.Delta, feed.Changes{Revocations: []feed.Revocation{
		{ID: "0123", Of: must(feed.MatchUser(idpURL, "alice")), IssuedAt: now, ExpiresAt: now.Add(time.Hour), Reason: "left"},
	}})
	m.state.Hear(heard)
	over(t, s, time.Second)
	if _, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop); refusal(t, err).Class != proxy.ClassRevoked {
		t.Errorf("a revocation that was heard and not kept doesn't count: %v", err)
	}
	if n := len(m.revokedRecords()); n != 0 {
		t.Fatalf("%d records before anything was kept", n)
	}
	// Nothing of it was kept, so the broker is asked again, and what it says then repeats the revocation.
	again := heard
	again.Kind = feed.Snapshot
	m.apply(again)
	list := m.revokedRecords()
	if len(list) != 1 || list[0].ID != "0123" || list[0].Sessions != 1 || list[0].Reason != "left" {
		t.Errorf("records %+v", list)
	}
}

// A feed that went back takes nothing away, either.
func TestWhatWentBackRevokesNothing(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	now := m.clock.Now()
	old := feed.Update{Revision: m.revision - 1, SentAt: now, Kind: feed.Delta, Changes: feed.Changes{Revocations: []feed.Revocation{
		{ID: actor.NewHexID(), Of: must(feed.MatchUser(idpURL, "alice")), IssuedAt: now, ExpiresAt: now.Add(time.Hour)},
	}}}
	m.state.Hear(old)
	if s.Context().Err() != nil {
		t.Error("an update from the past ended a session")
	}
	if _, err := m.state.Apply(context.Background(), old); err == nil {
		t.Error("it was kept")
	}
}

func (m *mesh) revokedRecords() []*audit.Revoked {
	var out []*audit.Revoked
	for _, r := range audittest.Records(m.t, m.log) {
		if e, ok := r.Event.(*audit.Revoked); ok {
			out = append(out, e)
		}
	}
	return out
}
