package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/policy"
)

// Limits that a configuration may change.
const (
	DefaultMaxSessions        = 4096
	DefaultMaxSessionsPerTask = 256
)

// sweepEvery is how often expiry and staleness of live sessions are looked at. Revocations don't wait for
// it: they end sessions as they arrive.
const sweepEvery = 200 * time.Millisecond

// Target is what the proxy demands at one target.
type Target struct {
	Name target.Name
	// RootEvidence demanded; the zero value demands that the sign-in is verified here.
	RootEvidence actor.RootEvidence
	// RequireUserGrant refuses sessions without a user grant where RootEvidence is RootBroker.
	RequireUserGrant bool
	// Delegations to others than direct children.
	Delegations []actor.DelegationPair
	MaxActors   int           // actor.DefaultMaxActors if 0
	MaxSession  time.Duration // actor.DefaultMaxSession if 0
}

// Config makes a core. All of it is the proxy's own configuration, or comes from its Workload API.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Bundles     x509bundle.Source
	Mesh        string
	State       *State
	// IdentityTokens verifies the sign-in; nil only if no target demands it.
	IdentityTokens actor.IdentityTokens
	// IdentityKeys gives the key documents of a provider, as evidence, and Audiences what its ID tokens
	// may be for. Both go with IdentityTokens.
	IdentityKeys *IdentityKeys
	Audiences    []string
	Targets      []Target

	MaxSessions, MaxSessionsPerTask int // defaults if 0

	Log    *audit.Log
	Logger *slog.Logger
	Now    func() time.Time
}

// Core verifies, decides and records for the engines of one proxy. Its methods may be called by many
// goroutines at once.
type Core struct {
	cfg      Config
	targets  map[target.Name]*servedTarget
	sessions *sessions
	strikes  strikes
	leaving  leaving

	opening sync.Mutex // so that the limits on sessions hold
	live    int        // guarded by opening
}

type servedTarget struct {
	Target
	id       spiffeid.ID
	verifier *actor.Verifier
}

// New makes a core. The caller runs Run as long as engines serve.
func New(cfg Config) (*Core, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = DefaultMaxSessions
	}
	if cfg.MaxSessionsPerTask == 0 {
		cfg.MaxSessionsPerTask = DefaultMaxSessionsPerTask
	}
	switch {
	case cfg.State == nil:
		return nil, errors.New("the proxy needs a state")
	case cfg.Log == nil:
		return nil, errors.New("the proxy needs an audit log")
	case len(cfg.Targets) == 0:
		return nil, errors.New("the proxy needs at least one target")
	case cfg.State.cfg.Mesh != cfg.Mesh:
		return nil, fmt.Errorf("the proxy's state is of mesh %q, its configuration of %q", cfg.State.cfg.Mesh, cfg.Mesh)
	case cfg.IdentityTokens != nil && cfg.IdentityKeys == nil:
		return nil, errors.New("the proxy verifies sign-ins but keeps no identity keys as evidence")
	}
	table, err := newSessions()
	if err != nil {
		return nil, err
	}
	c := &Core{cfg: cfg, targets: map[target.Name]*servedTarget{}, sessions: table}
	for _, t := range cfg.Targets {
		if t.MaxActors == 0 {
			t.MaxActors = actor.DefaultMaxActors
		}
		if t.MaxSession == 0 {
			t.MaxSession = actor.DefaultMaxSession
		}
		if t.RootEvidence == "" {
			t.RootEvidence = actor.RootVerified
		}
		if t.Name.IsZero() || c.targets[t.Name] != nil {
			return nil, fmt.Errorf("target %q has no name, or stands there twice", t.Name)
		}
		id := t.Name.ID(cfg.TrustDomain)
		v, err := actor.NewVerifier(actor.Config{
			TrustDomain: cfg.TrustDomain, Bundles: cfg.Bundles, Target: id, Mesh: cfg.Mesh,
			TokenKeys: cfg.State, IdentityTokens: cfg.IdentityTokens, RootEvidence: t.RootEvidence,
			RequireUserGrant: t.RequireUserGrant, Delegations: t.Delegations, Revocations: cfg.State,
			MaxActors: t.MaxActors, MaxSession: t.MaxSession, Now: cfg.Now,
		})
		if err != nil {
			return nil, fmt.Errorf("target %q: %w", t.Name, err)
		}
		c.targets[t.Name] = &servedTarget{Target: t, id: id, verifier: v}
	}
	cfg.State.onRevoked(func(matches []feed.Match) int {
		ended := 0
		for _, m := range matches {
			for _, s := range c.sessions.matching(m) {
				if s.end(&Ended{Class: ClassRevoked, Reason: fmt.Sprintf("the session was ended: %s is revoked", m)}) {
					ended++
				}
			}
		}
		return ended
	})
	return c, nil
}

// Run ends sessions that expire and, when the feed is stale, all of them, until ctx is done. Then it ends
// every session as the proxy shuts down; engines still close them.
func (c *Core) Run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	forget := c.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			for _, s := range c.sessions.all() {
				s.end(&Ended{Class: ClassClosed, Reason: "the proxy is shutting down"})
			}
			return
		case <-tick.C:
		}
		c.sweep()
		if now := c.cfg.Now(); now.Sub(forget) > time.Minute {
			forget = now
			c.cfg.State.forget()
		}
	}
}

// sweep ends what may not live on: what ran out, and what an authority vouched for that left the trust bundle.
func (c *Core) sweep() {
	known := map[actor.AuthorityHash]bool{}
	if bundle, err := c.cfg.Bundles.GetX509BundleForTrustDomain(c.cfg.TrustDomain); err == nil {
		for _, a := range bundle.X509Authorities() {
			known[actor.HashAuthority(a)] = true
		}
	}
	for _, s := range c.sessions.all() {
		if r := s.recheck(); r != nil {
			s.end(&Ended{Class: r.Class, Reason: r.Reason})
		} else if !s.Chain().VouchedFor(known) {
			s.end(&Ended{Class: ClassRevoked, Reason: "the session was ended: the authority that vouched for an agent of its chain is not trusted any more"})
		}
	}
}

// Ready returns nil if the proxy may serve, else a [*Refusal].
func (c *Core) Ready() error {
	if err := c.cfg.Log.Err(); err != nil {
		return &Refusal{Class: ClassEvidence, Reason: "the audit log can't be written, so nothing is allowed", Err: err}
	}
	return c.cfg.State.Ready()
}

// MaskedTables lists the tables of a target of which some policy masks a column, whoever it is for.
func (c *Core) MaskedTables(t target.Name) []policy.MaskedTable {
	set := c.cfg.State.Policy()
	if set == nil {
		return nil
	}
	return set.MaskedTables(t.String())
}

// Count counts a failure of somebody who isn't authenticated yet; the log records them in aggregate.
func (c *Core) Count(class string) { c.cfg.Log.Count(class) }
