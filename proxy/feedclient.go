package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

// FeedConfig says where the feed comes from.
type FeedConfig struct {
	// Address of the broker's feed listener, host:port.
	Address string
	// Broker is the exact identity that must answer there.
	Broker  spiffeid.ID
	SVID    x509svid.Source
	Bundles x509bundle.Source
	Targets []target.Name
	State   *State
	Logger  *slog.Logger
}

const (
	feedSilence = 3 * feed.HeartbeatEvery
	minRedial   = 100 * time.Millisecond
	maxRedial   = 2 * time.Second
	// maxBehind is how many updates may wait to be kept while a disk is slow. One can be as large as a message may be.
	maxBehind = 16
)

// RunFeed keeps the state fresh from the broker until ctx is done. A broken stream is opened again; while
// there is none, the state grows stale by itself.
func RunFeed(ctx context.Context, cfg FeedConfig) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Broker.IsZero() || cfg.Address == "" || cfg.State == nil || cfg.SVID == nil || cfg.Bundles == nil {
		return errors.New("the feed needs an address, the broker's identity, an SVID, bundles and a state")
	}
	tlsCfg := tlsconfig.MTLSClientConfig(cfg.SVID, cfg.Bundles, tlsconfig.AuthorizeID(cfg.Broker))
	tlsCfg.MinVersion = tls.VersionTLS13
	// Whoever hears the broker doesn't wait for a disk, so that one that hangs holds no revocation up. What is behind
	// counts as not heard yet, so that the state grows stale.
	kept, ended := make(chan keeping, maxBehind), make(chan struct{})
	go func() {
		defer close(ended)
		for k := range kept {
			k.keep(ctx, cfg.State)
		}
	}()
	defer func() {
		close(kept)
		<-ended
	}()
	wait := minRedial
	for {
		applied, broken := syncOnce(ctx, cfg, tlsCfg, kept)
		if applied {
			wait = minRedial
		}
		select {
		case <-ctx.Done():
			return nil
		default:
			cfg.Logger.WarnContext(ctx, "the feed from the broker broke off", "error", broken, "again_in", wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, maxRedial)
	}
}

// keeping is an update that was heard, and the stream that it came from.
type keeping struct {
	heard  Heard
	stream feedv1.Feed_SyncClient
	broken context.CancelCauseFunc // ends the stream
	done   *atomic.Bool            // set when something of the stream was applied
}

func (k keeping) keep(ctx context.Context, s *State) {
	ended, err := s.Keep(ctx, k.heard)
	if err != nil {
		k.broken(fmt.Errorf("applying the feed: %w", err))
		return
	}
	k.done.Store(true)
	if k.heard.update.Kind == feed.Heartbeat {
		return
	}
	ack := feed.ProxyMessage{Ack: &feed.Ack{Revision: k.heard.update.Revision, SessionsEnded: uint32(min(ended, 1<<31))}}
	if err := k.stream.Send(feed.ProxyMessageToProto(ack)); err != nil {
		k.broken(fmt.Errorf("acknowledging revision %d: %w", k.heard.update.Revision, err))
	}
}

// syncOnce connects, opens one stream and hears what comes until it breaks. It reports whether anything
// was applied. Each stream has a connection of its own, so that a new SVID is shown after a rotation.
func syncOnce(ctx context.Context, cfg FeedConfig, tlsCfg *tls.Config, kept chan<- keeping) (applied bool, err error) {
	var done atomic.Bool
	defer func() { applied = done.Load() }()
	trusted, err := cfg.Bundles.GetX509BundleForTrustDomain(cfg.Broker.TrustDomain())
	if err != nil {
		return false, fmt.Errorf("opening the feed: %w", err)
	}
	trusted = trusted.Clone()
	conn, err := grpc.NewClient(cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsCfg)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(feed.MaxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return false, fmt.Errorf("preparing the feed from %s: %w", cfg.Address, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A broker that says nothing at all is no broker: without this a dead connection would look alive.
	silence := time.AfterFunc(feedSilence, func() { cancel(errors.New("the broker fell silent")) })
	defer silence.Stop()
	stream, err := feedv1.NewFeedClient(conn).Sync(ctx)
	if err != nil {
		return false, fmt.Errorf("opening the feed: %w", err)
	}
	revision, version := cfg.State.Position()
	hello := feed.ProxyMessage{Hello: &feed.Hello{Targets: cfg.Targets, Revision: revision, PolicyVersion: version}}
	if err := stream.Send(feed.ProxyMessageToProto(hello)); err != nil {
		return false, fmt.Errorf("greeting the broker: %w", err)
	}
	for first := true; ; first = false {
		msg, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return false, fmt.Errorf("reading the feed: %w", err)
		}
		silence.Reset(feedSilence)
		update, err := feed.UpdateFromProto(msg)
		if err != nil {
			return false, fmt.Errorf("reading the feed: %w", err)
		}
		// Who speaks was verified when the connection began. Where trust in authorities changes, it is asked again.
		if now, err := cfg.Bundles.GetX509BundleForTrustDomain(cfg.Broker.TrustDomain()); err != nil || !now.Equal(trusted) {
			return false, errors.New("reading the feed: the trust bundle changed; connecting again")
		}
		if first && update.Kind != feed.Snapshot {
			return false, errors.New("reading the feed: the broker didn't begin with a snapshot")
		}
		select {
		case kept <- keeping{cfg.State.Hear(update), stream, cancel, &done}:
		default:
			return false, fmt.Errorf("reading the feed: %d updates wait for this proxy's disk", maxBehind)
		}
	}
}
