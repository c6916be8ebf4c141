package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
)

// ErrPassUsed says that a pass was used before.
var ErrPassUsed = errors.New("the pass was used already; every command needs its own")

// Pass allows one command, once. An engine calls Use before it forwards the command, Wait before the
// first byte of the answer leaves, and Completed before the final message. Wait, Forwarded and Completed
// may be called from another goroutine than the one that forwards.
type Pass struct {
	session     *Session
	verified    *verified
	pending     *audit.Pending
	obligations policy.Obligations
	decided     time.Time
	readOnly    bool
	used        atomic.Bool
	durable     atomic.Bool

	mu   sync.Mutex // guards what follows, so that nothing is recorded of a pass behind its outcome
	done bool
	sent int64 // bytes that left for the target
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
	// Sent went to the target after the command itself, such as what was written to a file.
	Sent int64
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

// Use takes the pass. It fails if it was taken before, if the session is over, or if the decision of a
// command that isn't read-only isn't durable; then nothing may be forwarded.
func (p *Pass) Use() error {
	if p.used.Swap(true) {
		return ErrPassUsed
	}
	if !p.readOnly && !p.durable.Load() {
		return errors.New("the decision isn't durable")
	}
	if p.session.ctx.Err() != nil {
		return p.session.over()
	}
	return nil
}

// Wait returns when the decision is durable. Until it has returned nil, no byte of the answer may leave.
// The error is a [*Refusal]: the answer must be thrown away.
func (p *Pass) Wait(ctx context.Context) error {
	if p.durable.Load() {
		return nil
	}
	if _, err := p.pending.Receipt(ctx); err != nil {
		p.session.core.unrecorded(ctx, "a decision couldn't be recorded", err)
		return evidenceRefusal(err)
	}
	p.durable.Store(true)
	return nil
}

// Forwarded says that the command left for the target. Most outcomes follow at once and say so, too; a record of its own
// is written where none has come after forwardedAfter.
func (p *Pass) Forwarded(bytes int64) {
	p.mu.Lock()
	p.sent = bytes
	p.mu.Unlock()
	p.session.core.leaving.add(p)
}

// forwardedAfter is how long an outcome may take before a record says that the command has left.
const forwardedAfter = 10 * time.Millisecond

// leaving holds the passes that left for the target and may need a record that says so.
type leaving struct {
	mu     sync.Mutex
	passes []*Pass
}

func (l *leaving) add(p *Pass) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.passes) == 0 {
		time.AfterFunc(forwardedAfter, l.record)
	}
	l.passes = append(l.passes, p)
}

// record writes down which commands have left and have no outcome yet.
func (l *leaving) record() {
	l.mu.Lock()
	passes := l.passes
	l.passes = nil
	l.mu.Unlock()
	for _, p := range passes {
		p.mu.Lock()
		if !p.done {
			p.submit(&audit.Forwarded{Bytes: p.sent})
		}
		p.mu.Unlock()
	}
}

// Keep puts a piece of the command's recording on record, and returns when it is durable. Until then nothing of it may go on, to either side.
// The error is a [*Refusal]: then nothing more may go on at all.
func (p *Pass) Keep(ctx context.Context, piece []byte) error {
	p.mu.Lock()
	if p.done {
		p.mu.Unlock()
		return &Refusal{Class: ClassClosed, Reason: "the command has its outcome already"}
	}
	pending := p.submit(&audit.Evidence{Kind: audit.KindRecording, Digest: audit.DigestOf(piece), Data: piece})
	p.mu.Unlock()
	if _, err := pending.Receipt(ctx); err != nil {
		p.session.core.unrecorded(ctx, "a recording couldn't be kept", err)
		return evidenceRefusal(err)
	}
	return nil
}

// Completed records the outcome, once; a second call does nothing. It returns at once, except where
// masking or a limit acted: then it returns when the outcome is durable, and the final message waits for
// it. The error is a [*Refusal]: the final message must say so instead.
func (p *Pass) Completed(ctx context.Context, o Outcome) error {
	pending := p.finish(o)
	if pending == nil || (o.Limit == "" && len(o.Masked) == 0) {
		return nil
	}
	if _, err := pending.Receipt(ctx); err != nil {
		return evidenceRefusal(err)
	}
	return nil
}

// finish submits the outcome, once, and takes the pass off the session's hands.
func (p *Pass) finish(o Outcome) *audit.Pending {
	s := p.session
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return nil
	}
	p.done = true
	s.release(p)
	o.Masked = bounded(o.Masked)
	if len(o.Masked) > 0 {
		p.submit(&audit.Masked{Counts: o.Masked})
	}
	return p.submit(&audit.Completed{
		Status: o.Status, Command: clip(o.Command, 128), Rows: o.Rows, Affected: o.Affected, BytesIn: p.sent + o.Sent, BytesOut: o.Bytes,
		Code: clip(o.Code, 16), Limit: o.Limit, Masked: o.Masked, Duration: audit.Since(p.decided, s.core.cfg.Now()),
	})
}

// maxCounts of one record: a target names its columns as it likes, and must not make an outcome too large to be recorded.
const maxCounts = 256

// bounded gives the counts with names cut and what is over maxCounts in one sum.
func bounded(counts []audit.MaskedCount) []audit.MaskedCount {
	out := slices.Clone(counts[:min(len(counts), maxCounts)])
	for i := range out {
		out[i].Column = clip(out[i].Column, 192)
	}
	if len(counts) > maxCounts {
		rest := audit.MaskedCount{Rule: "other", Column: "…"}
		for _, c := range counts[maxCounts-1:] {
			rest.Values += c.Values
		}
		out[maxCounts-1] = rest
	}
	return out
}

func (p *Pass) submit(e audit.Event) *audit.Pending {
	r := p.session.recordOf(p.verified, e)
	r.Decision = p.pending.ID()
	return p.session.core.cfg.Log.Submit(r)
}
