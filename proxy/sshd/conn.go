package sshd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
	"github.com/deputymesh/deputy/proxy/internal/preface"
)

// maxAuthTries bounds the credentials that one connection may show.
const maxAuthTries = 3

// ciphers are those of SSH inside TLS, which protects already: the fastest where processors know AES. The client's order counts, and OpenSSH's
// begins with one that isn't.
var ciphers = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR}

// serve takes one connection from its first byte to its end.
func (e *Engine) serve(ctx context.Context, conn net.Conn, waiting *lobby.Guest) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAlivePeriod(30 * time.Second)
	}
	c := e.greet(ctx, conn, waiting)
	defer func() {
		if waiting.Slot {
			<-e.slots
		}
	}()
	if c == nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	reason, detail := c.run(ctx)
	c.core.Close(reason, detail)
}

// greeting brings a connection to its session.
type greeting struct {
	e       *Engine
	conn    *tls.Conn
	waiting *lobby.Guest
	core    Session
	account Account
	up      *upstream
}

// greet brings a connection to its session; nil if it doesn't come to that, and then the peer knows why.
func (e *Engine) greet(ctx context.Context, conn net.Conn, waiting *lobby.Guest) *connection {
	// A shutdown doesn't wait for peers that haven't said anything yet.
	early, started := context.WithCancel(ctx)
	stop := context.AfterFunc(early, func() {
		if ctx.Err() != nil {
			_ = conn.SetDeadline(time.Now())
		}
	})
	defer stop()
	defer started()

	g := &greeting{e: e, conn: tls.Server(conn, e.tls), waiting: waiting}
	client, channels, requests, err := g.run(early)
	if err != nil {
		if !isEnd(err) {
			e.cfg.Core.Count("startup")
		}
		e.cfg.Logger.DebugContext(ctx, "a connection ended before its session began", "target", e.name, "error", err)
		if g.up != nil {
			g.up.abandon()
		}
		if g.core != nil {
			g.core.Close("error", err.Error())
		}
		_ = g.conn.Close()
		return nil
	}
	return newConnection(g, client, channels, requests)
}

// nextStep gives the next step of a startup its time, unless the proxy is shutting down.
func (g *greeting) nextStep(ctx context.Context) {
	_ = g.conn.SetDeadline(time.Now().Add(g.e.cfg.StartupTimeout))
	if ctx.Err() != nil {
		_ = g.conn.SetDeadline(time.Now())
	}
}

func (g *greeting) run(ctx context.Context) (ssh.Conn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	// 1. TLS, with the agent's SVID.
	g.nextStep(ctx)
	if err := g.conn.HandshakeContext(ctx); err != nil {
		return nil, nil, nil, fmt.Errorf("TLS with the agent: %w", err)
	}
	state := g.conn.ConnectionState()
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return nil, nil, nil, errors.New("TLS with the agent: no SVID")
	}
	if g.e.room.Recognise(g.waiting, g.agent()) {
		g.e.cfg.Core.Count("too_many_waiting")
	}
	g.nextStep(ctx)
	stranger := state.NegotiatedProtocol != preface.SSH
	if !g.e.broken.mayTry(g.agent(), stranger) {
		g.e.cfg.Core.Count("broken_handshakes")
		return nil, nil, nil, errors.New("this agent has broken too many handshakes")
	}

	// 2. The credential: before SSH in a preface, or as its password.
	most := int64(startupBytes)
	cfg := &ssh.ServerConfig{ServerVersion: "SSH-2.0-Deputy", MaxAuthTries: maxAuthTries}
	if !stranger {
		credential, err := preface.Read(g.conn, preface.SSH)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("the preface: %w", err)
		}
		if err := g.open(ctx, credential); err != nil {
			_ = preface.Write(g.conn, preface.SSH, preface.Refused, err.Error())
			return nil, nil, nil, err
		}
		if err := preface.Write(g.conn, preface.SSH, preface.Welcome, welcome(g.core.ID(), g.e.host.PublicKey())); err != nil {
			return nil, nil, nil, err
		}
		cfg.NoClientAuth = true
		cfg.NoClientAuthCallback = func(m ssh.ConnMetadata) (*ssh.Permissions, error) { return nil, banner(g.admit(ctx, m.User())) }
	} else {
		most += maxAuthTries * 2 * actor.MaxSize
		cfg.PasswordCallback = func(m ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if err := g.open(ctx, string(password)); err != nil {
				return nil, banner(err)
			}
			err := g.admit(ctx, m.User())
			if err != nil {
				g.core.Close("error", err.Error())
				g.core = nil
			}
			return nil, banner(err)
		}
	}

	// 3. SSH, up to the account.
	cfg.AddHostKey(g.e.host)
	cfg.Ciphers = ciphers
	return g.handshake(cfg, most)
}

func (g *greeting) handshake(cfg *ssh.ServerConfig, most int64) (ssh.Conn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	start := newBrief(g.conn, most)
	conn, channels, requests, err := ssh.NewServerConn(start, cfg)
	if err != nil {
		if start.leaves() {
			g.e.broken.byAgent(g.agent(), g.conn.ConnectionState().NegotiatedProtocol != preface.SSH)
		}
		return nil, nil, nil, fmt.Errorf("SSH with the agent: %w", err)
	}
	start.begun.Store(true)
	return conn, channels, requests, nil
}

// welcome is what a preface is answered with.
func welcome(session string, host ssh.PublicKey) string {
	return session + "\n" + string(ssh.MarshalAuthorizedKey(host))
}

// agent is the SPIFFE ID of the peer, after its TLS handshake.
func (g *greeting) agent() string {
	return g.conn.ConnectionState().PeerCertificates[0].URIs[0].String()
}

// banner shows the agent why it isn't let in: SSH's own answer gives no reason.
func banner(err error) error {
	if err == nil {
		return nil
	}
	return &ssh.BannerError{Err: err, Message: printable("deputy: "+err.Error()) + "\r\n"}
}

// open verifies the credential, once it has a place.
func (g *greeting) open(ctx context.Context, credential string) error {
	g.e.room.Leave(g.waiting)
	if !g.waiting.Slot {
		select {
		case g.e.slots <- struct{}{}:
			g.waiting.Slot = true
		default:
			g.e.cfg.Core.Count("too_many_connections")
			return errors.New("this proxy has as many connections to the target as it may; close some, or try again in a moment")
		}
	}
	g.nextStep(ctx)
	state := g.conn.ConnectionState()
	core, err := g.e.cfg.Core.Open(ctx, proxy.Peer{
		Certificates: state.PeerCertificates, Address: g.conn.RemoteAddr().String(),
		TLS: tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite),
	}, credential, proxy.Connection{Protocol: "ssh", Upstream: g.e.cfg.Upstream.Address})
	if err != nil {
		return forAgent(err, "the session couldn't be opened")
	}
	g.core = core
	return nil
}

// forAgent keeps of an error what the agent may see: a refusal, or that something failed.
func forAgent(err error, otherwise string) error {
	var r *proxy.Refusal
	if errors.As(err, &r) {
		return r
	}
	return errors.New(otherwise)
}

// admit chooses the account, decides whether the agent may connect as it, and connects to the target.
func (g *greeting) admit(ctx context.Context, user string) error {
	g.nextStep(ctx)
	if g.up != nil {
		return errors.New("the session has an account already")
	}
	account, err := g.choose(ctx, user)
	if err != nil {
		return err
	}
	pass, err := g.core.Authorize(ctx, proxy.Command{
		Kind: proxy.VerbConnect, Scrubbed: "connect", Account: account.Name,
		Ops:   []proxy.Op{g.e.op(proxy.VerbConnect, policy.Account(g.e.name, account.Name), false)},
		Check: onlyRecording,
	})
	if err != nil {
		return forAgent(err, "the connection couldn't be decided")
	}
	if err := pass.Use(); err != nil {
		return forAgent(err, "the session is over")
	}
	dialling, dialled := context.WithCancel(ctx)
	defer dialled()
	defer context.AfterFunc(g.core.Context(), dialled)()
	up, err := g.e.dial(dialling, account, g.core)
	if cause := context.Cause(g.core.Context()); cause != nil {
		if err == nil {
			up.abandon()
		}
		_ = pass.Completed(ctx, proxy.Outcome{Status: "cut", Command: "connect"})
		return errors.New("this session has ended: " + cause.Error())
	}
	if err != nil {
		g.e.cfg.Logger.ErrorContext(ctx, "the target can't be reached", "target", g.e.name, "account", account.Name, "error", err)
		_ = pass.Completed(ctx, proxy.Outcome{Status: "error", Command: "connect"})
		return errors.New("the target can't be reached, or didn't accept the proxy; if it stays so, tell the operator of this proxy")
	}
	if err := pass.Completed(ctx, proxy.Outcome{Status: "ok", Command: "connect"}); err != nil {
		up.abandon()
		return forAgent(err, "the outcome couldn't be recorded")
	}
	g.account, g.up = account, up
	return nil
}

// choose picks the account at the target by the user's roles; one that the agent names must be one of those.
func (g *greeting) choose(ctx context.Context, user string) (Account, error) {
	roles := g.core.Roles()
	for _, a := range g.e.cfg.Accounts {
		if a.mayBeUsed(roles) && (user == AnyAccount || user == a.Name) {
			return a, nil
		}
	}
	reason := "none of the user's roles has an account at this target"
	if user != AnyAccount {
		reason = fmt.Sprintf("account %q isn't one that the user's roles may use here; connect as %q for the one that they have", clip(printable(user), 64), AnyAccount)
	}
	named := ""
	if actor.CheckAccount(user) == nil {
		named = user
	}
	return Account{}, g.core.Refuse(ctx, proxy.Command{Kind: proxy.VerbConnect, Scrubbed: "connect", Account: named},
		proxy.Objection{Class: proxy.ClassPolicy, Reason: reason})
}

// op is one action on one object of the host, as capability and policy name it.
func (e *Engine) op(verb string, r policy.Resource, write bool) proxy.Op {
	return proxy.Op{
		Action:   actor.SSHAction{Target: e.cfg.Target, Verb: verb, Account: r.Account, Object: r.Name},
		Resource: r, Write: write,
	}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// printable replaces what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r == utf8.RuneError || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}

// isEnd says that the peer went away, as peers do.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
