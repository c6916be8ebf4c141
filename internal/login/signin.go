package login

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/deputymesh/deputy/actor"
)

const (
	httpTimeout = 15 * time.Second
	// SignInTimeout bounds how long a sign-in may take a person.
	SignInTimeout = 10 * time.Minute
	callbackPath  = "/callback"
)

// Provider is the OpenID provider and this client at it.
type Provider struct {
	// Issuer is compared byte for byte.
	Issuer   string
	ClientID string
	// CA verifies the provider's server certificate; PEM. Empty: the system's.
	CA []byte
	// Algorithms of ID tokens; empty: RS256.
	Algorithms []string
	// Scopes besides openid.
	Scopes []string
	// Callback is the loopback address of the redirect; its port may be 0. Empty: 127.0.0.1:0.
	Callback string
}

// SignedIn is a finished sign-in. IDToken is secret enough not to be printed.
type SignedIn struct {
	IDToken  string
	Subject  actor.SubjectID
	SID      string // the provider's, or a hash of the token
	Display  string
	AuthTime time.Time
	Expires  time.Time // of the ID token
}

// HTTPClient is a client that trusts exactly what the configuration says.
func HTTPClient(ca []byte) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(ca) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			return nil, errors.New("no certificate in the CA file")
		}
		cfg.RootCAs = pool
	}
	return &http.Client{Timeout: httpTimeout, Transport: &http.Transport{
		TLSClientConfig: cfg, TLSHandshakeTimeout: httpTimeout, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		DialContext: (&net.Dialer{Timeout: httpTimeout}).DialContext,
	}}, nil
}

// SignIn signs a user in and binds key to the sign-in. It calls show with the URL that the user must
// open, and waits for the browser to come back.
func SignIn(ctx context.Context, p Provider, key crypto.Signer, show func(url string)) (*SignedIn, error) {
	ctx, cancel := context.WithTimeout(ctx, SignInTimeout)
	defer cancel()
	hc, err := HTTPClient(p.CA)
	if err != nil {
		return nil, fmt.Errorf("signing in: %w", err)
	}
	ctx = oidc.ClientContext(ctx, hc)
	provider, err := oidc.NewProvider(ctx, p.Issuer)
	if err != nil {
		return nil, fmt.Errorf("signing in: asking %s how: %w", p.Issuer, err)
	}
	var meta struct {
		IssInResponse bool     `json:"authorization_response_iss_parameter_supported"`
		Methods       []string `json:"code_challenge_methods_supported"`
	}
	if err := provider.Claims(&meta); err != nil {
		return nil, fmt.Errorf("signing in: the provider's metadata: %w", err)
	}
	listen := p.Callback
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("signing in: callback %q: want a loopback address such as 127.0.0.1:0", listen)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("signing in: waiting for the browser: %w", err)
	}
	defer l.Close()
	redirect := "http://" + net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)) + callbackPath

	conf := &oauth2.Config{ClientID: p.ClientID, Endpoint: provider.Endpoint(), RedirectURL: redirect, Scopes: scopes(p.Scopes)}
	conf.Endpoint.AuthStyle = oauth2.AuthStyleInParams // a public client: no secret to put elsewhere
	verifier := oauth2.GenerateVerifier()
	state := randomText()
	nonce := actor.NonceFor(key.Public())
	if nonce == "" {
		return nil, errors.New("signing in: the login key is not ECDSA P-256")
	}
	back := &callback{state: state, issuer: p.Issuer, issRequired: meta.IssInResponse, result: make(chan callbackResult, 1)}
	srv := &http.Server{Handler: back, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10}
	go func() { _ = srv.Serve(l) }() // ends with Close
	defer srv.Close()
	show(conf.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))

	var r callbackResult
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("signing in: the browser did not come back: %w", ctx.Err())
	case r = <-back.result:
	}
	if r.err != nil {
		return nil, fmt.Errorf("signing in: %w", r.err)
	}
	tok, err := conf.Exchange(ctx, r.code, oauth2.VerifierOption(verifier))
	if err != nil {
		return nil, fmt.Errorf("signing in: redeeming the code: %w", err)
	}
	raw, ok := tok.Extra("id_token").(string)
	if !ok || raw == "" {
		return nil, errors.New("signing in: the provider gave no ID token")
	}
	shutdown, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer stop()
	_ = srv.Shutdown(shutdown) // lets the browser have its last page
	return check(ctx, provider, p, raw, nonce)
}

// check verifies the ID token.
func check(ctx context.Context, provider *oidc.Provider, p Provider, raw, nonce string) (*SignedIn, error) {
	id, err := provider.Verifier(&oidc.Config{ClientID: p.ClientID, SupportedSigningAlgs: algorithms(p.Algorithms)}).Verify(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("signing in: the ID token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return nil, errors.New("signing in: the ID token isn't bound to this login key: its nonce is another")
	}
	var claims struct {
		AuthTime  int64  `json:"auth_time"`
		SID       string `json:"sid"`
		Preferred string `json:"preferred_username"`
		Email     string `json:"email"`
		Name      string `json:"name"`
	}
	if err := id.Claims(&claims); err != nil {
		return nil, fmt.Errorf("signing in: the ID token: %w", err)
	}
	s := &SignedIn{
		IDToken: raw, Subject: actor.SubjectID{Issuer: id.Issuer, Subject: id.Subject}, SID: actor.SessionID(raw, claims.SID),
		AuthTime: id.IssuedAt, Expires: id.Expiry,
	}
	if claims.AuthTime > 0 {
		s.AuthTime = time.Unix(claims.AuthTime, 0)
	}
	for _, d := range []string{claims.Preferred, claims.Email, claims.Name} {
		if d != "" {
			s.Display = d
			break
		}
	}
	if err := s.Subject.Validate(); err != nil {
		return nil, fmt.Errorf("signing in: the ID token names a user that can't be carried: %w", err)
	}
	return s, nil
}

type callbackResult struct {
	code string
	err  error
}

// callback takes the browser's way back, once.
type callback struct {
	state, issuer string
	issRequired   bool
	result        chan callbackResult
}

func (c *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("Referrer-Policy", "no-referrer")
	if r.URL.Path != callbackPath || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	for _, k := range []string{"state", "code", "iss", "error"} {
		if len(q[k]) > 1 {
			c.page(w, http.StatusBadRequest, "The answer says "+k+" twice. Nothing was signed in.")
			return
		}
	}
	// Whoever doesn't know the state is not the browser that was sent: it must not end the sign-in.
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(c.state)) != 1 {
		c.page(w, http.StatusBadRequest, "This answer doesn't belong to the sign-in that is under way.")
		return
	}
	iss, hasIss := q.Get("iss"), q.Has("iss")
	switch {
	case hasIss && iss != c.issuer, !hasIss && c.issRequired:
		c.page(w, http.StatusBadRequest, "The answer came from another provider.")
		c.deliver(callbackResult{err: fmt.Errorf("the answer names the provider %q, want %q (RFC 9207)", short(iss), c.issuer)})
	case q.Has("error"):
		c.page(w, http.StatusOK, "The provider refused the sign-in.")
		c.deliver(callbackResult{err: fmt.Errorf("the provider refused: %s %s", short(q.Get("error")), short(q.Get("error_description")))})
	case q.Get("code") == "":
		c.page(w, http.StatusBadRequest, "The answer has no code.")
		c.deliver(callbackResult{err: errors.New("the provider's answer has no code")})
	default:
		c.page(w, http.StatusOK, "You are signed in. You can close this page.")
		c.deliver(callbackResult{code: q.Get("code")})
	}
}

func (c *callback) deliver(r callbackResult) {
	select {
	case c.result <- r:
	default:
	}
}

func (c *callback) page(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!doctype html><title>deputy</title><p>%s</p>\n", html.EscapeString(text))
}

func short(s string) string {
	if len(s) > 200 {
		s = s[:200]
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '\uFFFD'
		}
		return r
	}, s)
}

func randomText() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func scopes(more []string) []string {
	out := []string{oidc.ScopeOpenID}
	for _, s := range more {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// algorithms are never the provider's own choice.
func algorithms(list []string) []string {
	if len(list) == 0 {
		return []string{oidc.RS256}
	}
	return list
}
