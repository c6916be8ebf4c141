package idp

import (
	"crypto/sha256"
	"sync"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/actor"
)

// maxKnown is how many ID tokens are remembered. A user's is presented with each credential of each of her agents.
const maxKnown = 1024

// keyName is the hash of a key's own document: all that is said about it, kid and alg included.
type keyName [sha256.Size]byte

// nameKey names a key that usable let through, which can always be written down.
func nameKey(k jose.JSONWebKey) keyName {
	raw, err := k.MarshalJSON()
	if err != nil {
		return keyName{}
	}
	return sha256.Sum256(raw)
}

// key is a key that the provider has, or had within the time that keys are kept.
func (p *provider) key(name keyName) (datedKey, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, k := range p.keys {
		if k.name == name && name != (keyName{}) {
			return k, true
		}
	}
	return datedKey{}, false
}

// checked is what an ID token says, and the key that its signature is good under.
type checked struct {
	claims actor.IdentityClaims
	key    keyName
}

// known keeps which exact bytes were good. It keeps no failures, and nothing that changes with time. Two generations bound it.
type known struct {
	half int

	mu         sync.Mutex // guards the maps
	young, old map[[sha256.Size]byte]checked
}

func newKnown(size int) *known {
	return &known{half: size / 2, young: map[[sha256.Size]byte]checked{}}
}

func (k *known) get(digest [sha256.Size]byte) (checked, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c, ok := k.young[digest]; ok {
		return c, true
	}
	c, ok := k.old[digest]
	if ok {
		k.add(digest, c)
	}
	return c, ok
}

func (k *known) put(digest [sha256.Size]byte, c checked) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(digest, c)
}

// add needs the lock.
func (k *known) add(digest [sha256.Size]byte, c checked) {
	if len(k.young) >= k.half {
		k.old, k.young = k.young, make(map[[sha256.Size]byte]checked, k.half)
	}
	k.young[digest] = c
}
