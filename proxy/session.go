package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/target"
)

// Session is one verified connection of an agent. Its methods may be called by many goroutines at once.
type Session struct {
	id       string
	core     *Core
	target   *servedTarget
	database string
	opened   time.Time
	ctx      context.Context
	cancel   context.CancelCauseFunc
	masks    atomic.Pointer[spelledMasks] // those of the last command

	mu       sync.Mutex // guards what follows
	current  *verified
	open     map[*Pass]struct{}
	commands int64
	closed   bool
}

// Ended is the cause of a session's context: why it is over.
type Ended struct {
	// Class is one of the refusal classes (revoked, expired, stale, closed).
	Class string
	// Reason is plain English for the user.
	Reason string
}

func (e *Ended) Error() string { return e.Reason }

// newSession makes a session that isn't in the table yet. Its context is its own: a session lives until
// it is ended or closed, not until the call that opened it returns.
func newSession(c *Core, id string, t *servedTarget, conn Connection, v *verified) *Session {
	s := &Session{
		id: id, core: c, target: t, database: conn.Database, opened: c.cfg.Now(), current: v, open: map[*Pass]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// ID names the session: in records as the connection, and in the path of the renewal endpoint.
func (s *Session) ID() string { return s.id }

// Target is the target that the session is for.
func (s *Session) Target() target.Name { return s.target.Name }

// Context is done when the session is over; its cause is an [*Ended]. An engine then cancels what runs
// upstream, tells the agent and closes the connection.
func (s *Session) Context() context.Context { return s.ctx }

// Chain is the verified chain in force; a renewal replaces it.
func (s *Session) Chain() *actor.Chain { return s.state().chain }

// Roles of the user at the root of the chain; they choose the account at the target.
func (s *Session) Roles() []string { return slices.Clone(s.state().chain.Roles) }

// Owner is the user at the root of the chain. What all agents of one user take of something shared counts together.
func (s *Session) Owner() actor.SubjectID { return s.state().chain.User }

// Expires is when the credential in force runs out; without a renewal the session is cut then.
func (s *Session) Expires() time.Time { return s.state().chain.Expires }

func (s *Session) state() *verified {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// recheck says why the session may not go on, or nil.
func (s *Session) recheck() *Refusal {
	if s.ctx.Err() != nil {
		return s.over()
	}
	err := s.state().chain.Recheck(s.core.cfg.Now(), s.core.cfg.State)
	if err == nil {
		return nil
	}
	r := credentialRefusal(err)
	r.Ended = true
	if r.Class == ClassExpired {
		r.Reason = "the session's credential ran out and wasn't renewed in time; connect again"
	}
	return r
}

// over is the refusal of a session that has ended.
func (s *Session) over() *Refusal {
	var e *Ended
	if !errors.As(context.Cause(s.ctx), &e) {
		e = &Ended{Class: ClassClosed, Reason: "the session is over"}
	}
	return &Refusal{Class: e.Class, Reason: e.Reason, Ended: true}
}

// end cancels the session's context, once, and reports whether it was alive. The engine closes it.
func (s *Session) end(why *Ended) bool {
	alive := s.ctx.Err() == nil
	s.cancel(why)
	return alive
}

// leave ends the session and takes it out of the table.
func (s *Session) leave(why *Ended) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	s.closed = true
	s.mu.Unlock()
	s.end(why)
	s.core.sessions.remove(s.id)
	s.core.opening.Lock()
	s.core.live--
	s.core.opening.Unlock()
	return true
}

// Close ends the session and records why: "client", "upstream", "error" or "shutdown"; where the core
// ended it already, its own reason stays. Passes that are still open are completed as "cut", or as
// "not_sent" if they were never used. A second call does nothing.
func (s *Session) Close(reason, detail string) {
	if s.ctx.Err() != nil {
		r := s.over()
		if reason, detail = r.Class, r.Reason; reason == ClassClosed {
			reason = "shutdown"
		}
	}
	if !s.leave(&Ended{Class: ClassClosed, Reason: "the session is over"}) {
		return
	}
	s.mu.Lock()
	open, commands, v := s.open, s.commands, s.current
	s.open = nil
	s.mu.Unlock()
	for p := range open {
		status := "cut"
		if !p.used.Load() {
			status = "not_sent"
		}
		p.finish(Outcome{Status: status})
	}
	s.core.cfg.Log.Submit(s.recordOf(v, &audit.ConnectionClosed{
		Reason: reason, Commands: commands, Duration: audit.Since(s.opened, s.core.cfg.Now()), Detail: clip(detail, 1024),
	}))
}

// recordOf fills what every record of a session carries.
func (s *Session) recordOf(v *verified, e audit.Event) audit.Record {
	return audit.Record{Session: v.chain.SID, Connection: s.id, Chain: v.record, Event: e}
}
