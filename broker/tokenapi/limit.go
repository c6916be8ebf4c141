package tokenapi

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter bounds how often each caller may come. It forgets callers in two generations, so that many
// names can't fill memory; a forgotten caller starts with a full burst.
type limiter struct {
	every rate.Limit
	burst int
	most  int // callers per generation

	mu         sync.Mutex // guards the maps
	young, old map[string]*rate.Limiter
}

func newLimiter(every rate.Limit, burst, most int) *limiter {
	return &limiter{every: every, burst: burst, most: most, young: make(map[string]*rate.Limiter)}
}

func (l *limiter) allow(who string, now time.Time) bool {
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
