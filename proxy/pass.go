package proxy

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
)

// ErrPassUsed says that a pass was used before.
var ErrPassUsed = errors.New("the pass was used already; every command needs its own")

// Pass allows one command, once. An engine calls Use before it forwards the command, Wait before the
// first byte of the answer leaves, and Completed before the final message. All but Use may be called from
// another goroutine than the one that forwards.
type Pass struct {
	session     *Session
	pending     *audit.Pending
	durable     bool
	obligations policy.Obligations
	decided     time.Time
	used        atomic.Bool
	masked      atomic.Bool
	done        atomic.Bool
}

// Outcome is what came of a command.
type Outcome struct {
	// Status is "ok", "error", "cancelled", "cut" or "not_sent".
	Status string
	// Command is what the target reported, such as "SELECT 3".
	Command string
	// Rows were returned, Affected were changed.
	Rows, Affected int64
	// Bytes went to the agent.
	Bytes int64
	// Code is the target's error code, such as an SQLSTATE.
	Code string
	// Limit names the limit that cut the answer, such as "rows=1000"; "" if none did.
	Limit string
	// Masked counts what was masked or withheld.
	Masked []audit.MaskedCount
}

// RecordID is the id of the decision's record.
func (p *Pass) RecordID() audit.RecordID { return p.pending.ID() }

// Obligations are what the engine must do to the answer: masks, the largest number of rows (the smaller
// one of policy and capability), and how much is recorded.
func (p *Pass) Obligations() policy.Obligations { return p.obligations }

// Use takes the pass. It fails if it was taken before or the session is over; then nothing may be
// forwarded.
func (p *Pass) Use() error {
	if p.used.Swap(true) {
		return ErrPassUsed
	}
	return context.Cause(p.session.ctx)
}

// Wait returns when the decision is durable. Until it has returned nil, no byte of the answer may leave.
// The error is a [*Refusal]: the answer must be thrown away.
func (p *Pass) Wait(ctx context.Context) error { return nil }

// Forwarded records that the command left for the target.
func (p *Pass) Forwarded(bytes int64) {}

// Completed records the outcome. It returns at once, except where masking or a limit acted: then it
// returns when the outcome is durable, and the final message waits for it.
func (p *Pass) Completed(ctx context.Context, o Outcome) error { return nil }
