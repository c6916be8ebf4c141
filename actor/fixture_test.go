package actor_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The fixture makes everything by hand, not by the package's own signers: a
// statement that breaks a rule couldn't be made otherwise. All of it is
// deterministic (keys from names, RFC 6979 signatures, fixed times), so that the
// vectors come out the same every time.

const (
	domain   = "corp.example"
	meshURL  = "https://broker.corp.example"
	idpURL   = "https://idp.corp.example"
	clientID = "deputy-corp"
)

var start = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// now is when vectors are verified.
var now = start.Add(2 * time.Minute)

// signer makes RFC 6979 signatures whatever source of randomness it is given.
type signer struct{ *ecdsa.PrivateKey }

func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.PrivateKey.Sign(nil, digest, opts)
}

// detSigner is signer for keys on other curves.
type detSigner = signer

func keyFor(name string) signer {
	sum := sha256.Sum256([]byte("deputy test key: " + name))
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), sum[:])
	if err != nil {
		panic(err)
	}
	return signer{k}
}

func hexID(name string) string {
	sum := sha256.Sum256([]byte("deputy test id: " + name))
	return hex.EncodeToString(sum[:16])
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func idOf(path string) spiffeid.ID { return must(spiffeid.FromString("spiffe://" + domain + path)) }

func agent(id string) actor.AgentID { return must(actor.AgentIDFromString(id)) }

var (
	target      = idOf("/target/orders")
	otherTarget = idOf("/target/billing")
	planner     = idOf("/agent/planner/" + hexID("planner")).String()
	researcher  = planner + "/researcher/" + hexID("researcher")
	runner      = researcher + "/sqlrunner/" + hexID("sqlrunner")
)

// certificate mints an SVID, or a CA when id is empty.
type certificate struct {
	id        string
	key       crypto.Signer
	ca        string // name of the CA
	notBefore time.Time
	notAfter  time.Time
	extra     []pkix.Extension
	usage     x509.KeyUsage
	isCA      bool
}

func caCert(name string) *x509.Certificate {
	c := certificate{key: keyFor(name), ca: name, notBefore: start.Add(-24 * time.Hour), notAfter: start.Add(30 * 24 * time.Hour), isCA: true}
	return c.mint(nil)
}

func (c certificate) mint(parent *x509.Certificate) *x509.Certificate {
	serial := sha256.Sum256(fmt.Appendf(nil, "%s %s %v", c.id, c.ca, c.notAfter))
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:8]), Subject: pkix.Name{Organization: []string{"Deputy test " + c.ca}},
		NotBefore: c.notBefore, NotAfter: c.notAfter, BasicConstraintsValid: true, IsCA: c.isCA,
		KeyUsage: c.usage, ExtraExtensions: c.extra,
	}
	if c.isCA {
		tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else if tmpl.KeyUsage == 0 {
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	}
	if c.id != "" {
		tmpl.URIs = []*url.URL{must(url.Parse(c.id))}
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	if parent == nil {
		parent = tmpl
	}
	der := must(x509.CreateCertificate(nil, tmpl, parent, c.key.Public(), keyFor(c.ca)))
	return must(x509.ParseCertificate(der))
}

func gradeExt(g actor.Grade) []pkix.Extension {
	e := actor.Evidence{Kind: "unix", UID: 20001, GID: 20001, Path: "/usr/bin/python3", SHA256: strings.Repeat("ab", 32), Cgroup: "/deputy/run-1"}
	return []pkix.Extension{must(actor.GradeExtension(g, e))}
}

// svid is the ordinary certificate of an agent, from our CA, for an hour.
func svid(id string, change ...func(*certificate)) []*x509.Certificate {
	c := certificate{id: id, key: keyFor(id), ca: "ca", notBefore: start.Add(-time.Minute), notAfter: start.Add(time.Hour), extra: gradeExt(actor.Attested)}
	for _, f := range change {
		f(&c)
	}
	return []*x509.Certificate{c.mint(caCert(c.ca))}
}

// statement is one JWS before it is signed.
type statement struct {
	header map[string]any
	claims map[string]any
	key    crypto.Signer
	// rewrite the JSON text before it is signed.
	rawHeader, rawClaims func(string) string
	// after changes the finished compact form.
	after func(string) string
	// keep says which computed members (prh, head, th) to leave as they are.
	keep bool
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func signRaw(key crypto.Signer, header, claims []byte) string {
	input := b64(header) + "." + b64(claims)
	sum := sha256.Sum256([]byte(input))
	var size int
	switch k := key.Public().(type) {
	case *ecdsa.PublicKey:
		size = (k.Curve.Params().BitSize + 7) / 8
	}
	var rs struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(must(key.Sign(nil, sum[:], crypto.SHA256)), &rs)
	if err != nil {
		panic(err)
	}
	return input + "." + b64(append(rs.R.FillBytes(make([]byte, size)), rs.S.FillBytes(make([]byte, size))...))
}

func (s *statement) sign() string {
	h, c := must(json.Marshal(s.header)), must(json.Marshal(s.claims))
	if s.rawHeader != nil {
		h = []byte(s.rawHeader(string(h)))
	}
	if s.rawClaims != nil {
		c = []byte(s.rawClaims(string(c)))
	}
	out := signRaw(s.key, h, c)
	if s.after != nil {
		out = s.after(out)
	}
	return out
}

// flow is one credential before it is signed; grants are oldest first.
type flow struct {
	idToken *statement // nil: leave it out
	user    *statement
	grants  []*statement
	token   *statement
	peer    []*x509.Certificate
	// parts changes the finished parts, newest first.
	parts func([]string) []string
	whole func(string) string
}

func jwkOf(k crypto.Signer) map[string]any {
	point := must(k.Public().(*ecdsa.PublicKey).Bytes())
	n := (len(point) - 1) / 2
	return map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1 : 1+n]), "y": b64(point[1+n:])}
}

func x5c(chain []*x509.Certificate) []string {
	var out []string
	for _, c := range chain {
		out = append(out, base64.StdEncoding.EncodeToString(c.Raw))
	}
	return out
}

func subID() map[string]any {
	return map[string]any{"format": "iss_sub", "iss": idpURL, "sub": "00u1a2b3c4d5"}
}

var user = actor.SubjectID{Issuer: idpURL, Subject: "00u1a2b3c4d5"}

func pgCap(change ...func(map[string]any)) []any {
	d := map[string]any{
		"type": "deputy_postgres", "locations": []any{target.String()}, "actions": []any{"select", "insert"},
		"databases": []any{"orders"}, "tables": []any{"sales.*", "public.customers"}, "max_rows": 1000,
	}
	for _, f := range change {
		f(d)
	}
	return []any{d}
}

func actOf(ids ...string) map[string]any {
	var act map[string]any
	for _, id := range ids {
		outer := map[string]any{"sub": id, "iss": "spiffe://" + domain, "sub_profile": "ai_agent"}
		if act != nil {
			outer["act"] = act
		}
		act = outer
	}
	return act
}

// chainOf is a valid flow of the user and these agents.
func chainOf(agents ...string) *flow {
	login := keyFor("login")
	f := &flow{
		idToken: &statement{
			header: map[string]any{"alg": "ES256", "typ": "JWT", "kid": "idp-1"},
			claims: map[string]any{"iss": idpURL, "sub": "00u1a2b3c4d5", "aud": clientID, "nonce": actor.NonceFor(login.Public()),
				"sid": "d3f1c2b0", "auth_time": start.Add(-time.Hour).Unix(), "acr": "phr", "iat": start.Add(-time.Hour).Unix(),
				"exp": start.Add(-55 * time.Minute).Unix(), "email": "ada@corp.example", "groups": []string{"analysts"}},
			key: keyFor("idp"),
		},
		user: &statement{
			header: map[string]any{"alg": "ES256", "typ": "deputy-user-grant+jwt", "jwk": jwkOf(login)},
			claims: map[string]any{"iss": idpURL, "root": map[string]any{"type": "id_token", "iss": idpURL, "sid": "d3f1c2b0"},
				"delegate": agents[0], "mesh": meshURL, "sub_id": subID(), "txn": hexID("txn"), "cap": pgCap(), "left": 4,
				"purpose": "q3 refunds", "iat": start.Unix(), "exp": start.Add(50 * time.Minute).Unix(), "jti": hexID("user grant")},
			key: login,
		},
	}
	for i := 0; i+1 < len(agents); i++ {
		f.grants = append(f.grants, &statement{
			header: map[string]any{"alg": "ES256", "typ": "deputy-grant+jwt", "x5c": x5c(svid(agents[i]))},
			claims: map[string]any{"iss": agents[i], "delegate": agents[i+1], "mesh": meshURL, "sub_id": subID(), "txn": hexID("txn"),
				"cap": pgCap(), "left": 3 - i, "purpose": "q3 refunds", "iat": start.Add(time.Duration(i+1) * time.Second).Unix(),
				"exp": start.Add(time.Duration(40-i) * time.Minute).Unix(), "jti": hexID(fmt.Sprint("grant", i))},
			key: keyFor(agents[i]),
		})
	}
	last := agents[len(agents)-1]
	f.peer = svid(last)
	f.token = &statement{
		header: map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": actor.NonceFor(keyFor("token").Public())},
		claims: map[string]any{"iss": meshURL, "aud": target.String(), "sub": actor.SubjectName(user), "sub_id": subID(), "sid": "d3f1c2b0",
			"auth_time": start.Add(-time.Hour).Unix(), "acr": "phr", "client_id": last, "act": actOf(agents...),
			"cnf":                   map[string]any{"x5t#S256": actor.CertificateHash(f.peer[0])},
			"authorization_details": pgCap(func(d map[string]any) { d["actions"] = []any{"select"} }),
			"roles":                 []string{"analyst"}, "purpose": "q3 refunds", "txn": hexID("txn"),
			"iat": start.Add(time.Minute).Unix(), "nbf": start.Add(time.Minute).Unix(), "exp": start.Add(6 * time.Minute).Unix(), "jti": hexID("token")},
		key: keyFor("token"),
	}
	return f
}

// lineage are the signed parts after the token, newest first.
func (f *flow) lineage() []string {
	var out []string
	idToken, before := "", ""
	if f.idToken != nil {
		idToken = f.idToken.sign()
		before = idToken
	}
	if f.user != nil {
		if r, ok := f.user.claims["root"].(map[string]any); ok && !f.user.keep {
			r["th"] = actor.Hash(idToken)
		}
		before = f.user.sign()
		out = append(out, before)
	}
	for _, g := range f.grants {
		if !g.keep {
			g.claims["prh"] = actor.Hash(before)
		}
		before = g.sign()
		out = append([]string{before}, out...)
	}
	if idToken != "" {
		out = append(out, idToken)
	}
	return out
}

func (f *flow) credential() string {
	lineage := f.lineage()
	if !f.token.keep && (f.user != nil || len(f.grants) > 0) {
		f.token.claims["head"] = actor.Hash(lineage[0])
	}
	parts := append([]string{f.token.sign()}, lineage...)
	if f.parts != nil {
		parts = f.parts(parts)
	}
	return f.finish(parts)
}

func (f *flow) subject() string {
	parts := f.lineage()
	if f.parts != nil {
		parts = f.parts(parts)
	}
	return f.finish(parts)
}

func (f *flow) finish(parts []string) string {
	whole := strings.Join(parts, "~")
	if f.whole != nil {
		whole = f.whole(whole)
	}
	return whole
}

// What a verifier believes.

type keySet map[string]actor.KeyStatement

func (k keySet) TokenKey(kid string) (actor.KeyStatement, error) {
	if s, ok := k[kid]; ok {
		return s, nil
	}
	return actor.KeyStatement{}, errors.New("unknown kid")
}

type provider struct{ key crypto.PublicKey }

func (p provider) VerifyIDToken(_ context.Context, raw string) (actor.IdentityClaims, error) {
	j, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return actor.IdentityClaims{}, err
	}
	if _, err := j.Verify(p.key); err != nil {
		return actor.IdentityClaims{}, err
	}
	token, err := actor.ParseIDToken(raw)
	if err != nil {
		return actor.IdentityClaims{}, err
	}
	if token.Claims.Issuer != idpURL || !token.IsFor([]string{clientID}) {
		return actor.IdentityClaims{}, errors.New("not our provider or client")
	}
	return token.Claims, nil
}

type revokedSet map[actor.RevocationKey]bool

func (r revokedSet) Check(keys []actor.RevocationKey) error {
	for _, k := range keys {
		if r[k] {
			return &actor.RevokedError{Key: k}
		}
	}
	return nil
}

func tokenKeys() keySet {
	k := actor.KeyStatement{Mesh: meshURL, Key: &keyFor("token").PublicKey, NotBefore: start.Add(-time.Hour), Expires: start.Add(24 * time.Hour)}
	return keySet{k.KeyID(): k}
}

func config(change ...func(*actor.Config)) actor.Config {
	td := spiffeid.RequireTrustDomainFromString(domain)
	bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{caCert("ca")})
	other := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("evil.example"), []*x509.Certificate{caCert("evil")})
	cfg := actor.Config{
		TrustDomain: td, Bundles: x509bundle.NewSet(bundle, other), Target: target, Mesh: meshURL, TokenKeys: tokenKeys(),
		IdentityTokens: provider{&keyFor("idp").PublicKey}, Revocations: revokedSet{}, Now: func() time.Time { return now },
	}
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func newVerifier(t testing.TB, change ...func(*actor.Config)) *actor.Verifier {
	t.Helper()
	v, err := actor.NewVerifier(config(change...))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func unb64(s string) []byte { return must(base64.RawURLEncoding.DecodeString(s)) }
