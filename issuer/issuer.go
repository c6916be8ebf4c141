// Package issuer is the SPIFFE authority of a mesh: it gives X.509- and JWT-SVIDs to roles (the Workload API) and to nested agents
// (the spawn service), by what the kernel says about its callers, on one Unix socket.
//
// It never sees a user's token, and shares neither key nor uid nor, outside `deputy dev`, a process with the broker.
package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/issuer/workloadapi"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// DevTrustDomain is the trust domain of `deputy dev`, whose grants prove nothing. It is refused without UnsafeDev.
const DevTrustDomain = "dev.deputy.invalid"

// BrokerPath is the path of the role that may hear about ended agents.
const BrokerPath = "/deputy/broker"

// Limits of a connection.
const (
	maxMessage    = 16 << 10
	maxHeaders    = 8 << 10
	maxStreams    = 128
	handshakeTime = 5 * time.Second
	minPing       = 10 * time.Second
	connBuffer    = 4 << 10 // of each direction: messages are small and connections many
)

// Config makes an Issuer.
type Config struct {
	CA *ca.CA
	// Bundle holds further authorities of the trust domain, such as the one before. The CA's own is added.
	Bundle []*x509.Certificate
	// JWT signs JWT-SVIDs; nil: there are none. JWTKeys are further authorities of the JWT bundle, to which its own is added.
	JWT     *ca.JWTAuthority
	JWTKeys []*ecdsa.PublicKey
	Roles   []workloadapi.Entry
	Agents  []spawn.Entry
	UIDs    spawn.UIDRange
	Limits  spawn.Limits
	Store   spawn.Store
	Log     spawn.Log

	// UnsafeDev allows the trust domain of `deputy dev`.
	UnsafeDev bool
	// IgnorePeerPidfd behaves as on a kernel before 6.5: nobody is attested.
	IgnorePeerPidfd bool
	// Grace and TicketLife are the spawn service's; zero means its defaults.
	Grace, TicketLife time.Duration

	Now    func() time.Time
	Logger *slog.Logger
}

// Issuer is the role. Use [New] and Serve.
type Issuer struct {
	ca     *ca.CA
	bundle *ca.Bundle
	jwt    *ca.JWTAuthority
	jwks   *ca.JWTBundle
	creds  *attest.Credentials
	spawn  *spawn.Server
	api    *workloadapi.Server
}

// New checks the configuration; nothing runs before Serve.
func New(cfg Config) (*Issuer, error) {
	if cfg.CA == nil {
		return nil, errors.New("issuer: a CA is needed")
	}
	td := cfg.CA.TrustDomain()
	if td.Name() == DevTrustDomain && !cfg.UnsafeDev {
		return nil, fmt.Errorf("issuer: the trust domain %s is for `deputy dev` alone; choose your own, or start with --unsafe-dev", DevTrustDomain)
	}
	i := &Issuer{ca: cfg.CA, bundle: ca.NewBundle(td), jwt: cfg.JWT, jwks: ca.NewJWTBundle(td), creds: attest.NewCredentials()}
	i.creds.IgnorePeerPidfd = cfg.IgnorePeerPidfd
	i.creds.Agents = cfg.UIDs.Contains
	i.SetBundle(cfg.Bundle...)
	if cfg.JWT != nil {
		if cfg.JWT.TrustDomain() != td {
			return nil, fmt.Errorf("issuer: JWT-SVIDs of %s, X.509-SVIDs of %s", cfg.JWT.TrustDomain(), td)
		}
		if err := i.SetJWTBundle(cfg.JWTKeys...); err != nil {
			return nil, err
		}
	}
	var broker []attest.Selectors
	for _, e := range cfg.Roles {
		if e.UID != nil && cfg.UIDs.Contains(*e.UID) {
			return nil, fmt.Errorf("issuer: entry %s: uid %d lies in the agents' range", e.ID, *e.UID)
		}
		if e.ID.Path() == BrokerPath {
			broker = append(broker, e.Selectors)
		}
	}
	attestor := attest.New()
	var err error
	if i.spawn, err = spawn.New(spawn.Config{
		CA: cfg.CA, JWT: cfg.JWT, Bundle: i.bundle, Attestor: attestor, Store: cfg.Store, Log: cfg.Log, Entries: cfg.Agents, Broker: broker,
		UIDs: cfg.UIDs, Limits: cfg.Limits, Grace: cfg.Grace, TicketLife: cfg.TicketLife, Now: cfg.Now, Logger: cfg.Logger,
	}); err != nil {
		return nil, err
	}
	if i.api, err = workloadapi.New(workloadapi.Config{
		CA: cfg.CA, Bundle: i.bundle, JWT: cfg.JWT, JWTBundle: i.jwks, Attestor: attestor, Agents: i.spawn, Log: cfg.Log, Entries: cfg.Roles, Now: cfg.Now, Logger: cfg.Logger,
	}); err != nil {
		return nil, err
	}
	return i, nil
}

// SetBundle replaces the further authorities and pushes the new bundle to every workload.
func (i *Issuer) SetBundle(further ...*x509.Certificate) {
	certs := []*x509.Certificate{i.ca.Certificate()}
	for _, c := range further {
		if !c.Equal(certs[0]) {
			certs = append(certs, c)
		}
	}
	i.bundle.Set(certs...)
}

// SetJWTBundle replaces the further JWT authorities and pushes the new bundle. A key of an X.509 authority is refused: one key, one use.
func (i *Issuer) SetJWTBundle(further ...*ecdsa.PublicKey) error {
	if i.jwt == nil {
		return errors.New("issuer: it has no key for JWT-SVIDs")
	}
	keys := []*ecdsa.PublicKey{i.jwt.PublicKey()}
	for _, k := range further {
		if !k.Equal(keys[0]) {
			keys = append(keys, k)
		}
	}
	certs, _ := i.bundle.Current()
	for _, k := range keys {
		for _, c := range certs {
			if k.Equal(c.PublicKey) {
				return errors.New("issuer: a key of the JWT bundle is that of an X.509 authority; make one of its own")
			}
		}
	}
	return i.jwks.Set(keys...)
}

// Serve takes up the agents of the last run and serves a Unix socket until ctx is done; then it returns nil, with everything
// that it started stopped and the listener closed. It is called once.
func (i *Issuer) Serve(ctx context.Context, l net.Listener) error {
	if l.Addr().Network() != "unix" {
		return errors.Join(fmt.Errorf("issuer: it identifies callers by the kernel, so it serves Unix sockets only, not %s", l.Addr().Network()), l.Close())
	}
	defer i.spawn.Close()
	if err := i.spawn.Start(ctx); err != nil {
		if ctx.Err() != nil {
			err = nil // told to stop before it began
		}
		return errors.Join(err, l.Close())
	}
	under := &calls{n: map[uint32]int{}}
	srv := grpc.NewServer(
		grpc.Creds(i.creds),
		grpc.InTapHandle(under.open),
		grpc.UnaryInterceptor(under.unary),
		grpc.StreamInterceptor(under.stream),
		grpc.ReadBufferSize(connBuffer),
		grpc.WriteBufferSize(connBuffer),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	)
	spawnv1.RegisterSpawnServer(srv, i.spawn)
	workload.RegisterSpiffeWorkloadAPIServer(srv, i.api)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("issuer: serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	i.api.Stop()
	i.spawn.Close() // its streams end with UNAVAILABLE, so that supervisors know that they may resume
	srv.Stop()
	if err != nil {
		return err
	}
	if err = <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("issuer: stopping: %w", err)
	}
	return nil
}
