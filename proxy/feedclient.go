package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
	wait := minRedial
	for {
		applied, broken := syncOnce(ctx, cfg, tlsCfg)
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

// syncOnce connects, opens one stream and applies what comes until it breaks. It reports whether anything
// was applied. Each stream has a connection of its own, so that a new SVID is shown after a rotation.
func syncOnce(ctx context.Context, cfg FeedConfig, tlsCfg *tls.Config) (applied bool, err error) {
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
			return applied, fmt.Errorf("reading the feed: %w", err)
		}
		silence.Reset(feedSilence)
		update, err := feed.UpdateFromProto(msg)
		if err != nil {
			return applied, fmt.Errorf("reading the feed: %w", err)
		}
		// Who speaks was verified when the connection began. Where trust in authorities changes, it is asked again.
		if now, err := cfg.Bundles.GetX509BundleForTrustDomain(cfg.Broker.TrustDomain()); err != nil || !now.Equal(trusted) {
			return applied, errors.New("reading the feed: the trust bundle changed; connecting again")
		}
		if first && update.Kind != feed.Snapshot {
			return applied, errors.New("reading the feed: the broker didn't begin with a snapshot")
		}
		ended, err := cfg.State.Apply(ctx, update)
		if err != nil {
			return applied, fmt.Errorf("applying the feed: %w", err)
		}
		applied = true
		if update.Kind == feed.Heartbeat {
			continue
		}
		ack := feed.ProxyMessage{Ack: &feed.Ack{Revision: update.Revision, SessionsEnded: uint32(min(ended, 1<<31))}}
		if err := stream.Send(feed.ProxyMessageToProto(ack)); err != nil {
			return applied, fmt.Errorf("acknowledging revision %d: %w", update.Revision, err)
		}
	}
}
