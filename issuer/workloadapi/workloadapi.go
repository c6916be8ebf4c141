// Package workloadapi serves the SPIFFE Workload API to roles and other workloads that an operator
// registered, by what the kernel says about them (SPIFFE Workload API §4, profiles for X.509-SVIDs §5.2 and JWT-SVIDs §6.2).
//
// It gives nothing to a process inside an agent: an agent's identity comes from the spawn service alone, and an agent
// that happens to run under a role's uid must not become that role. Processes inside a live agent may read the trust bundles,
// which are public, and have JWT-SVIDs validated; their supervisor gets JWT-SVIDs, of that agent alone and by the spawn service.
package workloadapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
)

// header must be on every call (Workload Endpoint §6): a browser or a server that was tricked into a request doesn't set it.
const header = "workload.spiffe.io"

// Entry gives an identity to matching processes outside every agent.
type Entry struct {
	ID spiffeid.ID
	attest.Selectors
	DNSNames []string
	IPs      []net.IP
}

// Agents is what the spawn service knows.
type Agents interface {
	// Inside says whether a peer is inside an agent. On an error the peer has no place, and gets nothing.
	Inside(ctx context.Context, p *attest.Peer) (bool, error)
	// SignJWT signs a JWT-SVID of the agent whose supervisor the peer is; hint is "" or that agent's name. The record of it is
	// durable before it returns. Its errors are for the caller, with the id of their record.
	SignJWT(ctx context.Context, p *attest.Peer, hint string, audience []string) (spiffeid.ID, string, error)
	// Lives says whether an agent hasn't ended.
	Lives(id actor.AgentID) bool
}

// Log is the evidence. Append returns when the record is durable; after an error what it is about must not happen.
type Log interface {
	Append(ctx context.Context, r audit.Record) (audit.Receipt, error)
	Count(class string)
}

// Config makes a Server.
type Config struct {
	CA     *ca.CA
	Bundle *ca.Bundle
	// JWT signs JWT-SVIDs; nil: there are none. JWTBundle is what verifies them.
	JWT       *ca.JWTAuthority
	JWTBundle *ca.JWTBundle
	Attestor  *attest.Attestor
	Agents    Agents
	Log       Log
	Entries   []Entry
	Now       func() time.Time
	Logger    *slog.Logger
}

// Server is the service. Its streams end with their connections, or with Stop.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	cfg  Config
	stop chan struct{}

	mu    sync.Mutex
	paces map[spiffeid.ID]*rate.Limiter // guarded by mu; JWT-SVIDs per identity
}

// New checks the entries.
func New(cfg Config) (*Server, error) {
	if cfg.CA == nil || cfg.Bundle == nil || cfg.Attestor == nil || cfg.Agents == nil || cfg.Log == nil {
		return nil, errors.New("workload API: CA, bundle, attestor, agents and log are needed")
	}
	for i, e := range cfg.Entries {
		if err := ca.CheckRoleID(e.ID, cfg.CA.TrustDomain()); err != nil {
			return nil, fmt.Errorf("workload API: entry %d: %w", i, err)
		}
		if _, err := e.Selectors.Check(); err != nil {
			return nil, fmt.Errorf("workload API: entry %d (%s): %w", i, e.ID, err)
		}
	}
	if cfg.JWT != nil && cfg.JWTBundle == nil {
		return nil, errors.New("workload API: JWT-SVIDs need a JWT bundle")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Server{cfg: cfg, stop: make(chan struct{}), paces: map[spiffeid.ID]*rate.Limiter{}}, nil
}

// Stop ends all streams. It is called once.
func (s *Server) Stop() { close(s.stop) }

var (
	errStopping = status.Error(codes.Unavailable, "the issuer is stopping")
	errNone     = status.Error(codes.PermissionDenied, "no identity issued: no registration entry matches this process")
)

// caller checks the header and returns the peer.
func caller(ctx context.Context) (*attest.Peer, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(header); len(v) != 1 || v[0] != "true" {
		return nil, status.Errorf(codes.InvalidArgument, "the call lacks the metadata %s: true", header)
	}
	p, err := attest.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return p, nil
}

// entries returns the entries of a peer as it is now. It isn't remembered: a process changes by exec and setuid.
func (s *Server) entries(ctx context.Context, p *attest.Peer) (found []Entry, inside bool, err error) {
	inside, err = s.cfg.Agents.Inside(ctx, p)
	if err != nil {
		s.cfg.Log.Count("workload_no_place")
		s.cfg.Logger.WarnContext(ctx, "workload API: a caller has no place", "pid", p.Process.PID(), "uid", p.UID, "error", err)
		return nil, false, errNone
	}
	if inside {
		return nil, true, nil
	}
	attrs, err := s.cfg.Attestor.Peer(p)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "workload API: attestation failed", "pid", p.Process.PID(), "uid", p.UID, "error", err)
		return nil, false, errNone
	}
	for _, e := range s.cfg.Entries {
		if e.Selectors.Match(attrs) {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		s.cfg.Logger.InfoContext(ctx, "workload API: no entry matches", "pid", attrs.PID, "uid", attrs.UID, "gid", attrs.GID, "executable_error", attrs.ExecutableErr)
	}
	return found, false, nil
}

// FetchX509SVID streams SVIDs: a first set at once, a new one at half-life, and the same one again when the bundle changes.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	ctx := stream.Context()
	peer, err := caller(ctx)
	if err != nil {
		return err
	}
	for {
		entries, _, err := s.entries(ctx, peer)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			s.cfg.Log.Count("workload_no_entry")
			return errNone
		}
		svids, end, err := s.issue(entries)
		if err != nil {
			s.cfg.Logger.ErrorContext(ctx, "workload API: issuing failed", "error", err)
			return status.Error(codes.Unavailable, "the issuer failed; its log says why")
		}
		s.cfg.Logger.InfoContext(ctx, "workload API: SVIDs issued", "id", entries[0].ID, "count", len(entries), "pid", peer.Process.PID(), "uid", peer.UID, "not_after", end)
		half := time.NewTimer(end.Sub(s.cfg.Now()) / 2)
		err = s.push(ctx, half.C, s.authorities, func(bundle []byte) error {
			for _, v := range svids {
				v.Bundle = bundle
			}
			return stream.Send(&workload.X509SVIDResponse{Svids: svids})
		})
		half.Stop()
		if err != nil {
			return err
		}
	}
}

// FetchX509Bundles streams the trust domain's bundle, to whoever has an entry or is inside a live agent.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	ctx := stream.Context()
	peer, err := caller(ctx)
	if err != nil {
		return err
	}
	entries, inside, err := s.entries(ctx, peer)
	if err != nil {
		return err
	}
	if len(entries) == 0 && !inside {
		s.cfg.Log.Count("workload_no_entry")
		return errNone
	}
	return s.push(ctx, nil, s.authorities, func(bundle []byte) error {
		return stream.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{s.cfg.Bundle.TrustDomain().IDString(): bundle}})
	})
}

func (s *Server) authorities() ([]byte, <-chan struct{}) {
	certs, changed := s.cfg.Bundle.Current()
	return der(certs), changed
}

// push sends now and whenever the bundle changes, until the time is over (nil) or the stream is.
func (s *Server) push(ctx context.Context, over <-chan time.Time, current func() ([]byte, <-chan struct{}), send func(bundle []byte) error) error {
	for {
		bundle, changed := current()
		if err := send(bundle); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stop:
			return errStopping
		}
	}
}

// issue makes a key and an SVID for each entry, and says when the first of them ends.
func (s *Server) issue(entries []Entry) (out []*workload.X509SVID, end time.Time, err error) {
	for _, e := range entries {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, end, err
		}
		cert, err := s.cfg.CA.SignRole(ca.Role{ID: e.ID, Key: &key.PublicKey, DNSNames: e.DNSNames, IPs: e.IPs})
		if err != nil {
			return nil, end, err
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, end, err
		}
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
		out = append(out, &workload.X509SVID{SpiffeId: e.ID.String(), X509Svid: cert.Raw, X509SvidKey: pkcs8})
	}
	return out, end, nil
}

func der(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(c.Raw)
	}
	return b.Bytes()
}

var errNoWIT = status.Error(codes.Unimplemented, "this issuer has no WIT-SVIDs; use X.509-SVIDs")

// FetchWITSVID isn't there.
func (s *Server) FetchWITSVID(*workload.WITSVIDRequest, workload.SpiffeWorkloadAPI_FetchWITSVIDServer) error {
	return errNoWIT
}

// FetchWITBundles isn't there.
func (s *Server) FetchWITBundles(*workload.WITBundlesRequest, workload.SpiffeWorkloadAPI_FetchWITBundlesServer) error {
	return errNoWIT
}
