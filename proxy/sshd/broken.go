package sshd

import (
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A handshake that breaks may leave something behind that nothing can free (see packets), so nobody may break many: one a minute in the long
// run, and a few at once. Agents count by the first of them in their tree, and together where they show no credential before SSH.
const (
	brokenByTree      = 8
	brokenByStrangers = 64
	brokenByTarget    = 16
	maxTrees          = 4096

	// leavesWithin is how long the library's reader may take to end with its connection.
	leavesWithin = 100 * time.Millisecond
)

var brokenEvery = rate.Every(time.Minute)

// broken counts handshakes that left something behind.
type broken struct {
	mu        sync.Mutex
	trees     map[string]*rate.Limiter // guarded by mu
	strangers *rate.Limiter
	target    *rate.Limiter
}

func newBroken() *broken {
	return &broken{
		trees: map[string]*rate.Limiter{}, strangers: rate.NewLimiter(6*brokenEvery, brokenByStrangers), target: rate.NewLimiter(brokenEvery, brokenByTarget),
	}
}

// treeOf is the first agent of a tree, by the SPIFFE ID of any: spiffe://<td>/agent/<name>/<instance>.
func treeOf(id string) string {
	if parts := strings.SplitN(id, "/", 7); len(parts) == 7 {
		return strings.Join(parts[:6], "/")
	}
	return id
}

// mayTry says whether an agent may have another handshake.
func (b *broken) mayTry(agent string, stranger bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.trees[treeOf(agent)]
	return (l == nil || l.Tokens() >= 1) && (!stranger || b.strangers.Tokens() >= 1)
}

// byAgent counts a handshake of an agent's.
func (b *broken) byAgent(agent string, stranger bool) {
	if stranger {
		b.strangers.Allow()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tree := treeOf(agent)
	if b.trees[tree] == nil {
		if len(b.trees) >= maxTrees {
			clear(b.trees) // so many can't all be held to it
		}
		b.trees[tree] = rate.NewLimiter(brokenEvery, brokenByTree)
	}
	b.trees[tree].Allow()
}
