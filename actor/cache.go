package actor

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"sync"
	"time"
)

// cache keeps which exact bytes had a good signature, and until when the
// certificates below it are valid. It never keeps failures, times or
// revocations. Its keys bind the bytes to the bundle or key that they were
// verified with, so a changed bundle misses.
//
// Two generations bound it: when the young one is full it becomes the old one.
type cache struct {
	half int

	mu         sync.Mutex // guards the maps
	young, old map[cacheKey]window
}

type cacheKey [sha256.Size]byte

// window is when a certificate path is valid, and by whose word. The zero window
// is for signatures by bare keys, which have none.
type window struct {
	notBefore, notAfter time.Time
	authority           AuthorityHash
}

func (w window) holds(now time.Time) bool {
	return w == window{} || !now.Before(w.notBefore) && !now.After(w.notAfter)
}

func newCache(size int) *cache {
	return &cache{half: max(1, size/2), young: map[cacheKey]window{}}
}

func (c *cache) get(k cacheKey) (window, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.young[k]; ok {
		return w, true
	}
	w, ok := c.old[k]
	if ok {
		c.add(k, w)
	}
	return w, ok
}

func (c *cache) put(k cacheKey, w window) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(k, w)
}

// add needs the lock.
func (c *cache) add(k cacheKey, w window) {
	if len(c.young) >= c.half {
		c.old, c.young = c.young, make(map[cacheKey]window, c.half)
	}
	c.young[k] = w
}

// keyOf hashes parts with their lengths, so that no two lists collide.
func keyOf(parts ...[]byte) cacheKey {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return cacheKey(h.Sum(nil))
}

// revision names the content of a bundle.
func revision(authorities []*x509.Certificate) []byte {
	parts := make([][]byte, len(authorities))
	for i, a := range authorities {
		parts[i] = a.Raw
	}
	k := keyOf(parts...)
	return k[:]
}
