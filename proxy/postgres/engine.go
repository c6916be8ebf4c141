package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
)

// Defaults of [Config].
const (
	DefaultStartupTimeout = 15 * time.Second
	DefaultCatalogAge     = 30 * time.Second
	DefaultMaxMessage     = 16 << 20
	DefaultMaxRow         = 64 << 20
	DefaultMaxConnections = 1000
)

// Parser gives the facts of SQL text; [*sqlparse.Pool] is one.
type Parser interface {
	// ParseFor does it for somebody, who can't keep it from others.
	ParseFor(ctx context.Context, who, sql string) ([]sqlparse.Statement, error)
}

// Config makes an engine for one target.
type Config struct {
	Core Core
	// Target is spiffe://<td>/target/<name>.
	Target spiffeid.ID
	// TLS is what [proxy.ServerTLS] makes: the proxy's SVID, and agents verified by theirs. The engine demands
	// TLS 1.3 and a client certificate, without tickets, whatever it says.
	TLS *tls.Config
	// Upstream is the target's server.
	Upstream Upstream
	// Accounts are the roles at the target that sessions may use, in order of preference.
	Accounts []Account
	// Catalog is the account that reads the target's catalogue; by default the first of Accounts. It needs no
	// right beyond connecting.
	Catalog *Account
	// Databases that agents may name, and the one that is meant when they name none ("": refused).
	Databases       []string
	DefaultDatabase string
	// Schemas stand in search_path between pg_catalog and pg_temp; default {"public"}.
	Schemas []string
	Parser  Parser

	// StartupTimeout is for each step until a session begins: until TLS stands, until the credential is there, until the target
	// is reached.
	StartupTimeout time.Duration
	CatalogAge     time.Duration // after which the catalogue is read again
	MaxMessage     int           // bytes of one message of an agent
	MaxRow         int           // bytes of one row that has to be masked
	MaxConnections int           // of agents with a credential at once
	// PlainCancel accepts CancelRequests without TLS, as libpq before 17 sends them: whoever knows the key may cancel.
	PlainCancel bool

	Now    func() time.Time
	Logger *slog.Logger
}

// Upstream says where the target is and how it proves itself.
type Upstream struct {
	// Address is host:port.
	Address string
	// ServerName is the name in the server's certificate; by default the host of Address.
	ServerName string
	// Dial connects to Address; a plain net.Dialer if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// RootCAs sign the server's certificate. Required.
	RootCAs *x509.CertPool
	// NoChannelBinding allows SCRAM-SHA-256 without -PLUS, for poolers that can't bind.
	NoChannelBinding bool
}

// Account is a role at the target. It proves itself by a password, a client certificate, or both.
type Account struct {
	Name     string
	Password string
	// Certificate gives the client certificate and its key, anew for each connection; nil: none is sent.
	Certificate func() (*tls.Certificate, error)
	// Roles of users that may use it; empty: every user, as far as policy goes.
	Roles []string
}

// Engine serves one target.
type Engine struct {
	cfg      Config
	tls      *tls.Config
	host     string
	port     uint16
	name     string // the target's name
	catalogs map[string]*catalog
	cancels  cancelTable
	room     lobby.Room
	slots    chan struct{} // of sessions
	buffers  buffers
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("making the PostgreSQL engine: %w", err)
	}
	cfg.defaults()
	e := &Engine{cfg: cfg, catalogs: map[string]*catalog{}}
	e.cancels.sessions = map[uint32]*session{}
	e.slots = make(chan struct{}, cfg.MaxConnections)
	e.tls = cfg.TLS.Clone()
	e.tls.MinVersion = tls.VersionTLS13
	e.tls.ClientAuth = tls.RequireAnyClientCert
	e.tls.SessionTicketsDisabled = true
	e.tls.NextProtos = []string{"postgresql"}
	var err error
	if e.host, e.port, err = splitAddress(cfg.Upstream.Address); err != nil {
		return nil, fmt.Errorf("making the PostgreSQL engine: %w", err)
	}
	e.name = targetName(cfg.Target)
	account := cfg.Accounts[0]
	if cfg.Catalog != nil {
		account = *cfg.Catalog
	}
	for _, db := range cfg.Databases {
		e.catalogs[db] = newCatalog(e, db, account)
	}
	return e, nil
}

func (c *Config) check() error {
	switch {
	case c.Core == nil:
		return errors.New("no core")
	case targetName(c.Target) == "":
		return fmt.Errorf("%q is not a target's identity", c.Target)
	case c.TLS == nil || (len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil && c.TLS.GetConfigForClient == nil):
		return errors.New("no certificate for agents")
	case c.TLS.GetConfigForClient != nil:
		return errors.New("the TLS configuration may not be chosen per client")
	case c.TLS.VerifyPeerCertificate == nil && c.TLS.VerifyConnection == nil:
		return errors.New("the TLS configuration verifies no agent; proxy.ServerTLS makes one that does")
	case c.Upstream.RootCAs == nil:
		return errors.New("no CA to verify the target's server with")
	case len(c.Accounts) == 0:
		return errors.New("no account to use at the target")
	case len(c.Databases) == 0:
		return errors.New("no database to serve")
	case c.DefaultDatabase != "" && !slices.Contains(c.Databases, c.DefaultDatabase):
		return fmt.Errorf("the default database %q is not among the databases", c.DefaultDatabase)
	case c.Parser == nil:
		return errors.New("no SQL parser")
	}
	for _, a := range c.Accounts {
		if a.Name == "" || a.Password == "" && a.Certificate == nil {
			return errors.New("an account has no name, or neither password nor certificate")
		}
	}
	for _, s := range c.Schemas {
		if s == "" || s == "pg_catalog" || s == "pg_temp" || s == "$user" {
			return fmt.Errorf("%q can't stand among the schemas", s)
		}
	}
	return nil
}

func (c *Config) defaults() {
	if len(c.Schemas) == 0 {
		c.Schemas = []string{"public"}
	}
	if c.Upstream.Dial == nil {
		c.Upstream.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	setDefault(&c.StartupTimeout, DefaultStartupTimeout)
	setDefault(&c.CatalogAge, DefaultCatalogAge)
	setDefault(&c.MaxMessage, DefaultMaxMessage)
	setDefault(&c.MaxRow, DefaultMaxRow)
	setDefault(&c.MaxConnections, DefaultMaxConnections)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Serve accepts agents on l until ctx is done, then ends every connection and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		for _, c := range e.catalogs {
			c.close()
		}
	}()
	return lobby.Accept(ctx, l, e.name, func(conn net.Conn) {
		g, full := e.room.Enter(conn)
		if full {
			e.cfg.Core.Count("too_many_waiting")
		}
		wg.Go(func() {
			defer conn.Close()
			defer e.room.Leave(g)
			e.serve(ctx, conn, g)
		})
	})
}
