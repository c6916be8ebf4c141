package client

import (
	"context"
	"crypto/subtle"
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
)

const (
	startupTimeout  = 30 * time.Second
	upstreamTimeout = 10 * time.Second
	authTimeout     = 60 * time.Second
	relayBuffer     = 32 << 10
)

// PostgresRelay speaks for PostgreSQL clients that know nothing of SVIDs and grants: it opens the
// connection to the target's proxy with the agent's SVID, answers the password request with a
// credential, relays everything else without a look, and renews the session before its credential ends.
// It holds no secret of the target and decides nothing.
type PostgresRelay struct {
	Target Target
	Source Source
	// Credential returns a credential for the target, with life left.
	Credential func(ctx context.Context) (Credential, error)
	// Password, if not empty, is demanded of the client first.
	Password string
	// Log may be nil.
	Log *slog.Logger
}

// PostgresError is a failure that the client was told about in its own protocol.
type PostgresError struct {
	SQLState string
	Err      error
	hint     string
}

func (e *PostgresError) Error() string { return e.Err.Error() }
func (e *PostgresError) Unwrap() error { return e.Err }

const (
	stateConnection = "08006" // connection_failure
	stateProtocol   = "08P01" // protocol_violation
	stateAuth       = "28000" // invalid_authorization_specification
	statePassword   = "28P01" // invalid_password
)

func failure(state, hint, format string, args ...any) error {
	return &PostgresError{SQLState: state, Err: fmt.Errorf(format, args...), hint: hint}
}

// Serve serves one client connection until either side ends or ctx is done, and closes it.
func (r *PostgresRelay) Serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err := r.serve(ctx, conn)
	var pe *PostgresError
	if errors.As(err, &pe) {
		conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write(fatal(pe.SQLState, "deputy: "+pe.Error(), pe.hint))
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (r *PostgresRelay) serve(ctx context.Context, conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(startupTimeout))
	packet, kind, err := r.readStartup(conn)
	if err != nil {
		return err
	}
	if kind == startupCancel {
		return r.cancel(ctx, packet)
	}
	if packet, err = fillStartup(packet, r.Target.Database, r.Target.User); err != nil {
		return failure(stateProtocol, "", "%w", err)
	}
	if err := r.checkPassword(conn); err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(authTimeout))
	cred, err := r.Credential(ctx)
	if err != nil {
		return failure(stateAuth, "", "no credential for %s: %w", r.Target.Name, err)
	}
	up, err := r.dial(ctx)
	if err != nil {
		return failure(stateConnection, "", "reaching the proxy of %s: %w", r.Target.Name, err)
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { up.Close() })
	defer stop()

	up.SetDeadline(time.Now().Add(authTimeout))
	session, err := r.authenticate(conn, up, packet, cred)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	up.SetDeadline(time.Time{})

	renewed, stopRenewal := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	defer renewing.Wait()
	defer stopRenewal()
	if session != "" && r.Target.RenewalURL != "" {
		again := &renewal{target: r.Target, source: r.Source, credential: r.Credential, log: r.log()}
		renewing.Go(func() { again.run(renewed, session, cred.ExpiresAt) })
	}
	return relay(conn, up)
}

// readStartup answers encryption requests with N until the client says what it wants. A local socket
// needs no encryption, and the client must ask again in plain.
func (r *PostgresRelay) readStartup(conn net.Conn) ([]byte, startupKind, error) {
	for range 3 {
		packet, kind, err := readStartupPacket(conn)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
				return nil, 0, io.EOF
			}
			return nil, 0, failure(stateProtocol, "", "%w", err)
		}
		if kind != startupNegotiate {
			return packet, kind, nil
		}
		if _, err := conn.Write([]byte{'N'}); err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, failure(stateProtocol, "", "too many encryption requests")
}

// checkPassword asks for the listener's own password, where it has one.
func (r *PostgresRelay) checkPassword(conn net.Conn) error {
	if r.Password == "" {
		return nil
	}
	if _, err := conn.Write(message('R', binary.BigEndian.AppendUint32(nil, 3))); err != nil {
		return err
	}
	msg, err := readMessage(conn, 1<<10)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF // psql asks its user only after a first refusal to go on without
		}
		return failure(stateProtocol, "", "reading the password: %w", err)
	}
	got := strings.TrimSuffix(string(msg[5:]), "\x00")
	if msg[0] != 'p' || subtle.ConstantTimeCompare([]byte(got), []byte(r.Password)) != 1 {
		return failure(statePassword, "The service file of the run (PGSERVICEFILE) holds the password.",
			"wrong password for the local listener of %s", r.Target.Name)
	}
	return nil
}

// dial opens TLS 1.3 to the proxy, which must prove the exact SPIFFE ID that the catalogue names.
func (r *PostgresRelay) dial(ctx context.Context) (*tls.Conn, error) {
	svid, err := r.Source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("this agent has no identity now: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.Target.Address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })
	defer stop()
	request := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), codeSSL)
	if _, err := raw.Write(request); err != nil {
		raw.Close()
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(raw, answer[:]); err != nil {
		raw.Close()
		return nil, fmt.Errorf("waiting for the answer to the TLS request: %w", err)
	}
	if answer[0] != 'S' {
		raw.Close()
		return nil, fmt.Errorf("%s answered %q to the TLS request; only TLS is spoken with a proxy", r.Target.Address, answer[0])
	}
	conn := tls.Client(raw, meshTLS(svid, r.Source, r.Target.Proxy))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS with %s as %s: %w", r.Target.Address, r.Target.Proxy, err)
	}
	return conn, nil
}

// authenticate forwards the startup packet and everything up to the first ReadyForQuery, and answers
// the password request. It returns the session's name at the proxy.
func (r *PostgresRelay) authenticate(client io.Writer, up io.ReadWriter, startup []byte, cred Credential) (session string, err error) {
	if _, err := up.Write(startup); err != nil {
		return "", failure(stateConnection, "", "starting a session at the proxy of %s: %w", r.Target.Name, err)
	}
	for answered := false; ; {
		msg, err := readMessage(up, maxAuthBytes)
		if err != nil {
			return "", failure(stateConnection, "", "the proxy of %s: %w", r.Target.Name, err)
		}
		switch msg[0] {
		case 'R':
			if len(msg) < 9 {
				return "", failure(stateProtocol, "", "the proxy of %s: a short authentication message", r.Target.Name)
			}
			switch code := binary.BigEndian.Uint32(msg[5:]); {
			case code == 3 && !answered:
				answered = true
				if _, err := up.Write(passwordMessage(cred.Reveal())); err != nil {
					return "", failure(stateConnection, "", "presenting the credential to the proxy of %s: %w", r.Target.Name, err)
				}
				continue
			case code != 0:
				return "", failure(stateProtocol, "", "the proxy of %s asks for authentication %d, want a password once", r.Target.Name, code)
			}
		case 'S':
			if k, v, ok := parameterStatus(msg); ok && k == "deputy.session" {
				session = v
			}
		}
		if _, err := client.Write(msg); err != nil {
			return "", err
		}
		switch msg[0] {
		case 'E':
			return "", io.EOF
		case 'Z':
			return session, nil
		}
	}
}

// cancel carries a cancel request to the proxy over TLS with the agent's SVID, which binds it to the
// caller. A cancel has no answer.
func (r *PostgresRelay) cancel(ctx context.Context, packet []byte) error {
	up, err := r.dial(ctx)
	if err != nil {
		return fmt.Errorf("cancelling at the proxy of %s: %w", r.Target.Name, err)
	}
	defer up.Close()
	up.SetDeadline(time.Now().Add(upstreamTimeout))
	if _, err := up.Write(packet); err != nil {
		return fmt.Errorf("cancelling at the proxy of %s: %w", r.Target.Name, err)
	}
	// libpq takes the end of its connection for the end of the cancel.
	_, _ = io.Copy(io.Discard, io.LimitReader(up, 1<<10))
	return nil
}

// relay copies both ways until the server's side ends; the end of the client's is passed on.
func relay(client net.Conn, up *tls.Conn) error {
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{up}, struct{ io.Reader }{client}, make([]byte, relayBuffer))
		if err != nil {
			up.Close() // the client is gone: nobody is left to read for
		} else {
			_ = up.CloseWrite()
		}
		done <- err
	}()
	_, err := io.CopyBuffer(struct{ io.Writer }{client}, struct{ io.Reader }{up}, make([]byte, relayBuffer))
	client.Close()
	up.Close()
	if sent := <-done; err == nil {
		err = sent
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (r *PostgresRelay) log() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}

// RefusePostgres tells a client why it isn't served, after it said what it wants, and closes the
// connection.
func RefusePostgres(conn net.Conn, sqlstate string, why error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	r := &PostgresRelay{}
	if _, kind, err := r.readStartup(conn); err != nil || kind == startupCancel {
		return
	}
	_, _ = conn.Write(fatal(sqlstate, "deputy: "+why.Error(), ""))
}
