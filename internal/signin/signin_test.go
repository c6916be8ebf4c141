package signin_test

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/deputymesh/deputy/internal/signin"
)

var alice = signin.User{Name: "alice", Subject: "u-1", Password: "correct", Email: "alice@example.test", Groups: []string{"analysts"}}

func start(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	h, err := signin.New(signin.Config{Issuer: srv.URL, ClientID: "deputy-cli", Users: []signin.User{alice}})
	if err != nil {
		t.Fatal(err)
	}
	srv.Config.Handler = h
	return srv
}

// submit walks to the form, fills it in, and returns the last response without following the redirect
// to the client.
func submit(t *testing.T, srv *httptest.Server, start, user, password string) *http.Response {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := srv.Client()
	c.Jar = jar
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), "http://127.0.0.1:9/") {
			return http.ErrUseLastResponse
		}
		return nil
	}
	res, err := c.Get(start)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`name="id" value="([0-9a-f]+)"`).FindSubmatch(body)
	if id == nil {
		t.Fatalf("no form in %d %s", res.StatusCode, body)
	}
	res, err = c.PostForm(srv.URL+"/login", url.Values{"id": {string(id[1])}, "username": {user}, "password": {password}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func TestSignInYieldsTheUsersClaims(t *testing.T) {
	srv := start(t)
	ctx := oidc.ClientContext(context.Background(), srv.Client())
	p, err := oidc.NewProvider(ctx, srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	conf := oauth2.Config{ClientID: "deputy-cli", Endpoint: p.Endpoint(), RedirectURL: "http://127.0.0.1:9/callback", Scopes: []string{"openid", "groups"}}
	verifier := oauth2.GenerateVerifier()
	res := submit(t, srv, conf.AuthCodeURL("st", oauth2.S256ChallengeOption(verifier), oidc.Nonce("the-nonce")), "alice", "correct")
	loc, err := res.Location()
	if err != nil {
		t.Fatalf("no redirect to the client: %v (%s)", err, res.Status)
	}
	if got := loc.Query().Get("state"); got != "st" {
		t.Errorf("state = %q, want st", got)
	}
	code := loc.Query().Get("code")
	tok, err := conf.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	idt, err := p.VerifierContext(ctx, &oidc.Config{ClientID: "deputy-cli", SupportedSigningAlgs: []string{"ES256"}}).Verify(ctx, raw)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		SID      string   `json:"sid"`
		AuthTime int64    `json:"auth_time"`
		Groups   []string `json:"groups"`
	}
	if err := idt.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	if idt.Subject != "u-1" || idt.Nonce != "the-nonce" || len(claims.SID) != 32 || claims.AuthTime == 0 || len(claims.Groups) != 1 {
		t.Errorf("claims: sub %q nonce %q sid %q auth_time %d groups %v", idt.Subject, idt.Nonce, claims.SID, claims.AuthTime, claims.Groups)
	}
	if _, err := conf.Exchange(ctx, code, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code was accepted twice")
	}
}

func TestRefusals(t *testing.T) {
	srv := start(t)
	conf := oauth2.Config{ClientID: "deputy-cli", Endpoint: oauth2.Endpoint{AuthURL: srv.URL + "/authorize"}, RedirectURL: "http://127.0.0.1:9/callback", Scopes: []string{"openid"}}
	challenge := oauth2.S256ChallengeOption(oauth2.GenerateVerifier())
	for _, c := range [][2]string{{"alice", "wrong"}, {"mallory", "correct"}, {"mallory", "\x00"}, {"", ""}} {
		if res := submit(t, srv, conf.AuthCodeURL("s", challenge), c[0], c[1]); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("user %q password %q: %s, want 401", c[0], c[1], res.Status)
		}
	}
	for name, u := range map[string]string{
		"no PKCE":          conf.AuthCodeURL("s"),
		"foreign redirect": strings.Replace(conf.AuthCodeURL("s", challenge), "127.0.0.1%3A9", "evil.test", 1),
		"unknown client":   strings.Replace(conf.AuthCodeURL("s", challenge), "deputy-cli", "other", 1),
	} {
		c := srv.Client()
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		res, err := c.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if loc := res.Header.Get("Location"); strings.HasPrefix(loc, "/login") || strings.Contains(loc, "evil") || strings.Contains(loc, "code=") {
			t.Errorf("%s: was sent on to %q", name, loc)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []signin.Config{
		{Issuer: "http://127.0.0.1:1", Users: []signin.User{alice}},
		{Issuer: "https://127.0.0.1:1/path", Users: []signin.User{alice}},
		{Issuer: "https://127.0.0.1:1"},
	} {
		if _, err := signin.New(c); err == nil {
			t.Errorf("New(%+v) succeeded", c)
		}
	}
}
