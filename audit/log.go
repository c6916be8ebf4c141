package audit

import (
	"context"
	"errors"
)

// Log is an open write-ahead log. Its methods may be called from any goroutine.
type Log struct{}

// Open opens or makes the log in cfg.Dir, recovers it if it wasn't closed, and starts its writer. The caller
// must Close it.
func Open(cfg Config) (*Log, error) { return nil, errors.New("audit: not there yet") }

// Append submits r and waits until it is durable. After an error the record may not be relied on: refuse the
// command with `record: none`.
func (l *Log) Append(ctx context.Context, r Record) (Receipt, error) { return l.Submit(r).Receipt(ctx) }

// Submit hands r to the writer and returns at once; the record's id is known from then on. Outcomes
// ([Forwarded], [Masked], [Completed] …) need not be waited for: they become durable within MaxFrameDelay.
func (l *Log) Submit(r Record) *Pending { return &Pending{} }

// PutEvidence keeps data under its digest and returns when it is durable. The same bytes are kept once.
func (l *Log) PutEvidence(ctx context.Context, kind string, data []byte) (Digest, error) {
	return "", ErrClosed
}

// Count counts a refusal of somebody who isn't authenticated yet. Counts become one [Refused] record
// per class at the next heartbeat, so that nobody can fill the log from outside.
func (l *Log) Count(class string) {}

// Text describes a command's text: scrubbed is kept, of exact only its length and keyed hash.
func (l *Log) Text(exact, scrubbed string) *Text { return nil }

// Err returns ErrPoisoned or ErrClosed (wrapped with the cause) when nothing can be appended any more, else nil.
func (l *Log) Err() error { return ErrClosed }

// Checkpoint returns the newest signed checkpoint.
func (l *Log) Checkpoint() []byte { return nil }

// Dir returns the log's folder.
func (l *Log) Dir() string { return "" }

// Close writes what was submitted, ends the log with a `log_closed` record and releases it.
func (l *Log) Close() error { return nil }

// Pending is a record on its way to the disk.
type Pending struct {
	id   RecordID
	done chan struct{}
	rcpt Receipt
	err  error
}

// ID returns the record's id.
func (p *Pending) ID() RecordID { return p.id }

// Done is closed when the record is durable or has failed.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Receipt waits until the record is durable.
func (p *Pending) Receipt(ctx context.Context) (Receipt, error) { return p.rcpt, p.err }
