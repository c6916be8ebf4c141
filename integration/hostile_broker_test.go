package integration_test

import (
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/deputymesh/deputy/internal/feed"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// hostileBroker speaks deputy.feed.v1 at the broker's address with the broker's own SVID, and says what it is told to say.
type hostileBroker struct {
	feedv1.UnimplementedFeedServer
	t        *testing.T
	say      chan *feedv1.BrokerMessage
	streams  chan feed.Hello // each new stream of the proxy
	acks     chan feed.Ack   // what it acknowledged
	silent   atomic.Bool     // send nothing but what it is told
	ended    chan struct{}   // each stream that the proxy ended
	log      func() string   // of the proxy
	revision uint64          // that it is at
}

func (h *hostileBroker) Sync(s grpc.BidiStreamingServer[feedv1.ProxyMessage, feedv1.BrokerMessage]) error {
	raw, err := s.Recv()
	if err != nil {
		return err
	}
	hello, err := feed.ProxyMessageFromProto(raw)
	if err != nil || hello.Hello == nil {
		return errors.New("no hello")
	}
	gone := make(chan error, 1)
	go func() {
		for {
			raw, err := s.Recv()
			if err != nil {
				gone <- err
				return
			}
			if m, err := feed.ProxyMessageFromProto(raw); err == nil && m.Ack != nil {
				h.acks <- *m.Ack
			}
		}
	}()
	select {
	case h.streams <- *hello.Hello:
	case err := <-gone:
		return err
	}
	// In between it is as lively as a broker, so that nobody takes it for dead.
	beat := time.NewTicker(feed.HeartbeatEvery)
	defer beat.Stop()
	var at uint64
	for {
		var m *feedv1.BrokerMessage
		select {
		case m = <-h.say:
			at = m.GetRevision()
		case <-beat.C:
			if at == 0 || h.silent.Load() {
				continue
			}
			m = h.update(feed.Heartbeat, at, feed.Changes{})
		case <-gone:
			h.ended <- struct{}{}
			return nil
		}
		if err := s.Send(m); err != nil {
			h.ended <- struct{}{}
			return err
		}
	}
}

func startHostileBroker(t *testing.T, f *forge) *hostileBroker {
	t.Helper()
	h := &hostileBroker{t: t, log: f.Proxy.Log, say: make(chan *feedv1.BrokerMessage), streams: make(chan feed.Hello), acks: make(chan feed.Ack, 1000), ended: make(chan struct{}, 100)}
	cfg := tlsconfig.MTLSServerConfig(f.roleSVID(t, "broker"), f.bundle, tlsconfig.AuthorizeMemberOf(f.bundle.TrustDomain()))
	cfg.MinVersion = tls.VersionTLS13
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg)), grpc.MaxSendMsgSize(1<<30))
	feedv1.RegisterFeedServer(g, h)
	l, err := net.Listen("tcp", f.Address("feed"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-served
	})
	return h
}

// greeted waits for the proxy's next stream.
func (h *hostileBroker) greeted() feed.Hello {
	h.t.Helper()
	select {
	case hello := <-h.streams:
		return hello
	case <-time.After(patience):
		h.t.Fatal("the proxy doesn't come to the broker")
		return feed.Hello{}
	}
}

func (h *hostileBroker) send(m *feedv1.BrokerMessage) {
	h.t.Helper()
	select {
	case h.say <- m:
	case <-time.After(patience):
		h.t.Fatal("nobody listens to the broker")
	}
}

func (h *hostileBroker) update(kind feed.MessageKind, revision uint64, c feed.Changes) *feedv1.BrokerMessage {
	return feed.UpdateToProto(feed.Update{Kind: kind, Revision: revision, SentAt: time.Now(), Changes: c})
}

// applied sends something that the proxy takes, and waits until it is in force.
func (h *hostileBroker) applied(kind feed.MessageKind, c feed.Changes) {
	h.t.Helper()
	if kind == feed.Delta {
		h.revision++
	}
	h.send(h.update(kind, h.revision, c))
	for limit := time.After(patience); ; {
		select {
		case a := <-h.acks:
			if a.Revision == h.revision {
				return
			}
		case <-limit:
			h.t.Fatalf("revision %d isn't acknowledged", h.revision)
		}
	}
}

// refused sends something that the proxy doesn't take: it ends the stream, and begins another.
func (h *hostileBroker) refused(name string, m *feedv1.BrokerMessage) {
	h.t.Helper()
	h.send(m)
	select {
	case <-h.ended:
	case <-time.After(patience):
		h.t.Fatalf("%s: the proxy goes on listening:\n%s", name, h.log())
	}
	h.greeted()
}
