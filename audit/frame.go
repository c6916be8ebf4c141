package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Sizes of the format, docs/spec/audit-log.md "Segments" and "Frames".
const (
	blockSize   = 4096
	frameHeader = 40
	maxFrame    = 8 << 20 // of a frame with its padding
	maxRecord   = 1 << 20
)

var (
	frameMagic = []byte("DPTYFRM1")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// errPadding: a frame that is whole, checksums and all, with something behind it in its last block. A crash leaves zeros
	// there, so it isn't wiped as a torn one: its records may have been acknowledged.
	errPadding = errors.New("frame's padding isn't zero")
	// errNoFrame: zeros where a frame would start, so nothing was written there, or its first block was lost.
	errNoFrame = errors.New("no frame")
)

// frame is one group of records that became durable together.
type frame struct {
	first      int64 // seq of the first record
	records    [][]byte
	checkpoint []byte
	size       int64 // on disk, with padding
}

func (f *frame) end() int64 { return f.first + int64(len(f.records)) }

func padded(n int) int { return (n + blockSize - 1) / blockSize * blockSize }

// beginFrame starts a frame in buf; records follow, each behind its length, and finishFrame ends it.
func beginFrame(buf []byte) []byte {
	return append(buf[:0], make([]byte, frameHeader)...)
}

func finishFrame(buf []byte, first int64, count int, checkpoint []byte) []byte {
	body := len(buf) - frameHeader
	buf = append(buf, checkpoint...)
	h := buf[:frameHeader]
	copy(h, frameMagic)
	binary.BigEndian.PutUint64(h[8:], uint64(first))
	binary.BigEndian.PutUint32(h[16:], uint32(count))
	binary.BigEndian.PutUint32(h[20:], uint32(body))
	binary.BigEndian.PutUint32(h[24:], uint32(len(checkpoint)))
	binary.BigEndian.PutUint32(h[28:], crc32.Checksum(buf[frameHeader:], castagnoli))
	binary.BigEndian.PutUint32(h[32:], 0)
	binary.BigEndian.PutUint32(h[36:], crc32.Checksum(h[:36], castagnoli))
	return append(buf, make([]byte, padded(len(buf))-len(buf))...)
}

// frameSize reads the header h and returns the frame's size on disk.
func frameSize(h []byte) (int64, error) {
	if len(h) < frameHeader {
		return 0, errors.New("frame header is cut off")
	}
	h = h[:frameHeader]
	if isZero(h) {
		return 0, errNoFrame
	}
	if !bytes.Equal(h[:8], frameMagic) {
		return 0, errors.New("not the start of a frame")
	}
	if binary.BigEndian.Uint32(h[36:]) != crc32.Checksum(h[:36], castagnoli) {
		return 0, errors.New("frame header fails its checksum")
	}
	count := binary.BigEndian.Uint32(h[16:]) // a wrong first seq is the scanner's to find
	body, cp := binary.BigEndian.Uint32(h[20:]), binary.BigEndian.Uint32(h[24:])
	switch {
	case binary.BigEndian.Uint32(h[32:]) != 0:
		return 0, errors.New("frame header: the reserved word isn't zero")
	case count == 0 || cp == 0 || cp > maxCheckpoint || body > maxFrame || uint64(count)*5 > uint64(body):
		return 0, errors.New("frame header: a number is out of range")
	}
	size := int64(padded(frameHeader + int(body) + int(cp)))
	if size > maxFrame {
		return 0, errors.New("frame header: larger than a frame may be")
	}
	return size, nil
}

// parseFrame reads the frame at the start of b, which may go on behind it. The records alias b.
func parseFrame(b []byte) (*frame, error) {
	size, err := frameSize(b)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < size {
		return nil, fmt.Errorf("frame of %d bytes is cut off after %d", size, len(b))
	}
	count := binary.BigEndian.Uint32(b[16:])
	body := int(binary.BigEndian.Uint32(b[20:]))
	used := frameHeader + body + int(binary.BigEndian.Uint32(b[24:]))
	if binary.BigEndian.Uint32(b[28:]) != crc32.Checksum(b[frameHeader:used], castagnoli) {
		return nil, errors.New("frame fails its checksum")
	}
	f := &frame{
		first:      int64(binary.BigEndian.Uint64(b[8:])),
		records:    make([][]byte, 0, count),
		checkpoint: b[frameHeader+body : used],
		size:       size,
	}
	rest := b[frameHeader : frameHeader+body]
	for range count {
		if len(rest) < 4 {
			return nil, errors.New("frame's records end early")
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if n == 0 || n > maxRecord || int(n) > len(rest) {
			return nil, errors.New("record length is out of range")
		}
		f.records = append(f.records, rest[:n:n])
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return nil, errors.New("bytes after the last record of a frame")
	}
	if !isZero(b[used:size]) {
		return nil, &damageError{errPadding}
	}
	return f, nil
}

// readFrame reads the frame at off of a segment that ends at end.
func readFrame(r io.ReaderAt, off, end int64) (*frame, error) {
	if off+blockSize > end {
		return nil, errNoFrame
	}
	head := make([]byte, blockSize)
	if err := readFull(r, head, off); err != nil {
		return nil, err
	}
	size, err := frameSize(head)
	if err != nil {
		return nil, err
	}
	if off+size > end {
		return nil, errors.New("frame runs over the end of its segment")
	}
	if size > blockSize {
		head = append(head, make([]byte, size-blockSize)...)
		if err := readFull(r, head[blockSize:], off+blockSize); err != nil {
			return nil, err
		}
	}
	return parseFrame(head)
}

// ioError marks an error of the disk, as opposed to one of the bytes on it.
type ioError struct{ err error }

func (e *ioError) Error() string { return e.err.Error() }
func (e *ioError) Unwrap() error { return e.err }

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &ioError{fmt.Errorf("reading %d bytes at offset %d: %w", len(b), off, err)}
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
