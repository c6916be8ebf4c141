package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/deputymesh/deputy/policy"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keysOf(keys ...*ecdsa.PrivateKey) []*ecdsa.PublicKey {
	var out []*ecdsa.PublicKey
	for _, k := range keys {
		out = append(out, &k.PublicKey)
	}
	return out
}

func TestASignedSetComesBackAsItWas(t *testing.T) {
	key, other := newKey(t), newKey(t)
	signed, err := policy.Sign(key, exampleSource(t))
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Open(signed, keysOf(other, key), 1)
	if err != nil {
		t.Fatal(err)
	}
	if set.Version() != 1 || !set.IssuedAt().Equal(now) || set.Digest() == "" || len(set.Names()) != 5 {
		t.Errorf("version %d, issued %s, digest %q, policies %v", set.Version(), set.IssuedAt(), set.Digest(), set.Names())
	}
	if target, ok := set.Target("orders-db"); !ok || target.Kind != "postgres" {
		t.Errorf("target %+v %v", target, ok)
	}
}

// signRaw signs any header and payload, as somebody with a policy key but without this package could.
func signRaw(t *testing.T, key any, alg jose.SignatureAlgorithm, header map[jose.HeaderKey]any, payload string) string {
	t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: header}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	s, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestASetThatIsntSignedRightDoesntOpen(t *testing.T) {
	key, foreign := newKey(t), newKey(t)
	kid, err := policy.KeyID(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	good, err := policy.Sign(key, exampleSource(t))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	raw, err := strictjson.DecodeBase64URL(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	payload := string(raw)
	head := map[jose.HeaderKey]any{"typ": policy.Type, "kid": kid}
	with := func(k jose.HeaderKey, v any) map[jose.HeaderKey]any {
		m := map[jose.HeaderKey]any{"typ": policy.Type, "kid": kid}
		m[k] = v
		return m
	}
	if _, err := policy.Open(signRaw(t, key, jose.ES256, head, payload), keysOf(key), 0); err != nil {
		t.Fatalf("the control doesn't open: %v", err)
	}
	foreignSigned, err := policy.Sign(foreign, exampleSource(t))
	if err != nil {
		t.Fatal(err)
	}
	flipped := parts[0] + "." + parts[1][:40] + flip(parts[1][40]) + parts[1][41:] + "." + parts[2]
	for name, signed := range map[string]string{
		"foreign key":              foreignSigned,
		"foreign key, our kid":     signRaw(t, foreign, jose.ES256, head, payload),
		"HMAC with the public key": signRaw(t, []byte(kid+kid), jose.HS256, head, payload),
		"alg none":                 strictjson.EncodeBase64URL([]byte(`{"alg":"none","kid":"`+kid+`","typ":"`+policy.Type+`"}`)) + "." + parts[1] + ".",
		"another typ":              signRaw(t, key, jose.ES256, with("typ", "at+jwt"), payload),
		"a jku":                    signRaw(t, key, jose.ES256, with("jku", "https://evil.example"), payload),
		"a crit":                   signRaw(t, key, jose.ES256, with("crit", []string{"x"}), payload),
		"changed payload":          flipped,
		"no signature":             parts[0] + "." + parts[1] + ".",
		"trailing part":            good + ".AA",
		"padding":                  good + "=",
		"line break":               good + "\n",
		"empty":                    "",
		"too large":                strings.Repeat("A", policy.MaxSignedBytes+1),
		"unknown member":           signRaw(t, key, jose.ES256, head, strings.Replace(payload, `{`, `{"extra":1,`, 1)),
		"member twice":             signRaw(t, key, jose.ES256, head, strings.Replace(payload, `{`, `{"version":9,`, 1)),
		"trailing bytes":           signRaw(t, key, jose.ES256, head, payload+"{}"),
		"another schema":           signRaw(t, key, jose.ES256, head, strings.Replace(payload, policy.SchemaID, "deputy-policy/9", 1)),
		"version zero":             signRaw(t, key, jose.ES256, head, strings.Replace(payload, `"version":1`, `"version":0`, 1)),
		"negative version":         signRaw(t, key, jose.ES256, head, strings.Replace(payload, `"version":1`, `"version":-1`, 1)),
		"file twice":               signRaw(t, key, jose.ES256, head, strings.Replace(payload, `"files":[`, `"files":[{"name":"guard.cedar","text":""},`, 1)),
		"a bad policy":             signRaw(t, key, jose.ES256, head, strings.Replace(payload, `@limit(`, `@limits(`, 1)),
	} {
		if _, err := policy.Open(signed, keysOf(key), 0); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := policy.Open(good, keysOf(key), 2); !errors.Is(err, policy.ErrRollback) {
		t.Errorf("a lower version: %v, want ErrRollback", err)
	}
	if _, err := policy.Open(good, nil, 0); err == nil {
		t.Error("opened without keys")
	}
}

func flip(b byte) string {
	if b == 'A' {
		return "B"
	}
	return "A"
}

func FuzzOpenNeverPanicsAndNeverTrusts(f *testing.F) {
	key := newKey(f)
	good, err := policy.Sign(key, exampleSource(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("..")
	f.Fuzz(func(t *testing.T, signed string) {
		if _, err := policy.Open(signed, keysOf(key), 0); err == nil && signed != good {
			// ES256 is malleable, so another signature over the same bytes may verify; other bytes may not.
			if signed[:strings.LastIndexByte(signed, '.')] != good[:strings.LastIndexByte(good, '.')] {
				t.Fatal("opened something that was never signed")
			}
		}
	})
}
