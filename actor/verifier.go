package actor

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// HardMaxActors bounds every configuration.
	HardMaxActors = 8
	// DefaultMaxActors is used where the configuration says nothing.
	DefaultMaxActors = 5
	// DefaultMaxSession is the longest time after the sign-in.
	DefaultMaxSession = 12 * time.Hour

	defaultCacheSize = 4096
)

// TokenKeys are the broker's token keys that the certifying key vouches for. It
// answers from memory. An unknown kid is an error; validity is checked by the
// verifier. Safe for concurrent use.
type TokenKeys interface {
	TokenKey(kid string) (KeyStatement, error)
}

// IdentityTokens verifies ID tokens with keys that are there already: signature,
// algorithm, issuer and audience, never expiry. It does no I/O on a credential: an
// unknown key is an error. The keys come from the providers or the configuration,
// never from the broker. Safe for concurrent use.
type IdentityTokens interface {
	VerifyIDToken(ctx context.Context, raw string) (IdentityClaims, error)
}

// IdentityClaims are what an ID token says.
type IdentityClaims struct {
	Issuer   string
	Subject  string
	Nonce    string
	SID      string // "" if the provider has none
	ACR      string
	AuthTime time.Time // zero if the provider doesn't say
	IssuedAt time.Time
	Expires  time.Time
	// Payload is the verified payload, for mapping claims to roles.
	Payload json.RawMessage
}

// AuthenticatedAt is auth_time, or iat where the provider doesn't say.
func (c IdentityClaims) AuthenticatedAt() time.Time {
	if c.AuthTime.IsZero() {
		return c.IssuedAt
	}
	return c.AuthTime
}

// Config is what a verifier believes, from its own disk.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Bundles     x509bundle.Source // from the Workload API, never from the broker
	// Target is the audience of tokens; zero for a broker, which verifies subjects.
	Target         spiffeid.ID
	Mesh           string         // the broker's issuer URL
	TokenKeys      TokenKeys      // may be nil without Target
	IdentityTokens IdentityTokens // needed for RootVerified and by a broker
	// RootEvidence demanded; the zero value demands RootVerified.
	RootEvidence RootEvidence
	// RequireUserGrant refuses sessions without one; RootVerified implies it.
	RequireUserGrant bool
	// Delegations to others than direct children.
	Delegations []DelegationPair
	Revocations Revocations
	MaxActors   int           // DefaultMaxActors if 0
	MaxSession  time.Duration // DefaultMaxSession if 0
	CacheSize   int           // signature results kept; a default if 0
	Now         func() time.Time
}

// Verifier verifies credentials and subjects. Safe for concurrent use.
type Verifier struct {
	cfg   Config
	cache *cache
}

// NewVerifier refuses a configuration with a hole in it.
func NewVerifier(cfg Config) (*Verifier, error) {
	if cfg.RootEvidence == "" {
		cfg.RootEvidence = RootVerified
	}
	if cfg.MaxActors == 0 {
		cfg.MaxActors = DefaultMaxActors
	}
	if cfg.MaxSession == 0 {
		cfg.MaxSession = DefaultMaxSession
	}
	if cfg.CacheSize == 0 {
		cfg.CacheSize = defaultCacheSize
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	proxy := !cfg.Target.IsZero()
	switch {
	case cfg.TrustDomain.IsZero():
		return nil, errors.New("verifier needs a trust domain")
	case cfg.Bundles == nil:
		return nil, errors.New("verifier needs a source of bundles")
	case cfg.Revocations == nil:
		return nil, errors.New("verifier needs revocations")
	case cfg.RootEvidence != RootVerified && cfg.RootEvidence != RootBroker:
		return nil, fmt.Errorf("unknown root evidence %q", cfg.RootEvidence)
	case proxy && cfg.TokenKeys == nil:
		return nil, errors.New("verifier for a target needs token keys")
	case cfg.IdentityTokens == nil && (!proxy || cfg.RootEvidence == RootVerified):
		return nil, errors.New("verifier needs identity tokens to verify the root")
	case cfg.MaxActors < 1 || cfg.MaxActors > HardMaxActors:
		return nil, fmt.Errorf("actors are limited to %d, want 1 to %d", cfg.MaxActors, HardMaxActors)
	case cfg.MaxSession < 0:
		return nil, errors.New("sessions can't have a negative length")
	}
	if err := checkIssuer(cfg.Mesh); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	if proxy {
		if _, err := TargetName(cfg.Target); err != nil {
			return nil, err
		}
		if cfg.Target.TrustDomain() != cfg.TrustDomain {
			return nil, fmt.Errorf("target %s is not in the trust domain %s", cfg.Target, cfg.TrustDomain)
		}
	}
	if cfg.RootEvidence == RootVerified && proxy {
		cfg.RequireUserGrant = true
	}
	return &Verifier{cfg: cfg, cache: newCache(cfg.CacheSize)}, nil
}

// Verify verifies what the peer of a TLS connection presents to a target: in the
// order of the specification, closed at the first failure, with an [*Error].
// peer is the peer's chain from the handshake, leaf first; it is verified again.
func (v *Verifier) Verify(ctx context.Context, peer []*x509.Certificate, credential string) (*Chain, error) {
	if v.cfg.Target.IsZero() {
		return nil, errors.New("this verifier has no target")
	}
	now := v.cfg.Now()
	p, err := v.peer(peer, now) // 1
	if err != nil {
		return nil, err
	}
	c, err := ParseCredential(credential) // 2
	if err != nil {
		return nil, err
	}
	steps := &verification{v: v, now: now, peer: p, user: c.UserGrant, idToken: c.IDToken, lineage: c.lineage}
	steps.setGrants(c.Grants)
	if err := steps.token(c); err != nil { // 3, 4, 5
		return nil, err
	}
	if err := steps.head(c.Token); err != nil { // 6
		return nil, err
	}
	if err := steps.grants(c.Token.Txn, c.Token.Subject); err != nil {
		return nil, err
	}
	if err := steps.tokenWithin(c.Token); err != nil {
		return nil, err
	}
	root, err := steps.root(ctx, c.Token) // 7
	if err != nil {
		return nil, err
	}
	hops, err := steps.hops(c.Token.Subject, root.evidence) // 8
	if err != nil {
		return nil, err
	}
	chain := &Chain{
		User: c.Token.Subject, SID: c.Token.SID, Txn: c.Token.Txn, Roles: c.Token.Roles,
		AuthTime: c.Token.AuthTime, ACR: c.Token.ACR, Purpose: c.Token.Purpose, RootEvidence: root.evidence,
		Mesh: v.cfg.Mesh, Target: v.cfg.Target, Hops: hops, Details: c.Token.Details,
		Token:   ChainID{c.Token.Issuer, c.Token.ID, c.Token.KeyID, c.Token.IssuedAt, c.Token.Expires},
		Expires: steps.limits.expires(), Digest: Hash(credential), limits: steps.limits,
	}
	chain.keys = chain.RevocationKeys()
	if err := checkRevocations(v.cfg.Revocations, chain.keys); err != nil { // 9
		return nil, err
	}
	return chain, nil
}

// VerifySubject verifies the subject_token of an exchange for a broker: the same
// checks without a token. The ID token's expiry is not among them: the exchange
// that opens a session calls [Subject.RequireFresh].
func (v *Verifier) VerifySubject(ctx context.Context, peer []*x509.Certificate, subject string) (*Subject, error) {
	if v.cfg.IdentityTokens == nil {
		return nil, errors.New("this verifier has no identity tokens")
	}
	now := v.cfg.Now()
	p, err := v.peer(peer, now)
	if err != nil {
		return nil, err
	}
	s, err := ParseSubject(subject)
	if err != nil {
		return nil, err
	}
	steps := &verification{v: v, now: now, peer: p, user: s.UserGrant, idToken: s.IDToken, lineage: s.lineage}
	steps.setGrants(s.Grants)
	return steps.subject(ctx, subject)
}
