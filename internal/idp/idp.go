// Package idp verifies ID tokens of the configured identity providers, with keys that are there already.
//
// Keys come from the providers themselves and are fetched in the background, on a clock, never because
// of a credential: an unknown key is a refusal. A key that a provider has withdrawn is kept for the
// longest session, so that chains which began under it can still be checked, but it vouches only for
// tokens issued while the provider still published it. Each provider has one client_id, its own list of
// algorithms and its own keys; keys are never looked up across providers.
package idp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/errgroup"

	"github.com/deputymesh/deputy/actor"
)

const (
	defaultRefresh = time.Minute
	defaultKeep    = 12 * time.Hour
	fetchTimeout   = 10 * time.Second
	maxDocument    = 1 << 20 // of discovery and of keys
	maxKeys        = 64
	minRSABits     = 2048
)

// algorithms that an ID token may be signed with, if the configuration names them.
var algorithms = []string{"ES256", "ES384", "RS256", "PS256", "EdDSA"}

// Provider is one identity provider, from configuration.
type Provider struct {
	Issuer     string // compared byte for byte with iss
	ClientID   string // the audience
	Algorithms []string
	// Client fetches discovery document and keys; it knows the provider's CA. Default: http.DefaultClient.
	Client *http.Client
}

// Check says what is wrong with a provider's configuration.
func (p Provider) Check() error {
	u, err := url.Parse(p.Issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("issuer %q: want the provider's URL, such as https://login.example.com", p.Issuer)
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) {
		return fmt.Errorf("issuer %q: want https (http is for loopback only)", p.Issuer)
	}
	if p.ClientID == "" {
		return errors.New("client_id is missing: it is the audience of the provider's ID tokens")
	}
	if len(p.Algorithms) == 0 {
		return fmt.Errorf("algorithms is empty: name those that the provider signs with, of %v", algorithms)
	}
	for _, a := range p.Algorithms {
		if !slices.Contains(algorithms, a) {
			return fmt.Errorf("algorithm %q is not accepted: want some of %v", a, algorithms)
		}
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Config makes a Verifier.
type Config struct {
	Providers []Provider
	Refresh   time.Duration // between two fetches; default 1 min
	Keep      time.Duration // how long a withdrawn key is kept; default 12 h
	Now       func() time.Time
	Logger    *slog.Logger
	// OnKeys, if set, is called with the exact key document each time that it differs from the one before, before its
	// keys are used; an error keeps the old ones. It is where evidence is kept.
	OnKeys func(ctx context.Context, issuer string, document []byte) error
}

// Verifier implements actor.IdentityTokens. Safe for concurrent use.
type Verifier struct {
	cfg       Config
	providers map[string]*provider // by issuer
	known     *known
}

type provider struct {
	Provider
	oidc *oidc.Config

	mu       sync.RWMutex
	keys     []datedKey
	document []byte
}

type datedKey struct {
	jose.JSONWebKey
	name      keyName
	seen      time.Time // last fetch that had it
	published bool      // the newest fetch had it
}

// New makes a verifier without keys; Fetch or Run gets them.
func New(cfg Config) (*Verifier, error) {
	if len(cfg.Providers) == 0 {
		return nil, errors.New("no identity provider is configured")
	}
	if cfg.Refresh <= 0 {
		cfg.Refresh = defaultRefresh
	}
	if cfg.Keep <= 0 {
		cfg.Keep = defaultKeep
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	v := &Verifier{cfg: cfg, providers: make(map[string]*provider, len(cfg.Providers)), known: newKnown(maxKnown)}
	for _, c := range cfg.Providers {
		if err := c.Check(); err != nil {
			return nil, fmt.Errorf("identity provider: %w", err)
		}
		if _, twice := v.providers[c.Issuer]; twice {
			return nil, fmt.Errorf("identity provider %s is configured twice", c.Issuer)
		}
		client := http.Client{Timeout: fetchTimeout}
		if c.Client != nil {
			client = *c.Client
		}
		if client.Timeout == 0 || client.Timeout > fetchTimeout {
			client.Timeout = fetchTimeout
		}
		client.Transport = limited{client.Transport}
		c.Client = &client
		v.providers[c.Issuer] = &provider{Provider: c, oidc: &oidc.Config{
			ClientID:             c.ClientID,
			SupportedSigningAlgs: c.Algorithms,
			// Expiry belongs to the caller: a session outlives its ID token.
			SkipExpiryCheck: true,
		}}
	}
	return v, nil
}

// Fetch asks every provider once for its keys. It returns all failures; providers that answered are
// ready all the same.
func (v *Verifier) Fetch(ctx context.Context) error {
	var mu sync.Mutex
	var errs []error
	var g errgroup.Group
	for _, p := range v.providers {
		g.Go(func() error {
			if err := v.fetch(ctx, p); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait() // failures are in errs
	return errors.Join(errs...)
}

// Run keeps the keys fresh until ctx ends. A provider that never answered yet is asked every few
// seconds.
func (v *Verifier) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range v.providers {
		wg.Go(func() {
			for {
				pause := v.cfg.Refresh
				if !p.ready() {
					pause = min(pause, 2*time.Second)
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				if err := v.fetch(ctx, p); err != nil && ctx.Err() == nil {
					v.cfg.Logger.WarnContext(ctx, "no fresh keys of an identity provider", "issuer", p.Issuer, "error", err)
				}
			}
		})
	}
	wg.Wait()
}

// Ready lists the issuers of which there are no keys yet.
func (v *Verifier) Ready() (missing []string) {
	for _, p := range v.providers {
		if !p.ready() {
			missing = append(missing, p.Issuer)
		}
	}
	slices.Sort(missing)
	return missing
}

// Document is the exact key document that a provider published last, for evidence; nil if there is none.
func (v *Verifier) Document(issuer string) []byte {
	p, ok := v.providers[issuer]
	if !ok {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return bytes.Clone(p.document)
}

func (p *provider) ready() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.keys) > 0
}

func (v *Verifier) fetch(ctx context.Context, p *provider) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	// Discovery checks that the document's issuer is ours, byte for byte.
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.Client), p.Issuer)
	if err != nil {
		return fmt.Errorf("asking %s for its configuration: %w", p.Issuer, err)
	}
	var doc struct {
		KeysURL string `json:"jwks_uri"`
	}
	if err := found.Claims(&doc); err != nil {
		return fmt.Errorf("reading the configuration of %s: %w", p.Issuer, err)
	}
	raw, err := p.get(ctx, doc.KeysURL)
	if err != nil {
		return fmt.Errorf("fetching the keys of %s: %w", p.Issuer, err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		return fmt.Errorf("reading the keys of %s: %w", p.Issuer, err)
	}
	keys := usable(set.Keys)
	if len(keys) == 0 || len(set.Keys) > maxKeys {
		return fmt.Errorf("%s published %d keys, %d of them for verifying signatures: want 1 to %d", p.Issuer, len(set.Keys), len(keys), maxKeys)
	}
	p.mu.RLock()
	same := bytes.Equal(raw, p.document)
	p.mu.RUnlock()
	if !same && v.cfg.OnKeys != nil {
		if err := v.cfg.OnKeys(ctx, p.Issuer, raw); err != nil {
			return fmt.Errorf("recording the keys of %s: %w", p.Issuer, err)
		}
	}
	p.replace(keys, raw, v.cfg.Now(), v.cfg.Keep)
	return nil
}

func (p *provider) get(ctx context.Context, from string) ([]byte, error) {
	u, err := url.Parse(from)
	if err != nil || u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) {
		return nil, fmt.Errorf("jwks_uri %q is not https", from)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the provider answered %s", resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// replace takes over what was just published, and keeps what was published within the last keep.
func (p *provider) replace(fresh []jose.JSONWebKey, document []byte, now time.Time, keep time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []datedKey
	for _, k := range fresh {
		out = append(out, datedKey{k, nameKey(k), now, true})
	}
	for _, old := range p.keys {
		again := slices.ContainsFunc(out, func(k datedKey) bool { return k.name == old.name })
		if !again && now.Sub(old.seen) < keep {
			old.published = false
			out = append(out, old)
		}
	}
	p.keys, p.document = out, document
}

// limited bounds what a provider can make us read.
type limited struct{ next http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	next := l.next
	if next == nil {
		next = http.DefaultTransport
	}
	resp, err := next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxDocument)
	return resp, nil
}

var _ actor.IdentityTokens = (*Verifier)(nil)
