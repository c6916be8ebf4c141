package postgres

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

const cancelTimeout = 5 * time.Second

// cancelTable finds live sessions by the key that their agents got.
type cancelTable struct {
	mu       sync.Mutex
	sessions map[uint32]*session
}

// add gives the session a random key.
func (t *cancelTable) add(s *session) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for range 100 {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return fmt.Errorf("making a cancel key: %w", err)
		}
		// Some clients keep the process id in a signed integer.
		key := cancelKey{pid: binary.BigEndian.Uint32(b[:]) & 0x7fffffff, secret: binary.BigEndian.Uint32(b[4:])}
		if key.pid == 0 || t.sessions[key.pid] != nil {
			continue
		}
		s.key = key
		t.sessions[key.pid] = s
		return nil
	}
	return fmt.Errorf("making a cancel key: all were taken")
}

func (t *cancelTable) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.key.pid] == s {
		delete(t.sessions, s.key.pid)
	}
}

func (t *cancelTable) find(key cancelKey) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[key.pid]
	if s == nil {
		return nil
	}
	var a, b [4]byte
	binary.BigEndian.PutUint32(a[:], s.key.secret)
	binary.BigEndian.PutUint32(b[:], key.secret)
	if subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return nil
	}
	return s
}

// cancel ends what a session runs. peer is the SPIFFE ID on the connection of the request, "" if it came in plain: a stolen
// key is of no use to anybody else. As PostgreSQL does, it answers nothing. The outcome record of what was cancelled says so.
func (e *Engine) cancel(ctx context.Context, key cancelKey, peer string) {
	s := e.cancels.find(key)
	if s == nil || s.peer != peer && (peer != "" || !e.cfg.PlainCancel) {
		e.cfg.Core.Count("cancel_refused")
		return
	}
	if !s.q.busy() {
		return
	}
	ctx, done := context.WithTimeout(ctx, cancelTimeout)
	defer done()
	s.log.InfoContext(ctx, "the agent cancels what its session runs")
	if err := s.up.cancel(ctx); err != nil {
		s.log.WarnContext(ctx, "a cancel didn't reach the target", "error", err)
	}
}
