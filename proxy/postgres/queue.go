package postgres

import (
	"context"
	"errors"
	"sync"
)

// step is what an entry of the queue waits for.
type step byte

const (
	stepParse     step = iota // ParseComplete
	stepBind                  // BindComplete
	stepDescribeS             // ParameterDescription, then RowDescription or NoData
	stepDescribeP             // RowDescription or NoData
	stepExecute               // rows, then CommandComplete, PortalSuspended or EmptyQueryResponse
	stepClose                 // CloseComplete
	stepQuery                 // any number of results, then ReadyForQuery
	stepCall                  // FunctionCallResponse, then ReadyForQuery
	stepSync                  // ReadyForQuery
)

// entry is one message that went to the target and waits for its answer.
type entry struct {
	step step
	// hidden answers aren't for the agent: it didn't ask.
	hidden bool
	// run is the command that the entry belongs to. Its pass must be durable before the answer leaves.
	run *run
	// runs are the commands of a simple Query, in order.
	runs []*run
	// refusal takes the place of the error that the target will give.
	refusal *fault
	// scrub says that error texts may carry masked values.
	scrub bool
	// undo is called when the entry failed or was skipped; it is called under no lock.
	undo func()
	// confirm is called when the target has done it.
	confirm func()
	// at is the statement of the Query that the target answers; failed says that it ended with an error.
	at     int
	failed bool
	// batch is the number of the Sync.
	batch int
	// copying is set for a COPY FROM STDIN.
	copying *copying
	// done is closed when the entry is over, if somebody waits for it.
	done chan struct{}
}

func (e *entry) finish() {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// maxPending entries; then the front waits for the target.
const maxPending = 4096

// queue keeps the entries between front and back. The front pushes before it writes, so an answer
// always finds its entry.
type queue struct {
	mu   sync.Mutex
	cond *sync.Cond // changes of anything below
	list []*entry
	head int
	// skipping says that the target ignores everything up to the next Sync.
	skipping bool
	closed   bool
}

var errQueueClosed = errors.New("the session is over")

func newQueue() *queue {
	q := &queue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

func (q *queue) len() int { return len(q.list) - q.head }

// push adds an entry. It reports false if the target will skip it; the entry then is undone.
func (q *queue) push(e *entry) bool {
	q.mu.Lock()
	if q.closed || q.skipsLocked() && e.step != stepSync {
		q.mu.Unlock()
		e.abandon()
		return false
	}
	if q.head > 0 && q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	q.list = append(q.list, e)
	q.mu.Unlock()
	return true
}

// abandon tells all that belongs to the entry that it never ran.
func (e *entry) abandon() {
	if e.undo != nil {
		e.undo()
	}
	if e.run != nil {
		e.run.dropped()
	}
	for _, r := range e.runs {
		r.dropped()
	}
	e.finish()
}

// peek gives the entry that the target answers now.
func (q *queue) peek() *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.len() == 0 {
		return nil
	}
	return q.list[q.head]
}

// skipsLocked says whether what is pushed now belongs to the batch that failed: its Sync isn't there yet.
func (q *queue) skipsLocked() bool { return q.skipping && q.len() == 0 }

// pop removes the head, which is over.
func (q *queue) pop() {
	q.mu.Lock()
	if q.len() == 0 { // closed meanwhile
		q.mu.Unlock()
		return
	}
	e := q.list[q.head]
	if e.step == stepSync {
		q.skipping = false
	}
	q.list[q.head] = nil
	q.head++
	if q.head > 1024 {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.cond.Broadcast()
	q.mu.Unlock()
	e.finish()
}

// fail takes the head, which failed, and what the target skips after it: everything up to the next Sync.
func (q *queue) fail() {
	q.mu.Lock()
	var gone []*entry
	q.skipping = true
	for q.len() > 0 && q.list[q.head].step != stepSync {
		gone = append(gone, q.list[q.head])
		q.list[q.head] = nil
		q.head++
	}
	q.cond.Broadcast()
	q.mu.Unlock()
	// Backwards, so that what one created and the next replaced ends as it was before.
	for i := len(gone) - 1; i >= 0; i-- {
		gone[i].abandon()
	}
}

// skips says whether the target ignores what is sent now.
func (q *queue) skips() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.skipsLocked()
}

// busy says whether the target owes an answer.
func (q *queue) busy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.len() > 0
}

// wait returns when at most n entries are left. Somebody must have asked the target to answer.
func (q *queue) wait(ctx context.Context, n int) error {
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		q.cond.Broadcast()
		q.mu.Unlock()
	})
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.len() > n && !q.closed && ctx.Err() == nil {
		q.cond.Wait()
	}
	if q.closed {
		return errQueueClosed
	}
	return ctx.Err()
}

// close lets everybody go. What is left never got its answer.
func (q *queue) close() {
	q.mu.Lock()
	rest := append([]*entry(nil), q.list[q.head:]...)
	q.list, q.head = nil, 0
	q.closed = true
	q.cond.Broadcast()
	q.mu.Unlock()
	for _, e := range rest {
		e.finish()
	}
}
