package proxy

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/policy"
)

// DefaultStaleness is how old the feed may be before everything is refused.
const DefaultStaleness = 10 * time.Second

// maxTokenKeys bounds the token keys that are known at once.
const maxTokenKeys = 64

// StateConfig makes a State. All of it is the proxy's own configuration.
type StateConfig struct {
	Mesh       string             // the broker's issuer URL
	Certifying *ecdsa.PublicKey   // vouches for the broker's token keys
	PolicyKeys []*ecdsa.PublicKey // sign policy sets
	Staleness  time.Duration      // DefaultStaleness if 0
	// Dir is a folder of the state's own, where the last good policy set and revision are kept.
	Dir    string
	Log    *audit.Log
	Logger *slog.Logger
	Now    func() time.Time
}

// State is what the proxy knows of the world beyond its configuration: token keys, policy, revocations
// and ended agents, as the feed brought them. It answers from memory and is safe for concurrent use.
type State struct {
	cfg StateConfig

	applying sync.Mutex // held by the one update at a time, around disk writes too

	mu        sync.RWMutex // guards what follows
	complete  bool         // a snapshot was applied
	heard     time.Time    // freshness of the newest message
	kept      keptState
	policy    *policy.Set
	keys      map[string]tokenKey
	revoked   map[feed.Match]time.Time // until when
	listener  func([]feed.Match) int
	lastWrong string // a refused policy set, so that it is reported once
	// unrecorded is what was revoked and has no record yet.
	unrecorded []*audit.Revoked
}

type tokenKey struct {
	statement actor.KeyStatement
	raw       string
}

// NewState opens the state kept in cfg.Dir. It serves only after a complete snapshot.
func NewState(cfg StateConfig) (*State, error) {
	if cfg.Staleness == 0 {
		cfg.Staleness = DefaultStaleness
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	switch {
	case cfg.Certifying == nil:
		return nil, errors.New("the proxy's state needs the key that certifies token keys")
	case len(cfg.PolicyKeys) == 0:
		return nil, errors.New("the proxy's state needs at least one policy key")
	case cfg.Mesh == "":
		return nil, errors.New("the proxy's state needs the mesh")
	case cfg.Dir == "":
		return nil, errors.New("the proxy's state needs a folder")
	case cfg.Log == nil:
		return nil, errors.New("the proxy's state needs the audit log")
	case cfg.Staleness < 0:
		return nil, errors.New("the staleness limit can't be negative")
	}
	s := &State{cfg: cfg, keys: map[string]tokenKey{}, revoked: map[feed.Match]time.Time{}}
	kept, signed, err := readKept(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the proxy's state in %s: %w", cfg.Dir, err)
	}
	s.kept = kept
	if signed != "" {
		set, err := policy.Open(signed, cfg.PolicyKeys, kept.PolicyVersion)
		if err != nil {
			// The version's floor stays; until the feed brings a set that is good, nothing is allowed.
			cfg.Logger.Warn("the policy set kept on disk is no longer good", "error", err)
		} else {
			s.policy = set
		}
	}
	return s, nil
}

// Position is the revision and policy version that the broker must not fall below.
func (s *State) Position() (revision, policyVersion uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.kept.Revision, s.kept.PolicyVersion
}

// Ready returns nil if the proxy may serve, else why not, as a [*Refusal].
func (s *State) Ready() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ready()
}

// ready needs the lock.
func (s *State) ready() error {
	switch {
	case !s.complete:
		return &Refusal{Class: ClassNotReady, Reason: "this proxy hasn't heard from the broker yet; try again in a moment"}
	case s.cfg.Now().Sub(s.heard) > s.cfg.Staleness:
		return &Refusal{Class: ClassStale, Ended: true, Reason: fmt.Sprintf("this proxy hasn't heard from the broker for more than %s and can't know what was revoked; everything is refused until it does", s.cfg.Staleness)}
	case s.policy == nil:
		return &Refusal{Class: ClassNotReady, Reason: "this proxy has no policy set, so nothing is allowed; an operator must publish one"}
	}
	return nil
}

// Check implements [actor.Revocations]. It fails also when it can't know.
func (s *State) Check(keys []actor.RevocationKey) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.check(keys)
}

// check needs the lock.
func (s *State) check(keys []actor.RevocationKey) error {
	if err := s.ready(); err != nil {
		return err
	}
	for _, k := range keys {
		if _, ok := s.revoked[feed.MatchOf(k)]; ok {
			return &actor.RevokedError{Key: k}
		}
	}
	return nil
}

// admit checks keys and calls enter with no update in between, so that a session is either seen by the
// update that revokes it or never begins.
func (s *State) admit(keys []actor.RevocationKey, enter func() error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.check(keys); err != nil {
		return err
	}
	return enter()
}

// TokenKey implements [actor.TokenKeys].
func (s *State) TokenKey(kid string) (actor.KeyStatement, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	k, ok := s.keys[kid]
	if !ok {
		return actor.KeyStatement{}, errors.New("no certified token key has that id")
	}
	return k.statement, nil
}

// keyStatement is the exact statement behind a token key, as evidence.
func (s *State) keyStatement(kid string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keys[kid].raw
}

// Policy is the set in force; nil if there is none.
func (s *State) Policy() *policy.Set {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.policy
}

// onRevoked sets the function that ends live sessions; it is called under the state's lock with the
// matches that are revoked now, must not call back, and returns how many sessions it ended.
func (s *State) onRevoked(f func([]feed.Match) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener = f
}

// forget drops revocations that can't match anything alive any more.
func (s *State) forget() {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for m, until := range s.revoked {
		if now.After(until.Add(time.Minute)) {
			delete(s.revoked, m)
		}
	}
}

// record writes what the feed changed. Nobody waits for it: it describes an order of the broker's, and
// what the proxy did about it stands in the records of the sessions.
func (s *State) record(e audit.Event) { s.cfg.Log.Submit(audit.Record{Event: e}) }

func (s *State) report(ctx context.Context, what string, err error) {
	s.cfg.Logger.WarnContext(ctx, what, "error", err)
}
