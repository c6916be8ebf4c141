package postgres

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// run is one command with its pass: from the decision to the outcome.
type run struct {
	pass Pass
	d    *decision
	made time.Time
	// record is for outcomes, which are recorded when the session is over, too.
	record context.Context
	// obligations of the pass; limit is its largest number of rows, 0 for none.
	obligations policy.Obligations
	limit       int64
	// touched says that a table with a masked column is in it: error texts are withheld.
	touched bool
	// defers says that the end of the transaction may speak of masked values because of it.
	defers bool

	// The back alone uses what follows, up to the lock.
	durable bool
	plan    *maskPlan // nil: rows are copied through
	planned bool
	rows    int64
	bytes   int64
	// allowed rows of this Execute where there is a limit; exceeded says that there was one more.
	limited  bool
	allowed  int64
	exceeded bool
	cut      chan struct{} // closed when a row of a COPY was one too many
	headed   bool          // the header of a COPY is out

	mu   sync.Mutex
	used bool // it went to the target
	over bool // its outcome is recorded
	// then are what becomes true when it succeeds.
	then []*state
}

// passAge is how long the pass of a Parse or Bind counts for the Execute that follows: what is executed later is decided anew,
// by the policy of then.
const passAge = 2 * time.Second

func (r *run) old() bool { return time.Since(r.made) > passAge }

// wait returns when the decision is durable: before that nothing of the answer leaves.
func (r *run) wait(ctx context.Context) error {
	if r.durable {
		return nil
	}
	if err := r.pass.Wait(ctx); err != nil {
		return err
	}
	r.durable = true
	return nil
}

// use takes the pass for the target; the second time for an Execute that follows its own Parse.
func (r *run) use(bytes int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used {
		return nil
	}
	if err := r.pass.Use(); err != nil {
		return err
	}
	r.used = true
	r.pass.Forwarded(int64(bytes))
	return nil
}

// complete records the outcome, once. It returns when the outcome is durable where masking or a limit acted.
func (r *run) complete(o proxy.Outcome) error {
	r.mu.Lock()
	over, then := r.over, r.then
	r.over, r.then = true, nil
	r.mu.Unlock()
	for _, t := range then {
		if o.Status == "ok" {
			t.confirm()
		} else {
			t.undo()
		}
	}
	if over {
		return nil
	}
	o.Rows, o.Bytes = r.rows, r.bytes
	if r.plan != nil {
		o.Masked = r.plan.counts()
	}
	if err := r.pass.Completed(r.record, o); err != nil {
		return fmt.Errorf("recording the outcome: %w", err)
	}
	return nil
}

// dropped is the outcome of a command that the target skipped or that never went there.
func (r *run) dropped() {
	_ = r.complete(proxy.Outcome{Status: "not_sent"})
}

func (r *run) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}
