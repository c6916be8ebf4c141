// Package hop is what the engines that speak HTTP share: connections with SVIDs, sessions by bearer token, refusals, the headers that are taken
// away, and the way to the target under an account of the proxy's. An engine adds what it decides.
package hop

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy"
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

// Config makes a hop for one target.
type Config struct {
	Core Core
	// Target is spiffe://<td>/target/<name>.
	Target spiffeid.ID
	// Mesh is the broker's issuer URL, which the metadata names. DetailType is the type of authorization_details that is wanted, Protocol
	// the engine's name in records.
	Mesh, DetailType, Protocol string
	// TLS is what [proxy.ServerTLS] makes: the proxy's SVID, and agents verified by theirs. The hop demands
	// TLS 1.3 and a client certificate, without tickets, whatever it says.
	TLS *tls.Config
	// SVID is the proxy's own: its key signs what targets are told about the chain.
	SVID x509svid.Source
	// Upstream is the target's server.
	Upstream Upstream
	// Accounts are those at the target that requests may use, in order of preference.
	Accounts []Account
	// Cookies lets cookies pass in both directions. Without it a session of the account's stays at the proxy.
	Cookies bool

	// StartupTimeout is for TLS, and for the header of each request.
	StartupTimeout time.Duration
	MaxConnections int // of agents with a credential at once
	// Problem writes a refusal in the target's own form; WriteProblem if it is nil.
	Problem func(w http.ResponseWriter, status int, no *proxy.Refusal)

	Logger *slog.Logger
}

// Hop serves one target.
type Hop struct {
	cfg   Config
	tls   *tls.Config
	name  string
	room  lobby.Room
	slots chan struct{} // of sessions

	mu      sync.Mutex // guards what follows
	conns   map[*agentConn]struct{}
	work    sync.WaitGroup // requests under way
	closing sync.WaitGroup // sessions of closed connections
	ended   bool           // no more of them
}

// New checks the configuration and makes a hop. It connects to nothing yet.
func New(cfg Config) (*Hop, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.defaults()
	name, err := actor.TargetName(cfg.Target)
	if err != nil {
		return nil, err
	}
	h := &Hop{cfg: cfg, name: name, slots: make(chan struct{}, cfg.MaxConnections), conns: map[*agentConn]struct{}{}}
	h.tls = cfg.TLS.Clone()
	h.tls.MinVersion = tls.VersionTLS13
	h.tls.ClientAuth = tls.RequireAnyClientCert
	h.tls.SessionTicketsDisabled = true
	h.tls.NextProtos = []string{"h2", "http/1.1"}
	for i := range h.cfg.Accounts {
		h.cfg.Accounts[i].transport = h.cfg.Upstream.transport(h.cfg.Accounts[i])
		h.cfg.Accounts[i].tokens = &tokens{source: h.cfg.Accounts[i].Tokens}
		h.cfg.Accounts[i].leaving = h.cfg.Upstream.leaving(h.cfg.Accounts[i])
	}
	return h, nil
}

// Name is the target's.
func (h *Hop) Name() string { return h.name }

func (c *Config) check() error {
	switch {
	case c.Core == nil:
		return errors.New("no core")
	case c.SVID == nil:
		return errors.New("no SVID to sign with what targets are told about the chain")
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
	if c.Problem == nil {
		c.Problem = WriteProblem
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Accounts = append([]Account(nil), c.Accounts...)
}

// Serve accepts agents on l, and gives their requests to handler, until ctx is done, then ends every connection and waits for it. It closes l.
func (h *Hop) Serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	door := &door{h: h, l: l, ctx: ctx, ready: make(chan net.Conn)}
	srv := &http.Server{
		Handler: h.counting(handler), TLSConfig: h.tls, ReadHeaderTimeout: h.cfg.StartupTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, agentConnOf(c))
		},
		ErrorLog: slog.NewLogLogger(h.cfg.Logger.Handler(), slog.LevelDebug),
		// OPTIONS * is for nobody's path.
		DisableGeneralOptionsHandler: true,
	}
	failed := make(chan error, 1)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		failed <- door.open()
	}()
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
	<-accepted
	h.end() // before http.Server's, which doesn't say why it closes
	_ = srv.Close()
	<-served
	h.work.Wait()
	door.handshakes.Wait()
	h.closing.Wait()
	for _, a := range h.cfg.Accounts {
		a.transport.CloseIdleConnections()
	}
	return err
}

// end closes every connection, those that left HTTP too.
func (h *Hop) end() {
	h.mu.Lock()
	h.ended = true
	conns := make([]*agentConn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	h.mu.Unlock()
	var parted sync.WaitGroup
	for _, c := range conns {
		parted.Go(func() { c.part(errStopping) })
	}
	parted.Wait()
}

// Ending says whether connections are being ended with the engine.
func (h *Hop) Ending() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}

// begin counts a request of a connection; it fails when that, or the engine, has ended.
func (h *Hop) begin(c *agentConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, there := h.conns[c]; h.ended || !there {
		return false
	}
	h.work.Add(1)
	c.requests.Add(1)
	c.running++
	return true
}

// over counts a request off.
func (h *Hop) over(c *agentConn) {
	h.mu.Lock()
	c.running--
	c.answered = time.Now()
	h.mu.Unlock()
	c.requests.Done()
	h.work.Done()
}

// counting hands a request on while its connection stands. It ends with it, whoever closes it: http.Server doesn't notice before a body is read.
func (h *Hop) counting(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(connKey{}).(*agentConn)
		if c == nil || !h.begin(c) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer h.over(c)
		if !r.ProtoAtLeast(1, 1) {
			c.bare.Store(true)
			defer c.cutOnPanic()
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(c.open, cancel)()
		handler.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Admit finds the session that a request belongs to by its bearer token, and the account that it may use. If there is none it has
// answered the request.
func (h *Hop) Admit(w http.ResponseWriter, r *http.Request) (Session, *Account, bool) {
	conn, _ := r.Context().Value(connKey{}).(*agentConn)
	if conn == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return nil, nil, false
	}
	if r.URL.Path == metadataPath {
		h.serveMetadata(w, r)
		return nil, nil, false
	}
	credential, ok := bearer(r.Header)
	if !ok {
		h.unauthenticated(w, r)
		return nil, nil, false
	}
	core, account, err := conn.session(r.Context(), credential)
	if err != nil {
		h.Refuse(w, r, err)
		return nil, nil, false
	}
	w.Header().Set("Deputy-Session", core.ID())
	return core, account, true
}

// bearer is the one credential of a request (RFC 6750 §2.1); it never stands in the query or the body here.
func bearer(h http.Header) (string, bool) {
	all := h.Values("Authorization")
	if len(all) != 1 {
		return "", false
	}
	scheme, credential, ok := strings.Cut(all[0], " ")
	return credential, ok && strings.EqualFold(scheme, "bearer") && credential != ""
}
