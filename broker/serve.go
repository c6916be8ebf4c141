package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/deputymesh/deputy/audit"
)

const (
	readTimeout    = 15 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = time.Minute
	maxHeaderBytes = 48 << 10 // an operator's ID token and proof travel in headers
	stopWithin     = 3 * time.Second
	sweepEvery     = time.Minute
)

// Listeners are where a broker answers. Serve closes them.
type Listeners struct {
	Mesh net.Listener // agents
	Feed net.Listener // proxies
	Web  net.Listener // operators and metadata
}

// Serve answers until ctx ends or a listener fails. When it returns everything that it started has ended.
func (b *Broker) Serve(ctx context.Context, l Listeners) error {
	// Once in the foreground, so that a wrong provider is seen at the start; later failures are retried.
	if err := b.tokens.Fetch(ctx); err != nil {
		b.cfg.Logger.ErrorContext(ctx, "an identity provider can't be reached; its users are refused until it can", "error", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { b.tokens.Run(ctx); return nil })
	g.Go(func() error { return b.follower.Run(ctx) })
	g.Go(func() error { b.sweep(ctx); return nil })

	b.http(ctx, g, "mesh", l.Mesh, b.token.Handler(), b.meshTLS(tlsconfig.AuthorizeMemberOf(b.cfg.TrustDomain)))
	b.http(ctx, g, "web", l.Web, b.webHandler(), &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{b.cfg.WebCertificate}})

	feed := b.feed.GRPC(credentials.NewTLS(b.meshTLS(tlsconfig.AuthorizeOneOf(b.feed.IDs()...))))
	g.Go(func() error {
		if err := feed.Serve(l.Feed); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serving the feed listener: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		b.feed.Stop()
		stopped := time.AfterFunc(stopWithin, feed.Stop)
		defer stopped.Stop()
		feed.GracefulStop()
		return nil
	})
	return g.Wait()
}

// meshTLS demands an SVID of the mesh's own trust domain: TLS 1.3, and no tickets, since Go doesn't look
// at certificates again when a session is resumed.
func (b *Broker) meshTLS(authorize tlsconfig.Authorizer) *tls.Config {
	cfg := tlsconfig.MTLSServerConfig(b.cfg.SVIDs, b.cfg.Bundles, authorize)
	cfg.MinVersion = tls.VersionTLS13
	cfg.SessionTicketsDisabled = true
	verify := cfg.VerifyPeerCertificate
	cfg.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
		err := verify(raw, chains)
		if err != nil {
			b.cfg.Log.Count("peer.certificate")
		}
		return err
	}
	return cfg
}

func (b *Broker) http(ctx context.Context, g *errgroup.Group, name string, l net.Listener, h http.Handler, t *tls.Config) {
	srv := &http.Server{
		Handler: h, TLSConfig: t, ReadTimeout: readTimeout, ReadHeaderTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(b.cfg.Logger.Handler(), slog.LevelDebug),
	}
	g.Go(func() error {
		if err := srv.ServeTLS(l, "", ""); err != nil && !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the %s listener: %w", name, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		if err := srv.Shutdown(stopping); err != nil {
			return srv.Close()
		}
		return nil
	})
}

// sweep forgets what is over and says so for sessions.
func (b *Broker) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		over, err := b.state.Sweep(ctx)
		if err != nil && ctx.Err() == nil {
			b.cfg.Logger.ErrorContext(ctx, "what is over could not be forgotten", "error", err)
			continue
		}
		for _, s := range over {
			b.cfg.Log.Submit(audit.Record{Txn: s.Txn, Session: s.SID, Event: &audit.SessionEnded{Reason: "expired"}})
		}
	}
}

// Ready returns why exchanges are refused at the moment; nil if they aren't.
func (b *Broker) Ready() error {
	if missing := b.tokens.Ready(); len(missing) > 0 {
		return fmt.Errorf("no keys of %v are known yet", missing)
	}
	return b.follower.Ready()
}
