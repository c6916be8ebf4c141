package idp

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/strictjson"
)

// VerifyIDToken implements actor.IdentityTokens: signature, algorithm, issuer and audience. Expiry is
// for the caller. It does no I/O.
func (v *Verifier) VerifyIDToken(ctx context.Context, raw string) (actor.IdentityClaims, error) {
	digest := sha256.Sum256([]byte(raw))
	if c, ok := v.known.get(digest); ok {
		// These exact bytes were good under a key that is still kept; what changes with time is asked again.
		if key, ok := v.providers[c.claims.Issuer].key(c.key); ok {
			return c.claims, v.timely(c.claims, key)
		}
	}
	claims, key, err := v.verify(ctx, raw)
	if err != nil {
		return actor.IdentityClaims{}, err
	}
	if err := v.timely(claims, key); err != nil {
		return actor.IdentityClaims{}, err
	}
	v.known.put(digest, checked{claims, key.name})
	return claims, nil
}

// timely holds an ID token against the clock and against what became of its key.
func (v *Verifier) timely(c actor.IdentityClaims, key datedKey) error {
	if c.IssuedAt.After(v.cfg.Now().Add(actor.Skew)) {
		return errors.New("iat lies in the future")
	}
	// Who stole a key that was withdrawn can still date a token back, but not make it fresh.
	if !key.published && c.IssuedAt.After(key.seen) {
		return errors.New("it was issued after its key was withdrawn")
	}
	return nil
}

// verify finds out everything about an ID token that doesn't change with time.
func (v *Verifier) verify(ctx context.Context, raw string) (actor.IdentityClaims, datedKey, error) {
	var none actor.IdentityClaims
	refuse := func(err error) (actor.IdentityClaims, datedKey, error) { return none, datedKey{}, err }
	header, members, payload, err := split(raw)
	if err != nil {
		return refuse(err)
	}
	// typ tells an ID token from every other kind of JWT that the provider signs with the same keys.
	if typ, err := header.String("typ"); err == nil && !strings.EqualFold(typ, "JWT") {
		return refuse(fmt.Errorf("typ %q is not an ID token's", typ))
	}
	iss, err := members.String("iss")
	if err != nil {
		return refuse(fmt.Errorf("reading iss: %w", err))
	}
	p, ok := v.providers[iss]
	if !ok {
		return refuse(fmt.Errorf("%q is not a configured identity provider", iss))
	}
	signature := &signature{provider: p}
	token, err := oidc.NewVerifier(p.Issuer, signature, p.oidc).Verify(ctx, raw)
	if err != nil {
		return refuse(err)
	}
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return refuse(err)
	}
	// go-oidc matches member names without regard to case; what it read must be what stands there.
	c := reader{claims: claims}
	out := actor.IdentityClaims{
		Issuer: iss, Subject: c.text("sub", true), Nonce: c.text("nonce", false), SID: c.text("sid", false),
		ACR: c.text("acr", false), AuthTime: c.time("auth_time", false), IssuedAt: c.time("iat", true),
		Expires: c.time("exp", true), Payload: payload,
	}
	azp := c.text("azp", false)
	if c.err != nil {
		return refuse(c.err)
	}
	switch {
	case token.Issuer != out.Issuer || token.Subject != out.Subject || token.Nonce != out.Nonce ||
		!token.Expiry.Equal(out.Expires):
		return refuse(errors.New("the ID token's members can be read in two ways"))
	case out.Subject == "":
		return refuse(errors.New("sub is empty"))
	case azp != "" && azp != p.ClientID:
		return refuse(fmt.Errorf("azp is %q, want %q", azp, p.ClientID))
	case len(token.Audience) > 1 && azp == "":
		return refuse(fmt.Errorf("aud has %d entries and azp is missing", len(token.Audience)))
	}
	return out, signature.key, nil
}

// signature implements oidc.KeySet with the keys of one provider alone, and says which of them it was.
type signature struct {
	provider *provider
	key      datedKey
}

func (s *signature) VerifySignature(_ context.Context, raw string) (payload []byte, err error) {
	payload, s.key, err = s.provider.verify(raw)
	return payload, err
}

func (p *provider) verify(raw string) ([]byte, datedKey, error) {
	var accepted []jose.SignatureAlgorithm
	for _, a := range p.Algorithms {
		accepted = append(accepted, jose.SignatureAlgorithm(a))
	}
	signed, err := jose.ParseSignedCompact(raw, accepted)
	if err != nil {
		return nil, datedKey{}, fmt.Errorf("reading the ID token: %w", err)
	}
	h := signed.Signatures[0].Header
	p.mu.RLock()
	defer p.mu.RUnlock()
	if len(p.keys) == 0 {
		return nil, datedKey{}, fmt.Errorf("no keys of %s are known yet", p.Issuer)
	}
	for _, k := range p.keys {
		if h.KeyID != "" && k.KeyID != h.KeyID || !fits(k.JSONWebKey, h.Algorithm) {
			continue
		}
		if payload, err := signed.Verify(k.Key); err == nil {
			return payload, k, nil
		}
	}
	return nil, datedKey{}, fmt.Errorf("no known key of %s verifies the ID token (kid %.64q)", p.Issuer, h.KeyID)
}

// fits holds one key to one algorithm, and to the curve or family that it needs.
func fits(k jose.JSONWebKey, alg string) bool {
	if k.Algorithm != "" && k.Algorithm != alg {
		return false
	}
	switch key := k.Key.(type) {
	case *ecdsa.PublicKey:
		return alg == "ES256" && key.Curve == elliptic.P256() || alg == "ES384" && key.Curve == elliptic.P384()
	case *rsa.PublicKey:
		return (alg == "RS256" || alg == "PS256") && key.N.BitLen() >= minRSABits
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// usable drops keys that are for encryption, private or of another kind.
func usable(keys []jose.JSONWebKey) []jose.JSONWebKey {
	return slices.DeleteFunc(slices.Clone(keys), func(k jose.JSONWebKey) bool {
		if k.Use != "" && k.Use != "sig" || !k.IsPublic() || !k.Valid() {
			return true
		}
		return !slices.ContainsFunc(algorithms, func(a string) bool {
			k.Algorithm = ""
			return fits(k, a)
		})
	})
}

// split reads header and payload of a compact JWS strictly; payload is also given as its exact bytes.
func split(raw string) (header, members strictjson.Object, payload []byte, err error) {
	refuse := func(err error) (strictjson.Object, strictjson.Object, []byte, error) {
		return strictjson.Object{}, strictjson.Object{}, nil, err
	}
	if len(raw) > actor.MaxSize {
		return refuse(fmt.Errorf("ID token of %d bytes: at most %d are read", len(raw), actor.MaxSize))
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return refuse(errors.New("the ID token is no compact JWS"))
	}
	var decoded [3][]byte
	for i, p := range parts {
		if decoded[i], err = strictjson.DecodeBase64URL(p); err != nil {
			return refuse(fmt.Errorf("reading the ID token: %w", err))
		}
	}
	if header, err = strictjson.ParseObject(decoded[0]); err == nil {
		members, err = strictjson.ParseObject(decoded[1])
	}
	if err != nil {
		return refuse(fmt.Errorf("reading the ID token: %w", err))
	}
	for _, m := range []string{"jku", "x5u", "x5c", "jwk", "crit", "b64", "zip"} {
		if header.Has(m) {
			return refuse(fmt.Errorf("%s is not allowed in an ID token's header", m))
		}
	}
	return header, members, decoded[1], nil
}

// reader takes members by their exact names and keeps the first failure.
type reader struct {
	claims map[string]json.RawMessage
	err    error
}

func (r *reader) text(name string, required bool) (s string) {
	r.read(name, required, &s)
	return s
}

func (r *reader) time(name string, required bool) time.Time {
	var n json.Number
	r.read(name, required, &n)
	if n == "" {
		return time.Time{}
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f > 1<<37 {
		r.fail(fmt.Errorf("%s is no time", name))
		return time.Time{}
	}
	return time.Unix(int64(f), 0).UTC()
}

func (r *reader) read(name string, required bool, into any) {
	raw, ok := r.claims[name]
	if !ok {
		if required {
			r.fail(fmt.Errorf("%s is missing", name))
		}
		return
	}
	if raw[0] == 'n' {
		r.fail(fmt.Errorf("%s is null", name))
		return
	}
	if _, number := into.(*json.Number); number && raw[0] == '"' {
		r.fail(fmt.Errorf("%s is a string, not a number", name))
		return
	}
	if err := json.Unmarshal(raw, into); err != nil {
		r.fail(fmt.Errorf("reading %s: %w", name, err))
	}
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}
