package integration_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
)

// rawJWS is a statement taken apart: header and claims are texts, so that they can be anything.
type rawJWS struct {
	header, claims string
	sign           func(input string) []byte
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (j rawJWS) String() string {
	input := b64([]byte(j.header)) + "." + b64([]byte(j.claims))
	return input + "." + b64(j.sign(input))
}

// apart takes a good statement apart, to be signed by key again.
func apart(t testing.TB, statement string, key any) rawJWS {
	t.Helper()
	p := strings.Split(statement, ".")
	var texts [2]string
	for i := range texts {
		raw, err := base64.RawURLEncoding.DecodeString(p[i])
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(raw)
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("a key of type %T", key)
	}
	return rawJWS{texts[0], texts[1], es256(t, k)}
}

func es256(t testing.TB, key *ecdsa.PrivateKey) func(string) []byte {
	return func(input string) []byte {
		sum := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return fixed(r, s, 32)
	}
}

func fixed(r, s *big.Int, n int) []byte {
	return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
}

// forgery is a way to make a bad statement out of a good one.
type forgery struct {
	name string
	make func(t testing.TB, j rawJWS) string
	// classes that the refusal may have.
	classes []string
}

func in(texts ...func(*rawJWS)) func(testing.TB, rawJWS) string {
	return func(_ testing.TB, j rawJWS) string {
		for _, f := range texts {
			f(&j)
		}
		return j.String()
	}
}

func header(from, to string) func(*rawJWS) {
	return func(j *rawJWS) { j.header = replaced(j.header, from, to) }
}

func claims(from, to string) func(*rawJWS) {
	return func(j *rawJWS) { j.claims = replaced(j.claims, from, to) }
}

// replaced fails loudly where an attack would otherwise change nothing.
func replaced(text, from, to string) string {
	if !strings.Contains(text, from) {
		panic(fmt.Sprintf("no %q in %s", from, text))
	}
	return strings.Replace(text, from, to, 1)
}

func add(member string) func(*rawJWS) {
	return func(j *rawJWS) { j.header = replaced(j.header, "{", "{"+member+",") }
}

func addClaim(member string) func(*rawJWS) {
	return func(j *rawJWS) { j.claims = replaced(j.claims, "{", "{"+member+",") }
}

// formForgeries change how a statement is written, for every kind of ours.
func formForgeries() []forgery {
	of := func(name string, make func(testing.TB, rawJWS) string, classes ...string) forgery {
		return forgery{name, make, classes}
	}
	alg := func(to string) func(*rawJWS) { return header(`"alg":"ES256"`, `"alg":"`+to+`"`) }
	list := []forgery{
		of("alg none", in(alg("none")), "header.alg"),
		of("alg none without signature", func(_ testing.TB, j rawJWS) string {
			alg("none")(&j)
			return b64([]byte(j.header)) + "." + b64([]byte(j.claims)) + "."
		}, "credential.parts"),
		of("alg NoNe", in(alg("NoNe")), "header.alg"),
		of("alg HS256 with the public key", func(t testing.TB, j rawJWS) string {
			alg("HS256")(&j)
			j.sign = func(input string) []byte {
				mac := hmac.New(sha256.New, []byte(j.header))
				mac.Write([]byte(input))
				return mac.Sum(nil)
			}
			return j.String()
		}, "header.alg"),
		of("alg Es256", in(alg("Es256")), "header.alg"),
		of("alg RS256", in(alg("RS256")), "header.alg"),
		of("alg EdDSA", in(alg("EdDSA")), "header.alg"),
		of("alg ES384", func(t testing.TB, j rawJWS) string {
			alg("ES384")(&j)
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			j.sign = func(input string) []byte {
				sum := sha512.Sum384([]byte(input))
				r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
				if err != nil {
					t.Fatal(err)
				}
				return fixed(r, s, 48)
			}
			return j.String()
		}, "header.alg"),
		of("no alg", in(header(`"alg":"ES256",`, "")), "header.alg", "json.missing"),
		of("alg twice", in(add(`"alg":"ES256"`)), "json.duplicate"),
		of("ALG beside alg", in(add(`"ALG":"ES256"`)), "json.case"),
		of("typ in another case", in(header(`+jwt"`, `+JWT"`)), "header.typ"),
		of("no typ", in(header(`"typ":`, `"cty":`)), "header.member", "header.typ"),
		of("json after the header", in(func(j *rawJWS) { j.header += "{}" }), "json.trailing"),
		of("a claim twice", in(func(j *rawJWS) { j.claims = replaced(j.claims, `"jti":`, `"jti":"`+actor.NewHexID()+`","jti":`) }), "json.duplicate"),
		of("a claim twice, escaped", in(func(j *rawJWS) {
			j.claims = replaced(j.claims, `"jti":`, `"\u006ati":"`+actor.NewHexID()+`","jti":`)
		}), "json.duplicate"),
		of("EXP instead of exp", in(claims(`"exp":`, `"EXP":`)), "json.case"),
		of("\u017fub_id beside sub_id", in(addClaim(`"`+"\u017f"+`ub_id":{}`)), "json.case"),
		of("an unknown claim", in(addClaim(`"admin":true`)), "json.unknown"),
		of("a claim that is null", in(claims(`"purpose":"`, `"purpose":null,"x":"`)), "json.type", "json.unknown"),
		of("bytes after the claims", in(func(j *rawJWS) { j.claims += " x" }), "json.trailing"),
		of("a byte order mark", in(func(j *rawJWS) { j.claims = "\ufeff" + j.claims }), "json.syntax"),
		of("invalid UTF-8", in(claims(`"purpose":"`, "\"purpose\":\"\xc0\xaf")), "json.utf8"),
		of("a lone surrogate", in(claims(`"purpose":"`, `"purpose":"\ud800`)), "json.utf8"),
		of("text that fools a terminal", in(claims(`"purpose":"`, `"purpose":"\u202e`)), "claim.value"),
		of("depth", in(addClaim(`"x":`+strings.Repeat("[", 200)+strings.Repeat("]", 200))), "json.depth"),
		of("depth without end", in(addClaim(`"x":`+strings.Repeat("[", 12000)+`"y"`)), "json.depth", "json.syntax", "credential.size"),
		of("exp as a string", in(claims(`"exp":`, `"exp":"1","x":`)), "json.type", "json.unknown"),
		of("exp as a fraction", in(claims(`"exp":`, `"exp":9e9,"x":`)), "json.range", "json.unknown"),
		of("exp that overflows", in(claims(`"exp":`, `"exp":99999999999999999999,"x":`)), "json.range", "json.unknown"),
		of("an unsigned change", func(_ testing.TB, j rawJWS) string {
			good := strings.Split(j.String(), ".")
			changed := rawJWS{j.header, replaced(j.claims, `"purpose":"`, `"purpose":"x`), j.sign}
			return good[0] + "." + b64([]byte(changed.claims)) + "." + good[2]
		}, "grant.signature", "token.signature"),
		of("a signature of zeros", in(func(j *rawJWS) { j.sign = func(string) []byte { return make([]byte, 64) } }), "grant.signature", "token.signature"),
		of("a signature in DER", func(t testing.TB, j rawJWS) string {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			j.sign = func(input string) []byte {
				sum := sha256.Sum256([]byte(input))
				der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
				if err != nil {
					t.Fatal(err)
				}
				return der
			}
			return j.String()
		}, "grant.signature", "token.signature"),
		of("another's key", func(t testing.TB, j rawJWS) string {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			j.sign = es256(t, key)
			return j.String()
		}, "grant.signature", "token.signature"),
		of("padding", func(_ testing.TB, j rawJWS) string { return j.String() + "=" }, "credential.alphabet", "credential.base64"),
		of("a line break", func(_ testing.TB, j rawJWS) string { s := j.String(); return s[:20] + "\n" + s[20:] }, "credential.alphabet"),
		of("standard base64", func(_ testing.TB, j rawJWS) string { s := j.String(); return s[:20] + "+" + s[21:] }, "credential.alphabet"),
		of("stray bits", func(_ testing.TB, j rawJWS) string { return strayBits(j.String()) }, "credential.base64"),
		of("four parts", func(_ testing.TB, j rawJWS) string { return j.String() + ".e30" }, "credential.parts"),
		of("five parts, as JWE", func(_ testing.TB, j rawJWS) string { return j.String() + ".e30.e30" }, "credential.parts"),
		of("JSON serialisation", func(_ testing.TB, j rawJWS) string {
			p := strings.Split(j.String(), ".")
			return `{"protected":"` + p[0] + `","payload":"` + p[1] + `","signature":"` + p[2] + `"}`
		}, "credential.alphabet", "credential.parts"),
	}
	for _, member := range []string{
		`"crit":["exp"]`, `"crit":[]`, `"b64":false`, `"zip":"DEF"`, `"jku":"https://evil.example/jwks"`, `"x5u":"https://evil.example/x"`,
		`"x5t":"AAAA"`, `"x5t#S256":"AAAA"`, `"cty":"JWT"`, `"nonce":"x"`, `"iat":1`,
	} {
		list = append(list, of("header "+member[:strings.Index(member, ":")], in(add(member)), "header.member"))
	}
	return list
}

// strayBits changes the unused bits at the end of the signature: another string for the same bytes.
func strayBits(statement string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, statement[len(statement)-1])
	return statement[:len(statement)-1] + string(alphabet[last|1])
}

// malleated is another signature of the same statement that is as good: (r, n−s).
func malleated(t testing.TB, statement string) string {
	t.Helper()
	at := strings.LastIndexByte(statement, '.')
	sig, err := base64.RawURLEncoding.DecodeString(statement[at+1:])
	if err != nil || len(sig) != 64 {
		t.Fatalf("a signature of %d bytes: %v", len(sig), err)
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	return statement[:at+1] + b64(fixed(r, s.Sub(elliptic.P256().Params().N, s), 32))
}

func keyOf(t testing.TB, s *x509svid.SVID) *ecdsa.PrivateKey {
	t.Helper()
	key, ok := s.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("an SVID key of type %T", s.PrivateKey)
	}
	return key
}
