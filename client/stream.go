package client

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/actor"
)

// prefaces are the names of what stands before a protocol, by the kind of the target: docs/spec/preface.md.
var prefaces = map[string]string{"ssh": "deputy-ssh/1", "tcp": "deputy-tcp/1"}

// maxPrefaceText bounds the proxy's answer: a session's id and a host key, or a refusal.
const maxPrefaceText = 16 << 10

// StreamRelay brings the bytes of a client to the proxy of a host (SSH) or of a service that no engine speaks the protocol of (TCP): it opens the
// connection with the agent's SVID, presents a credential before anything else, relays everything else without a look, and renews the session before its credential ends. It holds no secret
// of the target and decides nothing.
type StreamRelay struct {
	Target Target
	Source Source
	// Credential returns a credential for the target, with life left.
	Credential func(ctx context.Context) (Credential, error)
	// HostKey, if set, is told a host's proxy's SSH host key, as authorized_keys writes it, before any byte of SSH.
	HostKey func(line string) error
	// Log may be nil.
	Log *slog.Logger
}

// StreamRefused is a proxy's refusal, in its own words.
type StreamRefused struct{ Text string }

func (e *StreamRefused) Error() string { return e.Text }

// StreamConn is a connection through the proxy. The protocol begins with its first byte; SSH has no authentication left to do ("none").
type StreamConn struct {
	*tls.Conn
	// Session names the session at the proxy. HostKey is the proxy's SSH host key, as authorized_keys writes it: it came over
	// verified TLS.
	Session, HostKey string

	cancel   context.CancelFunc
	renewing sync.WaitGroup
}

// Close ends the connection and its renewal.
func (c *StreamConn) Close() error {
	c.cancel()
	err := c.Conn.Close()
	c.renewing.Wait()
	return err
}

// Dial opens a connection. It is renewed until it is closed, whatever ctx is for.
func (r *StreamRelay) Dial(ctx context.Context) (*StreamConn, error) {
	cred, err := r.Credential(ctx)
	if err != nil {
		return nil, fmt.Errorf("no credential for %s: %w", r.Target.Name, err)
	}
	svid, err := r.Source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("this agent has no identity now: %w", err)
	}
	early, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	raw, err := (&net.Dialer{Timeout: upstreamTimeout}).DialContext(early, "tcp", r.Target.Address)
	if err != nil {
		return nil, fmt.Errorf("reaching the proxy of %s: %w", r.Target.Name, err)
	}
	stop := context.AfterFunc(early, func() { raw.SetDeadline(time.Now()) })
	defer stop()
	cfg := meshTLS(svid, r.Source, r.Target.Proxy)
	cfg.NextProtos = []string{prefaces[r.Target.Kind]}
	conn := tls.Client(raw, cfg)
	session, host, err := r.preface(early, conn, cred)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if !stop() {
		conn.Close()
		return nil, context.Cause(early)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	c := &StreamConn{Conn: conn, Session: session, HostKey: host, cancel: end}
	if r.Target.RenewalURL != "" {
		log := r.Log
		if log == nil {
			log = slog.New(slog.DiscardHandler)
		}
		again := &renewal{target: r.Target, source: r.Source, credential: r.Credential, log: log}
		c.renewing.Go(func() { again.run(life, session, cred.ExpiresAt) })
	}
	return c, nil
}

// preface presents the credential and reads what the proxy says to it.
func (r *StreamRelay) preface(ctx context.Context, conn *tls.Conn, cred Credential) (session, host string, err error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", "", fmt.Errorf("TLS with %s as %s: %w", r.Target.Address, r.Target.Proxy, err)
	}
	name := prefaces[r.Target.Kind]
	if got := conn.ConnectionState().NegotiatedProtocol; got != name {
		return "", "", fmt.Errorf("%s speaks %q, not %s: is %s a target of the kind %s?", r.Target.Address, got, name, r.Target.Name, r.Target.Kind)
	}
	secret := cred.Reveal()
	if len(secret) > actor.MaxSize {
		return "", "", fmt.Errorf("the credential for %s is larger than a proxy takes", r.Target.Name)
	}
	frame := binary.BigEndian.AppendUint32([]byte(name), uint32(len(secret)))
	if _, err := conn.Write(append(frame, secret...)); err != nil {
		return "", "", fmt.Errorf("presenting the credential to the proxy of %s: %w", r.Target.Name, err)
	}
	head := make([]byte, len(name)+5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return "", "", fmt.Errorf("the proxy of %s: %w", r.Target.Name, err)
	}
	status, n := head[len(name)], binary.BigEndian.Uint32(head[len(name)+1:])
	if string(head[:len(name)]) != name || n > maxPrefaceText || status > 1 {
		return "", "", fmt.Errorf("the proxy of %s answers something else than %s", r.Target.Name, name)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(conn, text); err != nil {
		return "", "", fmt.Errorf("the proxy of %s: %w", r.Target.Name, err)
	}
	if status == 1 {
		return "", "", &StreamRefused{printable(string(text))}
	}
	session, host, hasHost := strings.Cut(string(text), "\n")
	host = strings.TrimSuffix(host, "\n")
	if hasHost != (r.Target.Kind == "ssh") || session == "" || len(session) > 128 || hasHost && host == "" || strings.ContainsAny(session+host, "\r\n\x00") {
		return "", "", fmt.Errorf("the proxy of %s names no session and host key", r.Target.Name)
	}
	return session, host, nil
}

// abort ends the connection by a reset: what breaks must not look like an end that was meant, as Close does.
func (c *StreamConn) abort() {
	raw := c.Conn.NetConn()
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = raw.Close()
}

// Serve relays between a client's streams and the proxy until the proxy's side ends; with a TCP service and an out that has a CloseWrite, until
// both have. Each end is passed on. What breaks on the client's side, or ends with ctx, reaches the proxy as a reset; what breaks on the proxy's is an error. Whoever
// calls it closes in afterwards: a read of it may still be under way.
func (r *StreamRelay) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	conn, err := r.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, conn.abort)
	defer stop()
	if r.HostKey != nil {
		if err := r.HostKey(conn.HostKey); err != nil {
			return err
		}
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{in}, make([]byte, relayBuffer))
		if err == nil {
			err = conn.CloseWrite()
		}
		if err != nil {
			conn.abort()
		}
		sent <- err
	}()
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{conn}, make([]byte, relayBuffer))
	if half, ok := out.(interface{ CloseWrite() error }); ok && err == nil && r.Target.Kind == "tcp" {
		if err = half.CloseWrite(); err == nil {
			err = <-sent
		}
	}
	if err != nil {
		conn.abort()
	}
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// StreamRelay is the relay to a host or a TCP service under this agent's identity.
func (a *Agent) StreamRelay(ctx context.Context, target string) (*StreamRelay, error) {
	d, err := a.Describe(ctx)
	if err != nil {
		return nil, err
	}
	t, err := findTarget(d.Targets, target)
	if err != nil {
		return nil, err
	}
	if prefaces[t.Kind] == "" {
		return nil, fmt.Errorf("%s is a %s target, neither a host reached by SSH nor a service reached by TCP", target, t.Kind)
	}
	source, err := a.Source(ctx)
	if err != nil {
		return nil, err
	}
	return &StreamRelay{Target: t, Source: source, Credential: func(ctx context.Context) (Credential, error) {
		return a.Credential(ctx, target)
	}}, nil
}
