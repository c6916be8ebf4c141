package ca

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
)

// maxJWTKeys bounds a bundle: the key in use, the one before and the next one are three.
const maxJWTKeys = 16

// JWTBundle is the trust domain's set of JWT authorities, with news of changes. Safe for concurrent use.
type JWTBundle struct {
	td spiffeid.TrustDomain

	mu      sync.Mutex
	keys    map[string]*ecdsa.PublicKey // by kid
	jwks    []byte
	changed chan struct{}
}

// NewJWTBundle holds no key yet.
func NewJWTBundle(td spiffeid.TrustDomain) *JWTBundle {
	return &JWTBundle{td: td, changed: make(chan struct{})}
}

// TrustDomain is whose authorities these are.
func (b *JWTBundle) TrustDomain() spiffeid.TrustDomain { return b.td }

// Current returns the authorities as a JWK set, and a channel that is closed when they change.
func (b *JWTBundle) Current() ([]byte, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.jwks, b.changed
}

// Set replaces the authorities and wakes everybody who holds a channel of Current.
func (b *JWTBundle) Set(keys ...*ecdsa.PublicKey) error {
	jwks, err := EncodeJWTBundle(keys...)
	if err != nil {
		return err
	}
	byID := map[string]*ecdsa.PublicKey{}
	for _, k := range keys {
		byID[actor.NonceFor(k)] = k
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys, b.jwks = byID, jwks
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

func (b *JWTBundle) key(kid string) *ecdsa.PublicKey {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keys[kid]
}

// EncodeJWTBundle writes keys as a SPIFFE bundle does (SPIFFE Trust Domain and Bundle §4, JWT-SVID §6): their kid is the RFC 7638
// thumbprint, their use `jwt-svid`.
func EncodeJWTBundle(keys ...*ecdsa.PublicKey) ([]byte, error) {
	if len(keys) == 0 || len(keys) > maxJWTKeys {
		return nil, fmt.Errorf("JWT bundle: %d keys, want 1 to %d", len(keys), maxJWTKeys)
	}
	set := jose.JSONWebKeySet{}
	for i, k := range keys {
		pub, err := actor.P256(k)
		if err != nil {
			return nil, fmt.Errorf("JWT bundle: key %d: %w", i+1, err)
		}
		kid := actor.NonceFor(pub)
		if len(set.Key(kid)) > 0 {
			return nil, fmt.Errorf("JWT bundle: key %d stands there twice", i+1)
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: pub, KeyID: kid, Use: "jwt-svid"})
	}
	return json.Marshal(set)
}

// DecodeJWTKeys reads PEM public keys: the one that signs first, then others that stand in the JWT bundle as well (the one
// before or the next one).
func DecodeJWTKeys(b []byte) (out []*ecdsa.PublicKey, err error) {
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			if strings.TrimSpace(string(b)) != "" {
				return nil, errors.New("bytes that are no PEM block")
			}
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("PEM block %q where a PUBLIC KEY is expected", block.Type)
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(out)+1, err)
		}
		pub, err := actor.P256(k)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(out)+1, err)
		}
		out, b = append(out, pub), rest
	}
	if _, err := EncodeJWTBundle(out...); err != nil {
		return nil, err
	}
	return out, nil
}
