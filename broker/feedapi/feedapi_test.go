package feedapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/broker/feedapi"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// nowhere is a store for tests that don't ask for what they stored.
type nowhere struct{}

func (nowhere) Load(context.Context) (state.Contents, error) { return state.Contents{}, nil }
func (nowhere) Commit(context.Context, state.Change) error   { return nil }

type fixture struct {
	t     *testing.T
	ca    *testca.CA
	state *state.State
	addr  string
}

func start(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, ca: testca.New(t, "corp.example")}
	var err error
	if f.state, err = state.Open(t.Context(), nowhere{}, time.Now, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	orders, err := target.ParseName("orders-db")
	if err != nil {
		t.Fatal(err)
	}
	s, err := feedapi.New(feedapi.Config{
		TrustDomain: f.ca.TrustDomain(), State: f.state, Proxies: map[string][]target.Name{"one": {orders}, "two": {orders}},
		TokenKeyStatements: []string{"a.b.c"}, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := tlsconfig.MTLSServerConfig(f.ca.SVID(f.ca.ID("/deputy/broker")), f.ca.Bundle(), tlsconfig.AuthorizeOneOf(s.IDs()...))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	g := s.GRPC(credentials.NewTLS(cfg))
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return f
}

// connect says hello and reads the snapshot.
func (f *fixture) connect(as *x509svid.SVID) grpc.BidiStreamingClient[feedv1.ProxyMessage, feedv1.BrokerMessage] {
	f.t.Helper()
	cfg := tlsconfig.MTLSClientConfig(as, f.ca.Bundle(), tlsconfig.AuthorizeID(f.ca.ID("/deputy/broker")))
	conn, err := grpc.NewClient("passthrough:"+f.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	s, err := feedv1.NewFeedClient(conn).Sync(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	if err := s.Send(&feedv1.ProxyMessage{Message: &feedv1.ProxyMessage_Hello{Hello: &feedv1.Hello{Targets: []string{"orders-db"}}}}); err != nil {
		f.t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || m.GetSnapshot() == nil {
		f.t.Fatalf("%v %v", m, err)
	}
	return s
}

// A proxy that doesn't read is cut, and one that does gets everything meanwhile.
func TestASilentProxyIsCutAndHoldsNobodyUp(t *testing.T) {
	f := start(t)
	silent := f.connect(f.ca.SVID(f.ca.ID("/deputy/proxy/one")))
	good := f.connect(f.ca.SVID(f.ca.ID("/deputy/proxy/two")))
	const n = 600
	for i := range n {
		now := time.Now()
		r := state.Revocation{Revocation: feed.Revocation{
			ID: fmt.Sprint(i), Of: feed.Match{Kind: feed.Task, Value: fmt.Sprint(i)}, IssuedAt: now, ExpiresAt: now.Add(time.Hour), Reason: strings.Repeat("x", 1000),
		}}
		if _, err := f.state.Revoke(t.Context(), r, func(state.Revocation, []state.Session) error { return nil }); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := good.Recv()
			if err != nil {
				t.Fatalf("the proxy that reads: %v", err)
			}
			if d := m.GetDelta(); d != nil {
				if m.GetRevision() != uint64(i+1) || d.GetRevocations()[0].GetTask() != fmt.Sprint(i) {
					t.Fatalf("got %v, want revision %d", m, i+1)
				}
				break
			}
		}
	}
	time.Sleep(6 * time.Second) // longer than a message may take
	for range n {
		if _, err := silent.Recv(); err != nil {
			if c := status.Code(err); c != codes.DeadlineExceeded && c != codes.ResourceExhausted {
				t.Errorf("it was cut with %v", err)
			}
			return
		}
	}
	t.Error("it was not cut")
}

func TestAConnectionEndsWithItsSVID(t *testing.T) {
	f := start(t)
	now := time.Now()
	s := f.connect(f.ca.SVID(f.ca.ID("/deputy/proxy/one"), testca.Validity(now.Add(-time.Minute), now.Add(2*time.Second))))
	for {
		if _, err := s.Recv(); err != nil {
			if status.Code(err) != codes.Unavailable || time.Since(now) < time.Second {
				t.Errorf("after %s: %v", time.Since(now), err)
			}
			return
		}
		if time.Since(now) > 10*time.Second {
			t.Fatal("it goes on with an SVID that has expired")
		}
	}
}
