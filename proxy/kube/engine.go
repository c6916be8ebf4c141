package kube

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// What the engine shares with others that speak HTTP.
type (
	Core     = hop.Core
	Session  = hop.Session
	Pass     = hop.Pass
	Upstream = hop.Upstream
	Account  = hop.Account
)

// maxLarge is how many requests of more than largeBody are held at once, and maxLargeEach how many of one user's.
const (
	maxLarge     = 32
	maxLargeEach = 8
)

// ForTarget gives an engine the part of the core that is about one target.
func ForTarget(core *proxy.Core, t target.Name) Core { return hop.ForTarget(core, t) }

// Config makes an engine for one target.
type Config struct {
	Core Core
	// Target is spiffe://<td>/target/<name>.
	Target spiffeid.ID
	// Mesh is the broker's issuer URL, which the metadata names.
	Mesh string
	// TLS is what [proxy.ServerTLS] makes: the proxy's SVID, and agents verified by theirs.
	TLS *tls.Config
	// SVID is the proxy's own.
	SVID x509svid.Source
	// Upstream is the cluster's API server.
	Upstream Upstream
	// Accounts are those at the cluster that may impersonate, in order of preference.
	Accounts []Account
	// Identities say as whom users are in the cluster.
	Identities Identities

	// StartupTimeout is for TLS, and for the header of each request.
	StartupTimeout time.Duration
	MaxConnections int // of agents with a credential at once

	Logger *slog.Logger
}

// Engine serves one target.
type Engine struct {
	cfg   Config
	hop   *hop.Hop
	keyed *mask.Keyed // its key lives as long as the engine
	large places      // of large requests
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Identities.check(); err != nil {
		return nil, fmt.Errorf("making the Kubernetes engine: %w", err)
	}
	h, err := hop.New(hop.Config{
		Core: cfg.Core, Target: cfg.Target, Mesh: cfg.Mesh, DetailType: actor.KubeDetail{}.Type(), Protocol: "kube", TLS: cfg.TLS, SVID: cfg.SVID, Upstream: cfg.Upstream,
		Accounts: cfg.Accounts, StartupTimeout: cfg.StartupTimeout, MaxConnections: cfg.MaxConnections, Problem: writeStatus, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("making the Kubernetes engine: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Engine{cfg: cfg, hop: h, keyed: mask.Random(), large: places{by: map[actor.SubjectID]int{}}}, nil
}

// Serve accepts agents on l until ctx is done, then ends every connection and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error { return e.hop.Serve(ctx, l, e) }
