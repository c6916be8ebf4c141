package idp

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	token, err := read(raw)
	if err != nil {
		return refuse(err)
	}
	out := token.Claims
	p, ok := v.providers[out.Issuer]
	if !ok {
		return refuse(fmt.Errorf("%q is not a configured identity provider", out.Issuer))
	}
	signature := &signature{provider: p}
	verified, err := oidc.NewVerifier(p.Issuer, signature, p.oidc).Verify(ctx, raw)
	if err != nil {
		return refuse(err)
	}
	switch {
	// go-oidc matches member names without regard to case; what it read must be what stands there.
	case verified.Issuer != out.Issuer || verified.Subject != out.Subject || verified.Nonce != out.Nonce ||
		!verified.Expiry.Equal(out.Expires) || !slices.Equal(verified.Audience, token.Audience):
		return refuse(errors.New("the ID token's members can be read in two ways"))
	case !token.IsFor([]string{p.ClientID}):
		return refuse(fmt.Errorf("with aud %q and azp %q it was issued to another client than %q", token.Audience, token.AuthorizedParty, p.ClientID))
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

// read takes an ID token apart by the rules that hold wherever one is judged, and refuses what no provider of sign-ins has a reason to
// put into a header.
func read(raw string) (actor.IDToken, error) {
	if len(raw) > actor.MaxSize {
		return actor.IDToken{}, fmt.Errorf("ID token of %d bytes: at most %d are read", len(raw), actor.MaxSize)
	}
	token, err := actor.ParseIDToken(raw)
	if err != nil {
		return actor.IDToken{}, fmt.Errorf("reading the ID token: %w", err)
	}
	part, _, _ := strings.Cut(raw, ".")
	decoded, err := strictjson.DecodeBase64URL(part)
	if err != nil {
		return actor.IDToken{}, fmt.Errorf("reading the ID token: %w", err)
	}
	header, err := strictjson.ParseObject(decoded)
	if err != nil {
		return actor.IDToken{}, fmt.Errorf("reading the ID token: %w", err)
	}
	for _, m := range []string{"x5c", "b64", "zip"} {
		if header.Has(m) {
			return actor.IDToken{}, fmt.Errorf("%s is not allowed in an ID token's header", m)
		}
	}
	return token, nil
}
