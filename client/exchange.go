package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
)

const (
	exchangeTimeout  = 10 * time.Second
	maxExchangeBytes = 64 << 10

	grantTypeExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeGrants        = "urn:deputy:token-type:grants"
	typeAccessToken   = "urn:ietf:params:oauth:token-type:access_token"
)

// ExchangeError is what the broker answered to an exchange (RFC 6749 §5.2).
type ExchangeError struct {
	Status      int
	Code        string
	Description string
}

func (e *ExchangeError) Error() string {
	if e.Description == "" {
		return fmt.Sprintf("the broker refused the exchange: %s (HTTP %d)", e.Code, e.Status)
	}
	return fmt.Sprintf("the broker refused the exchange: %s: %s", e.Code, e.Description)
}

// ExchangerConfig is what an Exchanger needs. Now may be nil.
type ExchangerConfig struct {
	Mesh   Mesh
	Source Source
	// Chain returns the agent's grants as they are now.
	Chain func() Chain
	Now   func() time.Time
}

// Exchanger turns an agent's grants into credentials for single targets and keeps each until shortly
// before its end, or until the SVID that it is bound to rotates. Safe for concurrent use.
type Exchanger struct {
	cfg      ExchangerConfig
	tokenURL *url.URL

	mu      sync.Mutex
	targets map[string]*cachedCredential // guarded by mu
}

type cachedCredential struct {
	mu   sync.Mutex // one exchange per target at a time
	cred Credential
	got  time.Time
	leaf [sha256.Size]byte
}

// NewExchanger checks the configuration; it calls nobody.
func NewExchanger(cfg ExchangerConfig) (*Exchanger, error) {
	u, err := url.Parse(cfg.Mesh.TokenURL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("token URL %q: want https://host:port/token", cfg.Mesh.TokenURL)
	}
	if cfg.Mesh.Broker.IsZero() || cfg.Source == nil || cfg.Chain == nil {
		return nil, errors.New("an exchange needs the broker's SPIFFE ID, an identity and grants")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Exchanger{cfg: cfg, tokenURL: u, targets: make(map[string]*cachedCredential)}, nil
}

// Credential returns a credential for a target, with at least a third of its life left. details, if not
// nil, asks for less than the grants allow; such a credential is made afresh each time.
func (e *Exchanger) Credential(ctx context.Context, target string, details actor.Details) (Credential, error) {
	svid, err := e.cfg.Source.GetX509SVID()
	if err != nil {
		return Credential{}, fmt.Errorf("exchanging for %s: this agent has no identity now: %w", target, err)
	}
	id, err := actor.TargetID(svid.ID.TrustDomain(), target)
	if err != nil {
		return Credential{}, fmt.Errorf("exchanging for %s: %w", target, err)
	}
	if details != nil {
		return e.exchange(ctx, svid, id, details)
	}
	leaf := sha256.Sum256(svid.Certificates[0].Raw)
	e.mu.Lock()
	c := e.targets[target]
	if c == nil {
		c = &cachedCredential{}
		e.targets[target] = c
	}
	e.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	now := e.cfg.Now()
	if c.cred.value != "" && c.leaf == leaf && c.cred.ExpiresAt.Sub(now)*3 > c.cred.ExpiresAt.Sub(c.got) {
		return c.cred, nil
	}
	cred, err := e.exchange(ctx, svid, id, nil)
	if err != nil {
		return Credential{}, err
	}
	c.cred, c.got, c.leaf = cred, now, leaf
	return cred, nil
}

type exchangeResponse struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
}

func (e *Exchanger) exchange(ctx context.Context, svid *x509svid.SVID, target spiffeid.ID, details actor.Details) (Credential, error) {
	chain := e.cfg.Chain()
	if len(chain.Grants) == 0 {
		return Credential{}, fmt.Errorf("exchanging for %s: this agent holds no grant", target)
	}
	form := url.Values{
		"grant_type":           {grantTypeExchange},
		"subject_token":        {chain.SubjectToken()},
		"subject_token_type":   {typeGrants},
		"requested_token_type": {typeAccessToken},
		"resource":             {target.String()},
	}
	if details != nil {
		raw, err := json.Marshal(details)
		if err != nil {
			return Credential{}, fmt.Errorf("exchanging for %s: %w", target, err)
		}
		form.Set("authorization_details", string(raw))
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.tokenURL.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return Credential{}, fmt.Errorf("exchanging for %s: %w", target, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")

	hc := meshHTTPClient(svid, e.cfg.Source, e.cfg.Mesh.Broker)
	sent := e.cfg.Now()
	resp, err := hc.Do(req)
	if err != nil {
		return Credential{}, fmt.Errorf("exchanging for %s: %w", target, err)
	}
	defer resp.Body.Close()
	body, err := readJSON(resp)
	if err != nil {
		return Credential{}, fmt.Errorf("exchanging for %s: %w", target, err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if err := json.Unmarshal(body, &refusal); err != nil || refusal.Error == "" {
			return Credential{}, fmt.Errorf("exchanging for %s: the broker answered HTTP %d without saying why", target, resp.StatusCode)
		}
		return Credential{}, fmt.Errorf("exchanging for %s: %w", target,
			&ExchangeError{Status: resp.StatusCode, Code: printable(refusal.Error), Description: printable(refusal.Description)})
	}
	var r exchangeResponse
	if err := json.Unmarshal(body, &r); err != nil {
		return Credential{}, fmt.Errorf("exchanging for %s: the broker's answer: %w", target, err)
	}
	if r.AccessToken == "" || strings.Contains(r.AccessToken, "~") || r.ExpiresIn <= 0 || r.IssuedTokenType != typeAccessToken {
		return Credential{}, fmt.Errorf("exchanging for %s: the broker's answer is no access token with an end", target)
	}
	value := actor.JoinCredential(r.AccessToken, chain.Grants, chain.IDToken)
	if len(value) > actor.MaxSize {
		return Credential{}, fmt.Errorf("exchanging for %s: the credential is %d bytes, targets take at most %d; delegate through fewer agents or narrow the capabilities", target, len(value), actor.MaxSize)
	}
	return Credential{value: value, ExpiresAt: sent.Add(time.Duration(r.ExpiresIn) * time.Second)}, nil
}

// meshHTTPClient speaks mTLS 1.3 with exactly one role. Each request opens a connection of its own, so
// that what the role binds to the certificate is bound to the current one.
func meshHTTPClient(svid *x509svid.SVID, bundles x509bundle.Source, role spiffeid.ID) *http.Client {
	return &http.Client{
		Timeout: exchangeTimeout,
		Transport: &http.Transport{
			TLSClientConfig:       meshTLS(svid, bundles, role),
			DisableKeepAlives:     true,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: exchangeTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func meshTLS(svid *x509svid.SVID, bundles x509bundle.Source, role spiffeid.ID) *tls.Config {
	cfg := tlsconfig.MTLSClientConfig(svid, bundles, tlsconfig.AuthorizeID(role))
	cfg.MinVersion = tls.VersionTLS13
	return cfg
}

func readJSON(resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxExchangeBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > maxExchangeBytes {
		return nil, fmt.Errorf("the answer is longer than %d bytes", maxExchangeBytes)
	}
	if ct, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		return nil, fmt.Errorf("the answer (HTTP %d) isn't JSON", resp.StatusCode)
	}
	return body, nil
}

// printable keeps what a peer says from driving a terminal.
func printable(s string) string {
	if len(s) > 1024 {
		s = s[:1024]
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == 0x2028 || r == 0x2029 || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return '\uFFFD'
		}
		return r
	}, s)
}
