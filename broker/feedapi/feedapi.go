package feedapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/broker/operatorapi"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

const (
	maxHello    = 128 << 10 // bytes of a proxy's message
	helloWithin = 5 * time.Second
	sendWithin  = 5 * time.Second
	maxStreams  = 4 // per connection
)

// Config makes a Server. Everything is needed.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	State       *state.State
	// Proxies are the targets of each proxy, by its name: spiffe://<td>/deputy/proxy/<name>.
	Proxies map[string][]target.Name
	// TokenKeyStatements are compact JWS of typ deputy-token-key+jwt.
	TokenKeyStatements []string
	Now                func() time.Time
	Logger             *slog.Logger
}

// Server serves the feed.
type Server struct {
	feedv1.UnimplementedFeedServer
	cfg     Config
	proxies map[spiffeid.ID]string
	acks    *acks
	stop    chan struct{}
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	if cfg.State == nil || cfg.Now == nil || cfg.Logger == nil || len(cfg.TokenKeyStatements) == 0 {
		return nil, errors.New("feed: a dependency is missing")
	}
	s := &Server{cfg: cfg, proxies: make(map[spiffeid.ID]string), stop: make(chan struct{})}
	var names []string
	for name, targets := range cfg.Proxies {
		id, err := spiffeid.FromSegments(cfg.TrustDomain, "deputy", "proxy", name)
		if err != nil {
			return nil, fmt.Errorf("feed: proxy %q: %w", name, err)
		}
		if len(targets) == 0 {
			return nil, fmt.Errorf("feed: proxy %q has no target", name)
		}
		s.proxies[id] = name
		names = append(names, name)
	}
	slices.Sort(names)
	s.acks = newAcks(names)
	return s, nil
}

// IDs are the identities that may connect.
func (s *Server) IDs() []spiffeid.ID {
	out := make([]spiffeid.ID, 0, len(s.proxies))
	for id := range s.proxies {
		out = append(out, id)
	}
	return out
}

// Applier says what proxies have in force.
func (s *Server) Applier() operatorapi.Applier { return s.acks }

// GRPC makes the gRPC server with the service on it.
func (s *Server) GRPC(creds credentials.TransportCredentials) *grpc.Server {
	g := grpc.NewServer(grpc.Creds(creds), grpc.MaxRecvMsgSize(maxHello), grpc.MaxSendMsgSize(feed.MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(helloWithin))
	feedv1.RegisterFeedServer(g, s)
	return g
}

// Stop ends all streams.
func (s *Server) Stop() { close(s.stop) }

// Sync implements deputy.feed.v1.
func (s *Server) Sync(g grpc.BidiStreamingServer[feedv1.ProxyMessage, feedv1.BrokerMessage]) error {
	ctx := g.Context()
	proxy, ends, err := s.who(ctx)
	if err != nil {
		return err
	}
	messages := make(chan received)
	done := make(chan struct{})
	defer close(done)
	go receive(g, messages, done)

	hello, err := s.hello(ctx, proxy, messages)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "a proxy is refused on the feed", "proxy", proxy, "error", err)
		return err
	}
	snapshot, sub, err := s.cfg.State.Subscribe()
	if err != nil {
		return status.Error(codes.Unavailable, "the broker's state can't be read at the moment")
	}
	defer sub.Close()
	if hello.Revision > snapshot.Revision {
		s.cfg.Logger.ErrorContext(ctx, "a proxy is ahead of this broker: was its database replaced by an older one?",
			"proxy", proxy, "proxy_revision", hello.Revision, "revision", snapshot.Revision)
	}
	st := s.acks.join(proxy)
	defer s.acks.leave(st)

	snapshot.TokenKeyStatements = s.cfg.TokenKeyStatements
	out := sender{stream: g, own: hello.Targets, sent: snapshot.Revision}
	if err := out.send(ctx, snapshot); err != nil {
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "a proxy is on the feed", "proxy", proxy, "revision", snapshot.Revision)

	beat := time.NewTicker(feed.HeartbeatEvery)
	defer beat.Stop()
	expires := time.NewTimer(ends.Sub(s.cfg.Now()))
	defer expires.Stop()
	for {
		select {
		case u, ok := <-sub.Updates:
			if !ok {
				return status.Error(codes.ResourceExhausted, "too far behind; connect again for a snapshot")
			}
			if err := out.send(ctx, u); err != nil {
				return err
			}
		case <-beat.C:
			if err := out.send(ctx, feed.Update{Revision: out.sent, SentAt: s.cfg.Now(), Kind: feed.Heartbeat}); err != nil {
				return err
			}
		case m := <-messages:
			if m.err != nil {
				return m.err
			}
			if m.Ack == nil || m.Ack.Revision > out.sent {
				return status.Error(codes.InvalidArgument, "after the hello only revisions that were sent are acknowledged")
			}
			s.acks.ack(st, *m.Ack)
		case <-expires.C:
			return status.Error(codes.Unavailable, "the SVID of this connection has ended; connect again with the new one")
		case <-s.stop:
			return status.Error(codes.Unavailable, "the broker is stopping")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// who is the proxy at the other end, and when its SVID ends.
func (s *Server) who(ctx context.Context) (string, time.Time, error) {
	refused := status.Error(codes.PermissionDenied, "this identity is no proxy of this broker")
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", time.Time{}, refused
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", time.Time{}, refused
	}
	leaf := info.State.PeerCertificates[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return "", time.Time{}, refused
	}
	name, ok := s.proxies[id]
	if !ok {
		return "", time.Time{}, refused
	}
	return name, leaf.NotAfter, nil
}

// hello waits for the proxy's first message and holds it against its configured targets.
func (s *Server) hello(ctx context.Context, proxy string, messages <-chan received) (feed.Hello, error) {
	timer := time.NewTimer(helloWithin)
	defer timer.Stop()
	select {
	case m := <-messages:
		if m.err != nil {
			return feed.Hello{}, m.err
		}
		if m.Hello == nil {
			return feed.Hello{}, status.Error(codes.InvalidArgument, "the first message must be hello")
		}
		for _, t := range m.Hello.Targets {
			if !slices.Contains(s.cfg.Proxies[proxy], t) {
				return feed.Hello{}, status.Errorf(codes.PermissionDenied, "target %s is not one of proxy %s; the broker's configuration says which are", t, proxy)
			}
		}
		return *m.Hello, nil
	case <-timer.C:
		return feed.Hello{}, status.Errorf(codes.DeadlineExceeded, "no hello within %s", helloWithin)
	case <-ctx.Done():
		return feed.Hello{}, ctx.Err()
	}
}

type received struct {
	feed.ProxyMessage
	err error
}

// receive reads until the stream ends; Sync's return ends it.
func receive(g grpc.BidiStreamingServer[feedv1.ProxyMessage, feedv1.BrokerMessage], to chan<- received, done <-chan struct{}) {
	for {
		raw, err := g.Recv()
		var m received
		switch {
		case err != nil:
			m.err = status.Error(codes.Canceled, "the proxy is gone")
		default:
			if m.ProxyMessage, err = feed.ProxyMessageFromProto(raw); err != nil {
				m.err = status.Error(codes.InvalidArgument, err.Error())
			}
		}
		select {
		case to <- m:
		case <-done:
			return
		}
		if m.err != nil {
			return
		}
	}
}

// sender sends one proxy what concerns it.
type sender struct {
	stream grpc.BidiStreamingServer[feedv1.ProxyMessage, feedv1.BrokerMessage]
	own    []target.Name
	sent   uint64
}

// send gives up on a proxy that doesn't take a message in time. Sync's return then ends the stream, and
// with it the write that hangs.
func (o *sender) send(ctx context.Context, u feed.Update) error {
	u.Revocations = slices.DeleteFunc(slices.Clone(u.Revocations), func(r feed.Revocation) bool {
		return r.Of.Kind == feed.Target && !slices.ContainsFunc(o.own, func(n target.Name) bool { return n.String() == r.Of.Value })
	})
	o.sent = max(o.sent, u.Revision)
	result := make(chan error, 1)
	go func() { result <- o.stream.Send(feed.UpdateToProto(u)) }()
	timer := time.NewTimer(sendWithin)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return status.Errorf(codes.DeadlineExceeded, "a message was not taken within %s", sendWithin)
	case <-ctx.Done():
		return ctx.Err()
	}
}
