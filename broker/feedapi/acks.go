package feedapi

import (
	"context"
	"slices"
	"sync"

	"github.com/deputymesh/deputy/broker/operatorapi"
	"github.com/deputymesh/deputy/internal/feed"
)

// keepAcks is how many revisions back it is remembered what they ended.
const keepAcks = 256

// acks knows which proxies have which revision in force. A proxy may run more than once under one name;
// it has applied a revision when each of its streams has.
type acks struct {
	proxies []string // configured, sorted

	mu      sync.Mutex // guards what follows
	streams map[*stream]struct{}
	changed chan struct{} // closed and replaced at each change
}

// stream is one proxy's connection. Its fields are guarded by acks.mu.
type stream struct {
	proxy    string
	revision uint64
	ended    map[uint64]uint32 // sessions ended, by revision
}

func newAcks(proxies []string) *acks {
	return &acks{proxies: proxies, streams: make(map[*stream]struct{}), changed: make(chan struct{})}
}

func (a *acks) join(proxy string) *stream {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &stream{proxy: proxy, ended: make(map[uint64]uint32)}
	a.streams[s] = struct{}{}
	a.notify()
	return s
}

func (a *acks) leave(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.streams, s)
	a.notify()
}

func (a *acks) ack(s *stream, m feed.Ack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.revision = max(s.revision, m.Revision)
	s.ended[m.Revision] = m.SessionsEnded
	for r := range s.ended {
		if r+keepAcks < s.revision {
			delete(s.ended, r)
		}
	}
	a.notify()
}

func (a *acks) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Wait implements operatorapi.Applier.
func (a *acks) Wait(ctx context.Context, revision uint64) ([]operatorapi.Applied, []string) {
	for {
		applied, pending, changed := a.look(revision)
		if len(pending) == 0 {
			return applied, pending
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return applied, pending
		}
	}
}

func (a *acks) look(revision uint64) ([]operatorapi.Applied, []string, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	applied, pending := []operatorapi.Applied{}, []string{}
	for _, proxy := range a.proxies {
		sum, streams, done := uint32(0), 0, true
		for s := range a.streams {
			if s.proxy == proxy {
				streams++
				done = done && s.revision >= revision
				sum += s.ended[revision]
			}
		}
		if streams > 0 && done {
			applied = append(applied, operatorapi.Applied{Proxy: proxy, SessionsEnded: sum})
		} else {
			pending = append(pending, proxy)
		}
	}
	slices.SortFunc(applied, func(x, y operatorapi.Applied) int {
		if x.Proxy < y.Proxy {
			return -1
		}
		return 1
	})
	return applied, pending, a.changed
}
