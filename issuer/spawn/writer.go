package spawn

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

// Waits between attempts to write what the store refused.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	// writeTimeout bounds one attempt.
	writeTimeout = 10 * time.Second
)

// writer writes ends to the store, in order, until each is written: an end takes away, so it is neither held up
// nor given up when the disk is.
type writer struct {
	store Store
	audit Log
	log   *slog.Logger
	stop  chan struct{}
	done  chan struct{}
	wake  chan struct{}

	mu      sync.Mutex
	queue   []job
	written chan struct{} // closed and replaced when ends were written
}

// job is the end of agents, or the death of an ended agent's process.
type job struct {
	ids    []actor.AgentID
	reason string
	at     time.Time
	forget actor.AgentID
}

func startWriter(store Store, log Log, logger *slog.Logger) *writer {
	w := &writer{
		store: store, audit: log, log: logger,
		stop: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1), written: make(chan struct{}),
	}
	go w.run()
	return w
}

func (w *writer) end(ids []actor.AgentID, reason string, at time.Time) {
	w.put(job{ids: ids, reason: reason, at: at})
}

func (w *writer) forget(id actor.AgentID) { w.put(job{forget: id}) }

func (w *writer) put(j job) {
	w.mu.Lock()
	w.queue = append(w.queue, j)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// news returns a channel that is closed when more ends are in the store.
func (w *writer) news() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// close tries once more to write what is left, and returns when the writer has stopped.
func (w *writer) close() {
	close(w.stop)
	<-w.done
}

func (w *writer) run() {
	defer close(w.done)
	for {
		w.drain()
		select {
		case <-w.wake:
		case <-w.stop:
			w.drain()
			return
		}
	}
}

// drain writes the queue, waiting and trying again where the store fails, until it is empty or the writer stops.
func (w *writer) drain() {
	retry := firstRetry
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.mu.Unlock()
			return
		}
		j := w.queue[0]
		w.mu.Unlock()
		if err := w.write(j); err != nil {
			w.log.Error("writing the end of agents failed; they are dead here, but nobody else knows", "agents", len(j.ids), "error", err)
			select {
			case <-time.After(retry):
				retry = min(2*retry, lastRetry)
				continue
			case <-w.stop:
				return
			}
		}
		retry = firstRetry
		w.mu.Lock()
		w.queue = w.queue[1:]
		if len(j.ids) > 0 {
			close(w.written)
			w.written = make(chan struct{})
		}
		w.mu.Unlock()
	}
}

func (w *writer) write(j job) error {
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	if len(j.ids) == 0 {
		return w.store.Forget(ctx, j.forget)
	}
	ends, err := w.store.End(ctx, j.ids, j.reason, j.at)
	if err != nil || len(ends) == 0 {
		return err
	}
	// Not waited for: an end needs no leave.
	w.audit.Submit(audit.Record{Time: j.at.UTC(), Event: &audit.AgentEnded{
		Agent: ends[0].ID.String(), Reason: ends[0].Reason, Descendants: len(ends) - 1,
	}})
	w.log.Info("agent ended", "agent", ends[0].ID, "reason", ends[0].Reason, "descendants", len(ends)-1, "revision", ends[len(ends)-1].Revision)
	return nil
}
