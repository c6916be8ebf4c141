package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/audit"
)

// IdentityKeys keeps the key documents of identity providers as evidence: each is durable before its
// keys are used, and what was published during the longest session is at hand for the record of a
// verification.
type IdentityKeys struct {
	log  *audit.Log
	keep time.Duration
	now  func() time.Time

	mu      sync.Mutex // guards issuers
	issuers map[string]*publishedKeys
}

type publishedKeys struct {
	seen     map[string]seenKey // by the key's own JSON
	current  []string           // those of the newest document
	document []byte
}

type seenKey struct {
	key  jose.JSONWebKey
	last time.Time
}

// NewIdentityKeys makes a keeper; keep is the longest session.
func NewIdentityKeys(log *audit.Log, keep time.Duration, now func() time.Time) *IdentityKeys {
	if now == nil {
		now = time.Now
	}
	return &IdentityKeys{log: log, keep: keep, now: now, issuers: map[string]*publishedKeys{}}
}

// Keep takes a new key document of a provider. It fits the OnKeys of internal/idp.
func (k *IdentityKeys) Keep(ctx context.Context, issuer string, document []byte) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(document, &set); err != nil {
		return fmt.Errorf("keeping the keys of %s: %w", issuer, err)
	}
	for _, key := range set.Keys {
		if !key.IsPublic() || !key.Valid() {
			return fmt.Errorf("keeping the keys of %s: it publishes something that is no public key", issuer)
		}
	}
	if _, err := k.log.PutEvidence(ctx, audit.KindIdentityKeys, document); err != nil {
		return fmt.Errorf("keeping the keys of %s: %w", issuer, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.issuers[issuer]
	if p == nil {
		p = &publishedKeys{seen: map[string]seenKey{}}
		k.issuers[issuer] = p
	}
	now := k.now()
	// The document before was in force until now.
	for _, name := range p.current {
		p.seen[name] = seenKey{p.seen[name].key, now}
	}
	p.current = nil
	for name, old := range p.seen {
		if now.Sub(old.last) > k.keep {
			delete(p.seen, name)
		}
	}
	for _, key := range set.Keys {
		raw, err := key.MarshalJSON()
		if err != nil {
			return fmt.Errorf("keeping the keys of %s: %w", issuer, err)
		}
		p.seen[string(raw)] = seenKey{key, now}
		p.current = append(p.current, string(raw))
	}
	var union jose.JSONWebKeySet
	for _, name := range slices.Sorted(maps.Keys(p.seen)) {
		union.Keys = append(union.Keys, p.seen[name].key)
	}
	raw, err := json.Marshal(union)
	if err != nil {
		return fmt.Errorf("keeping the keys of %s: %w", issuer, err)
	}
	p.document = raw
	return nil
}

// Document is a JWKS of all keys that the provider published within the longest session.
func (k *IdentityKeys) Document(issuer string) []byte {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.issuers[issuer]; p != nil {
		return p.document
	}
	return nil
}
