package hop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"golang.org/x/oauth2"

	"github.com/deputymesh/deputy/actor"
)

const (
	dialTimeout       = 10 * time.Second
	maxAnswerHeader   = 64 << 10
	maxIdleUpstream   = 64
	upstreamIdle      = 90 * time.Second
	upstreamHandshake = 10 * time.Second
)

// Upstream is where the target's server listens.
type Upstream struct {
	// URL is the origin: scheme, host and port. http is for a server on the same machine only.
	URL *url.URL
	// RootCAs verify the server; nil are the system's.
	RootCAs *x509.CertPool
	// ServerName in its certificate; the host of URL if "".
	ServerName string
	// PlainHTTP2 speaks HTTP/2 without TLS, for gRPC servers on the same machine.
	PlainHTTP2 bool
}

func (u Upstream) check() error {
	switch {
	case u.URL == nil || u.URL.Host == "":
		return errors.New("the upstream has no URL")
	case u.URL.Path != "" || u.URL.RawQuery != "" || u.URL.User != nil || u.URL.Fragment != "":
		return fmt.Errorf("the upstream %q is more than an origin: scheme, host and port are expected", u.URL)
	case u.URL.Scheme == "https" && !u.PlainHTTP2:
		return nil
	case u.URL.Scheme == "http" && isLoopback(u.URL.Hostname()):
		return nil
	}
	return fmt.Errorf("the upstream %q is neither https nor on this machine's loopback: requests would travel in the clear", u.URL)
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func (u Upstream) transport(a Account) *http.Transport {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: u.RootCAs, ServerName: u.ServerName},
		TLSHandshakeTimeout: upstreamHandshake, MaxResponseHeaderBytes: maxAnswerHeader,
		MaxIdleConnsPerHost: maxIdleUpstream, IdleConnTimeout: upstreamIdle,
		// Bytes go through as they are.
		DisableCompression: true, ForceAttemptHTTP2: true,
	}
	if u.PlainHTTP2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	if a.Certificate != nil {
		t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.Certificate() }
	}
	return t
}

// Account is as whom requests are made at the target. What isn't set isn't used; an account with nothing set is nobody at a service that
// asks for nobody.
type Account struct {
	// Name is for policy and records.
	Name string
	// Roles of users that may use it; empty is every user.
	Roles []string

	// Bearer is a token (RFC 6750), Tokens gives one that runs out, as by client credentials (RFC 6749 §4.4).
	Bearer string
	Tokens oauth2.TokenSource
	// User and Password are for HTTP's Basic scheme (RFC 7617).
	User, Password string
	// Headers are set as they are, such as an API key.
	Headers map[string]string
	// Certificate is for TLS with the server.
	Certificate func() (*tls.Certificate, error)

	transport, leaving *http.Transport

	tokens *tokens // of Tokens
}

func (a Account) check() error {
	if err := actor.CheckAccount(a.Name); err != nil {
		return err
	}
	n := 0
	for _, set := range []bool{a.Bearer != "", a.Tokens != nil, a.User != ""} {
		if set {
			n++
		}
	}
	if n > 1 {
		return fmt.Errorf("account %s has more than one of bearer, client credentials and basic", a.Name)
	}
	return nil
}

func (a Account) mayBeUsed(roles []string) bool {
	return len(a.Roles) == 0 || slices.ContainsFunc(a.Roles, func(r string) bool { return slices.Contains(roles, r) })
}

// sign puts the account's credential into a request.
func (a *Account) sign(ctx context.Context, h http.Header) error {
	switch {
	case a.Bearer != "":
		h.Set("Authorization", "Bearer "+a.Bearer)
	case a.Tokens != nil:
		t, err := a.tokens.get(ctx)
		if err != nil {
			return fmt.Errorf("account %s gets no token: %w", a.Name, err)
		}
		h.Set("Authorization", t.Type()+" "+t.AccessToken)
	case a.User != "":
		r := http.Request{Header: h}
		r.SetBasicAuth(a.User, a.Password)
	}
	for name, value := range a.Headers {
		h.Set(name, value)
	}
	return nil
}

// leaving makes a transport for requests that leave HTTP, which HTTP/2 has no way for but WebSockets'. Its connections are used once.
func (u Upstream) leaving(a Account) *http.Transport {
	t := u.transport(a)
	t.ForceAttemptHTTP2, t.DisableKeepAlives = false, true
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	return t
}

// Leave sends a request for an upgrade that is allowed, with the account's credential, over HTTP/1.1.
func (a *Account) Leave(r *http.Request) (*http.Response, error) {
	if err := a.sign(r.Context(), r.Header); err != nil {
		return nil, err
	}
	return a.leaving.RoundTrip(r)
}

// RoundTrip sends a request that is allowed, with the account's credential.
func (a *Account) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := a.sign(r.Context(), r.Header); err != nil {
		return nil, err
	}
	return a.transport.RoundTrip(r)
}
