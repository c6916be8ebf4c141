// Package tcp is the engine for services whose protocol no other engine speaks. It decides one thing: whether an agent may connect. What is said on
// the connection is neither decided nor recorded, and its policy action and its records say so; all else holds: the chain, the evidence
// before the first byte, the end within a second of a revocation.
package tcp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
	"github.com/deputymesh/deputy/proxy/internal/preface"
)

// Defaults of [Config].
const (
	DefaultStartupTimeout = 15 * time.Second
	DefaultMaxConnections = 1000
)

const dialTimeout = 10 * time.Second

// Config makes an engine for one target.
type Config struct {
	Core Core
	// Name and Target (spiffe://<td>/target/<name>) are the same.
	Name   target.Name
	Target spiffeid.ID
	// TLS is what [proxy.ServerTLS] makes.
	TLS *tls.Config
	// Address is the service's host:port. Without RootCAs it is reached in the clear, which is for services on this machine only.
	Address    string
	RootCAs    *x509.CertPool
	ServerName string // in its certificate; the host of Address if ""

	StartupTimeout time.Duration // for each step until the service is connected
	MaxConnections int           // of agents with a credential at once

	Logger *slog.Logger
}

// Engine serves one target.
type Engine struct {
	cfg   Config
	tls   *tls.Config
	room  lobby.Room
	slots chan struct{}
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	host, _, err := net.SplitHostPort(cfg.Address)
	switch {
	case err != nil || host == "":
		return nil, fmt.Errorf("making the TCP engine: the service's address %q: want host:port", cfg.Address)
	case cfg.RootCAs == nil && !isLoopback(host):
		return nil, fmt.Errorf("making the TCP engine: %s isn't on this machine's loopback, and without a CA it would be reached in the clear", cfg.Address)
	case cfg.Core == nil || cfg.TLS == nil:
		return nil, errors.New("making the TCP engine: core and TLS are expected")
	case cfg.TLS.VerifyPeerCertificate == nil && cfg.TLS.VerifyConnection == nil:
		return nil, errors.New("making the TCP engine: the TLS configuration verifies no agent; proxy.ServerTLS makes one that does")
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	if cfg.StartupTimeout <= 0 {
		cfg.StartupTimeout = DefaultStartupTimeout
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Engine{cfg: cfg, tls: cfg.TLS.Clone(), slots: make(chan struct{}, cfg.MaxConnections)}
	e.tls.MinVersion = tls.VersionTLS13
	e.tls.ClientAuth = tls.RequireAnyClientCert
	e.tls.SessionTicketsDisabled = true
	e.tls.NextProtos = []string{preface.TCP}
	return e, nil
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// Serve accepts agents on l until ctx is done, then ends every connection and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
	}()
	return lobby.Accept(ctx, l, e.cfg.Name.String(), func(conn net.Conn) {
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

var _ proxy.Engine = (*Engine)(nil)
