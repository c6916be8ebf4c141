package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"time"
)

// maxWholeFile bounds a segment that must be read whole, because its file system can't read at an offset.
const maxWholeFile = 256 << 20

// Reader walks the records of a log, also of one that is being written. It checks checksums and order but
// neither hashes nor signatures: that is what [Verify] is for.
type Reader struct {
	fsys   fs.FS
	number int64
	at     io.ReaderAt
	close  func() error
	end    int64
	off    int64
	seq    int64

	queue  [][]byte
	chains chains // of the segment
	begun  bool
}

// NewReader reads the log in fsys, such as os.DirFS(dir), from its first record.
func NewReader(fsys fs.FS) *Reader { return &Reader{fsys: fsys} }

// Next returns the next record. io.EOF means that there is none now; a later call may find one. A frame that isn't
// finished at the end of the log is EOF too, since it may be under way; Verify tells what it is.
func (r *Reader) Next() (*Record, error) {
	for len(r.queue) == 0 {
		if err := r.load(); err != nil {
			return nil, err
		}
	}
	rec, err := ParseRecord(r.queue[0])
	if err == nil && rec.Seq != r.seq {
		err = fmt.Errorf("audit record %d stands where %d should be", rec.Seq, r.seq)
	}
	if err == nil {
		err = r.chains.resolve(rec)
	}
	if err != nil {
		return nil, err
	}
	r.queue, r.seq = r.queue[1:], r.seq+1
	return rec, nil
}

// All yields the records that are there now.
func (r *Reader) All() iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		for {
			rec, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if !yield(rec, err) || err != nil {
				return
			}
		}
	}
}

// Follow yields the records that are there and those that come, looking every interval, until ctx ends.
func (r *Reader) Follow(ctx context.Context, interval time.Duration) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			for rec, err := range r.All() {
				if !yield(rec, err) || err != nil {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// Damaged says, once Next has found the end, whether more of the log stands behind it: then what Next returned isn't all.
// It is nil in the middle of a log, and while the log's writer goes on.
func (r *Reader) Damaged() error {
	if r.at == nil {
		return r.headless()
	}
	s := &scanner{r: r.at, end: r.end, off: r.off}
	_, err := s.tail()
	var damage *damageError
	if !errors.As(err, &damage) {
		return err
	}
	// Frames that came while the tail was read aren't behind a damaged one.
	if _, again := readFrame(r.at, r.off, r.end); again == nil {
		return nil
	}
	return fmt.Errorf("%w: segment %s: %w", ErrCorrupt, segmentName(r.number), err)
}

// headless finds contents in a log whose first segment has no header.
func (r *Reader) headless() error {
	numbers, err := listSegments(r.fsys)
	if r.begun || err != nil || len(numbers) == 0 {
		return err
	}
	f, err := r.fsys.Open(segmentName(numbers[0]))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, blockSize)
	for at := 0; ; at++ {
		n, err := io.ReadFull(f, buf)
		if at > 0 && !isZero(buf[:n]) {
			break
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	seg, err := openSegmentFile(r.fsys, numbers[0])
	if err == nil { // it was begun meanwhile
		return seg.close()
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// Close releases the segment that is open.
func (r *Reader) Close() error {
	if r.close == nil {
		return nil
	}
	err := r.close()
	r.at, r.close = nil, nil
	return err
}

// load reads the next frame into the queue.
func (r *Reader) load() error {
	if r.at == nil {
		if err := r.openNext(); err != nil {
			return err
		}
	}
	f, err := readFrame(r.at, r.off, r.end)
	if err == nil {
		if f.first != r.seq {
			return fmt.Errorf("%w: a frame begins with record %d where %d is next", ErrCorrupt, f.first, r.seq)
		}
		r.queue, r.off = f.records, r.off+f.size
		return nil
	}
	var disk *ioError
	if errors.As(err, &disk) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	// Either the log ends here, or it goes on in the next segment, which is only begun when nothing is under way in this one.
	next, nerr := openSegmentFile(r.fsys, r.number+1)
	if nerr != nil {
		if errors.Is(nerr, fs.ErrNotExist) || errors.Is(nerr, errBlankSegment) {
			return io.EOF
		}
		return nerr
	}
	// It began after the look at this one: look once more.
	if f, again := readFrame(r.at, r.off, r.end); again == nil {
		r.queue, r.off = f.records, r.off+f.size
		return next.close()
	}
	if !errors.Is(err, errNoFrame) {
		return errors.Join(fmt.Errorf("%w: segment %s, offset %d: %w", ErrCorrupt, segmentName(r.number), r.off, err), next.close())
	}
	if err := r.Close(); err != nil {
		return errors.Join(err, next.close())
	}
	return r.use(next)
}

func (r *Reader) openNext() error {
	if r.begun {
		seg, err := openSegmentFile(r.fsys, r.number)
		if err != nil {
			return err
		}
		r.at, r.close, r.end = seg.at, seg.close, min(seg.size, seg.head.size)
		return nil
	}
	numbers, err := listSegments(r.fsys)
	if err != nil {
		return err
	}
	if len(numbers) == 0 {
		return fmt.Errorf("no audit log here: %w", fs.ErrNotExist)
	}
	seg, err := openSegmentFile(r.fsys, numbers[0])
	if errors.Is(err, errBlankSegment) {
		return io.EOF
	}
	if err != nil {
		return err
	}
	r.seq = seg.head.tree.size
	return r.use(seg)
}

func (r *Reader) use(seg *segmentFile) error {
	if seg.head.tree.size != r.seq {
		return errors.Join(fmt.Errorf("%w: segment %s begins with record %d where %d is next", ErrCorrupt, segmentName(seg.head.number), seg.head.tree.size, r.seq), seg.close())
	}
	r.begun, r.number, r.chains = true, seg.head.number, nil
	r.at, r.close, r.end, r.off = seg.at, seg.close, min(seg.size, seg.head.size), blockSize
	return nil
}

// segmentFile is an open segment of an fs.FS.
type segmentFile struct {
	at    io.ReaderAt
	size  int64
	head  *segmentHead
	close func() error
}

func listSegments(fsys fs.FS) ([]int64, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	numbers, err := segmentNumbers(names)
	if err != nil {
		return numbers, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return numbers, nil
}

func openSegmentFile(fsys fs.FS, number int64) (_ *segmentFile, err error) {
	f, err := fsys.Open(segmentName(number))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s := &segmentFile{size: st.Size(), close: f.Close}
	var ok bool
	if s.at, ok = f.(io.ReaderAt); !ok {
		if s.size > maxWholeFile {
			return nil, fmt.Errorf("%s: %d bytes can't be read at an offset here", segmentName(number), s.size)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxWholeFile+1))
		if err != nil {
			return nil, err
		}
		s.at, s.size = byteReader(b), int64(len(b))
	}
	if s.head, err = readSegmentHead(s.at, s.size); err != nil {
		return nil, fmt.Errorf("%s: %w", segmentName(number), err)
	}
	if s.head.number != number {
		return nil, fmt.Errorf("%w: %s: its header says segment %d", ErrCorrupt, segmentName(number), s.head.number)
	}
	return s, nil
}

type byteReader []byte

func (b byteReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Origin returns the name of the log in fsys, as its first checkpoint says it; nothing is verified.
func Origin(fsys fs.FS) (string, error) {
	numbers, err := listSegments(fsys)
	if err != nil && len(numbers) == 0 {
		return "", err
	}
	if len(numbers) == 0 {
		return "", fmt.Errorf("no audit log here: %w", fs.ErrNotExist)
	}
	seg, err := openSegmentFile(fsys, numbers[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = seg.close() }()
	f, err := readFrame(seg.at, blockSize, min(seg.size, seg.head.size))
	if err != nil {
		return "", err
	}
	cp, err := parseCheckpoint(f.checkpoint)
	return cp.Origin, err
}

// ParseCheckpoint reads the text of a signed checkpoint, such as one in a receipt, without verifying it.
func ParseCheckpoint(msg []byte) (Checkpoint, error) { return parseCheckpoint(msg) }
