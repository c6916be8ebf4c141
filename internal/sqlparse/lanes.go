package sqlparse

import (
	"context"
	"fmt"
	"sync"
)

// lanes let so many texts of each to the children at a time.
type lanes struct {
	width int

	mu    sync.Mutex
	byWho map[string]*lane
}

// lane is that of somebody who has texts under way.
type lane struct {
	places chan struct{}
	users  int // who have a place or wait for one; lanes.mu guards it
}

// enter waits for a place in somebody's lane, and leave gives it back.
func (l *lanes) enter(ctx context.Context, who string) (leave func(), err error) {
	l.mu.Lock()
	own := l.byWho[who]
	if own == nil {
		own = &lane{places: make(chan struct{}, l.width)}
		l.byWho[who] = own
	}
	own.users++
	l.mu.Unlock()
	done := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(l.byWho, who)
		}
	}
	select {
	case own.places <- struct{}{}:
		return func() { <-own.places; done() }, nil
	case <-ctx.Done():
		done()
		return nil, fmt.Errorf("waiting for an SQL parser behind other texts of the same user: %w", context.Cause(ctx))
	}
}
