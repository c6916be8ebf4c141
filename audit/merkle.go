package audit

import (
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// tree is the right edge of an RFC 6962 Merkle tree: enough to append to it and to know its root,
// whatever its size.
type tree struct {
	size  int64
	peaks []tlog.Hash // roots of the complete subtrees, largest first; as many as size has one bits
}

func treeFrom(size int64, peaks []tlog.Hash) (tree, error) {
	if size < 0 || bits.OnesCount64(uint64(size)) != len(peaks) {
		return tree{}, fmt.Errorf("%d peaks for a tree of %d records", len(peaks), size)
	}
	return tree{size: size, peaks: append([]tlog.Hash(nil), peaks...)}, nil
}

func (t *tree) append(leaf tlog.Hash) {
	for n := t.size; n&1 == 1; n >>= 1 {
		leaf = tlog.NodeHash(t.peaks[len(t.peaks)-1], leaf)
		t.peaks = t.peaks[:len(t.peaks)-1]
	}
	t.peaks = append(t.peaks, leaf)
	t.size++
}

func (t *tree) root() tlog.Hash {
	if len(t.peaks) == 0 {
		h, _ := tlog.TreeHash(0, nil) // the empty tree's hash reads nothing
		return h
	}
	h := t.peaks[len(t.peaks)-1]
	for i := len(t.peaks) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.peaks[i], h)
	}
	return h
}

// clone copies t, so that a frame that fails leaves the log's tree as it was.
func (t *tree) clone() tree {
	return tree{size: t.size, peaks: append(make([]tlog.Hash, 0, len(t.peaks)+8), t.peaks...)}
}
