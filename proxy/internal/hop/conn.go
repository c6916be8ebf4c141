package hop

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
)

// maxStrikes is how many credentials of one connection may be refused before it is closed.
const maxStrikes = 3

type connKey struct{}

// door accepts connections, lets them show their SVIDs, and hands them to http.Server.
type door struct {
	h          *Hop
	l          net.Listener
	ctx        context.Context
	ready      chan net.Conn
	handshakes sync.WaitGroup
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.ready:
		return c, nil
	case <-d.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (d *door) Addr() net.Addr { return d.l.Addr() }
func (d *door) Close() error   { return d.l.Close() }

// open accepts until the context is done; an error means that the listener is broken.
func (d *door) open() error {
	return lobby.Accept(d.ctx, d.l, d.h.name, func(raw net.Conn) {
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetKeepAlivePeriod(30 * time.Second)
		}
		c := &agentConn{Conn: raw, h: d.h}
		c.open, c.leave = context.WithCancel(context.Background())
		var full bool
		if c.guest, full = d.h.room.Enter(c); full {
			d.h.cfg.Core.Count("too_many_waiting")
		}
		if !d.h.keep(c) {
			_ = c.Close()
			return
		}
		d.handshakes.Go(func() { d.greet(c) })
	})
}

// greet does TLS with one connection.
func (d *door) greet(c *agentConn) {
	early, cancel := context.WithTimeout(d.ctx, d.h.cfg.StartupTimeout)
	defer cancel()
	conn := tls.Server(c, d.h.tls)
	if err := conn.HandshakeContext(early); err != nil {
		d.h.cfg.Core.Count("startup")
		d.h.cfg.Logger.DebugContext(d.ctx, "a connection ended before its first request", "target", d.h.name, "error", err)
		_ = c.Close()
		return
	}
	state := conn.ConnectionState()
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		_ = c.Close()
		return
	}
	if d.h.room.Recognise(c.guest, state.PeerCertificates[0].URIs[0].String()) {
		d.h.cfg.Core.Count("too_many_waiting")
	}
	c.peer = proxy.Peer{
		Certificates: state.PeerCertificates, Address: c.RemoteAddr().String(),
		TLS: tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite),
	}
	select {
	case d.ready <- conn:
	case <-d.ctx.Done():
		_ = c.Close()
	}
}

// agentConn is one connection of an agent, below TLS. It has one session at most: that of the first credential that is shown on it.
type agentConn struct {
	net.Conn
	h     *Hop
	guest *lobby.Guest
	peer  proxy.Peer
	once  sync.Once
	open  context.Context // until the connection is closed
	leave context.CancelFunc
	// requests are those under way; none is added once the hop doesn't keep the connection any more.
	requests sync.WaitGroup
	running  int       // of them, guarded by h.mu
	answered time.Time // when the last one ended, guarded by h.mu
	// parting is what says why the connection ends; nil but for one that left HTTP.
	parting atomic.Pointer[func(error)]
	parted  sync.Once
	bare    atomic.Bool // HTTP/1.0 was spoken on it

	mu      sync.Mutex // guards what follows
	core    Session
	account *Account
	shown   [sha256.Size]byte // digest of the credential in force
	strikes int
	closed  bool
}

func agentConnOf(c net.Conn) *agentConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	a, _ := c.(*agentConn)
	return a
}

// keep remembers a connection until it is closed; false when the engine has ended.
func (h *Hop) keep(c *agentConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.conns[c] = struct{}{}
	return true
}

// Close ends the connection and its session.
func (c *agentConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.h.room.Leave(c.guest)
		c.h.mu.Lock()
		delete(c.h.conns, c)
		ended := c.h.ended
		c.h.closing.Add(1)
		c.h.mu.Unlock()
		c.leave()
		// A session may be opening under the lock; whoever closes doesn't wait for it, but for the end of the engine.
		go func() {
			defer c.h.closing.Done()
			c.mu.Lock()
			core := c.core
			c.closed = true
			c.mu.Unlock()
			// Each request has an outcome of its own. The session knows of what is still open only that it was cut: not how far it came.
			c.requests.Wait()
			if core != nil {
				reason := "client"
				if ended {
					reason = "shutdown"
				}
				core.Close(reason, "")
				<-c.h.slots
			}
		}()
	})
	return err
}

var errStrikes = errors.New("too many credentials were refused on this connection")

// session is the session that a request's credential belongs to. The error is a [*proxy.Refusal], or errStrikes.
func (c *agentConn) session(ctx context.Context, credential string) (Session, *Account, error) {
	digest := sha256.Sum256([]byte(credential))
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, nil, &proxy.Refusal{Class: proxy.ClassClosed, Reason: "the connection is closed"}
	case c.strikes >= maxStrikes:
		return nil, nil, errStrikes
	case c.core != nil && subtle.ConstantTimeCompare(digest[:], c.shown[:]) == 1:
	default:
		if err := c.show(ctx, credential); err != nil {
			c.strikes++
			return nil, nil, err
		}
		c.shown = digest
	}
	// A renewal, here or at the renewal listener, may have taken roles away, and with them an account.
	if !c.account.mayBeUsed(c.core.Roles()) {
		account, err := c.h.choose(ctx, c.core)
		if err != nil {
			return nil, nil, err
		}
		c.account = account
	}
	return c.core, c.account, nil
}

// show opens the session, or renews it. It needs the lock.
func (c *agentConn) show(ctx context.Context, credential string) error {
	if c.core != nil {
		return c.core.Renew(ctx, c.peer, credential)
	}
	select {
	case c.h.slots <- struct{}{}:
	default:
		c.h.cfg.Core.Count("too_many_connections")
		return &proxy.Refusal{Class: proxy.ClassQuota, Reason: "this proxy has as many connections to the target as it may; close some, or try again in a moment"}
	}
	core, err := c.h.cfg.Core.Open(ctx, c.peer, credential, proxy.Connection{Protocol: c.h.cfg.Protocol, Upstream: c.h.cfg.Upstream.URL.String()})
	if err != nil {
		<-c.h.slots
		return err
	}
	account, err := c.h.choose(ctx, core)
	if err != nil {
		core.Close("error", err.Error())
		<-c.h.slots
		return err
	}
	c.h.room.Leave(c.guest)
	c.core, c.account = core, account
	// The end of a session is the end of its connection, with all that runs on it.
	context.AfterFunc(core.Context(), func() { c.part(context.Cause(core.Context())) })
	return nil
}

// choose picks the account at the target by the user's roles.
func (h *Hop) choose(ctx context.Context, core Session) (*Account, error) {
	roles := core.Roles()
	for i := range h.cfg.Accounts {
		if h.cfg.Accounts[i].mayBeUsed(roles) {
			return &h.cfg.Accounts[i], nil
		}
	}
	return nil, core.Refuse(ctx, proxy.Command{Kind: proxy.VerbConnect, Scrubbed: "connect"},
		proxy.Objection{Class: proxy.ClassPolicy, Reason: "none of the user's roles has an account at this target"})
}
