package ca

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// maxJWT bounds a JWT-SVID before anything is done with it. Ours take less than 4 KiB.
const maxJWT = 8 << 10

// VerifiedJWT is what a JWT-SVID says, once it is known to be one of this trust domain.
type VerifiedJWT struct {
	ID       spiffeid.ID
	Audience []string
	IssuedAt time.Time
	Expires  time.Time
	TokenID  string
}

// jwtHeader is all that the header of a JWT-SVID of ours says.
type jwtHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	Typ string `json:"typ"`
}

// Verify takes a JWT-SVID that this trust domain's issuer signed, as it signs them: what it would never write is refused
// (JWT-SVID §4, and more). Whether the subject still lives is the caller's to ask.
func (b *JWTBundle) Verify(token, audience string, now time.Time) (VerifiedJWT, error) {
	fail := func(format string, args ...any) (VerifiedJWT, error) {
		return VerifiedJWT{}, fmt.Errorf("JWT-SVID: "+format, args...)
	}
	if len(token) > maxJWT {
		return fail("larger than %d bytes", maxJWT)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fail("want a JWS in compact serialization")
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = strictjson.DecodeBase64URL(p); err != nil {
			return fail("%w", err)
		}
	}

	// 1. The header, before any cryptography: it chooses nothing but one of the keys that are there.
	var h jwtHeader
	if err := strictjson.Unmarshal(raw[0], &h); err != nil {
		return fail("header: %w", err)
	}
	if h.Alg != string(jose.ES256) || h.Typ != jwtType {
		return fail("alg is %q and typ is %q, want ES256 and %s", h.Alg, h.Typ, jwtType)
	}
	key := b.key(h.Kid)
	if key == nil {
		return fail("no key %q in the bundle of %s", h.Kid, b.td)
	}

	// 2. The signature, over the exact bytes.
	if !verifyES256(key, token[:strings.LastIndexByte(token, '.')], raw[2]) {
		return fail("the signature isn't one of the key %q", h.Kid)
	}

	// 3. What it says.
	var c claims
	if err := strictjson.Unmarshal(raw[1], &c); err != nil {
		return fail("claims: %w", err)
	}
	id, err := spiffeid.FromString(c.Subject)
	if err != nil || !id.MemberOf(b.td) || id.Path() == "" {
		return fail("sub %q names nothing in the trust domain %s", c.Subject, b.td)
	}
	if audience == "" || !slices.Contains(c.Audience, audience) {
		return fail("it is for %q, not for %q", c.Audience, audience)
	}
	if c.IssuedAt <= 0 || c.Expires <= c.IssuedAt || c.Expires-c.IssuedAt > int64(JWTLife/time.Second) {
		return fail("exp %d doesn't follow iat %d within %s", c.Expires, c.IssuedAt, JWTLife)
	}
	out := VerifiedJWT{id, c.Audience, time.Unix(c.IssuedAt, 0).UTC(), time.Unix(c.Expires, 0).UTC(), c.ID}
	if !now.Before(out.Expires) {
		return fail("it ended at %s", out.Expires)
	}
	if out.IssuedAt.After(now.Add(backdate)) {
		return fail("it begins at %s, which is still to come", out.IssuedAt)
	}
	return out, nil
}

// verifyES256 is RFC 7518 §3.4. A general library would read header and payload again, less strictly.
func verifyES256(key *ecdsa.PublicKey, signed string, signature []byte) bool {
	const half = 32
	if len(signature) != 2*half {
		return false
	}
	digest := sha256.Sum256([]byte(signed))
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:]))
}
