package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/issuer/ca"
)

const mesh = "https://broker.test.example:7400"

type jwtWorld struct {
	*ca.JWTAuthority
	key    *ecdsa.PrivateKey
	bundle *ca.JWTBundle
	now    time.Time
}

func newJWT(t *testing.T) *jwtWorld {
	t.Helper()
	w := &jwtWorld{key: testca.NewKey(t), bundle: ca.NewJWTBundle(td), now: time.Now()}
	var err error
	if w.JWTAuthority, err = ca.NewJWTAuthority(ca.JWTConfig{TrustDomain: td, Key: w.key, Mesh: mesh, Now: func() time.Time { return w.now }}); err != nil {
		t.Fatal(err)
	}
	if err := w.bundle.Set(w.PublicKey()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *jwtWorld) request(t *testing.T) ca.JWT {
	return ca.JWT{ID: agent(t).ID(), Audience: []string{"https://api.example", "other"}, NotAfter: w.now.Add(time.Hour)}
}

func keep(into *audit.Record) func(context.Context, audit.Record) error {
	return func(_ context.Context, r audit.Record) error { *into = r; return nil }
}

// A JWT-SVID says who, for whom, and for how long, and nothing else; go-spiffe takes it.
func TestAJWTSVIDSaysNoMoreThanItMust(t *testing.T) {
	w := newJWT(t)
	var r audit.Record
	token, err := w.Sign(t.Context(), w.request(t), keep(&r))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	member := func(i int) (out map[string]any) {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(raw, &out) != nil {
			t.Fatal(err, string(raw))
		}
		return out
	}
	kid := actor.NonceFor(w.PublicKey())
	if d := cmp.Diff(map[string]any{"alg": "ES256", "typ": "JWT", "kid": kid}, member(0)); d != "" {
		t.Error(d)
	}
	iat := w.now.Unix()
	if d := cmp.Diff(map[string]any{
		"sub": agent(t).String(), "aud": []any{"https://api.example", "other"}, "iat": float64(iat), "exp": float64(iat + 300), "jti": string(r.ID),
	}, member(1)); d != "" {
		t.Error(d)
	}
	e := r.Event.(*audit.JWTSVID)
	if e.Result != audit.Accepted || e.Subject != agent(t).String() || e.KeyID != kid || e.TokenID != string(r.ID) || e.Expires.Unix() != iat+300 || len(e.Audience) != 2 {
		t.Errorf("%+v", e)
	}

	jwks, _ := w.bundle.Current()
	if !strings.Contains(string(jwks), `"use":"jwt-svid"`) || strings.Contains(string(jwks), `"d":`) {
		t.Error(string(jwks))
	}
	set, err := jwtbundle.Parse(td, jwks)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := jwtsvid.ParseAndValidate(token, set, []string{"other"}); err != nil || v.ID != agent(t).ID() {
		t.Errorf("go-spiffe: %v %v", v, err)
	}
	if v, err := w.bundle.Verify(token, "other", w.now); err != nil || v.ID != agent(t).ID() || v.TokenID != string(r.ID) || v.Expires.Unix() != iat+300 {
		t.Errorf("%+v %v", v, err)
	}
}

func TestAJWTSVIDIsSignedOnlyBehindItsRecordAndWithinTheX509SVID(t *testing.T) {
	w := newJWT(t)
	none := func(context.Context, audit.Record) error { t.Error("recorded"); return nil }
	for name, change := range map[string]func(*ca.JWT){
		"another trust domain": func(j *ca.JWT) { j.ID = spiffeid.RequireFromString("spiffe://other.example/agent/x") },
		"no path":              func(j *ca.JWT) { j.ID = td.ID() },
		"no audience":          func(j *ca.JWT) { j.Audience = nil },
		"an ended SVID":        func(j *ca.JWT) { j.NotAfter = w.now.Truncate(time.Second) },
		"never an SVID":        func(j *ca.JWT) { j.NotAfter = time.Time{} },
	} {
		j := w.request(t)
		change(&j)
		if token, err := w.Sign(t.Context(), j, none); err == nil || token != "" {
			t.Errorf("%s: signed", name)
		}
	}
	if token, err := w.Sign(t.Context(), w.request(t), func(context.Context, audit.Record) error { return errors.New("disk full") }); token != "" || err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("%q %v", token, err)
	}
	j := w.request(t)
	j.NotAfter = w.now.Add(90 * time.Second)
	var r audit.Record
	token, err := w.Sign(t.Context(), j, keep(&r))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := w.bundle.Verify(token, "other", w.now); err != nil || v.Expires.After(j.NotAfter) {
		t.Errorf("%+v outlives %s, %v", v, j.NotAfter, err)
	}
}

func TestAudiencesAreForeignPlainAndFew(t *testing.T) {
	w := newJWT(t)
	for _, good := range []string{
		"x", "https://api.example", "https://broker.test.example.org:7400", "https://broker.test.example:7401", "spiffe://test.example/app/billing",
		"spiffe://test.example/agent/planner/" + instance, "spiffe://other.example/target/orders-db", "spiffe://test.example/targets/x", "urn:example:a:b", "//x", "vault",
		strings.Repeat("a", 255),
	} {
		if err := w.CheckAudience([]string{good}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	own := []string{
		mesh, mesh + "/", mesh + "/token", "HTTPS://Broker.TEST.example:7400", "http://broker.test.example:7400", "https://broker.test.example.:7400/x", "https://user@broker.test.example:7400",
		"broker.test.example:7400", "//broker.test.example:7400", "wss://broker.test.example:7400",
		"spiffe://test.example/target/orders-db", "spiffe://test.example/deputy/broker", "spiffe://test.example/target", "spiffe://test.example/deputy/proxy/main", "spiffe://test.example",
		"SPIFFE://test.example/target/orders-db", "spiffe://TEST.example/target/orders-db", "spiffe://test.example//target/orders-db", "spiffe://test.example/app/../target/orders-db",
		"spiffe://test.example/%74arget/orders-db", "spiffe://test.example/target/orders-db?x", "spiffe:test.example/target/orders-db", "spiffe://test.example:443/target/orders-db",
	}
	for _, bad := range append(own, "", " x", "x ", "a b", "a\n", "a\x00", "ä", "\u202ea", strings.Repeat("a", 256), "https://%zz") {
		for _, list := range [][]string{{bad}, {"https://api.example", bad}, {bad, "https://api.example"}} {
			if w.CheckAudience(list) == nil {
				t.Errorf("%q: accepted", list)
			}
		}
	}
	for _, bad := range [][]string{nil, {}, {"x", "x"}, {"1", "2", "3", "4", "5", "6", "7", "8", "9"}} {
		if w.CheckAudience(bad) == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	// The standard port needs not be said.
	plain, err := ca.NewJWTAuthority(ca.JWTConfig{TrustDomain: td, Key: w.key, Mesh: "https://broker.test.example"})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"https://broker.test.example:443", "https://broker.test.example", "broker.test.example"} {
		if plain.CheckAudience([]string{bad}) == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

// forge signs any header and claims with a key.
func forge(t *testing.T, key *ecdsa.PrivateKey, header, claims string) string {
	t.Helper()
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// Even the issuer's own key makes nothing valid that the issuer wouldn't write.
func TestWhatTheIssuerWouldNotWriteIsRefused(t *testing.T) {
	w := newJWT(t)
	kid, now := actor.NonceFor(w.PublicKey()), w.now.Unix()
	header := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, kid)
	claims := fmt.Sprintf(`{"sub":"spiffe://test.example/app/a","aud":["x"],"iat":%d,"exp":%d,"jti":"j"}`, now, now+300)
	good := forge(t, w.key, header, claims)
	if _, err := w.bundle.Verify(good, "x", w.now); err != nil {
		t.Fatal(err)
	}
	refused := func(name, token, audience string, at time.Time) {
		t.Helper()
		if v, err := w.bundle.Verify(token, audience, at); err == nil {
			t.Errorf("%s: accepted as %+v", name, v)
		}
	}
	swap := func(s, from, to string) string {
		t.Helper()
		if !strings.Contains(s, from) {
			t.Fatalf("%q isn't in %s", from, s)
		}
		return strings.Replace(s, from, to, 1)
	}
	for name, h := range map[string]string{
		"none":          swap(header, "ES256", "none"),
		"HMAC":          swap(header, "ES256", "HS256"),
		"RS256":         swap(header, "ES256", "RS256"),
		"ES384":         swap(header, "ES256", "ES384"),
		"lower case":    swap(header, "ES256", "es256"),
		"JOSE":          swap(header, `"JWT"`, `"JOSE"`),
		"jwt":           swap(header, `"JWT"`, `"jwt"`),
		"a token":       swap(header, `"JWT"`, `"at+jwt"`),
		"a grant":       swap(header, `"JWT"`, `"deputy-grant+jwt"`),
		"no typ":        swap(header, `,"typ":"JWT"`, ``),
		"no kid":        swap(header, fmt.Sprintf(`"kid":%q,`, kid), ``),
		"empty kid":     swap(header, kid, ""),
		"another kid":   swap(header, kid, "A"+kid[1:]+"x"),
		"crit":          swap(header, `}`, `,"crit":["exp"]}`),
		"jwk":           swap(header, `}`, `,"jwk":{}}`),
		"jku":           swap(header, `}`, `,"jku":"https://x"}`),
		"kid twice":     swap(header, `{`, fmt.Sprintf(`{"kid":%q,`, kid)),
		"ALG beside":    swap(header, `}`, `,"ALG":"none"}`),
		"no object":     `[]`,
		"more after it": header + ` {}`,
	} {
		refused("header: "+name, forge(t, w.key, h, claims), "x", w.now)
	}
	for name, c := range map[string]string{
		"another trust domain": swap(claims, "test.example", "other.example"),
		"the trust domain":     swap(claims, "/app/a", ""),
		"no SPIFFE ID":         swap(claims, "spiffe://test.example/app/a", "a"),
		"no sub":               swap(claims, `"sub":"spiffe://test.example/app/a",`, ``),
		"no aud":               swap(claims, `"aud":["x"],`, ``),
		"empty aud":            swap(claims, `["x"]`, `[]`),
		"aud as text":          swap(claims, `["x"]`, `"x"`),
		"another aud":          swap(claims, `["x"]`, `["X","xx"]`),
		"no exp":               swap(claims, fmt.Sprintf(`"exp":%d,`, now+300), ``),
		"exp as text":          swap(claims, fmt.Sprint(now+300), fmt.Sprintf(`"%d"`, now+300)),
		"exp as a fraction":    swap(claims, fmt.Sprint(now+300), fmt.Sprintf(`%d.5`, now+299)),
		"lives too long":       swap(claims, fmt.Sprint(now+300), fmt.Sprint(now+301)),
		"ended before it was":  swap(claims, fmt.Sprint(now+300), fmt.Sprint(now)),
		"no iat":               swap(claims, fmt.Sprintf(`"iat":%d,`, now), ``),
		"of the future":        swap(swap(claims, fmt.Sprint(now+300), fmt.Sprint(now+301)), fmt.Sprint(now), fmt.Sprint(now+60)),
		"before 1970":          swap(claims, fmt.Sprint(now), fmt.Sprint(-now)),
		"another claim":        swap(claims, `}`, `,"cap":[]}`),
		"an issuer":            swap(claims, `}`, `,"iss":"https://x"}`),
		"nbf":                  swap(claims, `}`, `,"nbf":1}`),
		"sub twice":            swap(claims, `{`, `{"sub":"spiffe://test.example/app/b",`),
		"SUB beside":           swap(claims, `}`, `,"SUB":"spiffe://test.example/app/b"}`),
	} {
		refused("claims: "+name, forge(t, w.key, header, c), "x", w.now)
	}
	sig := good[strings.LastIndexByte(good, '.')+1:]
	raw, _ := base64.RawURLEncoding.DecodeString(sig)
	enc := base64.RawURLEncoding.EncodeToString
	other := testca.NewKey(t)
	for name, token := range map[string]string{
		"empty":               "",
		"two parts":           good[:strings.LastIndexByte(good, '.')],
		"four parts":          good + ".x",
		"no signature":        swap(good, sig, ""),
		"half a signature":    swap(good, sig, enc(raw[:63])),
		"a longer signature":  swap(good, sig, enc(append([]byte{0}, raw...))),
		"zeros":               swap(good, sig, enc(make([]byte, 64))),
		"padding":             good + "==",
		"a line break":        swap(good, ".", ".\n"),
		"another key":         forge(t, other, header, claims),
		"its own kid":         forge(t, other, swap(header, kid, actor.NonceFor(&other.PublicKey)), claims),
		"larger than it is":   good + strings.Repeat("A", 8<<10),
		"a space in front":    " " + good,
		"JSON, not compact":   `{"protected":"` + strings.ReplaceAll(good, ".", `","payload":"`) + `"}`,
		"signature of others": good[:strings.LastIndexByte(good, '.')] + "." + sigOf(forge(t, w.key, header, swap(claims, `"j"`, `"k"`))),
	} {
		refused(name, token, "x", w.now)
	}
	refused("no audience asked for", good, "", w.now)
	refused("another audience", good, "y", w.now)
	refused("at its end", good, "x", time.Unix(now+300, 0))
	if err := w.bundle.Set(&other.PublicKey); err != nil {
		t.Fatal(err)
	}
	refused("of a key that left the bundle", good, "x", w.now)
}

func sigOf(token string) string { return token[strings.LastIndexByte(token, '.')+1:] }

func TestJWTBundles(t *testing.T) {
	w := newJWT(t)
	_, changed := w.bundle.Current()
	next := testca.NewKey(t)
	if err := w.bundle.Set(w.PublicKey(), &next.PublicKey); err != nil {
		t.Fatal(err)
	}
	<-changed
	jwks, _ := w.bundle.Current()
	if set, err := jwtbundle.Parse(td, jwks); err != nil || len(set.JWTAuthorities()) != 2 {
		t.Errorf("%v %v", set, err)
	}
	if w.bundle.Set() == nil || w.bundle.Set(w.PublicKey(), w.PublicKey()) == nil {
		t.Error("an empty bundle, or a key twice, was accepted")
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	public, err := x509.MarshalPKIXPublicKey(w.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(w.key)
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := ca.DecodeJWTKeys(block("PUBLIC KEY", public)); err != nil || len(keys) != 1 || !keys[0].Equal(w.PublicKey()) {
		t.Errorf("%v %v", keys, err)
	}
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"no PEM":         []byte("hello"),
		"trailing bytes": append(block("PUBLIC KEY", public), "rest"...),
		"a private key":  block("PRIVATE KEY", private),
		"no key":         block("PUBLIC KEY", []byte("x")),
		"twice":          append(block("PUBLIC KEY", public), block("PUBLIC KEY", public)...),
	} {
		if _, err := ca.DecodeJWTKeys(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, cfg := range map[string]ca.JWTConfig{
		"no key":          {TrustDomain: td, Mesh: mesh},
		"no trust domain": {Key: w.key, Mesh: mesh},
		"no mesh":         {TrustDomain: td, Key: w.key},
	} {
		if _, err := ca.NewJWTAuthority(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzVerifyJWT(f *testing.F) {
	f.Add("e30.e30.AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		w := newJWT(t)
		if _, err := w.bundle.Verify(token, "x", w.now); err == nil {
			t.Errorf("accepted %q, which nobody signed", token)
		}
	})
}
