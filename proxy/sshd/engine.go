package sshd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/internal/lobby"
	"github.com/deputymesh/deputy/proxy/internal/preface"
)

// Defaults of [Config].
const (
	DefaultStartupTimeout = 15 * time.Second
	DefaultMaxConnections = 1000
	DefaultMaxChannels    = 16
)

// Limits of channels at once. One takes up to 4 MiB where both sides send and nobody reads: that is what the windows of
// x/crypto/ssh allow.
const (
	maxChannelsOfUser = 64
	maxChannels       = 512
)

// AnyAccount is the user name that leaves the choice of the account to the roles of the chain's user. An account of that name can't be
// configured.
const AnyAccount = "deputy"

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
	// Accounts are those at the target that sessions may use, in order of preference.
	Accounts []Account
	// Environment names the variables that agents may set; a * at the end stands for any ending. nil is LANG, LC_*,
	// TERM, COLORTERM and GIT_PROTOCOL.
	Environment []string
	// Forwarding lets policy allow forwardings to what the target reaches (-L, -D, -W), and from it to the agent (-R). Without it all are refused.
	Forwarding bool
	// Restricted lets commands and files through and nothing else: no shell, no terminal, no subsystem but sftp. A command in which a shell
	// finds something to expand, redirect or chain needs a policy that names its exact text (resource ==).
	Restricted bool

	// StartupTimeout is for each step until a session begins.
	StartupTimeout time.Duration
	MaxConnections int // of agents with a credential at once
	MaxChannels    int // of one connection at once

	Now    func() time.Time
	Logger *slog.Logger
}

// Engine serves one target.
type Engine struct {
	cfg  Config
	tls  *tls.Config
	name string
	// host is the engine's own host key. It lives as long as the engine: what proves the proxy is TLS, and the key is told inside it.
	host   ssh.Signer
	room   lobby.Room
	slots  chan struct{} // of sessions
	seats  seats
	broken *broken
}

// New checks the configuration and makes an engine. It connects to nothing yet.
func New(cfg Config) (*Engine, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("making the SSH engine: %w", err)
	}
	cfg.defaults()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the SSH engine's host key: %w", err)
	}
	e := &Engine{cfg: cfg, name: targetName(cfg.Target), slots: make(chan struct{}, cfg.MaxConnections), broken: newBroken()}
	if e.host, err = ssh.NewSignerFromKey(key); err != nil {
		return nil, fmt.Errorf("making the SSH engine's host key: %w", err)
	}
	e.tls = cfg.TLS.Clone()
	e.tls.MinVersion = tls.VersionTLS13
	e.tls.ClientAuth = tls.RequireAnyClientCert
	e.tls.SessionTicketsDisabled = true
	e.tls.NextProtos = []string{preface.SSH}
	return e, nil
}

func targetName(id spiffeid.ID) string {
	name, err := actor.TargetName(id)
	if err != nil {
		return ""
	}
	return name
}

func (c *Config) check() error {
	switch {
	case c.Core == nil:
		return errors.New("no core")
	case targetName(c.Target) == "":
		return fmt.Errorf("%q is not a target's identity", c.Target)
	case c.TLS == nil || (len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil):
		return errors.New("no certificate for agents")
	case c.TLS.GetConfigForClient != nil:
		return errors.New("the TLS configuration may not be chosen per client")
	case c.TLS.VerifyPeerCertificate == nil && c.TLS.VerifyConnection == nil:
		return errors.New("the TLS configuration verifies no agent; proxy.ServerTLS makes one that does")
	case len(c.Accounts) == 0:
		return errors.New("no account to use at the target")
	case c.Restricted && c.Forwarding:
		return errors.New("a restricted target forwards nothing")
	}
	for i, a := range c.Accounts {
		if err := a.check(); err != nil {
			return fmt.Errorf("account %d: %w", i, err)
		}
	}
	for _, name := range c.Environment {
		if !isVariable(strings.TrimSuffix(name, "*")) {
			return fmt.Errorf("%q is no name of an environment variable", name)
		}
	}
	return c.Upstream.check()
}

func (c *Config) defaults() {
	if c.Environment == nil {
		c.Environment = []string{"LANG", "LC_*", "TERM", "COLORTERM", "GIT_PROTOCOL"}
	}
	if c.Upstream.Dial == nil {
		c.Upstream.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	if c.StartupTimeout <= 0 {
		c.StartupTimeout = DefaultStartupTimeout
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.MaxChannels <= 0 {
		c.MaxChannels = DefaultMaxChannels
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

// Serve accepts agents on l until ctx is done, then ends every connection and waits for it. It closes l.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
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
