package sftp

import (
	"context"
	"strconv"
)

// handle is an open file or folder.
type handle struct {
	target      string // the target's name for it
	path        string
	grant       Grant
	folder      bool
	read, write bool

	// Guarded by the session's mu.
	underway          int // reads and writes without an answer yet
	bytesIn, bytesOut int64
}

// keep gives an open file a name for the agent. Names are never used again.
func (s *session) keep(h *handle) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastHandle++
	name := strconv.FormatUint(s.lastHandle, 10)
	s.handles[name] = h
	return name
}

func (s *session) file(name string) *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handles[name]
}

// full says whether the session has as many open files as it may.
func (s *session) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.handles) >= maxHandles
}

// takeOff takes a name away, so that nothing more comes to the file, and waits until nothing is under way.
func (s *session) takeOff(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.handles[name]
	delete(s.handles, name)
	for h.underway > 0 && !s.over {
		s.answered.Wait()
	}
}

// outcome is what was done with an open file.
func (s *session) outcome(h *handle, o Outcome) Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.Read, o.Written = h.bytesOut, h.bytesIn
	return o
}

// abandon puts on record what was done with the files that are still open.
func (s *session) abandon(ctx context.Context, how string) {
	s.mu.Lock()
	left := s.handles
	s.handles = nil
	s.mu.Unlock()
	for _, h := range left {
		h.grant.Completed(ctx, s.outcome(h, Outcome{Status: how}))
	}
}
