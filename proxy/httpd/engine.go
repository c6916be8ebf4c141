package httpd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http/httputil"
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

// ForTarget gives an engine the part of the core that is about one target.
func ForTarget(core *proxy.Core, t target.Name) Core { return hop.ForTarget(core, t) }

// Config makes an engine for one target.
type Config struct {
	Core Core
	// Target is spiffe://<td>/target/<name>.
	Target spiffeid.ID
	// Mesh is the broker's issuer URL, which the metadata names.
	Mesh string
	// TLS is what [proxy.ServerTLS] makes: the proxy's SVID, and agents verified by theirs. The engine demands
	// TLS 1.3 and a client certificate, without tickets, whatever it says.
	TLS *tls.Config
	// SVID is the proxy's own: its key signs what services are told about the chain.
	SVID x509svid.Source
	// Upstream is the target's server.
	Upstream Upstream
	// Accounts are those at the target that requests may use, in order of preference.
	Accounts []Account
	// FoldCase decides on paths in lower case, and sends them on so: for servers to which /A and /a are one.
	FoldCase bool
	// GraphQL are paths of GraphQL endpoints: operations there are decided by the fields of root types that they ask for.
	GraphQL []string
	// Cookies lets cookies pass in both directions. Without it a session of the account's stays at the proxy.
	Cookies bool

	// StartupTimeout is for TLS, and for the header of each request.
	StartupTimeout time.Duration
	MaxConnections int // of agents with a credential at once

	Logger *slog.Logger
}

// Engine serves one target.
type Engine struct {
	cfg   Config
	hop   *hop.Hop
	relay *httputil.ReverseProxy
	keyed *mask.Keyed   // its key lives as long as the engine
	large chan struct{} // a place for each large operation that is read
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	if err := checkGraphQL(cfg.GraphQL); err != nil {
		return nil, fmt.Errorf("making the HTTP engine: %w", err)
	}
	h, err := hop.New(hop.Config{
		Core: cfg.Core, Target: cfg.Target, Mesh: cfg.Mesh, DetailType: actor.HTTPDetail{}.Type(), Protocol: "http", TLS: cfg.TLS, SVID: cfg.SVID, Upstream: cfg.Upstream,
		Accounts: cfg.Accounts, Cookies: cfg.Cookies, StartupTimeout: cfg.StartupTimeout, MaxConnections: cfg.MaxConnections, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("making the HTTP engine: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Engine{cfg: cfg, hop: h, keyed: mask.Random(), large: make(chan struct{}, maxLarge)}
	e.relay = newRelay(e)
	return e, nil
}

// Serve accepts agents on l until ctx is done, then ends every connection and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error { return e.hop.Serve(ctx, l, e) }
