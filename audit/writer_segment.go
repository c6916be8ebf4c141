package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// preparation is a segment that was filled with zeros and synced, or why that failed.
type preparation struct {
	file File
	size int64
	err  error
	// below: it was made of the space that is kept free.
	below bool
}

const prepareAgain = 200 * time.Millisecond // between two attempts on a full disk

// startPreparing makes the next segment in the background.
func (w *writer) startPreparing() {
	if w.preparing || w.ready != nil || w.err != nil {
		return
	}
	w.preparing, w.tried = true, time.Now()
	number := w.number + 1
	go func() { w.prepared <- w.makeSegment(number, true) }()
}

// prepareBelow makes a segment of the space that is kept free, for records that are owed: they are bounded by the decisions that are
// open, and no new ones come. It is waited for: what is owed has nowhere else to go.
func (w *writer) prepareBelow() bool {
	if w.preparing {
		w.collectPrepared(true)
	}
	if w.ready != nil || w.err != nil || !errors.Is(w.full, errLowSpace) {
		return w.ready != nil
	}
	p := w.makeSegment(w.number+1, false)
	if p.err != nil {
		if !noSpace(p.err) {
			w.poison("preparing a segment", p.err)
		}
		return false
	}
	p.below = true
	w.ready = &p
	return true
}

// makeSegment preallocates one segment with zeros, durable in contents, length and name. It runs beside the writer
// and uses only what never changes.
func (w *writer) makeSegment(number int64, leaveFree bool) preparation {
	fsys, dir, size := w.l.cfg.FS, w.l.cfg.Dir, w.l.cfg.SegmentSize
	name := filepath.Join(dir, segmentName(number))
	if err := w.held(); err != nil {
		return preparation{err: fmt.Errorf("preparing %s: %w", segmentName(number), err)}
	}
	if err := w.mayGrow(); leaveFree && err != nil {
		return preparation{err: fmt.Errorf("preparing %s: %w", segmentName(number), err)}
	}
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return preparation{err: fmt.Errorf("preparing %s: %w", segmentName(number), err)}
	}
	err = w.zero(f, 0, size)
	if err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		err = fmt.Errorf("preparing %s: %w", segmentName(number), err)
		return preparation{err: errors.Join(err, f.Close(), fsys.Remove(name))}
	}
	return preparation{file: f, size: size}
}

func (w *writer) zero(f File, from, to int64) error {
	zeros := make([]byte, min(1<<20, to-from))
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// collectPrepared takes over what the background made; with wait it waits for what is under way. A full disk is
// tried again from time to time, any other failure poisons the log.
func (w *writer) collectPrepared(wait bool) {
	for {
		if w.ready != nil || w.err != nil {
			return
		}
		if !w.preparing {
			if w.full != nil && time.Since(w.tried) < prepareAgain {
				return
			}
			w.startPreparing()
		}
		var p preparation
		if wait {
			p = <-w.prepared
		} else {
			select {
			case p = <-w.prepared:
			default:
				return
			}
		}
		w.preparing = false
		switch {
		case p.err == nil:
			w.ready, w.full = &p, nil
		case noSpace(p.err):
			if w.full == nil {
				w.l.cfg.Logger.Error("audit log: no room for the next segment; when this one is full, commands are refused", "dir", w.l.cfg.Dir, "cause", p.err)
			}
			w.full = p.err
			return
		default:
			w.poison("preparing a segment", p.err)
			return
		}
	}
}

func (w *writer) fullError() error {
	if w.full == nil {
		return ErrFull
	}
	return fmt.Errorf("%w (%w)", ErrFull, w.full)
}

// reserve is what a segment keeps for owed records while there is no next one.
func (w *writer) reserve() int64 { return min(w.size/8, 4<<20) }

// nextSegment moves on to the prepared segment and puts the list of open decisions in front of items.
func (w *writer) nextSegment(items []*item) []*item {
	old, p := w.seg, w.ready
	w.ready, w.below = nil, p.below
	if err := w.useSegment(p.file, w.number+1, p.size); err != nil {
		w.poison("starting a segment", err)
		return items
	}
	if err := old.Close(); err != nil {
		w.poison("closing a segment", err)
		return items
	}
	w.startPreparing()
	return append(w.segmentItems(), items...)
}

// useSegment writes and syncs the header, after which the segment is in use.
func (w *writer) useSegment(f File, number, size int64) error {
	w.seg, w.number, w.size, w.off = f, number, size, blockSize
	w.stated = make(map[Digest]bool)
	head := segmentHead{number: number, size: size, tree: w.tree, checkpoint: w.checkpoint}
	block, err := head.encode()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(block, 0); err != nil {
		return err
	}
	return f.Datasync()
}

// segmentItems are the records that begin a segment.
func (w *writer) segmentItems() []*item {
	var open []OpenDecision
	for _, d := range w.open {
		open = append(open, OpenDecision{ID: d.id, Seq: d.seq, Forwarded: d.forwarded})
	}
	sort.Slice(open, func(i, j int) bool { return open[i].Seq < open[j].Seq })
	const perRecord = 128
	var items []*item
	for total := len(open); len(items) == 0 || len(open) > 0; {
		n := min(perRecord, len(open))
		items = append(items, w.owedItem(Record{Event: &LogSegment{Segment: w.number, Total: total, Open: open[:n:n]}}))
		open = open[n:]
	}
	return items
}

func putLength(b []byte, n int) { binary.BigEndian.PutUint32(b, uint32(n)) }
