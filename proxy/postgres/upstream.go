package postgres

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	dialTimeout = 10 * time.Second
	// What a target may say before a session begins. pgconn keeps all of it in memory.
	maxGreeting        = 1 << 20
	maxGreetingMessage = 64 << 10
)

// allowance bounds what a target may make us read and keep. Beyond it reading fails.
type allowance struct {
	r    io.Reader
	left int
}

var errTalksTooMuch = errors.New("the target says more than it may")

func (a *allowance) Read(b []byte) (int, error) {
	if a.left <= 0 {
		return 0, errTalksTooMuch
	}
	n, err := a.r.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}

func splitAddress(address string) (host string, port uint16, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("the target's address: %w", err)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 || host == "" || strings.HasPrefix(host, "/") {
		return "", 0, fmt.Errorf("the target's address %q: want host:port", address)
	}
	return host, uint16(n), nil
}

func targetName(id spiffeid.ID) string {
	name, ok := strings.CutPrefix(id.Path(), "/target/")
	if !ok || strings.Contains(name, "/") {
		return ""
	}
	return name
}

// connConfig is how the target is reached: verified TLS, SCRAM or a client certificate and nothing weaker, and the pinned settings.
func (e *Engine) connConfig(account Account, database, application string, settings map[string]string) (*pgconn.Config, error) {
	// pgconn wants to parse a string; everything that it may have taken from the environment is replaced.
	cfg, err := pgconn.ParseConfig("host=localhost port=1 user=deputy dbname=deputy sslmode=disable passfile='' target_session_attrs=any")
	if err != nil {
		return nil, fmt.Errorf("preparing the connection to %s: %w", e.name, err)
	}
	cfg.Host, cfg.Port = e.host, e.port
	cfg.User, cfg.Password, cfg.Database = account.Name, account.Password, database
	cfg.Fallbacks = nil
	cfg.ConnectTimeout = dialTimeout
	cfg.SSLNegotiation, cfg.SSLCertMode = "postgres", "disable"
	cfg.ValidateConnect, cfg.AfterConnect = nil, nil
	cfg.MinProtocolVersion, cfg.MaxProtocolVersion = "3.0", "3.0"
	name := e.cfg.Upstream.ServerName
	if name == "" {
		name = e.host
	}
	cfg.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: e.cfg.Upstream.RootCAs, ServerName: name}
	cfg.RequireAuth = "scram-sha-256"
	cfg.ChannelBinding = "require"
	if e.cfg.Upstream.NoChannelBinding {
		cfg.ChannelBinding = "prefer"
	}
	if err := account.certify(cfg); err != nil {
		return nil, fmt.Errorf("the client certificate of account %s at %s: %w", account.Name, e.name, err)
	}
	cfg.DialFunc = e.cfg.Upstream.Dial
	cfg.RuntimeParams = map[string]string{
		"search_path":                 searchPath(e.cfg.Schemas),
		"standard_conforming_strings": "on",
		"client_encoding":             "UTF8",
		"row_security":                "on",
		"application_name":            application,
	}
	for k, v := range settings {
		if !isPinned(k) {
			cfg.RuntimeParams[k] = v
		}
	}
	return cfg, nil
}

// certify lets the account prove itself by its certificate. The target must ask for it: one that lets anybody in is not the
// target that was configured. Without a password none may be asked for.
func (a Account) certify(cfg *pgconn.Config) error {
	if a.Certificate == nil {
		return nil
	}
	cert, err := a.Certificate()
	if err != nil {
		return err
	}
	cfg.TLSConfig.Certificates = []tls.Certificate{*cert}
	cfg.SSLCertMode = "require"
	if a.Password == "" {
		cfg.RequireAuth, cfg.ChannelBinding = "none", "disable"
	}
	return nil
}

// upstream is one connection to the target, after authentication.
type upstream struct {
	conn   net.Conn
	in     *frames
	out    *sink
	params map[string]string
	config *pgconn.Config
	pid    uint32
	secret []byte
	half   bool // a message to the target is half written: nothing more can be said
}

// dial connects to the target. The error never holds a secret: pgconn keeps passwords out of its errors.
func (e *Engine) dial(ctx context.Context, account Account, database, application string, settings map[string]string) (*upstream, error) {
	cfg, err := e.connConfig(account, database, application, settings)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	// When a write takes long, pgconn reads on in the background, and such a read may still wait when the connection is taken
	// over: it would swallow the first answer. So we read where pgconn does, and not from the connection itself.
	var reader io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		reader = r
		front := pgproto3.NewFrontend(&allowance{r, maxGreeting}, w)
		front.SetMaxBodyLen(maxGreetingMessage)
		return front
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", e.name, err)
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", e.name, err)
	}
	if h.Frontend.ReadBufferLen() > 0 {
		_ = h.Conn.Close()
		return nil, fmt.Errorf("connecting to %s: the server went on talking after ReadyForQuery", e.name)
	}
	if err := checkSettings(h.ParameterStatuses); err != nil {
		_ = h.Conn.Close()
		return nil, fmt.Errorf("connecting to %s: %w", e.name, err)
	}
	return &upstream{
		conn: h.Conn, in: newFrames(reader, &e.buffers), out: newSink(h.Conn, &e.buffers),
		params: h.ParameterStatuses, config: cfg, pid: h.PID, secret: h.SecretKey,
	}, nil
}

// cancel asks the target, over a connection of its own and by TLS, to end what the connection runs.
func (u *upstream) cancel(ctx context.Context) error {
	conn, err := u.config.DialFunc(ctx, "tcp", u.conn.RemoteAddr().String())
	if err != nil {
		return fmt.Errorf("cancelling at the target: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	var ask [8]byte
	binary.BigEndian.PutUint32(ask[:], 8)
	binary.BigEndian.PutUint32(ask[4:], codeSSL)
	if _, err := conn.Write(ask[:]); err != nil {
		return fmt.Errorf("cancelling at the target: %w", err)
	}
	if _, err := io.ReadFull(conn, ask[:1]); err != nil {
		return fmt.Errorf("cancelling at the target: %w", err)
	}
	if ask[0] != 'S' {
		return errors.New("cancelling at the target: it doesn't offer TLS any more")
	}
	secured := tls.Client(conn, u.config.TLSConfig)
	msg := make([]byte, 12, 12+len(u.secret))
	binary.BigEndian.PutUint32(msg, uint32(12+len(u.secret)))
	binary.BigEndian.PutUint32(msg[4:], codeCancel)
	binary.BigEndian.PutUint32(msg[8:], u.pid)
	if _, err := secured.Write(append(msg, u.secret...)); err != nil {
		return fmt.Errorf("cancelling at the target: %w", err)
	}
	// The server closes when it has sent the signal.
	_, _ = secured.Read(ask[:])
	return nil
}
