package proxy_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
	"github.com/deputymesh/deputy/proxy"
)

// broker is a feed over real gRPC and mTLS that says what a test wants.
type broker struct {
	feedv1.UnimplementedFeedServer
	addr string

	streams chan *brokerStream // one value per stream that was opened
}

type brokerStream struct {
	hello feed.Hello
	send  chan feed.Update
	acks  chan feed.Ack
	cut   context.CancelFunc
	gone  <-chan struct{}
}

func (b *broker) Sync(stream feedv1.Feed_SyncServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	msg, err := feed.ProxyMessageFromProto(first)
	if err != nil || msg.Hello == nil {
		return err
	}
	s := &brokerStream{hello: *msg.Hello, send: make(chan feed.Update, 16), acks: make(chan feed.Ack, 16), cut: cancel, gone: ctx.Done()}
	go func() {
		for {
			in, err := stream.Recv()
			if err != nil {
				return
			}
			if msg, err := feed.ProxyMessageFromProto(in); err == nil && msg.Ack != nil {
				s.acks <- *msg.Ack
			}
		}
	}()
	select {
	case b.streams <- s:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		select {
		case u := <-s.send:
			if err := stream.Send(feed.UpdateToProto(u)); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func startBroker(t *testing.T, m *mesh, id spiffeid.ID) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := tlsconfig.MTLSServerConfig(m.ca.SVID(id), m.ca.Bundle(), tlsconfig.AuthorizeID(m.ca.ID("/deputy/proxy/orders")))
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg)))
	b := &broker{addr: l.Addr().String(), streams: make(chan *brokerStream)}
	feedv1.RegisterFeedServer(server, b)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return b
}

func (m *mesh) follow(t *testing.T, b *broker) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- proxy.RunFeed(ctx, proxy.FeedConfig{
			Address: b.addr, Broker: m.ca.ID("/deputy/broker"), SVID: m.ca.SVID(m.ca.ID("/deputy/proxy/orders")),
			Bundles: m.ca.Bundle(), Targets: []target.Name{m.target}, State: m.state, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(soon):
		t.Fatal("nothing came")
	}
	panic("unreachable")
}

func TestTheFeedBringsEverythingAndRevokesWithinASecond(t *testing.T) {
	m := newMesh(t)
	b := startBroker(t, m, m.ca.ID("/deputy/broker"))
	m.follow(t, b)
	stream := next(t, b.streams)
	if diff := cmp.Diff([]target.Name{m.target}, stream.hello.Targets, cmp.Comparer(func(a, b target.Name) bool { return a == b })); diff != "" || stream.hello.Revision != 0 {
		t.Errorf("hello %+v", stream.hello)
	}
	stream.send <- m.snapshot()
	if ack := next(t, stream.acks); ack.Revision != m.revision {
		t.Errorf("ack %+v", ack)
	}
	s := m.open(m.flow())
	now := m.clock.Now()
	start := time.Now()
	stream.send <- m.update(feed.Delta, feed.Changes{Revocations: []feed.Revocation{
		{ID: "0123", Of: must(feed.MatchUser(idpURL, "alice")), IssuedAt: now, ExpiresAt: now.Add(time.Hour), Reason: "left"},
	}})
	over(t, s, time.Second)
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %s", took)
	}
	if ack := next(t, stream.acks); ack.Revision != m.revision || ack.SessionsEnded != 1 {
		t.Errorf("ack %+v", ack)
	}
	// A cut stream is opened again, from where it stood.
	stream.cut()
	stream = next(t, b.streams)
	if stream.hello.Revision != m.revision || stream.hello.PolicyVersion != 1 {
		t.Errorf("hello %+v after revision %d", stream.hello, m.revision)
	}
	// A broker that lost its memory is refused.
	stream.send <- feed.Update{Revision: 1, SentAt: m.clock.Now(), Kind: feed.Snapshot}
	stream = next(t, b.streams)
	if _, err := m.core.Open(context.Background(), m.peer(m.researcher), m.credential(m.flow()), m.target, shop); refusal(t, err).Class != proxy.ClassRevoked {
		t.Errorf("the rollback brought the user back: %v", err)
	}
	// So is one that doesn't begin with a snapshot.
	stream.send <- m.update(feed.Delta, feed.Changes{PolicySet: m.policySet(2, nil)})
	next(t, b.streams)
	if v := m.state.Policy().Version(); v != 1 {
		t.Errorf("policy version %d from a delta that came first", v)
	}
}

func TestTheFeedOfSomebodyElseIsNotHeard(t *testing.T) {
	m := newMesh(t)
	b := startBroker(t, m, m.ca.ID("/deputy/brokers"))
	m.follow(t, b)
	select {
	case <-b.streams:
		t.Error("greeted a peer that isn't the broker")
	case <-time.After(500 * time.Millisecond):
	}
	if m.core.Ready() == nil {
		t.Error("ready")
	}
}
