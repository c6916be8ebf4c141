package audit

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// writer is the one goroutine that touches the disk. Until run starts, recovery uses it.
type writer struct {
	l *Log

	seg        File // in use
	number     int64
	size, off  int64
	tree       tree
	checkpoint []byte
	open       map[RecordID]*openDecision
	stated     map[Digest]bool // the chains that stand in the segment in use
	owes       int64           // room that the outcomes of open decisions may need

	prepared  chan preparation // at most one is under way
	preparing bool
	ready     *preparation // the next segment
	full      error        // why there is none
	below     bool         // the segment in use was made below MinFree, for what is owed only
	tried     time.Time

	buf []byte
	err error // poisoned
}

func (w *writer) run() {
	defer close(w.l.done)
	beat := time.NewTicker(w.l.cfg.Heartbeat)
	defer beat.Stop()
	for open := true; open; {
		var own []*item
		select {
		case <-w.l.queue.wake:
		case <-beat.C:
			own = w.periodic()
		}
		// Whoever is about to submit gets in: on a busy machine a frame, its signature and its fdatasync then serve several.
		runtime.Gosched()
		var b *batch
		b, open = w.l.queue.take()
		w.commit(append(b.items, own...))
		b.items = nil // whoever holds a Pending holds its batch
		close(b.done)
	}
	w.finish()
}

// finish ends the log after the last record.
func (w *writer) finish() {
	final := w.err
	if final == nil {
		owed := append(w.aggregates(), w.unknownOutcomes("the log was closed before the outcome was recorded")...)
		if err := w.commitOwed(append(owed, w.owedItem(Record{Event: &LogClosed{Reason: "shutdown"}}))); err != nil {
			final = err
		}
	}
	final = errors.Join(final, w.release())
	w.l.closeErr = final
	if w.err == nil {
		final = ErrClosed
	}
	w.publish(final)
}

// release closes the files. A prepared segment stays on the disk, blank, and the next start removes it.
func (w *writer) release() error {
	var errs []error
	if w.preparing {
		p := <-w.prepared
		w.ready = &p
	}
	if w.ready != nil && w.ready.file != nil {
		errs = append(errs, w.ready.file.Close())
	}
	if w.seg != nil {
		errs = append(errs, w.seg.Close())
	}
	return errors.Join(append(errs, w.l.unlock.Close())...)
}

func (w *writer) publish(err error) {
	w.l.state.Store(&published{checkpoint: w.checkpoint, err: err})
}

func (w *writer) poison(doing string, cause error) {
	w.err = fmt.Errorf("%w (%s: %w)", ErrPoisoned, doing, cause)
	w.publish(w.err)
	w.l.cfg.Logger.Error("audit log is poisoned; every command is refused until a restart", "dir", w.l.cfg.Dir, "doing", doing, "cause", cause)
}

// commit makes items durable or fails them, in order, in as many frames as it takes.
func (w *writer) commit(items []*item) {
	for len(items) > 0 && w.err == nil {
		items = w.writeFrame(items)
	}
	for _, it := range items {
		it.err = w.err
	}
}

// commitOwed commits records of the log's own and reports the first that failed.
func (w *writer) commitOwed(items []*item) error {
	w.commit(append([]*item(nil), items...))
	for _, it := range items {
		if it.err != nil {
			return it.err
		}
	}
	return nil
}

// writeFrame writes one frame of the first of items and returns what is left.
//
//  1. gather records while they fit; without a next segment, new ones leave room for those that are owed
//  2. Merkle root, signed checkpoint
//  3. one write, one fdatasync
//  4. only then: the log's state, and the callers
func (w *writer) writeFrame(items []*item) (rest []*item) {
	w.collectPrepared(w.off+int64(w.estimate(items)) > w.size-w.reserve()-w.owes)
	if w.err != nil {
		return items
	}
	room, roomNew := w.size-w.off, w.size-w.off
	if w.ready == nil {
		roomNew -= w.reserve() + w.owes
		if w.below {
			roomNew = 0
		}
	}
	w.buf = beginFrame(w.buf)
	t := w.tree.clone()
	taken := make([]*item, 0, len(items))
	put := func(it *item) {
		at := len(w.buf) + 4
		w.buf = complete(append(w.buf, 0, 0, 0, 0), t.size, it.tail)
		putLength(w.buf[at-4:at], len(w.buf)-at)
		it.seq = t.size
		t.append(tlog.RecordHash(w.buf[at:]))
		taken = append(taken, it)
	}
	opening, i := 0, 0
	var now map[RecordID]bool // what this frame opens and ends
	for ; i < len(items); i++ {
		it := items[i]
		if it.typ.belongs() {
			open, here := now[it.decision]
			if !here {
				open = w.open[it.decision] != nil
			}
			if !open {
				it.err = ErrNoDecision
				continue
			}
		}
		var states *item
		need := len(w.buf) + 32 + len(it.tail) + maxCheckpoint
		if it.chain != nil && !w.stated[it.chain.digest] {
			states = w.owedItem(Record{Txn: it.chain.Txn, Event: &ChainStated{Chain: it.chain}})
			need += 32 + len(states.tail)
		}
		size := int64(padded(need))
		if size > maxFrame {
			break
		}
		limit := roomNew
		if it.typ.owed() {
			limit = room
		} else if it.opens != nil && w.ready == nil {
			limit -= it.opens.owes
		}
		if size > limit {
			if w.ready != nil || it.typ.owed() && w.prepareBelow() {
				break // the next segment takes it
			}
			it.err = w.fullError()
			if it.counted != nil {
				w.l.recount(it.counted)
			}
			continue
		}
		if it.opens != nil {
			if len(w.open)+opening >= w.maxOpen() {
				it.err = fmt.Errorf("%w: %d decisions are without an outcome", ErrFull, len(w.open)+opening)
				continue
			}
			opening++
			if w.ready == nil {
				roomNew -= it.opens.owes
			}
		}
		if states != nil {
			put(states)
			w.stated[it.chain.digest] = true
		}
		put(it)
		if ends := it.typ == TypeCompleted; ends || it.opens != nil {
			if now == nil {
				now = make(map[RecordID]bool)
			}
			if ends {
				now[it.decision] = false
			} else {
				now[it.id] = true
			}
		}
	}
	rest = items[i:]
	if w.err != nil {
		return append(taken, rest...)
	}
	if len(taken) == 0 {
		if len(rest) > 0 {
			return w.nextSegment(rest)
		}
		return rest
	}

	cp, err := w.l.cfg.Key.sign(t.size, t.root())
	if err != nil {
		w.poison("signing a checkpoint", err)
		return append(taken, rest...)
	}
	bare := len(w.buf)
	w.buf = finishFrame(w.buf, w.tree.size, len(taken), cp)
	w.l.quota.beside.Store(int64((len(w.buf) - bare) / len(taken)))
	if _, err := w.seg.WriteAt(w.buf, w.off); err != nil {
		w.poison("writing a frame", err)
		return append(taken, rest...)
	}
	if err := w.seg.Datasync(); err != nil {
		w.poison("fdatasync of a frame", err)
		return append(taken, rest...)
	}

	w.off, w.tree, w.checkpoint = w.off+int64(len(w.buf)), t, cp
	w.publish(nil)
	for _, it := range taken {
		w.follow(it)
		it.rcpt = Receipt{RecordID: it.id, Seq: it.seq, Checkpoint: cp}
	}
	return rest
}

// follow keeps the table of open decisions.
func (w *writer) follow(it *item) {
	switch {
	case it.opens != nil:
		it.opens.seq = it.seq
		w.open[it.id] = it.opens
		w.owes += it.opens.owes
	case it.typ == TypeForwarded:
		if d := w.open[it.decision]; d != nil {
			d.forwarded = true
		}
	case it.typ == TypeCompleted || it.typ == TypeOutcomeUnknown:
		if d := w.open[it.decision]; d != nil {
			w.owes -= d.owes
			delete(w.open, it.decision)
		}
	case it.kept != "":
		w.l.keep(it.kept)
	}
}

// maxOpen bounds decisions without an outcome, so that a list of them always fits into a segment.
func (w *writer) maxOpen() int { return int(w.l.cfg.SegmentSize / 512) }

// estimate is what the items need at most in one frame.
func (w *writer) estimate(items []*item) int {
	n := frameHeader + maxCheckpoint
	var last *Chain
	for _, it := range items {
		n += 32 + len(it.tail)
		if it.chain != nil && it.chain != last && !w.stated[it.chain.digest] {
			n += it.chain.room()
			last = it.chain
		}
		if it.opens != nil {
			n += int(it.opens.owes)
		}
	}
	return padded(n)
}

// periodic makes the records of a heartbeat.
func (w *writer) periodic() []*item {
	if err := w.held(); err != nil {
		w.poison("looking at the folder", err)
	}
	hb := &Heartbeat{Interval: Microseconds(w.l.cfg.Heartbeat.Microseconds()), Open: len(w.open)}
	return append(w.aggregates(), w.owedItem(Record{Event: hb}))
}

func (w *writer) aggregates() []*item {
	var items []*item
	for _, c := range w.l.takeCounts() {
		it := w.owedItem(Record{Event: c, Chain: c.chain, Txn: c.txn})
		it.counted = c
		items = append(items, it)
	}
	return items
}

func (w *writer) unknownOutcomes(reason string) []*item {
	var items []*item
	for _, d := range w.open {
		items = append(items, w.owedItem(Record{
			Txn: d.txn, Session: d.session, Connection: d.connection, Decision: d.id, Chain: d.chain,
			Event: &OutcomeUnknown{Forwarded: d.forwarded, Reason: reason},
		}))
	}
	return items
}

// owedItem makes an item of a record of the log's own. What can't be encoded poisons the log: it is a record that
// the log owes.
func (w *writer) owedItem(r Record) *item {
	it, err := w.l.prepare(&r)
	if err != nil {
		w.poison("encoding a record", err)
		return &item{typ: r.Type}
	}
	return it
}
