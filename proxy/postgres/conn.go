package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
)

// serve takes one connection from its first byte to its end.
func (e *Engine) serve(ctx context.Context, conn net.Conn, waiting *lobby.Guest) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAlivePeriod(30 * time.Second)
	}
	_ = conn.SetDeadline(time.Now().Add(e.cfg.StartupTimeout))
	// Handshake and verification want a deep stack. On a goroutine of its own it is given back: most of its life a session is idle.
	greeted := make(chan *session)
	go func() { greeted <- e.greet(ctx, conn, waiting) }()
	s := <-greeted
	defer e.release(waiting)
	if s == nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	defer e.cancels.remove(s)
	reason, detail := s.run(ctx)
	s.core.Close(reason, detail)
}

// greet brings a connection to its session; nil if it doesn't come to that, and then the peer knows why.
func (e *Engine) greet(ctx context.Context, conn net.Conn, waiting *lobby.Guest) *session {
	// A shutdown doesn't wait for peers that haven't said anything yet.
	early, started := context.WithCancel(ctx)
	stop := context.AfterFunc(early, func() {
		if ctx.Err() != nil {
			_ = conn.SetDeadline(time.Now())
		}
	})
	defer stop()
	defer started()

	secured, p, err := e.secure(early, conn)
	if err != nil {
		e.turnAway(conn, "startup", err)
		return nil
	}
	if secured == nil {
		return nil // it was a plain cancel
	}
	if e.room.Recognise(waiting, peerID(secured)) {
		e.cfg.Core.Count("too_many_waiting")
	}
	e.nextStep(early, conn)
	if p.code == codeCancel {
		defer secured.Close()
		key, err := p.cancel()
		if err != nil {
			e.cfg.Core.Count("startup")
			return nil
		}
		e.cancel(ctx, key, peerID(secured))
		return nil
	}
	g := &greeting{e: e, conn: secured, out: newSink(secured, &e.buffers), waiting: waiting}
	s, err := g.run(early, p)
	if err != nil {
		e.turnAway(secured, "authentication", err)
		_ = secured.Close()
		return nil
	}
	return s
}

// nextStep gives the next step of a startup its time, unless the proxy is shutting down.
func (e *Engine) nextStep(ctx context.Context, conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(e.cfg.StartupTimeout))
	if ctx.Err() != nil {
		_ = conn.SetDeadline(time.Now())
	}
}

// turnAway tells a peer that isn't let in why, if that is for its eyes.
func (e *Engine) turnAway(conn net.Conn, class string, err error) {
	if errors.Is(err, errTurnedAway) {
		return
	}
	f, ok := asFault(err)
	if !ok {
		if !isEOF(err) {
			e.cfg.Core.Count(class)
			e.cfg.Logger.Debug("a connection ended before its session began", "target", e.name, "class", class, "error", err)
		}
		return
	}
	e.cfg.Core.Count(class)
	f.fatal = true
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	out := newSink(conn, &e.buffers)
	f.write(out)
	_ = out.flush()
}

// secure brings the connection to TLS and reads the first packet inside. It gives no connection for a plain cancel.
func (e *Engine) secure(ctx context.Context, conn net.Conn) (*tls.Conn, *packet, error) {
	var gss bool
	for {
		p, err := readPacket(conn)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case p.direct != nil:
			secured, err := e.handshake(ctx, &replay{Conn: conn, head: *bytes.NewReader(p.direct)}, true)
			if err != nil {
				return nil, nil, err
			}
			return e.inside(secured)
		case p.code == codeGSSENC && !gss:
			gss = true
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, nil, err
			}
		case p.code == codeSSL:
			if _, err := conn.Write([]byte{'S'}); err != nil {
				return nil, nil, err
			}
			secured, err := e.handshake(ctx, conn, false)
			if err != nil {
				return nil, nil, err
			}
			return e.inside(secured)
		case p.code == codeCancel:
			key, err := p.cancel()
			if err != nil {
				return nil, nil, err
			}
			e.cancel(ctx, key, "")
			return nil, nil, nil
		case p.code>>16 == 3:
			return nil, nil, &fault{
				code: codeAuth, message: "this proxy speaks TLS only", fatal: true,
				hint: "Connect with sslmode=verify-full and the agent's X.509-SVID as client certificate.",
			}
		default:
			return nil, nil, protocolError("the startup packet's code %d is not known", p.code)
		}
	}
}

// replay gives back what was read before TLS was recognised.
type replay struct {
	net.Conn
	head bytes.Reader
}

func (r *replay) Read(b []byte) (int, error) {
	if r.head.Len() > 0 {
		return r.head.Read(b)
	}
	return r.Conn.Read(b)
}

func (e *Engine) handshake(ctx context.Context, conn net.Conn, direct bool) (*tls.Conn, error) {
	secured := tls.Server(conn, e.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with the agent: %w", err)
	}
	state := secured.ConnectionState()
	if direct && state.NegotiatedProtocol != "postgresql" || len(state.PeerCertificates) == 0 {
		_ = secured.Close()
		return nil, errors.New("TLS with the agent: no certificate, or a direct start without the protocol's name")
	}
	return secured, nil
}

func (e *Engine) inside(secured *tls.Conn) (*tls.Conn, *packet, error) {
	p, err := readPacket(secured)
	if err == nil && (p.direct != nil || p.code == codeSSL || p.code == codeGSSENC) {
		err = protocolError("encryption was asked for inside TLS")
	}
	if err != nil {
		e.turnAway(secured, "startup", err)
		_ = secured.Close()
		return nil, nil, errors.Join(errTurnedAway, err)
	}
	return secured, p, nil
}

// errTurnedAway says that the peer has been told already; it must not be told again in plain.
var errTurnedAway = errors.New("turned away inside TLS")

func peerID(conn *tls.Conn) string {
	certs := conn.ConnectionState().PeerCertificates
	if len(certs) == 0 || len(certs[0].URIs) != 1 {
		return "?"
	}
	return certs[0].URIs[0].String()
}

// greeting brings a secured connection to its session.
type greeting struct {
	e    *Engine
	conn *tls.Conn
	out  *sink
	in   *frames
	// waiting is its place until the credential is there.
	waiting *lobby.Guest
}

// admit takes the place of a session. The credential is there, if not verified yet.
func (g *greeting) admit(ctx context.Context) error {
	g.e.room.Leave(g.waiting)
	select {
	case g.e.slots <- struct{}{}:
		g.waiting.Slot = true
	default:
		g.e.cfg.Core.Count("too_many_connections")
		return &fault{code: codeTooMany, message: "this proxy has as many connections to the target as it may", hint: "Close some, or try again in a moment."}
	}
	g.e.nextStep(ctx, g.conn)
	return nil
}

// release gives the place of a session back.
func (e *Engine) release(g *lobby.Guest) {
	if g.Slot {
		<-e.slots
	}
}

func (g *greeting) run(ctx context.Context, p *packet) (*session, error) {
	st, err := parseStartup(p)
	if err != nil {
		return nil, err
	}
	if st.negotiate() {
		g.out.begin('v')
		g.out.int32(protocol30)
		g.out.int32(len(st.unknown))
		for _, o := range st.unknown {
			g.out.cstring(o)
		}
		g.out.end()
	}
	if st.database == "" {
		st.database = g.e.cfg.DefaultDatabase
	}
	if st.database == "" {
		return nil, &fault{code: codeNoDatabase, message: "no database is named, and the user's name isn't taken for one here", hint: "Say which database: dbname=…"}
	}
	// Which databases there are is told after authentication only.
	credential, err := g.credential()
	if err != nil {
		return nil, err
	}
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	tlsState := g.conn.ConnectionState()
	peer := proxy.Peer{
		Certificates: tlsState.PeerCertificates, Address: g.conn.RemoteAddr().String(),
		TLS: tls.VersionName(tlsState.Version) + " " + tls.CipherSuiteName(tlsState.CipherSuite),
	}
	core, err := g.e.cfg.Core.Open(ctx, peer, credential, proxy.Connection{
		Protocol: "postgres", Database: st.database, Account: st.user, Upstream: g.e.cfg.Upstream.Address,
	})
	if err != nil {
		return nil, openFault(err)
	}
	s, err := g.connect(ctx, core, st)
	if err != nil {
		core.Close("error", err.Error())
		return nil, err
	}
	return s, nil
}

// credential asks for the credential, which comes as the password.
func (g *greeting) credential() (string, error) {
	g.out.begin('R')
	g.out.int32(3) // AuthenticationCleartextPassword, inside TLS
	g.out.end()
	if err := g.out.flush(); err != nil {
		return "", err
	}
	g.in = newFrames(g.conn, &g.e.buffers)
	kind, _, err := g.in.next()
	if err != nil {
		return "", err
	}
	if kind != 'p' {
		return "", protocolError("a password message was due, not %q", kind)
	}
	body, err := g.in.body(kind, maxCredential)
	if err != nil {
		var long *errTooLong
		if errors.As(err, &long) {
			return "", &fault{code: codeAuth, message: fmt.Sprintf("the credential is larger than %d bytes", maxCredential)}
		}
		return "", err
	}
	return parsePassword(body)
}

// openFault is a refused credential in the words of the protocol.
func openFault(err error) error {
	var r *proxy.Refusal
	if !errors.As(err, &r) {
		return fmt.Errorf("opening a session: %w", err)
	}
	f := refusalFault(r)
	switch r.Class {
	case proxy.ClassStale, proxy.ClassNotReady, proxy.ClassEvidence, proxy.ClassQuota:
	default:
		f.code = codeAuth
		f.hint = "The password must be a delegated credential for this target, presented over the SVID it was issued to; `deputy run` does both."
	}
	return f
}

// connect opens the target's side and finishes the startup.
func (g *greeting) connect(ctx context.Context, core Session, st *startup) (*session, error) {
	account, err := g.account(ctx, core, st)
	if err != nil {
		return nil, err
	}
	cmd := proxy.Command{
		Kind: "connect", Scrubbed: "CONNECT", Database: st.database, Account: account.Name,
		Ops: []proxy.Op{g.e.databaseOp(proxy.VerbConnect, st.database)},
	}
	if !slices.Contains(g.e.cfg.Databases, st.database) {
		r := core.Refuse(ctx, cmd, proxy.Objection{Class: proxy.ClassTarget, Reason: fmt.Sprintf("database %q isn't served here", clip(st.database, 64))})
		f := refusalFault(r)
		f.code, f.hint = codeNoDatabase, ""
		return nil, f
	}
	if st.replication {
		r := core.Refuse(ctx, cmd, *objection(classUnsupported, "replication connections aren't supported: what they send can't be decided or masked"))
		f := refusalFault(r)
		f.hint = "Connect without the replication parameter."
		return nil, f
	}
	pass, err := core.Authorize(ctx, cmd)
	if err != nil {
		var r *proxy.Refusal
		if errors.As(err, &r) {
			return nil, refusalFault(r)
		}
		return nil, fmt.Errorf("authorizing the connection: %w", err)
	}
	app := "deputy " + core.ID()
	if len(app) > 63 {
		app = app[:63]
	}
	if err := pass.Use(); err != nil {
		return nil, passFault(err)
	}
	dialling, dialled := context.WithCancel(ctx)
	defer dialled()
	defer context.AfterFunc(core.Context(), dialled)()
	up, err := g.e.dial(dialling, account, st.database, app, st.settings)
	if cause := context.Cause(core.Context()); cause != nil {
		if err == nil {
			_ = up.conn.Close()
		}
		_ = pass.Completed(ctx, proxy.Outcome{Status: "cut", Command: "CONNECT"})
		return nil, &fault{code: codeShutdown, message: "this session has ended: " + cause.Error(), hint: hintEnded, fatal: true}
	}
	if err != nil {
		return nil, g.dialFault(ctx, pass, err)
	}
	if err := pass.Completed(ctx, proxy.Outcome{Status: "ok", Command: "CONNECT"}); err != nil {
		_ = up.conn.Close()
		return nil, passFault(err)
	}
	s := newSession(g.e, core, g.conn, up)
	// What the agent sent behind its password stays in the reader.
	s.in, s.out = g.in, g.out
	s.peer = peerID(g.conn)
	s.decider.e, s.decider.database, s.decider.account, s.decider.app = g.e, st.database, account.Name, app
	s.decider.made = map[qname]bool{}
	if err := g.e.cancels.add(s); err != nil {
		_ = up.conn.Close()
		return nil, err
	}
	g.welcome(s)
	if err := g.out.flush(); err != nil {
		g.e.cancels.remove(s)
		_ = up.conn.Close()
		return nil, err
	}
	return s, nil
}

// account chooses the account at the target by the user's roles; a user that the agent names must be one of those.
func (g *greeting) account(ctx context.Context, core Session, st *startup) (Account, error) {
	roles := core.Roles()
	for _, a := range g.e.cfg.Accounts {
		may := len(a.Roles) == 0 || slices.ContainsFunc(a.Roles, func(r string) bool { return slices.Contains(roles, r) })
		if may && (st.user == "" || st.user == a.Name) {
			return a, nil
		}
	}
	reason := "none of the user's roles has an account at this target"
	if st.user != "" {
		reason = fmt.Sprintf("account %q isn't one that the user's roles may use here", clip(st.user, 64))
	}
	r := core.Refuse(ctx, proxy.Command{Kind: "connect", Scrubbed: "CONNECT", Database: st.database, Account: clip(st.user, 64)}, proxy.Objection{Class: proxy.ClassPolicy, Reason: reason})
	f := refusalFault(r)
	f.code, f.hint = codeAuth, "Connect without a user, or as an account that the proxy's configuration gives to one of the user's roles."
	return Account{}, f
}

func (g *greeting) dialFault(ctx context.Context, pass Pass, err error) error {
	g.e.cfg.Logger.ErrorContext(ctx, "the target can't be reached", "target", g.e.name, "error", err)
	o := proxy.Outcome{Status: "error", Command: "CONNECT"}
	f := &fault{code: codeNoConnection, message: "the target can't be reached, or didn't accept the proxy", hint: "Try again; if it stays so, tell the operator of this proxy."}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		o.Code = pg.Code
		if pg.Code == "53300" || pg.Code == "57P03" || pg.Code == codeNoDatabase {
			f.code, f.message = pg.Code, pg.Message
		}
	}
	if err := pass.Completed(ctx, o); err != nil {
		return passFault(err)
	}
	return f
}

// welcome tells the agent that it is in, and what the target told about itself.
func (g *greeting) welcome(s *session) {
	g.out.begin('R')
	g.out.int32(0)
	g.out.end()
	names := make([]string, 0, len(s.up.params))
	for name := range s.up.params {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		g.parameter(name, s.up.params[name])
	}
	// With its id the agent's side renews the session.
	g.parameter("deputy.session", s.core.ID())
	g.out.begin('K')
	g.out.int32(int(int32(s.key.pid)))
	g.out.int32(int(int32(s.key.secret)))
	g.out.end()
	g.out.frame('Z', []byte{'I'})
}

func (g *greeting) parameter(name, value string) {
	g.out.begin('S')
	g.out.cstring(name)
	g.out.cstring(value)
	g.out.end()
}

// databaseOp is an op on the database itself.
func (e *Engine) databaseOp(verb, database string) proxy.Op {
	b := opBuilder{d: &decider{e: e, database: database}}
	b.add(verb, policy.Database(e.name, database), false, false)
	return b.ops[0]
}

var _ Parser = (*sqlparse.Pool)(nil)
