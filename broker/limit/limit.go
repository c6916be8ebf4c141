// Package limit bounds how often each caller of the broker may come.
package limit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limiter bounds how often each caller may come. Safe for concurrent use. It forgets callers in two generations, so that many
// names can't fill memory; a forgotten caller starts with a full burst.
type Limiter struct {
	every rate.Limit
	burst int
	most  int // callers per generation

	mu         sync.Mutex // guards the maps
	young, old map[string]*rate.Limiter
}

// New allows each caller every per second and burst at once; it remembers at least most callers.
func New(every rate.Limit, burst, most int) *Limiter {
	return &Limiter{every: every, burst: burst, most: most, young: make(map[string]*rate.Limiter)}
}

// Allow says whether who may come now, and counts it if so.
func (l *Limiter) Allow(who string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim, ok := l.young[who]
	if !ok {
		if lim, ok = l.old[who]; !ok {
			lim = rate.NewLimiter(l.every, l.burst)
		}
		if len(l.young) >= l.most {
			l.old, l.young = l.young, make(map[string]*rate.Limiter, l.most)
		}
		l.young[who] = lim
	}
	return lim.AllowN(now, 1)
}
