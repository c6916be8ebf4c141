package httpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
)

// Defaults of [Config].
const (
	DefaultStartupTimeout = 15 * time.Second
	DefaultMaxConnections = 1000
)

// Limits of what agents may send and keep open.
const (
	maxHeaderBytes = 64 << 10 // a credential has up to 32 KiB
	maxStreams     = 100      // requests at once on one connection (RFC 9113 §5.1.2)
	idleTimeout    = 2 * time.Minute
)

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
	// Upstream is the target's server.
	Upstream Upstream
	// Accounts are those at the target that requests may use, in order of preference.
	Accounts []Account
	// FoldCase decides on paths in lower case, and sends them on so: for servers to which /A and /a are one.
	FoldCase bool
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
	tls   *tls.Config
	name  string
	room  lobby.Room
	slots chan struct{} // of sessions
	relay *httputil.ReverseProxy

	mu    sync.Mutex // guards what follows
	conns map[*agentConn]struct{}
	work  sync.WaitGroup // requests under way
	ended bool           // no more of them
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("making the HTTP engine: %w", err)
	}
	cfg.defaults()
	name, err := actor.TargetName(cfg.Target)
	if err != nil {
		return nil, fmt.Errorf("making the HTTP engine: %w", err)
	}
	e := &Engine{cfg: cfg, name: name, slots: make(chan struct{}, cfg.MaxConnections), conns: map[*agentConn]struct{}{}}
	e.tls = cfg.TLS.Clone()
	e.tls.MinVersion = tls.VersionTLS13
	e.tls.ClientAuth = tls.RequireAnyClientCert
	e.tls.SessionTicketsDisabled = true
	e.tls.NextProtos = []string{"h2", "http/1.1"}
	for i := range e.cfg.Accounts {
		e.cfg.Accounts[i].transport = e.cfg.Upstream.transport(e.cfg.Accounts[i])
	}
	e.relay = newRelay(e)
	return e, nil
}

func (c *Config) check() error {
	switch {
	case c.Core == nil:
		return errors.New("no core")
	case c.TLS == nil || (len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil):
		return errors.New("no certificate for agents")
	case c.TLS.GetConfigForClient != nil:
		return errors.New("the TLS configuration may not be chosen per client")
	case c.TLS.VerifyPeerCertificate == nil && c.TLS.VerifyConnection == nil:
		return errors.New("the TLS configuration verifies no agent; proxy.ServerTLS makes one that does")
	case len(c.Accounts) == 0:
		return errors.New("no account to use at the target")
	}
	for i, a := range c.Accounts {
		if err := a.check(); err != nil {
			return fmt.Errorf("account %d: %w", i, err)
		}
	}
	return c.Upstream.check()
}

func (c *Config) defaults() {
	if c.StartupTimeout <= 0 {
		c.StartupTimeout = DefaultStartupTimeout
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Accounts = append([]Account(nil), c.Accounts...)
}

// Serve accepts agents on l until ctx is done, then ends every connection and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	door := &door{e: e, l: l, ctx: ctx, ready: make(chan net.Conn)}
	srv := &http.Server{
		Handler: e, TLSConfig: e.tls, ReadHeaderTimeout: e.cfg.StartupTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, agentConnOf(c))
		},
		ErrorLog: slog.NewLogLogger(e.cfg.Logger.Handler(), slog.LevelDebug),
		// OPTIONS * is for nobody's path.
		DisableGeneralOptionsHandler: true,
	}
	failed := make(chan error, 1)
	go func() { failed <- door.open() }()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(door) // its end is the door's
	}()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	_ = l.Close()
	_ = srv.Close()
	e.end()
	<-served
	e.work.Wait()
	door.handshakes.Wait()
	for _, a := range e.cfg.Accounts {
		a.transport.CloseIdleConnections()
	}
	return err
}

// end closes what http.Server doesn't: connections that left HTTP.
func (e *Engine) end() {
	e.mu.Lock()
	e.ended = true
	conns := make([]*agentConn, 0, len(e.conns))
	for c := range e.conns {
		conns = append(conns, c)
	}
	e.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// begin counts a request; it fails when the engine has ended.
func (e *Engine) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return false
	}
	e.work.Add(1)
	return true
}
