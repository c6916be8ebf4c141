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

func TestARevocationEndsWhatItNamesAndNothingElse(t *testing.T) {
	for name, match := range map[string]func(m *mesh, f *flow, s *proxy.Session) feed.Match{
		"user":    func(*mesh, *flow, *proxy.Session) feed.Match { return must(feed.MatchUser(idpURL, "alice")) },
		"session": func(*mesh, *flow, *proxy.Session) feed.Match { return must(feed.MatchSession("sid-1")) },
		"task":    func(m *mesh, _ *flow, _ *proxy.Session) feed.Match { return must(feed.MatchTask(m.txn)) },
		"agent": func(m *mesh, _ *flow, _ *proxy.Session) feed.Match {
			return must(feed.MatchAgent(m.researcher.id.String()))
		},
		"an agent above it": func(m *mesh, _ *flow, _ *proxy.Session) feed.Match {
			return must(feed.MatchAgent(m.planner.id.String()))
		},
		"edge": func(m *mesh, _ *flow, _ *proxy.Session) feed.Match {
			return must(feed.MatchEdge(m.planner.id.String(), m.researcher.id.String()))
		},
		"token": func(_ *mesh, f *flow, _ *proxy.Session) feed.Match { return must(feed.MatchGrant(meshURL, f.tokenID)) },
		"grant": func(_ *mesh, _ *flow, s *proxy.Session) feed.Match {
			g := s.Chain().Hops[1].Grant
			return must(feed.MatchGrant(g.Issuer, g.ID))
		},
		"user grant": func(_ *mesh, _ *flow, s *proxy.Session) feed.Match {
			g := s.Chain().Hops[0].Grant
			return must(feed.MatchGrant(g.Issuer, g.ID))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := serving(t)
			f := m.flow()
			s := m.open(f)
			bystander := m.flow()
			bystander.subject, bystander.sid, bystander.txn = "bob", "sid-2", actor.NewHexID()
			bystander.agents = []*agent{m.agent(must(actor.NewAgentID(m.ca.TrustDomain(), "planner", actor.NewHexID())))}
			other := m.open(bystander)

			start := time.Now()
			if n := m.revoke(match(m, f, s)); n != 1 {
				t.Errorf("ended %d sessions, want 1", n)
			}
			if e := over(t, s, time.Second); e.Class != proxy.ClassRevoked {
				t.Errorf("ended as %q", e.Class)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("took %s", took)
			}
			_, err := s.Authorize(context.Background(), m.command("select", "orders"))
			r := refusal(t, err)
			if r.Class != proxy.ClassRevoked || !r.Ended || r.RecordID == "" {
				t.Errorf("authorize after it: %+v", r)
			}
			if other.Context().Err() != nil {
				t.Error("a bystander was ended")
			}
			s.Close("client", "")
			closed := ""
			for _, rec := range audittest.Records(t, m.log) {
				if e, ok := rec.Event.(*audit.ConnectionClosed); ok && rec.Connection == s.ID() {
					closed = e.Reason
				}
				if e, ok := rec.Event.(*audit.Revoked); ok && e.Sessions != 1 {
					t.Errorf("record says %d sessions ended", e.Sessions)
				}
			}
			if closed != "revoked" {
				t.Errorf("closed as %q", closed)
			}
		})
	}
}

func TestRevokingATargetEndsEverything(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	if n := m.revoke(must(feed.MatchTarget("orders-db"))); n != 1 {
		t.Errorf("ended %d sessions", n)
	}
	over(t, s, time.Second)
	_, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop)
	if refusal(t, err).Class != proxy.ClassRevoked {
		t.Errorf("opened after it: %v", err)
	}
}

func TestTheEndOfAnAgentEndsAllBelowIt(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	n := m.apply(m.update(feed.Delta, feed.Changes{Ended: []feed.EndedAgent{{ID: m.planner.id.String(), EndedAt: m.clock.Now()}}}))
	if n != 1 {
		t.Errorf("ended %d sessions", n)
	}
	over(t, s, time.Second)
}

func TestASnapshotRevokesToo(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	u := m.snapshot()
	u.Revocations = []feed.Revocation{{ID: "r", Of: must(feed.MatchTask(m.txn)), IssuedAt: m.clock.Now(), ExpiresAt: m.clock.Now().Add(time.Hour)}}
	if n := m.apply(u); n != 1 {
		t.Errorf("ended %d sessions", n)
	}
	over(t, s, time.Second)
}

func TestAStaleFeedEndsAndRefusesEverything(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	m.clock.add(proxy.DefaultStaleness - 2*time.Second)
	if _, err := s.Authorize(context.Background(), m.command("select", "orders")); err != nil {
		t.Fatalf("refused before the limit: %v", err)
	}
	m.clock.add(3 * time.Second)
	if _, err := s.Authorize(context.Background(), m.command("select", "orders")); refusal(t, err).Class != proxy.ClassStale {
		t.Errorf("authorize: %v", err)
	}
	if e := over(t, s, soon); e.Class != proxy.ClassStale {
		t.Errorf("ended as %q", e.Class)
	}
	_, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop)
	if r := refusal(t, err); r.Class != proxy.ClassStale || r.RecordID == "" {
		t.Errorf("open: %+v", r)
	}
	// A message that was held back on the way is no news.
	m.apply(feed.Update{Revision: m.revision, SentAt: m.clock.Now().Add(-time.Minute), Kind: feed.Heartbeat})
	if m.core.Ready() == nil {
		t.Error("an old message made the feed fresh")
	}
	m.heartbeat()
	if err := m.core.Ready(); err != nil {
		t.Error(err)
	}
	m.open(m.flow())
}

func TestASessionIsCutWhenItsCredentialRunsOut(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	m.clock.add(5*time.Minute + actor.Skew + time.Second)
	m.heartbeat()
	if e := over(t, s, soon); e.Class != proxy.ClassExpired && e.Class != proxy.ClassStale {
		t.Errorf("ended as %q", e.Class)
	}
	if _, err := s.Authorize(context.Background(), m.command("select", "orders")); !refusal(t, err).Ended {
		t.Errorf("authorize: %v", err)
	}
}

func TestTheProxyServesOnlyAfterASnapshot(t *testing.T) {
	m := newMesh(t)
	open := func() error {
		_, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop)
		return err
	}
	if refusal(t, open()).Class != proxy.ClassNotReady {
		t.Error("served without a snapshot")
	}
	if _, err := m.state.Apply(context.Background(), m.update(feed.Delta, feed.Changes{})); err == nil {
		t.Error("a delta came first")
	}
	if _, err := m.state.Apply(context.Background(), m.update(feed.Heartbeat, feed.Changes{})); err == nil {
		t.Error("a heartbeat came first")
	}
	u := m.snapshot()
	u.PolicySet = ""
	m.apply(u)
	if refusal(t, open()).Class != proxy.ClassNotReady {
		t.Error("served without a policy set")
	}
	m.apply(m.snapshot())
	if err := open(); err != nil {
		t.Error(err)
	}
}
