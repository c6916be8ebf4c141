package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
)

// openDecision is an allowed command whose outcome isn't recorded yet.
type openDecision struct {
	id         RecordID
	seq        int64
	txn        string
	session    string
	connection string
	chain      *Chain
	forwarded  bool
	owes       int64 // room that its outcome may need
}

// recoverLog opens the folder, finds the last good frame, wipes what a crash left behind it, and appends what the
// start owes: log_opened, and outcome_unknown for every open decision. The writer isn't running yet.
func recoverLog(l *Log) (_ *writer, err error) {
	fsys, dir := l.cfg.FS, l.cfg.Dir
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	if err := fsys.SyncDir(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	if l.unlock, err = fsys.Lock(dir); err != nil {
		return nil, err
	}
	w := &writer{l: l, open: make(map[RecordID]*openDecision), prepared: make(chan preparation, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.release())
		}
	}()

	// 1. The last segment in use. Blank ones behind it were only being prepared.
	numbers, err := w.usedSegments()
	if err != nil {
		return nil, err
	}
	opened := &LogOpened{}
	if len(numbers) == 0 {
		if l.cfg.Seen != nil {
			return nil, fmt.Errorf("%w: the folder is empty, but a checkpoint was seen", ErrRolledBack)
		}
		if err := w.startLog(); err != nil {
			return nil, err
		}
	} else {
		// 2. Its frames, and what a crash left behind them.
		if err := w.resume(numbers, opened); err != nil {
			return nil, err
		}
		// 3. The log contains what was seen of it.
		if err := w.containsSeen(numbers); err != nil {
			return nil, err
		}
	}
	// 4. What the start owes.
	opened.Segment, opened.OpenedCount = w.number, len(w.open)
	w.startPreparing()
	owed := append([]*item{w.owedItem(Record{Event: opened})}, w.unknownOutcomes("the log ended before the outcome was recorded")...)
	if err := w.commitOwed(owed); err != nil {
		return nil, err
	}
	return w, nil
}

// usedSegments lists the segments in use and removes blank ones behind them.
func (w *writer) usedSegments() ([]int64, error) {
	fsys, dir := w.l.cfg.FS, w.l.cfg.Dir
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	numbers, err := segmentNumbers(names)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	for len(numbers) > 0 {
		last := numbers[len(numbers)-1]
		blank, err := w.isBlank(last)
		if err != nil {
			return nil, err
		}
		if !blank {
			break
		}
		if err := errors.Join(fsys.Remove(filepath.Join(dir, segmentName(last))), fsys.SyncDir(dir)); err != nil {
			return nil, err
		}
		numbers = numbers[:len(numbers)-1]
	}
	return numbers, nil
}

func (w *writer) isBlank(number int64) (blank bool, err error) {
	f, size, err := w.openSegment(number, os.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err = readSegmentHead(f, size); !errors.Is(err, errBlankSegment) {
		return false, nil // in use; what else is wrong with it comes out when it is read
	}
	if size > blockSize {
		used, err := lastUsed(f, blockSize, size)
		if err != nil {
			return false, err
		}
		if used > blockSize {
			return false, fmt.Errorf("%w: segment %s has frames but no header", ErrCorrupt, segmentName(number))
		}
	}
	return true, nil
}

func (w *writer) openSegment(number int64, flag int) (File, int64, error) {
	f, err := w.l.cfg.FS.OpenFile(filepath.Join(w.l.cfg.Dir, segmentName(number)), flag)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

// startLog makes the first segment of a new log.
func (w *writer) startLog() error {
	p := w.makeSegment(0, true)
	if p.err != nil {
		return p.err
	}
	return w.useSegment(p.file, 0, p.size)
}

// resume reads the last segment, repairs its tail and leaves the writer behind its last frame.
func (w *writer) resume(numbers []int64, opened *LogOpened) error {
	number := numbers[len(numbers)-1]
	name := segmentName(number)
	f, size, err := w.openSegment(number, os.O_RDWR)
	if err != nil {
		return err
	}
	w.seg, w.number, w.stated = f, number, make(map[Digest]bool)
	head, err := readSegmentHead(f, size)
	if err == nil && head.number != number {
		err = fmt.Errorf("its header says segment %d", head.number)
	}
	if err != nil {
		return fmt.Errorf("%w: segment %s: %w", ErrCorrupt, name, err)
	}
	if err := w.replayEarlier(numbers); err != nil {
		return err
	}
	s := scanSegment(f, head, size, w.l.Origin())
	var disk *ioError
	var damage *damageError
	var lastType Type
	for {
		fr, err := s.next()
		if errors.As(err, &disk) {
			return err
		}
		if errors.As(err, &damage) {
			return fmt.Errorf("%w: segment %s, offset %d: %w", ErrCorrupt, name, s.off, err)
		}
		if err != nil {
			break
		}
		for i, r := range fr.records {
			if lastType, err = w.replay(fr.first+int64(i), r, true); err != nil {
				return fmt.Errorf("%w: segment %s: %w", ErrCorrupt, name, err)
			}
		}
	}
	used, err := s.tail()
	if errors.As(err, &damage) {
		return fmt.Errorf("%w: segment %s: %w", ErrCorrupt, name, err)
	}
	if err != nil {
		return err
	}
	if s.tree.size > 0 {
		cp, err := openCheckpoint(s.checkpoint, w.l.known)
		if err == nil && cp.Origin != w.l.Origin() {
			err = fmt.Errorf("the log is %q, the key is named %q", cp.Origin, w.l.Origin())
		}
		if err != nil {
			var unsigned *note.UnverifiedNoteError
			if errors.As(err, &unsigned) {
				err = fmt.Errorf("%w (was the log key replaced? name the earlier key as well)", err)
			}
			return fmt.Errorf("%w: segment %s: %w", ErrCorrupt, name, err)
		}
	}
	w.tree, w.checkpoint, w.off, w.size = s.tree, s.checkpoint, s.off, head.size
	opened.Recovered = lastType != TypeLogClosed
	if used > s.off {
		torn := make([]byte, used-s.off)
		if err := readFull(f, torn, s.off); err != nil {
			return err
		}
		opened.TornOffset, opened.TornBytes, opened.TornDigest = s.off, used-s.off, DigestOf(torn)
		if err := w.zero(f, s.off, s.off+int64(padded(len(torn)))); err != nil {
			return err
		}
	}
	if size < head.size { // its preallocated end is gone; that part holds nothing
		if err := w.zero(f, max(size, s.off), head.size); err != nil {
			return err
		}
	}
	if err := f.Datasync(); err != nil {
		return err
	}
	return w.findCarried(numbers)
}

// replayEarlier follows the records of the segments before the last, back to one that begins with the whole list of
// decisions that were open then. It is more than none only where a crash came between a segment's header and that list.
func (w *writer) replayEarlier(numbers []int64) error {
	start := len(numbers) - 1
	for ; start > 0; start-- {
		whole, err := w.listsOpen(numbers[start])
		if err != nil && !(errors.Is(err, ErrCorrupt) && start == len(numbers)-1) { // the last one may be torn there
			return err
		}
		if whole {
			break
		}
	}
	for _, number := range numbers[start : len(numbers)-1] {
		var broken error
		_, err := w.visit(number, func(f *frame) bool {
			for i, r := range f.records {
				if _, broken = w.replay(f.first+int64(i), r, false); broken != nil {
					return false
				}
			}
			return true
		})
		if err != nil {
			return err
		}
		if broken != nil {
			return fmt.Errorf("%w: segment %s: %w", ErrCorrupt, segmentName(number), broken)
		}
	}
	return nil
}

// listsOpen reports whether a segment begins with the whole list of open decisions.
func (w *writer) listsOpen(number int64) (whole bool, err error) {
	listed := 0
	head, err := w.visit(number, func(f *frame) bool {
		for _, r := range f.records {
			var l struct {
				Type  Type `json:"type"`
				Event struct {
					Total int               `json:"total"`
					Open  []json.RawMessage `json:"open"`
				} `json:"event"`
			}
			if json.Unmarshal(r, &l) != nil || l.Type != TypeLogSegment {
				return false
			}
			if listed += len(l.Event.Open); listed >= l.Event.Total {
				whole = true
				return false
			}
		}
		return true
	})
	if err == nil && head.tree.size == 0 {
		whole = true // the log begins here
	}
	return whole, err
}

// replay follows one record, of the last segment or of one before: what it opens and what it ends.
func (w *writer) replay(seq int64, data []byte, last bool) (Type, error) {
	var r struct {
		ID       RecordID `json:"id"`
		Type     Type     `json:"type"`
		Decision RecordID `json:"decision"`
		Event    struct {
			Effect Effect          `json:"effect"`
			Digest Digest          `json:"digest"`
			Open   json.RawMessage `json:"open"`
		} `json:"event"`
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return "", fmt.Errorf("record %d: %w", seq, err)
	}
	switch r.Type {
	case TypeDecision:
		if r.Event.Effect == Allow {
			w.open[r.ID] = &openDecision{id: r.ID, seq: seq}
		}
	case TypeForwarded:
		if d := w.open[r.Decision]; d != nil {
			d.forwarded = true
		}
	case TypeCompleted, TypeOutcomeUnknown:
		delete(w.open, r.Decision)
	case TypeChain:
		if last {
			stated, err := ParseRecord(data)
			if err != nil {
				return "", err
			}
			w.stated[stated.Event.(*ChainStated).digest] = true
		}
	case TypeEvidence:
		w.l.keep(r.Event.Digest)
	case TypeLogSegment:
		var carried []OpenDecision
		if r.Event.Open != nil {
			if err := json.Unmarshal(r.Event.Open, &carried); err != nil {
				return "", fmt.Errorf("record %d: %w", seq, err)
			}
		}
		for _, c := range carried {
			if w.open[c.ID] == nil {
				w.open[c.ID] = &openDecision{id: c.ID, seq: c.Seq, forwarded: c.Forwarded}
			}
		}
	}
	return r.Type, nil
}

// findCarried reads the decisions that are open, for the chain on their records. A segment that was pruned leaves them without one.
func (w *writer) findCarried(numbers []int64) error {
	wanted := make(map[int64]*openDecision)
	for _, d := range w.open {
		wanted[d.seq] = d
	}
	for i := len(numbers) - 1; i >= 0 && len(wanted) > 0; i-- {
		var stated chains
		var broken error
		_, err := w.visit(numbers[i], func(f *frame) bool {
			for j, data := range f.records {
				d := wanted[f.first+int64(j)]
				if d == nil && !bytes.Contains(data, []byte(`"type":"chain"`)) {
					continue
				}
				r, err := ParseRecord(data)
				if err == nil {
					err = stated.resolve(r)
				}
				if err != nil {
					broken = err
					return false
				}
				if d != nil {
					d.txn, d.session, d.connection, d.chain = r.Txn, r.Session, r.Connection, r.Chain
					delete(wanted, d.seq)
				}
			}
			return len(wanted) > 0
		})
		if broken != nil {
			err = fmt.Errorf("%w: open decision: %w", ErrCorrupt, broken)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// visit shows the frames of an earlier segment, without checking more than their form.
func (w *writer) visit(number int64, see func(*frame) bool) (_ *segmentHead, err error) {
	f, size, err := w.openSegment(number, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	head, err := readSegmentHead(f, size)
	if err != nil {
		return nil, fmt.Errorf("%w: segment %s: %w", ErrCorrupt, segmentName(number), err)
	}
	for off := int64(blockSize); ; {
		fr, err := readFrame(io.ReaderAt(f), off, min(size, head.size))
		if errors.Is(err, errNoFrame) {
			return head, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: segment %s, offset %d: %w", ErrCorrupt, segmentName(number), off, err)
		}
		if !see(fr) {
			return head, nil
		}
		off += fr.size
	}
}

// containsSeen demands that the checkpoint that others saw is one of this log's.
func (w *writer) containsSeen(numbers []int64) error {
	if w.l.cfg.Seen == nil {
		return nil
	}
	seen, err := openCheckpoint(w.l.cfg.Seen, w.l.known)
	if err != nil {
		return fmt.Errorf("the checkpoint that was seen: %w", err)
	}
	if seen.Size > w.tree.size {
		return fmt.Errorf("%w: it holds %d records, and %d were seen", ErrRolledBack, w.tree.size, seen.Size)
	}
	for i := len(numbers) - 1; i >= 0; i-- {
		found := false
		head, err := w.visit(numbers[i], func(f *frame) bool {
			if f.end() == seen.Size {
				cp, err := parseCheckpoint(f.checkpoint)
				found = err == nil && cp.Origin == seen.Origin && cp.Root == seen.Root
			}
			return f.end() < seen.Size
		})
		if err != nil {
			return err
		}
		if found || head.tree.size >= seen.Size && i == 0 && numbers[0] > 0 { // or it lies in a part that was pruned
			return nil
		}
		if head.tree.size < seen.Size {
			break
		}
	}
	return fmt.Errorf("%w: no frame has the checkpoint of %d records that was seen", ErrRolledBack, seen.Size)
}
