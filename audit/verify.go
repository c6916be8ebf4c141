package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// VerifyOptions ask for more than that the log is whole.
type VerifyOptions struct {
	Seen   [][]byte // signed checkpoints that were seen before, such as agents' receipts; the log must contain them
	Record RecordID // prove this record
	Pruned bool     // a log whose first segments were archived and removed is fine
}

// Verify checks the log in fsys, such as os.DirFS(dir), offline, with public keys only: every frame and record, that
// each checkpoint is signed and extends the one before, that no segment is missing, that nothing took effect without a
// decision, and that the credentials behind the records verify. It returns an error only when it can't look; what it
// finds wrong stands in the report.
//
// A log that was cut back to one of its own frames looks whole: only a checkpoint that somebody kept
// (VerifyOptions.Seen) shows it.
func Verify(fsys fs.FS, keys *Keys, opts VerifyOptions) (*Report, error) {
	known, err := keys.verifiers()
	if err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("verifying an audit log: %w", err)
	}
	var numbers []int64
	for _, e := range entries { // ReadDir sorts by name, and so by number
		if n, ok := segmentNumber(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) == 0 {
		return nil, fmt.Errorf("verifying an audit log: no segments here: %w", fs.ErrNotExist)
	}
	v := &verifier{
		fsys: fsys, known: known, opts: opts, report: &Report{},
		open: make(map[RecordID]int64), credentials: newCredentials(keys),
	}
	for _, msg := range opts.Seen {
		cp, err := openCheckpoint(msg, known)
		if err != nil {
			return nil, fmt.Errorf("verifying an audit log: a checkpoint that was seen: %w", err)
		}
		v.seen = append(v.seen, cp)
	}
	for i, n := range numbers {
		if err := v.segment(n, i == len(numbers)-1, i == len(numbers)-2); err != nil {
			return nil, fmt.Errorf("verifying an audit log: %w", err)
		}
	}
	if err := v.finish(); err != nil {
		return nil, fmt.Errorf("verifying an audit log: %w", err)
	}
	return v.report, nil
}

type verifier struct {
	fsys   fs.FS
	known  note.Verifiers
	opts   VerifyOptions
	seen   []Checkpoint
	report *Report

	begun      bool
	number     int64 // of the current segment
	offset     int64
	tree       tree
	checkpoint []byte

	chains    chains // of the current segment
	last      *Record
	beat      time.Duration      // promised heartbeat of this run
	open      map[RecordID]int64 // decisions without an outcome, with their seq
	blind     bool               // the log was pruned, and what was open when it begins isn't all listed yet
	openOrder []RecordID

	hashes      []tlog.Hash // stored hashes of the tree, when a record is to be proved
	found       *Inclusion
	credentials *credentials
}

func (v *verifier) problem(kind ProblemKind, format string, args ...any) {
	if len(v.report.Problems) < maxProblems {
		v.report.Problems = append(v.report.Problems, Problem{kind, v.number, v.offset, v.tree.size, fmt.Sprintf(format, args...)})
	}
}

// segment checks one file. last: no file follows. Errors are those of the disk.
func (v *verifier) segment(number int64, last, nextToLast bool) error {
	expected := v.number + 1
	v.number, v.offset, v.chains = number, 0, nil
	if v.begun && number != expected {
		v.problem(ProblemMissing, "%s is missing", segmentName(expected))
	}
	seg, err := openSegmentFile(v.fsys, number)
	switch {
	case errors.Is(err, errBlankSegment) && last:
		return v.blank(number)
	case err != nil:
		var disk *ioError
		if errors.As(err, &disk) || errors.Is(err, fs.ErrPermission) {
			return err
		}
		v.problem(ProblemHeader, "%v", err)
		v.begun = true
		return nil
	}
	defer func() { _ = seg.close() }()
	v.report.Segments++
	v.header(seg)
	if seg.size != seg.head.size {
		v.problem(ProblemTruncated, "the file has %d bytes and was made with %d", seg.size, seg.head.size)
	}
	used := last
	if nextToLast { // the one behind it may be blank, only prepared
		next, err := openSegmentFile(v.fsys, number+1)
		if err == nil {
			err = next.close()
		}
		used = errors.Is(err, errBlankSegment)
	}
	return v.frames(seg, used)
}

// blank accepts a prepared segment: a header that was never finished and zeros.
func (v *verifier) blank(number int64) error {
	f, err := v.fsys.Open(segmentName(number))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	for at := int64(0); ; {
		n, err := f.Read(buf)
		b := buf[:n]
		if at < blockSize {
			b = b[min(int64(len(b)), blockSize-at):]
		}
		if !isZero(b) {
			v.problem(ProblemHeader, "the segment has contents but no header")
			return nil
		}
		at += int64(n)
		if err != nil {
			return nil
		}
	}
}

// header holds a segment's first block against what came before.
func (v *verifier) header(seg *segmentFile) {
	h := seg.head
	switch {
	case !v.begun:
		v.report.FirstSeq, v.blind = h.tree.size, h.tree.size > 0
		if h.tree.size == 0 && v.number != 0 {
			v.problem(ProblemMissing, "the log begins with segment %d, and no record stood before it", v.number)
		}
		if h.tree.size > 0 && !v.opts.Pruned {
			v.problem(ProblemPruned, "the log begins with record %d; earlier segments are not here", h.tree.size)
		}
	case h.tree.size != v.tree.size:
		v.problem(ProblemHeader, "the segment begins with record %d where %d is next", h.tree.size, v.tree.size)
	case h.tree.root() != v.tree.root() || string(h.checkpoint) != string(v.checkpoint):
		v.problem(ProblemHeader, "the segment doesn't continue the one before")
	}
	if h.tree.size > 0 {
		if cp, err := openCheckpoint(h.checkpoint, v.known); err != nil {
			v.problem(ProblemSignature, "%v", err)
		} else {
			v.origin(cp)
			v.sawBefore(cp)
		}
	}
	v.begun, v.tree, v.checkpoint = true, h.tree.clone(), h.checkpoint
}

func (v *verifier) origin(cp Checkpoint) {
	if v.report.Origin == "" {
		v.report.Origin = cp.Origin
	} else if cp.Origin != v.report.Origin {
		v.problem(ProblemSignature, "checkpoint of the log %q among those of %q", cp.Origin, v.report.Origin)
	}
}

func (v *verifier) frames(seg *segmentFile, mayTear bool) error {
	s := scanSegment(seg.at, seg.head, seg.size, "")
	for {
		v.offset = s.off
		f, err := s.next()
		if err == nil {
			v.frame(f, s)
			continue
		}
		var disk *ioError
		if errors.As(err, &disk) {
			return err
		}
		var damage *damageError
		if errors.As(err, &damage) {
			kind := ProblemTree
			if errors.Is(err, errPadding) {
				kind = ProblemFrame
			}
			v.problem(kind, "%v; what follows in this segment can't be verified", err)
			return nil
		}
		used, terr := s.tail()
		if errors.As(terr, &disk) {
			return terr
		}
		switch {
		case terr != nil:
			v.problem(ProblemFrame, "%v (%v); what follows in this segment can't be verified", err, terr)
		case used == s.off:
		case !mayTear:
			v.problem(ProblemFrame, "%d bytes behind the last frame of a finished segment (%v)", used-s.off, err)
		default:
			v.report.Torn = &Torn{Segment: v.number, Offset: s.off, Bytes: used - s.off}
		}
		return nil
	}
}

// frame checks a frame whose Merkle root fits: its signature and its records.
func (v *verifier) frame(f *frame, s *scanner) {
	v.report.Frames++
	if cp, err := openCheckpoint(f.checkpoint, v.known); err != nil {
		v.problem(ProblemSignature, "%v", err)
	} else {
		v.origin(cp)
		v.sawBefore(cp)
	}
	for i, data := range f.records {
		seq := f.first + int64(i)
		v.tree.size = seq // for the place of problems
		if v.opts.Record != "" {
			v.store(seq, s.leaves[i])
		}
		r, err := ParseRecord(data)
		if err != nil {
			v.problem(ProblemRecord, "%v", err)
			continue
		}
		if r.Seq != seq {
			v.problem(ProblemRecord, "record %s says it is number %d", r.ID, r.Seq)
		}
		v.report.Records++
		if err := v.chains.resolve(r); err != nil {
			v.problem(ProblemRecord, "%v", err)
		}
		v.record(r)
		if r.ID == v.opts.Record && v.opts.Record != "" {
			v.found = &Inclusion{Record: r, Chain: r.Chain, Segment: v.number, Offset: v.offset, FrameFirst: f.first, FrameCount: len(f.records)}
		}
	}
	v.tree, v.checkpoint = s.tree.clone(), append([]byte(nil), f.checkpoint...)
}

// sawBefore holds a checkpoint of the log against those that were seen before.
func (v *verifier) sawBefore(cp Checkpoint) {
	for _, seen := range v.seen {
		if seen.Size == cp.Size && (seen.Root != cp.Root || seen.Origin != cp.Origin) {
			v.problem(ProblemRolledBack, "another checkpoint of %d records was seen: root %s, here %s", cp.Size, seen.Root, cp.Root)
		}
	}
	v.seen = removeSize(v.seen, cp.Size)
}

func removeSize(list []Checkpoint, size int64) []Checkpoint {
	var rest []Checkpoint
	for _, c := range list {
		if c.Size != size {
			rest = append(rest, c)
		}
	}
	return rest
}

func (v *verifier) store(seq int64, leaf tlog.Hash) {
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, a := range at {
			if a >= int64(len(v.hashes)) {
				return nil, errors.New("hash isn't there")
			}
			out[i] = v.hashes[a]
		}
		return out, nil
	})
	hs, err := tlog.StoredHashesForRecordHash(seq, leaf, reader)
	if err == nil {
		v.hashes = append(v.hashes, hs...)
	}
}

// finish looks at what only the whole log can tell.
func (v *verifier) finish() error {
	r := v.report
	r.Checkpoint = string(v.checkpoint)
	for _, c := range v.seen {
		switch {
		case c.Origin != r.Origin:
			v.problem(ProblemRolledBack, "a checkpoint of the log %q was given, this one is %q", c.Origin, r.Origin)
		case c.Size > v.tree.size:
			v.problem(ProblemRolledBack, "the log has %d records; a checkpoint of %d was seen", v.tree.size, c.Size)
		case c.Size <= r.FirstSeq && r.FirstSeq > 0 && v.opts.Pruned:
		default:
			v.problem(ProblemRolledBack, "no frame ends with the checkpoint of %d records that was seen", c.Size)
		}
	}
	for _, id := range v.openOrder {
		if _, ok := v.open[id]; ok {
			r.Open = append(r.Open, id)
		}
	}
	if v.last != nil {
		r.Last, r.Closed = v.last.Time, v.last.Type == TypeLogClosed
	}
	r.Credentials = v.credentials.report
	if v.opts.Record == "" {
		return nil
	}
	return v.prove()
}

// prove builds the audit path of the record that was asked for and checks it against the last checkpoint.
func (v *verifier) prove() error {
	if v.found == nil {
		return fmt.Errorf("record %s: %w in this log", v.opts.Record, ErrNotFound)
	}
	if v.report.FirstSeq > 0 || int64(len(v.hashes)) != tlog.StoredHashCount(v.tree.size) {
		return fmt.Errorf("record %s: its path needs the whole log from record 0", v.opts.Record)
	}
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, a := range at {
			out[i] = v.hashes[a]
		}
		return out, nil
	})
	cp, err := openCheckpoint(v.checkpoint, v.known)
	if err != nil {
		return err
	}
	seq := v.found.Record.Seq
	path, err := tlog.ProveRecord(cp.Size, seq, reader)
	if err != nil {
		return fmt.Errorf("record %s: %w", v.opts.Record, err)
	}
	leaf := tlog.RecordHash(v.found.Record.raw)
	if err := tlog.CheckRecord(path, cp.Size, cp.Root, seq, leaf); err != nil {
		return fmt.Errorf("record %s: %w", v.opts.Record, err)
	}
	v.found.LeafHash = base64.StdEncoding.EncodeToString(leaf[:])
	for _, h := range path {
		v.found.Path = append(v.found.Path, base64.StdEncoding.EncodeToString(h[:]))
	}
	v.found.Checkpoint = string(v.checkpoint)
	v.report.Inclusion = v.found
	return nil
}
