package broker_test

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/testca"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// proxyConn is a proxy on the feed.
type proxyConn struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[feedv1.ProxyMessage, feedv1.BrokerMessage]
}

func (m *mesh) dial(as *x509svid.SVID) feedv1.FeedClient {
	m.t.Helper()
	cfg := tlsconfig.MTLSClientConfig(as, m.ca.Bundle(), tlsconfig.AuthorizeID(m.ca.ID("/deputy/broker")))
	cfg.MinVersion = tls.VersionTLS13
	conn, err := grpc.NewClient("passthrough:"+m.feedAddr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	return feedv1.NewFeedClient(conn)
}

func (m *mesh) proxy(ctx context.Context, as *x509svid.SVID, targets ...string) (*proxyConn, feed.Update, error) {
	m.t.Helper()
	s, err := m.dial(as).Sync(ctx)
	if err != nil {
		return nil, feed.Update{}, err
	}
	h := &feed.Hello{}
	for _, n := range targets {
		h.Targets = append(h.Targets, name(m.t, n))
	}
	p := &proxyConn{m.t, s}
	if err := s.Send(feed.ProxyMessageToProto(feed.ProxyMessage{Hello: h})); err != nil {
		return nil, feed.Update{}, err
	}
	u, err := p.next()
	return p, u, err
}

func (p *proxyConn) next() (feed.Update, error) {
	raw, err := p.stream.Recv()
	if err != nil {
		return feed.Update{}, err
	}
	return feed.UpdateFromProto(raw)
}

func (p *proxyConn) delta() feed.Update {
	p.t.Helper()
	for {
		u, err := p.next()
		if err != nil {
			p.t.Fatal(err)
		}
		if u.Kind != feed.Heartbeat {
			return u
		}
	}
}

func (p *proxyConn) ack(revision uint64, ended uint32) {
	p.t.Helper()
	if err := p.stream.Send(feed.ProxyMessageToProto(feed.ProxyMessage{Ack: &feed.Ack{Revision: revision, SessionsEnded: ended}})); err != nil {
		p.t.Fatal(err)
	}
}

func TestFeed(t *testing.T) {
	m := newMesh(t, func(m *mesh) { m.cfg.ApplyWait = 0 }) // the default
	admin := m.admin()
	before := admin.revoke(`{"kind":"target","value":"crm-db"}`)
	admin.revoke(`{"kind":"task","value":"old"}`)
	p, snapshot, err := m.proxy(t.Context(), m.ca.SVID(m.ca.ID("/deputy/proxy/orders")), "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	if snapshot.Kind != feed.Snapshot || snapshot.Revision != before.Revision+1 || len(snapshot.Revocations) != 1 ||
		snapshot.Revocations[0].Of != (feed.Match{Kind: feed.Task, Value: "old"}) {
		t.Errorf("the snapshot tells about other targets, or too little: %+v", snapshot)
	}
	if diff := cmp.Diff([]string{m.cfg.TokenKeyStatement}, snapshot.TokenKeyStatements); diff != "" {
		t.Errorf("token keys: %s", diff)
	}
	p.ack(snapshot.Revision, 0)
	crm, crmSnapshot, err := m.proxy(t.Context(), m.ca.SVID(m.ca.ID("/deputy/proxy/crm")), "crm-db")
	if err != nil {
		t.Fatal(err)
	}

	// One answers at once, the other doesn't: the operator hears both.
	done := make(chan operatorReply, 1)
	began := time.Now()
	go func() { done <- admin.revoke(`{"kind":"session","value":"gone"}`) }()
	u := p.delta()
	if u.Kind != feed.Delta || u.Revision != snapshot.Revision+1 || len(u.Revocations) != 1 || u.Revocations[0].Of.Value != "gone" {
		t.Errorf("delta: %+v", u)
	}
	p.ack(u.Revision, 3)
	r := <-done
	if len(r.Applied) != 1 || r.Applied[0].Proxy != "orders" || r.Applied[0].Ended != 3 || len(r.Pending) != 1 || r.Pending[0] != "crm" {
		t.Errorf("answer: %+v", r)
	}
	if took := time.Since(began); took < 1500*time.Millisecond || took > 6*time.Second {
		t.Errorf("it waited %s for the silent proxy, want about 2 s", took)
	}
	crm.ack(crm.delta().Revision, 0)

	// A revision that doesn't concern it comes empty, so that nothing can be missed unseen.
	go func() { done <- admin.revoke(`{"kind":"target","value":"crm-db"}`) }()
	u, v := p.delta(), crm.delta()
	if u.Revision != v.Revision || len(u.Revocations) != 0 || len(v.Revocations) != 1 {
		t.Errorf("orders got %+v, crm %+v", u, v)
	}
	p.ack(u.Revision, 0)
	crm.ack(v.Revision, 1)
	if r := <-done; len(r.Applied) != 2 || len(r.Pending) != 0 || r.Applied[0].Proxy != "crm" || r.Applied[0].Ended != 1 {
		t.Errorf("answer: %+v", r)
	}

	f := m.flow("alice")
	m.issuer.end(agentID(t, f.planner))
	if u := p.delta(); len(u.Ended) != 1 || u.Ended[0].ID != f.planner.ID.String() {
		t.Errorf("ended agent: %+v", u)
	}
	if u, err := p.next(); err != nil || u.Kind != feed.Heartbeat || u.Revision != v.Revision+1 {
		t.Errorf("heartbeat: %+v %v", u, err)
	}
	if crmSnapshot.Revision != snapshot.Revision {
		t.Errorf("snapshots at %d and %d", crmSnapshot.Revision, snapshot.Revision)
	}
}

func TestFeedRefuses(t *testing.T) {
	m := newMesh(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	orders := m.ca.SVID(m.ca.ID("/deputy/proxy/orders"))
	for name, tc := range map[string]struct {
		as      *x509svid.SVID
		targets []string
	}{
		"foreign target":    {orders, []string{"crm-db"}},
		"one of them":       {orders, []string{"orders-db", "crm-db"}},
		"unknown target":    {orders, []string{"payroll"}},
		"no target":         {orders, nil},
		"unknown proxy":     {m.ca.SVID(m.ca.ID("/deputy/proxy/other")), []string{"orders-db"}},
		"longer path":       {m.ca.SVID(m.ca.ID("/deputy/proxy/orders/x")), []string{"orders-db"}},
		"an agent":          {m.agent("planner"), []string{"orders-db"}},
		"the broker itself": {m.ca.SVID(m.ca.ID("/deputy/broker")), []string{"orders-db"}},
		"another CA":        {testca.New(t, "corp.example").SVID(orders.ID), []string{"orders-db"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, u, err := m.proxy(ctx, tc.as, tc.targets...); err == nil {
				t.Errorf("it got %+v", u)
			}
		})
	}
	p, snapshot, err := m.proxy(ctx, orders, "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	p.ack(snapshot.Revision+5, 0)
	for {
		if _, err := p.next(); err != nil {
			break // it acknowledged what was never sent
		}
	}
}
