package audit

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"
)

// scanner walks the frames of one segment and recomputes the Merkle log as it goes. Signatures are left
// to its caller.
type scanner struct {
	r      io.ReaderAt
	end    int64 // of the file
	off    int64 // where the next frame starts
	origin string
	tree   tree

	checkpoint []byte // of the last good frame
	leaves     []tlog.Hash
}

// damageError: a whole frame that contradicts what comes before it. No crash leaves that behind.
type damageError struct{ err error }

func (e *damageError) Error() string { return e.err.Error() }
func (e *damageError) Unwrap() error { return e.err }

func scanSegment(r io.ReaderAt, h *segmentHead, end int64, origin string) *scanner {
	return &scanner{r: r, end: min(end, h.size), off: blockSize, origin: origin, tree: h.tree.clone(), checkpoint: h.checkpoint}
}

// next returns the next frame. errNoFrame ends a segment; *ioError is the disk's; *damageError is a whole frame that is
// wrong; any other error is an unfinished frame.
func (s *scanner) next() (*frame, error) {
	f, err := readFrame(s.r, s.off, s.end)
	if err != nil {
		return nil, err
	}
	if f.first != s.tree.size {
		return nil, &damageError{fmt.Errorf("frame begins with record %d where %d is next", f.first, s.tree.size)}
	}
	t := s.tree.clone()
	s.leaves = s.leaves[:0]
	for _, r := range f.records {
		leaf := tlog.RecordHash(r)
		s.leaves = append(s.leaves, leaf)
		t.append(leaf)
	}
	cp, err := parseCheckpoint(f.checkpoint)
	if err != nil {
		return nil, &damageError{err}
	}
	switch {
	case s.origin != "" && cp.Origin != s.origin:
		return nil, &damageError{fmt.Errorf("checkpoint is of the log %q, not %q", cp.Origin, s.origin)}
	case cp.Size != t.size:
		return nil, &damageError{fmt.Errorf("checkpoint speaks of %d records where there are %d", cp.Size, t.size)}
	case cp.Root != t.root():
		return nil, &damageError{fmt.Errorf("records don't hash to the checkpoint's root at %d records", t.size)}
	}
	s.tree, s.checkpoint, s.off = t, f.checkpoint, s.off+f.size
	return f, nil
}

// tail looks at what stands behind the last good frame: where its last byte that isn't zero ends, and
// whether a whole frame follows further on, which means that something before it was destroyed.
func (s *scanner) tail() (used int64, err error) {
	if used, err = lastUsed(s.r, s.off, s.end); err != nil {
		return 0, err
	}
	for at := s.off + blockSize; at < used; at += blockSize {
		_, err := readFrame(s.r, at, s.end)
		var disk *ioError
		if errors.As(err, &disk) {
			return used, err
		}
		if err == nil || errors.Is(err, errPadding) {
			return used, &damageError{fmt.Errorf("a whole frame stands at offset %d, behind a damaged one at %d", at, s.off)}
		}
	}
	if used-s.off > maxFrame {
		return used, &damageError{fmt.Errorf("%d bytes behind the last frame at offset %d: more than one frame can leave", used-s.off, s.off)}
	}
	return used, nil
}
