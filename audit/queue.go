package audit

import (
	"sync"
	"time"
)

// maxBatch is how many records may wait for the writer; then whoever submits waits, too, but not longer than patience: a writer
// that takes nothing for so long sits on a disk that hangs. What is owed never waits here. It is bounded by what it ends.
const (
	maxBatch = 4096
	patience = 500 * time.Millisecond
)

// batch is the records that were submitted while the writer was busy with those before. They become durable together, in
// one frame as a rule.
type batch struct {
	items   []*item
	awaited int // of them, those that somebody waits for
	// done is closed when every record of the batch is durable or has failed.
	done  chan struct{}
	taken chan struct{} // closed when the writer took it, or the queue closed; made by who waits for that
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// haste is how soon a record must be durable.
type haste int

const (
	lazy   haste = iota // nobody waits for it: it rides with the next that is waited for, or goes when delay is over
	soon                // somebody will wait for it in a moment: the decision of a command that may run meanwhile
	urgent              // somebody waits
)

// queue hands records to the writer. Where several commands are under way, their decisions go together when the first of
// them is waited for: a frame, its signature and its fdatasync then serve all of them. A single command's decision goes at
// once, while the command runs.
type queue struct {
	delay time.Duration
	wake  chan struct{} // to the writer: there is something to do

	mu     sync.Mutex
	next   *batch
	timed  bool // a timer runs for what waits
	alone  bool // the last batch brought at most one record that somebody waits for
	closed bool
}

func newQueue(delay time.Duration) *queue {
	return &queue{delay: delay, wake: make(chan struct{}, 1), next: newBatch(), alone: true}
}

// put adds an item to the next batch. It fails with ErrClosed, or with ErrStalled where the writer takes nothing.
func (q *queue) put(it *item) error {
	q.mu.Lock()
	if !it.typ.owed() && len(q.next.items) >= maxBatch && !q.closed && !q.wait() {
		q.mu.Unlock()
		return ErrStalled
	}
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	it.batch = q.next
	q.next.items = append(q.next.items, it)
	waits := it.haste == lazy || it.haste == soon && !q.alone
	if waits = waits && len(q.next.items) < maxBatch; waits && !q.timed {
		q.timed = true
		time.AfterFunc(q.delay, q.expire)
	}
	if it.haste != lazy {
		q.next.awaited++
	}
	q.mu.Unlock()
	if !waits {
		q.hurry()
	}
	return nil
}

// wait returns when there is room, or the queue is closed; false if neither comes in time. The caller holds mu, which is free
// meanwhile.
func (q *queue) wait() bool {
	patient := time.NewTimer(patience)
	defer patient.Stop()
	for len(q.next.items) >= maxBatch && !q.closed {
		if q.next.taken == nil {
			q.next.taken = make(chan struct{})
		}
		taken := q.next.taken
		q.mu.Unlock()
		select {
		case <-taken:
			q.mu.Lock()
		case <-patient.C:
			q.mu.Lock()
			return false
		}
	}
	return true
}

func (q *queue) expire() {
	q.mu.Lock()
	q.timed = false
	waiting := len(q.next.items) > 0
	q.mu.Unlock()
	if waiting {
		q.hurry()
	}
}

// hurry makes the writer take what there is.
func (q *queue) hurry() {
	select {
	case q.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// take gives the batch that waited and begins the next. open is false when the queue is closed: then it is the last.
func (q *queue) take() (b *batch, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, q.next = q.next, newBatch()
	if len(b.items) > 0 {
		q.alone = b.awaited <= 1
	}
	b.free()
	return b, !q.closed
}

// free lets those go on who wait for room. The caller holds the queue's mu.
func (b *batch) free() {
	if b.taken != nil {
		close(b.taken)
		b.taken = nil
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.next.free()
	q.mu.Unlock()
	q.hurry()
}
