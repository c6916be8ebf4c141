package idp_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"

	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/testca"
)

// provider is an identity provider whose keys can be changed.
type provider struct {
	*httptest.Server
	mu   sync.Mutex
	oidc *oidctest.Server
	asks int
}

func start(t *testing.T, keys ...oidctest.PublicKey) *provider {
	t.Helper()
	p := &provider{}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asks++
		p.oidc.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	p.publish(keys...)
	return p
}

func (p *provider) publish(keys ...oidctest.PublicKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.oidc = &oidctest.Server{PublicKeys: keys, Algorithms: []string{"ES256"}}
	p.oidc.SetIssuer(p.URL)
}

func (p *provider) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asks
}

func public(k crypto.Signer, kid, alg string) oidctest.PublicKey {
	return oidctest.PublicKey{PublicKey: k.Public(), KeyID: kid, Algorithm: alg}
}

func claims(iss string, change ...string) string {
	m := map[string]string{
		"iss": fmt.Sprintf("%q", iss), "sub": `"alice"`, "aud": `"deputy"`, "nonce": `"n"`, "sid": `"s1"`,
		"iat": fmt.Sprint(time.Now().Unix()), "exp": fmt.Sprint(time.Now().Add(time.Hour).Unix()), "auth_time": fmt.Sprint(time.Now().Unix() - 5),
	}
	var extra []string
	for i := 0; i < len(change); i += 2 {
		if _, ok := m[change[i]]; !ok {
			extra = append(extra, fmt.Sprintf("%q:%s", change[i], change[i+1]))
			continue
		}
		m[change[i]] = change[i+1]
		if change[i+1] == "" {
			delete(m, change[i])
		}
	}
	for k, v := range m {
		extra = append(extra, fmt.Sprintf("%q:%s", k, v))
	}
	return "{" + strings.Join(extra, ",") + "}"
}

func verifier(t *testing.T, cfg idp.Config, ps ...*provider) *idp.Verifier {
	t.Helper()
	for _, p := range ps {
		cfg.Providers = append(cfg.Providers, idp.Provider{Issuer: p.URL, ClientID: "deputy", Algorithms: []string{"ES256"}, Client: p.Client()})
	}
	v, err := idp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVerifyIDToken(t *testing.T) {
	key, other := testca.NewKey(t), testca.NewKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, public(key, "k1", "ES256"), public(rsaKey, "r1", "RS256"))
	q := start(t, public(other, "k1", "ES256"))
	v := verifier(t, idp.Config{}, p, q)
	asked := p.asked()

	got, err := v.VerifyIDToken(t.Context(), oidctest.SignIDToken(key, "k1", "ES256", claims(p.URL, "acr", `"phr"`)))
	if err != nil {
		t.Fatal(err)
	}
	if got.Issuer != p.URL || got.Subject != "alice" || got.Nonce != "n" || got.SID != "s1" || got.ACR != "phr" || got.AuthTime.IsZero() || got.Expires.IsZero() {
		t.Errorf("claims are %+v", got)
	}
	// Expiry is the caller's.
	if _, err := v.VerifyIDToken(t.Context(), oidctest.SignIDToken(key, "k1", "ES256", claims(p.URL, "iat", "1000", "exp", "2000"))); err != nil {
		t.Errorf("expired: %v", err)
	}

	sign := func(k crypto.Signer, kid, alg string, change ...string) string {
		return oidctest.SignIDToken(k, kid, alg, claims(p.URL, change...))
	}
	good := strings.Split(sign(key, "k1", "ES256"), ".")
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, tc := range map[string]struct{ token, want string }{
		"unknown provider":              {sign(key, "k1", "ES256", "iss", `"https://elsewhere.example"`), "not a configured"},
		"another provider's key":        {sign(other, "k1", "ES256"), "no known key"},
		"another provider's name":       {sign(key, "k1", "ES256", "iss", fmt.Sprintf("%q", q.URL)), "no known key"},
		"unknown kid":                   {sign(key, "k2", "ES256"), "no known key"},
		"algorithm not configured":      {sign(rsaKey, "r1", "RS256"), "algorithm"},
		"none":                          {part(`{"alg":"none","kid":"k1"}`) + "." + good[1] + "." + good[2], `alg "none" is not allowed`},
		"another audience":              {sign(key, "k1", "ES256", "aud", `"other"`), "audience"},
		"audiences without azp":         {sign(key, "k1", "ES256", "aud", `["deputy","other"]`), "azp"},
		"another azp":                   {sign(key, "k1", "ES256", "aud", `["deputy","other"]`, "azp", `"other"`), "azp"},
		"no sub":                        {sign(key, "k1", "ES256", "sub", ""), "sub"},
		"SUB beside sub":                {sign(key, "k1", "ES256", "SUB", `"root"`), ""},
		"Sub alone":                     {sign(key, "k1", "ES256", "sub", "", "Sub", `"root"`), "sub"},
		"duplicate":                     {sign(key, "k1", "ES256", "acr", `"a"`, "acr", `"b"`), ""},
		"issued tomorrow":               {sign(key, "k1", "ES256", "iat", fmt.Sprint(time.Now().Add(time.Hour).Unix())), "future"},
		"auth_time as string":           {sign(key, "k1", "ES256", "auth_time", `"5"`), "auth_time"},
		"access token of the provider":  {part(`{"alg":"ES256","kid":"k1","typ":"at+jwt"}`) + "." + good[1] + "." + good[2], "typ"},
		"embedded key":                  {part(`{"alg":"ES256","kid":"k1","jwk":{}}`) + "." + good[1] + "." + good[2], "jwk"},
		"key by URL":                    {part(`{"alg":"ES256","kid":"k1","jku":"https://x"}`) + "." + good[1] + "." + good[2], "jku"},
		"certificates":                  {part(`{"alg":"ES256","kid":"k1","x5c":[]}`) + "." + good[1] + "." + good[2], "x5c"},
		"payload that isn't encoded":    {part(`{"alg":"ES256","kid":"k1","b64":false}`) + "." + good[1] + "." + good[2], "b64"},
		"compressed":                    {part(`{"alg":"ES256","kid":"k1","zip":"DEF"}`) + "." + good[1] + "." + good[2], "zip"},
		"extensions":                    {part(`{"alg":"ES256","kid":"k1","crit":["x"]}`) + "." + good[1] + "." + good[2], "crit"},
		"certificates by URL":           {part(`{"alg":"ES256","kid":"k1","x5u":"https://x"}`) + "." + good[1] + "." + good[2], "x5u"},
		"empty sub":                     {sign(key, "k1", "ES256", "sub", `""`), "sub"},
		"null for acr":                  {sign(key, "k1", "ES256", "acr", "null"), "acr"},
		"null for azp":                  {sign(key, "k1", "ES256", "azp", "null"), "azp"},
		"azp of one audience":           {sign(key, "k1", "ES256", "azp", `"other"`), "azp"},
		"negative iat":                  {sign(key, "k1", "ES256", "iat", "-1"), "iat"},
		"no iat":                        {sign(key, "k1", "ES256", "iat", ""), "iat"},
		"no exp":                        {sign(key, "k1", "ES256", "exp", ""), "exp"},
		"signature of another":          {good[0] + "." + part(claims(p.URL, "sub", `"bob"`)) + "." + good[2], "no known key"},
		"padded":                        {good[0] + "." + good[1] + "=." + good[2], "base64"},
		"newline":                       {good[0] + ".\n" + good[1] + "." + good[2], "base64"},
		"trailing part":                 {strings.Join(good, ".") + ".x", "compact"},
		"empty":                         {"", "compact"},
		"header that isn't JSON at all": {part("x") + "." + good[1] + "." + good[2], "JSON"},
		"too long":                      {strings.Repeat("a", 33<<10), "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.VerifyIDToken(t.Context(), tc.token)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error that says %q", err, tc.want)
			}
		})
	}
	if p.asked() != asked {
		t.Errorf("the provider was asked %d times because of a token", p.asked()-asked)
	}
}

func TestWithdrawnKeyVouchesOnlyForTheTimeBefore(t *testing.T) {
	old, fresh := testca.NewKey(t), testca.NewKey(t)
	p := start(t, public(old, "old", "ES256"))
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	var kept int
	v := verifier(t, idp.Config{Now: clock, Keep: time.Hour, OnKeys: func(context.Context, string, []byte) error { kept++; return nil }}, p)
	at := func(k *ecdsa.PrivateKey, kid string, iat time.Time) error {
		_, err := v.VerifyIDToken(t.Context(), oidctest.SignIDToken(k, kid, "ES256", claims(p.URL, "iat", fmt.Sprint(iat.Unix()))))
		return err
	}
	before := now.Add(-time.Second)
	p.publish(public(fresh, "new", "ES256"))
	pass(10 * time.Minute)
	if err := v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kept != 2 {
		t.Errorf("%d documents were recorded, want 2", kept)
	}
	if err := at(old, "old", before); err != nil {
		t.Errorf("a token from before the withdrawal: %v", err)
	}
	if err := at(fresh, "new", clock()); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if err := at(old, "old", clock()); err == nil || !strings.Contains(err.Error(), "withdrawn") {
		t.Errorf("a token after the withdrawal: %v", err)
	}
	pass(time.Hour)
	if err := v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := at(old, "old", before); err == nil {
		t.Error("the key was kept longer than the longest session")
	}
}

// A token that was good before is remembered, but not beyond its key, and not against the clock.
func TestAKnownTokenIsHeldAgainstItsKeyEachTime(t *testing.T) {
	old, fresh := testca.NewKey(t), testca.NewKey(t)
	p := start(t, public(old, "old", "ES256"))
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	v := verifier(t, idp.Config{Now: clock, Keep: time.Hour}, p)
	// Dated within what clocks may differ by: after the withdrawal this is the stolen key's token.
	early := oidctest.SignIDToken(old, "old", "ES256", claims(p.URL, "iat", fmt.Sprint(now.Unix()-1)))
	late := oidctest.SignIDToken(old, "old", "ES256", claims(p.URL, "iat", fmt.Sprint(now.Unix()+20)))
	check := func(when, token, want string) {
		t.Helper()
		for range 2 {
			c, err := v.VerifyIDToken(t.Context(), token)
			if want == "" && (err != nil || c.Issuer != p.URL) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: %+v, %v; want %q", when, c, err, want)
			}
		}
	}
	check("published", early, "")
	check("published", late, "")
	pass(-time.Hour)
	check("the clock went back", early, "future")
	pass(time.Hour)
	p.publish(public(fresh, "new", "ES256"))
	if err := v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("withdrawn", early, "")
	check("withdrawn", late, "withdrawn")
	pass(2 * time.Hour)
	if err := v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("forgotten", early, "no known key")
	// Another key under the same name is another key.
	p.publish(public(fresh, "old", "ES256"))
	if err := v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("another key of that name", early, "no known key")
}

func TestFetchRefuses(t *testing.T) {
	key := testca.NewKey(t)
	p := start(t, public(key, "k", "ES256"))
	for name, h := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for range 40 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"another issuer": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"https://x"}`, p.URL)
		},
		"keys over http": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer":"https://%s","jwks_uri":"http://keys.example/"}`, r.Host)
		},
		"no keys": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "keys") {
				fmt.Fprint(w, `{"keys":[]}`)
				return
			}
			fmt.Fprintf(w, `{"issuer":"https://%s","jwks_uri":"https://%s/keys"}`, r.Host, r.Host)
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewTLSServer(h)
			defer srv.Close()
			v, err := idp.New(idp.Config{Providers: []idp.Provider{{Issuer: srv.URL, ClientID: "deputy", Algorithms: []string{"ES256"}, Client: srv.Client()}}})
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Fetch(t.Context()); err == nil {
				t.Error("it was taken")
			}
			if got := v.Ready(); len(got) != 1 {
				t.Errorf("missing: %v", got)
			}
			if _, err := v.VerifyIDToken(t.Context(), oidctest.SignIDToken(key, "k", "ES256", claims(srv.URL))); err == nil {
				t.Error("a token was taken without keys")
			}
		})
	}
}

func TestProviderCheck(t *testing.T) {
	good := idp.Provider{Issuer: "https://login.example.com", ClientID: "deputy", Algorithms: []string{"RS256"}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*idp.Provider){
		"http":         func(p *idp.Provider) { p.Issuer = "http://login.example.com" },
		"query":        func(p *idp.Provider) { p.Issuer += "?a" },
		"no client_id": func(p *idp.Provider) { p.ClientID = "" },
		"no algorithm": func(p *idp.Provider) { p.Algorithms = nil },
		"HS256":        func(p *idp.Provider) { p.Algorithms = []string{"HS256"} },
		"none":         func(p *idp.Provider) { p.Algorithms = []string{"none"} },
	} {
		p := good
		change(&p)
		if p.Check() == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func FuzzVerifyIDToken(f *testing.F) {
	v, err := idp.New(idp.Config{Providers: []idp.Provider{{Issuer: "https://a.example", ClientID: "deputy", Algorithms: []string{"ES256"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.b.c")
	f.Add(oidctest.SignIDToken(testca.NewKey(f), "k", "ES256", claims("https://a.example")))
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := v.VerifyIDToken(t.Context(), s); err == nil {
			t.Error("a token was taken without any key")
		}
	})
}
