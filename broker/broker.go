// Package broker is sign-in sessions and the token exchange: one delegated credential for one target. It
// keeps revocations and feeds the proxies. It is never on the data path, and neither invents nor widens
// a hop: what it signs is what users and agents have signed before it.
//
// It answers on three listeners: agents on the mesh listener and proxies on the feed listener, both by mTLS
// with SVIDs; operators and metadata on the web listener. The credential is specified in
// docs/spec/credential.md, the wires in docs/design.md.
package broker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/feedapi"
	"github.com/deputymesh/deputy/broker/issuerfeed"
	"github.com/deputymesh/deputy/broker/operatorapi"
	"github.com/deputymesh/deputy/broker/session"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/broker/tokenapi"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/policy"
)

// Config makes a broker. What has no comment that says otherwise is needed.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Mesh        string // issuer URL: the web listener as clients see it
	TokenURL    string // base URL of the mesh listener, for metadata
	SVIDs       x509svid.Source
	Bundles     x509bundle.Source
	// IssuerSocket is the issuer's Unix socket, for ended agents.
	IssuerSocket string
	Store        state.Store
	Log          *audit.Log
	Logger       *slog.Logger     // default slog.Default
	Now          func() time.Time // default time.Now

	TokenKey          crypto.Signer
	TokenKeyStatement string           // by the certifying key, about TokenKey
	CertifyingKey     *ecdsa.PublicKey // only checks the statement at the start; proxies have their own
	WebCertificate    tls.Certificate

	Providers []idp.Provider
	Identity  claims.Mappings
	Targets   map[target.Name]tokenapi.Target
	Proxies   map[string][]target.Name // targets by the proxy's name

	MaxSession  time.Duration        // default 12 h
	TokenTTL    time.Duration        // default 5 min
	Bare        []session.Permission // none: every session needs a user grant
	MaxActors   int                  // default actor.DefaultMaxActors
	Delegations []actor.DelegationPair
	ApplyWait   time.Duration // how long an operator's call waits for proxies; default 2 s

	PolicyKeys []*ecdsa.PublicKey // to refuse a bad set early; proxies have their own
	Policy     string             // signed set for the first start; may be empty
}

// Broker is a broker that is ready to Serve.
type Broker struct {
	cfg      Config
	state    *state.State
	tokens   *idp.Verifier
	follower *issuerfeed.Follower
	token    *tokenapi.API
	operator *operatorapi.API
	feed     *feedapi.Server
}

// New reads the state and checks that everything fits together.
func New(ctx context.Context, cfg Config) (*Broker, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxSession == 0 {
		cfg.MaxSession = actor.DefaultMaxSession
	}
	if cfg.TokenTTL == 0 {
		cfg.TokenTTL = actor.TokenLife
	}
	if cfg.SVIDs == nil || cfg.Bundles == nil || cfg.Store == nil || cfg.Log == nil || cfg.TokenKey == nil || cfg.IssuerSocket == "" {
		return nil, errors.New("making a broker: a dependency is missing")
	}
	cert, err := actor.ParseKeyStatement(cfg.TokenKeyStatement, cfg.CertifyingKey, cfg.Mesh)
	if err != nil {
		return nil, fmt.Errorf("making a broker: the token key's statement: %w", err)
	}
	b := &Broker{cfg: cfg}
	if b.state, err = state.Open(ctx, cfg.Store, cfg.Now, cfg.Logger); err != nil {
		return nil, err
	}
	b.tokens, err = idp.New(idp.Config{
		Providers: cfg.Providers, Keep: cfg.MaxSession, Now: cfg.Now, Logger: cfg.Logger,
		OnKeys: func(ctx context.Context, _ string, document []byte) error {
			_, err := cfg.Log.PutEvidence(ctx, audit.KindIdentityKeys, document)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	b.follower = issuerfeed.New(cfg.IssuerSocket, ended{b}, cfg.Now, cfg.Logger)
	verifier, err := actor.NewVerifier(actor.Config{
		TrustDomain: cfg.TrustDomain, Bundles: cfg.Bundles, Mesh: cfg.Mesh, IdentityTokens: b.tokens,
		RequireUserGrant: len(cfg.Bare) == 0, Delegations: cfg.Delegations, Revocations: b.state,
		MaxActors: cfg.MaxActors, MaxSession: cfg.MaxSession, Now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	b.token, err = tokenapi.New(tokenapi.Config{
		TrustDomain: cfg.TrustDomain, Mesh: cfg.Mesh, Verifier: verifier, State: b.state, Log: cfg.Log, Logger: cfg.Logger, Now: cfg.Now,
		Key: cfg.TokenKey, Cert: cert, Targets: cfg.Targets, Identity: cfg.Identity,
		Sessions: session.Rules{Max: cfg.MaxSession, Bare: cfg.Bare}, TokenTTL: cfg.TokenTTL, Ready: b.follower.Ready,
	})
	if err != nil {
		return nil, err
	}
	b.feed, err = feedapi.New(feedapi.Config{
		TrustDomain: cfg.TrustDomain, State: b.state, Proxies: cfg.Proxies, TokenKeyStatements: []string{cfg.TokenKeyStatement},
		Now: cfg.Now, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	names := make(map[target.Name]bool, len(cfg.Targets))
	for n := range cfg.Targets {
		names[n] = true
	}
	b.operator, err = operatorapi.New(operatorapi.Config{
		Mesh: cfg.Mesh, Tokens: b.tokens, Identity: cfg.Identity, State: b.state, Log: cfg.Log, Logger: cfg.Logger, Now: cfg.Now,
		Applier: b.feed.Applier(), OpenPolicy: b.openPolicy, Targets: names, MaxSession: cfg.MaxSession,
		Wait: cfg.ApplyWait,
	})
	if err != nil {
		return nil, err
	}
	return b, b.firstPolicy(ctx)
}

func (b *Broker) openPolicy(signed string) (*policy.Set, error) {
	return policy.Open(signed, b.cfg.PolicyKeys, 0)
}

// firstPolicy publishes the set from configuration where it is newer than what the state has.
func (b *Broker) firstPolicy(ctx context.Context) error {
	if b.cfg.Policy == "" {
		return nil
	}
	set, err := b.openPolicy(b.cfg.Policy)
	if err != nil {
		return fmt.Errorf("making a broker: %w", err)
	}
	if have := b.state.Policy(); have != nil && have.Version >= set.Version() {
		return nil
	}
	_, err = b.state.PublishPolicy(ctx, state.Policy{Version: set.Version(), Signed: b.cfg.Policy}, func() error {
		_, err := b.cfg.Log.Append(ctx, audit.Record{Event: &audit.PolicyLoaded{
			Result: audit.Accepted, Version: int64(set.Version()), Digest: audit.DigestOf([]byte(b.cfg.Policy)), Reason: "from the configuration",
		}})
		return err
	})
	return err
}

// ended takes in agents that have ended, and records the sessions that ended with them. It takes away, so it doesn't
// wait for the record: without a log there are no tokens anyway.
type ended struct{ b *Broker }

func (e ended) IssuerRevision() uint64 { return e.b.state.IssuerRevision() }

func (e ended) Subscribe() (feed.Update, *state.Subscription, error) { return e.b.state.Subscribe() }

func (e ended) RevokedAgents(m feed.Match) ([]string, error) { return e.b.state.RevokedAgents(m) }

func (e ended) ForgetIssuerRevision(ctx context.Context) error {
	return e.b.state.ForgetIssuerRevision(ctx)
}

func (e ended) EndAgent(ctx context.Context, a state.EndedAgent) error {
	sessions, err := e.b.state.EndAgent(ctx, a)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		e.b.cfg.Log.Submit(audit.Record{Txn: s.Txn, Session: s.SID, Event: &audit.SessionEnded{Reason: "agent_ended", By: a.ID}})
	}
	return nil
}
