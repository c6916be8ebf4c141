package mcpstdio

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// What waits for a stream of the session's own: so many messages, of so many bytes in all.
const (
	maxWaiting      = 64
	maxWaitingBytes = 1 << 20
)

// session is one of the protocol's, with its process.
type session struct {
	id string
	p  *process

	gone context.Context // done when the process's output has ended
	end  context.CancelCauseFunc

	mu      sync.Mutex
	asked   []*call // requests under way, in order; guarded by mu, as is what follows
	own     *call   // the session's own stream; nil without
	waiting [][]byte
	// waitingBytes is how long they are.
	waitingBytes int
	used         time.Time
}

// call is a request, or the session's own stream, that messages are for.
type call struct {
	key      string
	token    string // of its progress; "" without
	messages chan []byte
	done     <-chan struct{} // nobody takes messages any more
	replaced chan struct{}   // closed when another stream took its place; nil for a request
}

func newSession(p *process, now time.Time) *session {
	s := &session{id: rand.Text(), p: p, used: now}
	s.gone, s.end = context.WithCancelCause(context.Background())
	return s
}

// ask begins a request.
func (s *session) ask(ctx context.Context, m message) (*call, error) {
	c := &call{key: key(m.ID), messages: make(chan []byte), done: ctx.Done()}
	var p struct {
		Meta struct{ ProgressToken json.RawMessage } `json:"_meta"`
	}
	if json.Unmarshal(m.Params, &p) == nil && p.Meta.ProgressToken != nil {
		c.token = key(p.Meta.ProgressToken)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked) >= maxAtOnce {
		return nil, fmt.Errorf("%d requests are under way in this session", maxAtOnce)
	}
	for _, other := range s.asked {
		if other.key == c.key {
			return nil, errors.New("a request with this id is under way")
		}
	}
	s.asked = append(s.asked, c)
	return c, nil
}

// listen makes a call the session's own stream, and gives it what has waited. A client that comes again has lost the one before.
func (s *session) listen(ctx context.Context) (*call, [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own != nil {
		close(s.own.replaced)
	}
	s.own = &call{messages: make(chan []byte), done: ctx.Done(), replaced: make(chan struct{})}
	waiting := s.waiting
	s.waiting, s.waitingBytes = nil, 0
	return s.own, waiting
}

// leave ends a call.
func (s *session) leave(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == c {
		s.own = nil
	}
	for i, other := range s.asked {
		if other == c {
			s.asked = append(s.asked[:i], s.asked[i+1:]...)
			return
		}
	}
}

// run gives the server's messages to whom they are for, until its output ends.
func (s *session) run() {
	for {
		data, err := s.p.next()
		if err != nil {
			s.end(err)
			return
		}
		m, err := parse(data)
		if err != nil {
			s.end(fmt.Errorf("the server wrote what is no message of JSON-RPC: %w", err))
			return
		}
		c := s.callFor(m, data)
		if c == nil {
			continue
		}
		select {
		case c.messages <- data:
		case <-c.done:
		case <-c.replaced:
		case <-s.gone.Done():
			return
		}
	}
}

// callFor finds whom a message is for: a response for its request, progress for the request that it is about, anything else for a request
// under way, since it may be about that one, or else for the session's own stream, which it waits for.
func (s *session) callFor(m message, data []byte) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.isResponse() {
		for _, c := range s.asked {
			if m.ID != nil && c.key == key(m.ID) {
				return c
			}
		}
		return nil // nobody waits for it any more
	}
	if m.Method == "notifications/progress" {
		var p struct{ ProgressToken json.RawMessage }
		if json.Unmarshal(m.Params, &p) == nil && p.ProgressToken != nil {
			for _, c := range s.asked {
				if c.token == key(p.ProgressToken) {
					return c
				}
			}
		}
	}
	switch {
	case len(s.asked) > 0:
		return s.asked[len(s.asked)-1]
	case s.own != nil:
		return s.own
	case len(s.waiting) < maxWaiting && s.waitingBytes+len(data) <= maxWaitingBytes:
		s.waiting, s.waitingBytes = append(s.waiting, data), s.waitingBytes+len(data)
	}
	return nil
}

func (s *session) use(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = now
}

// idleSince is when the session was used last; the zero time while it is in use.
func (s *session) idleSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked) > 0 || s.own != nil {
		return time.Time{}
	}
	return s.used
}
