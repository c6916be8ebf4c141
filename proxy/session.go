package proxy

import (
	"context"
	"time"

	"github.com/deputymesh/deputy/internal/target"
)

// Session is one verified connection of an agent. Its methods may be called by many goroutines at once.
type Session struct {
	id     string
	core   *Core
	target target.Name
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Ended is the cause of a session's context: why it is over.
type Ended struct {
	// Class is one of the refusal classes (revoked, expired, stale, closed).
	Class string
	// Reason is plain English for the user.
	Reason string
}

func (e *Ended) Error() string { return e.Reason }

// ID names the session: in records as the connection, and in the path of the renewal endpoint.
func (s *Session) ID() string { return s.id }

// Target is the target that the session is for.
func (s *Session) Target() target.Name { return s.target }

// Context is done when the session is over; its cause is an [*Ended]. An engine then cancels what runs
// upstream, tells the agent and closes the connection.
func (s *Session) Context() context.Context { return s.ctx }

// Renewed is when the credential in force runs out; without a renewal the session is cut then.
func (s *Session) Expires() time.Time { return time.Time{} }
