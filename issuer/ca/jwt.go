package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

const (
	// JWTLife is how long a JWT-SVID lives at most: whoever holds it can use it, and nobody can take it back.
	JWTLife = 5 * time.Minute
	// jwtType is the type of a JWT-SVID (JWT-SVID §2.3). No statement of ours has it, so neither is read as the other.
	jwtType = "JWT"
)

// JWTConfig makes a JWTAuthority.
type JWTConfig struct {
	TrustDomain spiffeid.TrustDomain
	Key         crypto.Signer // ECDSA P-256, and no other authority's
	// Mesh is the broker's issuer URL. No JWT-SVID is for it.
	Mesh string
	Now  func() time.Time
}

// JWTAuthority signs JWT-SVIDs (SPIFFE JWT-SVID, ES256). Safe for concurrent use.
type JWTAuthority struct {
	td   spiffeid.TrustDomain
	key  crypto.Signer
	pub  *ecdsa.PublicKey
	kid  string
	mesh origin
	now  func() time.Time
}

// NewJWTAuthority checks the key.
func NewJWTAuthority(cfg JWTConfig) (*JWTAuthority, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.TrustDomain.IsZero() {
		return nil, errors.New("JWT authority: no trust domain")
	}
	if cfg.Key == nil {
		return nil, errors.New("JWT authority: there is no key")
	}
	pub, err := actor.P256(cfg.Key.Public())
	if err != nil {
		return nil, fmt.Errorf("JWT authority: %w", err)
	}
	mesh, err := originOf(cfg.Mesh)
	if err != nil || mesh.host == "" {
		return nil, fmt.Errorf("JWT authority: %q isn't the broker's issuer URL, such as https://broker.corp.example", cfg.Mesh)
	}
	return &JWTAuthority{cfg.TrustDomain, cfg.Key, pub, actor.NonceFor(pub), mesh, cfg.Now}, nil
}

// PublicKey is the key that signs; it stands in the JWT bundle.
func (a *JWTAuthority) PublicKey() *ecdsa.PublicKey { return a.pub }

// TrustDomain is the authority's trust domain.
func (a *JWTAuthority) TrustDomain() spiffeid.TrustDomain { return a.td }

// JWT is a request for a JWT-SVID.
type JWT struct {
	ID       spiffeid.ID
	Audience []string
	// NotAfter is the end of the X.509-SVID that it stands beside.
	NotAfter time.Time
	// Attested is what is known of who asked, for the record.
	Attested []audit.Selector
}

// claims are all that a JWT-SVID says. The order is that of the text.
type claims struct {
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	IssuedAt int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	// ID is the id of the issuer's record of it.
	ID string `json:"jti"`
}

// Sign signs a JWT-SVID after record has made the intent durable. When record fails nothing is signed. Whether the ID is the
// caller's is the caller's to know.
func (a *JWTAuthority) Sign(ctx context.Context, j JWT, record func(context.Context, audit.Record) error) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("signing a JWT-SVID for %s: %w", j.ID, err) }
	if !j.ID.MemberOf(a.td) || j.ID.Path() == "" {
		return fail(fmt.Errorf("it names nothing in the trust domain %s", a.td.Name()))
	}
	if err := a.CheckAudience(j.Audience); err != nil {
		return fail(err)
	}
	now := a.now().Truncate(time.Second)
	end := now.Add(JWTLife)
	if end.After(j.NotAfter) {
		end = j.NotAfter.Truncate(time.Second)
	}
	if !end.After(now) {
		return fail(fmt.Errorf("the X.509-SVID beside it ends at %s; renew that first", j.NotAfter))
	}
	id, err := audit.NewRecordID()
	if err != nil {
		return fail(err)
	}
	if err := record(ctx, audit.Record{ID: id, Event: &audit.JWTSVID{
		Result: audit.Accepted, Subject: j.ID.String(), Audience: j.Audience, TokenID: string(id), KeyID: a.kid, Expires: &end, Attested: j.Attested,
	}}); err != nil {
		return fail(fmt.Errorf("recording the intent: %w", err))
	}
	token, err := a.sign(claims{j.ID.String(), j.Audience, now.Unix(), end.Unix(), string(id)})
	if err != nil {
		return fail(err)
	}
	return token, nil
}

func (a *JWTAuthority) sign(c claims) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cryptosigner.Opaque(a.key)}, &jose.SignerOptions{
		ExtraHeaders: map[jose.HeaderKey]any{jose.HeaderType: jwtType, "kid": a.kid},
	})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
