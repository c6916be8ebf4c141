package mcpd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"sync"
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

// Path is where agents find the server at the proxy, whatever its path is at the target.
const Path = "/mcp"

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
	// SVID is the proxy's own: its key signs what servers are told about the chain.
	SVID x509svid.Source
	// Upstream is the target's server, and Endpoint the path of its MCP endpoint.
	Upstream Upstream
	Endpoint string
	// Accounts are those at the target that may be used, in order of preference.
	Accounts []Account
	// Reviewed are the digests of the tools that somebody reviewed ([ParseReviewed]), by name. Tools that aren't among them are held; if it is
	// nil, those are that change after this proxy has seen them first.
	Reviewed map[string]string

	// StartupTimeout is for TLS, and for the header of each request.
	StartupTimeout time.Duration
	MaxConnections int // of agents with a credential at once

	Logger *slog.Logger
}

// Engine serves one target.
type Engine struct {
	cfg      Config
	hop      *hop.Hop
	sessions *sessions
	keyed    *mask.Keyed // its key lives as long as the engine
	pins     *pins
	large    chan struct{} // a place for each exchange that holds a large message

	endSlots chan struct{}   // of sessions that the target is being told about
	endLife  context.Context // of telling it
	endNow   context.CancelFunc
	endMu    sync.Mutex
	ending   sync.WaitGroup // guarded by endMu, as is ended
	ended    bool
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	if !strings.HasPrefix(cfg.Endpoint, "/") || strings.ContainsAny(cfg.Endpoint, "?#% \\") {
		return nil, fmt.Errorf("making the MCP engine: %q is no path of an endpoint", cfg.Endpoint)
	}
	h, err := hop.New(hop.Config{
		Core: cfg.Core, Target: cfg.Target, Mesh: cfg.Mesh, DetailType: actor.MCPDetail{}.Type(), Protocol: "mcp", TLS: cfg.TLS, SVID: cfg.SVID, Upstream: cfg.Upstream,
		Accounts: cfg.Accounts, StartupTimeout: cfg.StartupTimeout, MaxConnections: cfg.MaxConnections, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("making the MCP engine: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Engine{cfg: cfg, hop: h, keyed: mask.Random(), sessions: newSessions(time.Now), pins: newPins(cfg.Reviewed), large: make(chan struct{}, maxLarge), endSlots: make(chan struct{}, maxEnding)}
	e.endLife, e.endNow = context.WithCancel(context.Background())
	return e, nil
}
