package audit

import (
	"sync"
	"time"
)

// maxBatch is how many records may wait for the writer; then whoever submits waits, too.
const maxBatch = 4096

// batch is the records that were submitted while the writer was busy with those before. They become durable together, in
// one frame as a rule.
type batch struct {
	items []*item
	// done is closed when every record of the batch is durable or has failed.
	done chan struct{}
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// queue hands records to the writer. A record that nobody waits for wakes nobody: it rides with the next that is
// waited for, or goes when delay is over.
type queue struct {
	delay time.Duration
	wake  chan struct{} // to the writer: there is something to do

	mu     sync.Mutex
	room   sync.Cond // next was taken, or the queue closed
	next   *batch
	timed  bool // a timer runs for what waits
	closed bool
}

func newQueue(delay time.Duration) *queue {
	q := &queue{delay: delay, wake: make(chan struct{}, 1), next: newBatch()}
	q.room.L = &q.mu
	return q
}

// put adds an item to the next batch, and reports false if the queue is closed.
func (q *queue) put(it *item) bool {
	q.mu.Lock()
	for len(q.next.items) >= maxBatch && !q.closed {
		q.room.Wait()
	}
	if q.closed {
		q.mu.Unlock()
		return false
	}
	it.batch = q.next
	q.next.items = append(q.next.items, it)
	lazy := it.typ.lazy() && len(q.next.items) < maxBatch
	if lazy && !q.timed {
		q.timed = true
		time.AfterFunc(q.delay, q.expire)
	}
	q.mu.Unlock()
	if !lazy {
		q.hurry()
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
	q.room.Broadcast()
	return b, !q.closed
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.room.Broadcast()
	q.mu.Unlock()
	q.hurry()
}
