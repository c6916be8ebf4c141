package proxy_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
)

// What an authority vouched for ends when the authority leaves the bundle, live sessions and the feed included; another that
// comes or goes changes nothing.
func TestWhatAnAuthorityVouchedForEndsWithIt(t *testing.T) {
	bundle := testca.New(t, domain).Bundle() // some other authority of the same trust domain
	m := newMesh(t, func(_ *audit.Config, c *proxy.Config, _ *proxy.StateConfig) {
		own, err := c.Bundles.GetX509BundleForTrustDomain(c.TrustDomain)
		if err != nil {
			t.Fatal(err)
		}
		bundle.AddX509Authority(own.X509Authorities()[0])
		c.Bundles = bundle
	})
	m.apply(m.snapshot())
	s := m.open(m.flow())
	b := startBroker(t, m, m.ca.ID("/deputy/broker"))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- proxy.RunFeed(ctx, proxy.FeedConfig{
			Address: b.addr, Broker: m.ca.ID("/deputy/broker"), SVID: m.ca.SVID(m.ca.ID("/deputy/proxy/orders")),
			Bundles: bundle, Targets: []target.Name{m.target}, State: m.state, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	stream := next(t, b.streams)
	stream.send <- m.snapshot()
	next(t, stream.acks)

	for _, a := range bundle.X509Authorities() {
		if !a.Equal(m.ca.Certificate()) {
			bundle.RemoveX509Authority(a)
		}
	}
	// The feed asks again who speaks, at the next thing that it hears.
	stream.send <- feed.Update{Kind: feed.Heartbeat, Revision: m.revision, SentAt: m.clock.Now()}
	stream = next(t, b.streams)
	stream.send <- m.snapshot()
	next(t, stream.acks)
	if err := s.Context().Err(); err != nil {
		t.Fatalf("the session ended with another authority: %v", context.Cause(s.Context()))
	}

	bundle.AddX509Authority(testca.New(t, domain).Certificate())
	bundle.RemoveX509Authority(m.ca.Certificate())
	if e := over(t, s, soon); e.Class != proxy.ClassRevoked || !strings.Contains(e.Reason, "not trusted any more") {
		t.Errorf("the session ended as %s: %s", e.Class, e.Reason)
	}
	stream.send <- feed.Update{Kind: feed.Heartbeat, Revision: m.revision, SentAt: m.clock.Now()}
	select {
	case <-b.streams:
		t.Error("the proxy listens to a broker that an authority of before vouches for")
	case <-stream.gone:
	case <-time.After(soon):
		t.Error("the proxy goes on listening")
	}
}
