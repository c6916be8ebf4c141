package soak_test

import (
	"sync"
	"testing"
	"time"
)

// stalls are the times when the whole machine stood still, as a virtual machine or one without memory does. What takes long
// then is nobody's fault.
type stalls struct {
	mu   sync.Mutex
	last time.Time
	list []span
}

type span struct{ from, to time.Time }

const (
	stallTick  = 100 * time.Millisecond
	stallAtAll = 10 * time.Second
)

// watch looks at the clock until the test ends.
func (s *stalls) watch(t testing.TB) {
	stop, done := make(chan struct{}), make(chan struct{})
	s.last = time.Now()
	go func() {
		defer close(done)
		tick := time.NewTicker(stallTick)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.look()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}

func (s *stalls) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.last) > stallAtAll {
		s.list = append(s.list, span{s.last, now})
	}
	s.last = now
}

// during says whether the machine stood still within a span of time.
func (s *stalls) during(from, to time.Time) bool {
	s.look() // it may stand still until now
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list {
		if p.from.Before(to) && p.to.After(from) {
			return true
		}
	}
	return false
}
