package login_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/login"
	"github.com/deputymesh/deputy/internal/signin"
	"github.com/deputymesh/deputy/internal/testca"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func serverCA(srv *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
}

// sample is the sample sign-in server (zitadel's provider with a form).
func sample(t *testing.T) login.Provider {
	t.Helper()
	var h http.Handler
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	var err error
	h, err = signin.New(signin.Config{Issuer: srv.URL, ClientID: "cli", Users: []signin.User{
		{Name: "alice", Subject: "u1", Password: "correct-horse", Email: "alice@example.com", Groups: []string{"analysts"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return login.Provider{Issuer: srv.URL, ClientID: "cli", CA: serverCA(srv), Algorithms: []string{"ES256"}, Scopes: []string{"groups"}}
}

func TestScriptedSignInBindsTheKey(t *testing.T) {
	p := sample(t)
	key := newKey(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	script := make(chan error, 1)
	s, err := login.SignIn(ctx, p, key, func(u string) {
		q := mustParse(t, u).Query()
		if q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || len(q.Get("state")) < 22 {
			t.Errorf("the request lacks PKCE or a state: %s", u)
		}
		go func() { script <- login.Script(ctx, p.CA, u, "alice", "correct-horse") }()
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-script; err != nil {
		t.Error(err)
	}
	if s.Subject != (actor.SubjectID{Issuer: p.Issuer, Subject: "u1"}) || s.Display != "alice" || s.IDToken == "" {
		t.Errorf("signed in %+v", s.Subject)
	}
	jws, err := jose.ParseSignedCompact(s.IDToken, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Nonce string `json:"nonce"`
	}
	json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &claims)
	if claims.Nonce != actor.NonceFor(key.Public()) {
		t.Errorf("nonce %q isn't the login key's thumbprint", claims.Nonce)
	}
}

func TestScriptSaysThatAPasswordIsWrong(t *testing.T) {
	p := sample(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got error
	login.SignIn(ctx, p, newKey(t), func(u string) {
		go func() {
			got = login.Script(ctx, p.CA, u, "alice", "wrong-password")
			cancel()
		}()
	})
	if got == nil || !strings.Contains(got.Error(), "did not take name and password") {
		t.Errorf("got %v", got)
	}
	if strings.Contains(fmt.Sprint(got), "wrong-password") {
		t.Error("the error shows the password")
	}
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// hostile is a provider that answers as a test says.
type hostile struct {
	srv    *httptest.Server
	key    *ecdsa.PrivateKey
	meta   map[string]any
	token  func(claims map[string]any)
	nonce  string
	client string
}

func newHostile(t *testing.T) *hostile {
	h := &hostile{key: testca.NewKey(t), client: "cli"}
	mux := http.NewServeMux()
	h.srv = httptest.NewTLSServer(mux)
	t.Cleanup(h.srv.Close)
	write := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		m := map[string]any{
			"issuer": h.srv.URL, "authorization_endpoint": h.srv.URL + "/auth", "token_endpoint": h.srv.URL + "/token", "jwks_uri": h.srv.URL + "/jwks",
			"id_token_signing_alg_values_supported": []string{"ES256", "none"},
		}
		for k, v := range h.meta {
			m[k] = v
		}
		write(w, m)
	})
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		write(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: h.key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		if len(r.PostForm.Get("code_verifier")) < 43 {
			http.Error(w, "no verifier", 400)
			return
		}
		now := time.Now()
		claims := map[string]any{"iss": h.srv.URL, "aud": h.client, "sub": "u1", "nonce": h.nonce, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "auth_time": now.Unix()}
		if h.token != nil {
			h.token(claims)
		}
		signer, _ := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: h.key, KeyID: "k"}}, nil)
		raw, _ := json.Marshal(claims)
		jws, _ := signer.Sign(raw)
		id, _ := jws.CompactSerialize()
		write(w, map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": id})
	})
	return h
}

func (h *hostile) signIn(t *testing.T, key crypto.Signer, answer func(q url.Values, redirect string)) (*login.SignedIn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return login.SignIn(ctx, login.Provider{Issuer: h.srv.URL, ClientID: h.client, CA: serverCA(h.srv), Algorithms: []string{"ES256"}}, key, func(u string) {
		q := mustParse(t, u).Query()
		h.nonce = q.Get("nonce")
		go answer(q, q.Get("redirect_uri"))
	})
}

func get(u string) int {
	resp, err := http.Get(u)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestCallbackIsChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		meta  map[string]any
		query func(state, iss string) string
		want  string // "" signs in
	}{
		"plain":              {nil, func(s, _ string) string { return "state=" + s + "&code=c" }, ""},
		"with iss":           {nil, func(s, i string) string { return "state=" + s + "&code=c&iss=" + url.QueryEscape(i) }, ""},
		"another iss":        {nil, func(s, _ string) string { return "state=" + s + "&code=c&iss=https://evil.test" }, "RFC 9207"},
		"iss announced only": {map[string]any{"authorization_response_iss_parameter_supported": true}, func(s, _ string) string { return "state=" + s + "&code=c" }, "RFC 9207"},
		"refused":            {nil, func(s, _ string) string { return "state=" + s + "&error=access_denied" }, "access_denied"},
		"no code":            {nil, func(s, _ string) string { return "state=" + s }, "has no code"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t)
			h.meta = tt.meta
			_, err := h.signIn(t, newKey(t), func(q url.Values, redirect string) {
				// A stranger who doesn't know the state ends nothing.
				if got := get(redirect + "?state=wrong&code=stolen"); got != http.StatusBadRequest {
					t.Errorf("a wrong state was answered with %d", got)
				}
				if got := get(redirect + "?state=" + q.Get("state") + "&state=x&code=c"); got != http.StatusBadRequest {
					t.Errorf("two states were answered with %d", got)
				}
				get(redirect + "?" + tt.query(q.Get("state"), h.srv.URL))
			})
			if tt.want == "" && err != nil {
				t.Errorf("got %v", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestIDTokenIsChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"another nonce":   {func(c map[string]any) { c["nonce"] = "other" }, "isn't bound to this login key"},
		"no nonce":        {func(c map[string]any) { delete(c, "nonce") }, "isn't bound to this login key"},
		"another issuer":  {func(c map[string]any) { c["iss"] = "https://evil.test" }, "issued by a different provider"},
		"another client":  {func(c map[string]any) { c["aud"] = "other" }, "expected audience"},
		"expired":         {func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }, "expired"},
		"control in name": {func(c map[string]any) { c["sub"] = "a\u0007b" }, "can't be carried"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t)
			h.token = tt.change
			_, err := h.signIn(t, newKey(t), func(q url.Values, redirect string) {
				get(redirect + "?state=" + q.Get("state") + "&code=c")
			})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("another algorithm", func(t *testing.T) {
		h := newHostile(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := login.SignIn(ctx, login.Provider{Issuer: h.srv.URL, ClientID: "cli", CA: serverCA(h.srv), Algorithms: []string{"RS256"}}, newKey(t), func(u string) {
			q := mustParse(t, u).Query()
			h.nonce = q.Get("nonce")
			go get(q.Get("redirect_uri") + "?state=" + q.Get("state") + "&code=c")
		})
		if err == nil || !strings.Contains(err.Error(), "ES256") {
			t.Errorf("got %v; the provider must not choose the algorithm", err)
		}
	})
}

func TestCallbackStaysOnLoopback(t *testing.T) {
	h := newHostile(t)
	for _, addr := range []string{"0.0.0.0:0", "example.org:80", "nonsense"} {
		_, err := login.SignIn(t.Context(), login.Provider{Issuer: h.srv.URL, ClientID: "cli", CA: serverCA(h.srv), Callback: addr}, newKey(t), func(string) {
			t.Error("the sign-in went on")
		})
		if err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("callback %s: %v", addr, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := login.SignIn(ctx, login.Provider{Issuer: h.srv.URL, ClientID: "cli", CA: serverCA(h.srv)}, newKey(t), func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func FuzzFindForm(f *testing.F) {
	f.Add([]byte(`<form method=post action=/x><input name=u><input type=password name=p></form>`))
	f.Fuzz(func(t *testing.T, page []byte) { login.FindFormForTest(page) })
}
