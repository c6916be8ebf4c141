package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
	"github.com/deputymesh/deputy/proxy/internal/preface"
	"github.com/deputymesh/deputy/proxy/internal/sock"
)

// serve takes one connection from its first byte to its end.
func (e *Engine) serve(ctx context.Context, raw net.Conn, waiting *lobby.Guest) {
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetKeepAlivePeriod(30 * time.Second)
	}
	early, started := context.WithTimeout(ctx, e.cfg.StartupTimeout)
	defer started()
	stop := context.AfterFunc(early, func() { _ = raw.SetDeadline(time.Now()) })
	defer stop()

	// 1. The SVID and the credential.
	below := &ending{Conn: raw}
	conn := tls.Server(below, e.tls)
	defer conn.Close()
	credential, err := e.greet(early, conn, waiting)
	if err != nil {
		e.cfg.Core.Count("startup")
		e.cfg.Logger.DebugContext(ctx, "a connection ended before its session began", "target", e.cfg.Name, "error", err)
		return
	}
	e.room.Leave(waiting)
	refuse := func(text string) { _ = preface.Write(conn, preface.TCP, preface.Refused, text) }
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	default:
		e.cfg.Core.Count("too_many_connections")
		refuse("this proxy has as many connections to the target as it may; close some, or try again in a moment")
		return
	}
	state := conn.ConnectionState()
	session, err := e.cfg.Core.Open(early, proxy.Peer{
		Certificates: state.PeerCertificates, Address: raw.RemoteAddr().String(), TLS: tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite),
	}, credential, proxy.Connection{Protocol: "tcp", Upstream: e.cfg.Address})
	if err != nil {
		refuse(forAgent(err))
		return
	}

	// 2. The decision, durable before the service hears of anything.
	pass, err := session.Authorize(early, e.connect())
	if err == nil {
		if err = pass.Use(); err != nil {
			_ = pass.Completed(ctx, proxy.Outcome{Status: "not_sent", Command: "connect"})
		}
	}
	if err != nil {
		refuse(forAgent(err))
		session.Close("error", err.Error())
		return
	}

	// 3. The service.
	dialling, dialled := context.WithCancel(early)
	defer dialled()
	defer context.AfterFunc(session.Context(), dialled)()
	up, err := e.dial(dialling)
	if err == nil {
		defer up.Close()
	}
	if cause := context.Cause(session.Context()); cause != nil {
		_ = pass.Completed(ctx, proxy.Outcome{Status: "cut", Command: "connect"})
		refuse("this session has ended: " + cause.Error())
		session.Close("ended", cause.Error())
		return
	}
	if err != nil {
		e.cfg.Logger.ErrorContext(ctx, "the target can't be reached", "target", e.cfg.Name, "error", err)
		_ = pass.Completed(ctx, proxy.Outcome{Status: "error", Command: "connect"})
		refuse("the target can't be reached; if it stays so, tell the operator of this proxy (record: " + pass.RecordID().String() + ")")
		session.Close("upstream", "")
		return
	}
	pass.Forwarded(0)
	if err := preface.Write(conn, preface.TCP, preface.Welcome, session.ID()); err != nil || !stop() {
		cut(raw, up)
		_ = pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: "cut", Command: "connect"})
		session.Close(reason(ctx), "")
		return
	}
	_ = raw.SetDeadline(time.Time{})

	// 4. Bytes, until both sides have ended or the session is over.
	end := context.AfterFunc(session.Context(), func() { cut(raw, up) })
	down := context.AfterFunc(ctx, func() { cut(raw, up) })
	o := relay(&side{conn, below.hasEnded}, whole(up), func() { cut(raw, up) })
	// No more resets, before the session's own end asks for one: it would take away what the kernel hasn't sent yet.
	if ended, stopped := !end(), !down(); ended || stopped {
		o.Status = "cut"
	}
	if err := pass.Completed(context.WithoutCancel(ctx), o); err != nil {
		e.cfg.Logger.ErrorContext(ctx, "an outcome couldn't be recorded", "error", err)
	}
	session.Close(reason(ctx), "")
}

// reason is why a session ended that ran.
func reason(ctx context.Context) string {
	if ctx.Err() != nil {
		return "shutdown"
	}
	return "client"
}

// greet does TLS and reads the credential.
func (e *Engine) greet(ctx context.Context, conn *tls.Conn, waiting *lobby.Guest) (string, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", fmt.Errorf("TLS with the agent: %w", err)
	}
	state := conn.ConnectionState()
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return "", errors.New("TLS with the agent: no SVID")
	}
	if state.NegotiatedProtocol != preface.TCP {
		return "", errors.New("TLS with the agent: it doesn't offer " + preface.TCP)
	}
	if e.room.Recognise(waiting, state.PeerCertificates[0].URIs[0].String()) {
		e.cfg.Core.Count("too_many_waiting")
	}
	return preface.Read(conn, preface.TCP)
}

// connect is the one command of a connection.
func (e *Engine) connect() proxy.Command {
	return proxy.Command{
		Kind: proxy.VerbConnect, Scrubbed: "connect: nothing that is said on the connection is decided or recorded",
		Ops: []proxy.Op{{
			Action: actor.TCPAction{Target: e.cfg.Target, Verb: proxy.VerbConnect}, Resource: policy.Service(e.cfg.Name.String()), Write: true,
		}},
		Check: func(o policy.Obligations) error {
			if len(o.Masks) > 0 || o.MaxRows > 0 || o.Record == policy.RecordFull {
				return &proxy.Objection{Class: "unsupported", Reason: "the policy asks for masks, a limit or a full recording, and nothing that is said on this connection is looked at"}
			}
			return nil
		},
	}
}

func (e *Engine) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := &net.Dialer{KeepAlive: 30 * time.Second}
	if e.cfg.RootCAs == nil {
		return d.DialContext(ctx, "tcp", e.cfg.Address)
	}
	return (&tls.Dialer{NetDialer: d, Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: e.cfg.RootCAs, ServerName: e.cfg.ServerName}}).DialContext(ctx, "tcp", e.cfg.Address)
}

// cut ends both sides by a reset: an end in the middle must not look like one that was meant, and Go's TLS takes a plain one for that.
func cut(agent, service net.Conn) {
	for _, c := range []net.Conn{agent, service} {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
}

// side is one side of a relayed connection.
type side struct {
	net.Conn
	// broken says, at an end of what it sends, that the end isn't one that was meant.
	broken func() bool
}

// ending notes that a connection has ended. Below TLS that is no end that the peer has said: of its bytes, TLS's goodbye (close_notify) is one
// (RFC 8446, section 6.1), behind which nothing is read any more. Go's TLS takes both for one.
type ending struct {
	net.Conn
	ended atomic.Bool
}

func (c *ending) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.ended.Store(true)
	}
	return n, err
}

func (c *ending) hasEnded() bool { return c.ended.Load() }

// whole is the service's side. A reset that a write has met leaves an end to be read. The other way to a dead connection is that both sides have ended it.
func whole(up net.Conn) *side {
	halved := &halved{Conn: up}
	return &side{halved, func() bool { return sock.IsDead(up) && !halved.done.Load() }}
}

// halved notes that a connection was ended in one direction, from here.
type halved struct {
	net.Conn
	done atomic.Bool
}

func (c *halved) CloseWrite() error {
	half, ok := c.Conn.(halfCloser)
	if !ok {
		return errors.ErrUnsupported
	}
	c.done.Store(true)
	return half.CloseWrite()
}

type halfCloser interface{ CloseWrite() error }

// relay carries bytes both ways until both directions have ended; one that fails ends the other.
func relay(agent, service *side, cut func()) proxy.Outcome {
	var out proxy.Outcome
	var failed atomic.Bool
	pipe := func(to, from *side, n *int64) {
		var err error
		if *n, err = io.Copy(to.Conn, from.Conn); err == nil && !from.broken() {
			if half, ok := to.Conn.(halfCloser); ok && half.CloseWrite() == nil {
				return
			}
		}
		failed.Store(true)
		cut()
	}
	var both sync.WaitGroup
	both.Go(func() { pipe(service, agent, &out.Sent) })
	both.Go(func() { pipe(agent, service, &out.Bytes) })
	both.Wait()
	out.Status, out.Command = "ok", "connect"
	if failed.Load() {
		out.Status = "cut"
	}
	return out
}

// forAgent keeps of an error what the agent may see: a refusal, or that something failed.
func forAgent(err error) string {
	var r *proxy.Refusal
	if errors.As(err, &r) {
		return r.Error()
	}
	return "the connection couldn't be decided"
}
