package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	segmentSuffix  = ".segment"
	minSegmentSize = 64 << 10
	maxSegmentSize = 4 << 30
	segmentFixed   = 40 // bytes of the header before the peaks
)

var segmentMagic = []byte("DPTYSEG1")

// errBlankSegment: the header block was never finished, so the segment isn't in use.
var errBlankSegment = errors.New("segment has no header")

// segmentHead is the first block of a segment: where the log stood when it begins.
type segmentHead struct {
	number     int64
	size       int64 // of the file
	tree       tree
	checkpoint []byte // the newest one before this segment; none when the log begins here
}

func segmentName(number int64) string { return fmt.Sprintf("%016d%s", number, segmentSuffix) }

func segmentNumber(name string) (int64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, ok && err == nil && n >= 0 && segmentName(n) == name
}

// segmentNumbers picks the segments out of a folder's names, in order, and demands that none is missing in between.
func segmentNumbers(names []string) ([]int64, error) {
	var all []int64
	for _, name := range names {
		if n, ok := segmentNumber(name); ok {
			all = append(all, n)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	for i := 1; i < len(all); i++ {
		if all[i] != all[i-1]+1 {
			return all, fmt.Errorf("segment %s is missing", segmentName(all[i-1]+1))
		}
	}
	return all, nil
}

func (h *segmentHead) encode() ([]byte, error) {
	b := make([]byte, blockSize)
	if segmentFixed+len(h.tree.peaks)*tlog.HashSize+len(h.checkpoint) > blockSize-4 {
		return nil, errors.New("segment header doesn't fit into its block")
	}
	copy(b, segmentMagic)
	binary.BigEndian.PutUint64(b[8:], uint64(h.number))
	binary.BigEndian.PutUint64(b[16:], uint64(h.size))
	binary.BigEndian.PutUint64(b[24:], uint64(h.tree.size))
	binary.BigEndian.PutUint32(b[32:], uint32(len(h.tree.peaks)))
	binary.BigEndian.PutUint32(b[36:], uint32(len(h.checkpoint)))
	at := segmentFixed
	for _, p := range h.tree.peaks {
		at += copy(b[at:], p[:])
	}
	copy(b[at:], h.checkpoint)
	binary.BigEndian.PutUint32(b[blockSize-4:], crc32.Checksum(b[:blockSize-4], castagnoli))
	return b, nil
}

// parseSegmentHead reads the first block of a segment. It checks everything but the signature.
func parseSegmentHead(b []byte) (*segmentHead, error) {
	if len(b) < blockSize {
		return nil, errBlankSegment
	}
	b = b[:blockSize]
	if binary.BigEndian.Uint32(b[blockSize-4:]) != crc32.Checksum(b[:blockSize-4], castagnoli) || isZero(b[:8]) {
		return nil, errBlankSegment
	}
	if !bytes.Equal(b[:8], segmentMagic) {
		return nil, errors.New("not a segment of this format")
	}
	h := &segmentHead{number: int64(binary.BigEndian.Uint64(b[8:])), size: int64(binary.BigEndian.Uint64(b[16:]))}
	n, p, c := int64(binary.BigEndian.Uint64(b[24:])), binary.BigEndian.Uint32(b[32:]), binary.BigEndian.Uint32(b[36:])
	if h.number < 0 || h.size < minSegmentSize || h.size > maxSegmentSize || h.size%blockSize != 0 || n < 0 || n >= 1<<62 ||
		p > 62 || int(p) != bits.OnesCount64(uint64(n)) || c > maxCheckpoint {
		return nil, errors.New("segment header: a number is out of range")
	}
	at := segmentFixed
	peaks := make([]tlog.Hash, p)
	for i := range peaks {
		at += copy(peaks[i][:], b[at:])
	}
	var err error
	if h.tree, err = treeFrom(n, peaks); err != nil {
		return nil, fmt.Errorf("segment header: %w", err)
	}
	h.checkpoint = append([]byte(nil), b[at:at+int(c)]...)
	if !isZero(b[at+int(c) : blockSize-4]) {
		return nil, errors.New("segment header: the rest of the block isn't zero")
	}
	if n == 0 {
		if c != 0 {
			return nil, errors.New("segment header: a checkpoint before the first record")
		}
		return h, nil
	}
	cp, err := parseCheckpoint(h.checkpoint)
	if err != nil {
		return nil, fmt.Errorf("segment header: %w", err)
	}
	if cp.Size != n || cp.Root != h.tree.root() {
		return nil, errors.New("segment header: its checkpoint is of another tree")
	}
	return h, nil
}

func readSegmentHead(r io.ReaderAt, size int64) (*segmentHead, error) {
	if size < blockSize {
		return nil, errBlankSegment
	}
	b := make([]byte, blockSize)
	if err := readFull(r, b, 0); err != nil {
		return nil, err
	}
	return parseSegmentHead(b)
}

// lastUsed returns the end of the last byte in [from, to) of r that isn't zero, or from.
func lastUsed(r io.ReaderAt, from, to int64) (int64, error) {
	used, buf := from, make([]byte, 256<<10)
	for at := from; at < to; {
		b := buf[:min(int64(len(buf)), to-at)]
		if err := readFull(r, b, at); err != nil {
			return 0, err
		}
		if !isZero(b) {
			end := len(b)
			for b[end-1] == 0 {
				end--
			}
			used = at + int64(end)
		}
		at += int64(len(b))
	}
	return used, nil
}
