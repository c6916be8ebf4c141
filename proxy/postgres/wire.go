package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// bufferSize of each direction while something is on its way. A frame that fits is handled in place.
const bufferSize = 32 << 10

// idleBuffer is what an idle direction keeps: enough for the next short message. Thousands of connections do nothing most of the time.
const idleBuffer = 512

// buffers are those of bufferSize that nobody needs now.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return new([bufferSize]byte)[:]
}

// put takes a buffer back, unless it grew into another one.
func (b *buffers) put(buf []byte) {
	if cap(buf) == bufferSize {
		b.pool.Put((*[bufferSize]byte)(buf[:bufferSize]))
	}
}

// maxFrame is the largest frame that PostgreSQL itself would send or accept.
const maxFrame = 1 << 30

var errFrameLength = errors.New("a message says that it is shorter than its own length field, or longer than 1 GiB")

// errTooLong says that a peer's message is larger than we hold in memory.
type errTooLong struct {
	kind  byte
	size  int
	limit int
}

func (e *errTooLong) Error() string {
	return fmt.Sprintf("message %q has %d bytes; at most %d are accepted", e.kind, e.size, e.limit)
}

// frames reads length-prefixed messages. A body is valid until the next call.
type frames struct {
	r      io.Reader
	pool   *buffers
	idle   [idleBuffer]byte
	buf    []byte // idle, or one of the pool's
	lo, hi int
	read   int // bytes that the last read brought
	// left counts the bytes of the current body that wait to be read or skipped.
	left int
}

func newFrames(r io.Reader, pool *buffers) *frames {
	f := &frames{r: r, pool: pool}
	f.buf = f.idle[:]
	return f
}

func (f *frames) small() bool { return len(f.buf) == idleBuffer }

// drained begins anew in an empty buffer: a large one where the last read brought much, since more is likely to come.
func (f *frames) drained() {
	f.lo, f.hi = 0, 0
	switch busy := f.read >= idleBuffer; {
	case busy && f.small():
		f.buf = f.pool.get()
	case !busy && !f.small():
		f.pool.put(f.buf)
		f.buf = f.idle[:]
	}
}

// need makes n bytes available at lo; n must not exceed bufferSize.
func (f *frames) need(n int) error {
	if f.hi-f.lo >= n {
		return nil
	}
	if n > len(f.buf) {
		large := f.pool.get()
		f.hi = copy(large, f.buf[f.lo:f.hi])
		f.lo, f.buf = 0, large
	}
	if f.lo+n > len(f.buf) {
		copy(f.buf, f.buf[f.lo:f.hi])
		f.hi -= f.lo
		f.lo = 0
	}
	for empty := 0; f.hi-f.lo < n; {
		m, err := f.r.Read(f.buf[f.hi:])
		f.hi += m
		f.read = m
		if f.hi-f.lo >= n {
			return nil
		}
		if err != nil {
			if err == io.EOF && f.hi > f.lo {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		if m == 0 {
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// next reads a header: the kind of the message and the size of its body.
func (f *frames) next() (kind byte, size int, err error) {
	if f.left > 0 {
		if err := f.skip(); err != nil {
			return 0, 0, err
		}
	}
	if f.lo == f.hi {
		f.drained()
	}
	if err := f.need(5); err != nil {
		return 0, 0, err
	}
	kind = f.buf[f.lo]
	n := binary.BigEndian.Uint32(f.buf[f.lo+1:])
	if n < 4 || n > maxFrame {
		return 0, 0, errFrameLength
	}
	f.lo += 5
	f.left = int(n) - 4
	return kind, f.left, nil
}

// body reads the whole body of the message that next announced, which must not be larger than limit.
func (f *frames) body(kind byte, limit int) ([]byte, error) {
	n := f.left
	if n > limit {
		return nil, &errTooLong{kind: kind, size: n, limit: limit}
	}
	if n <= bufferSize {
		if err := f.need(n); err != nil {
			return nil, unexpected(err)
		}
		b := f.buf[f.lo : f.lo+n : f.lo+n]
		f.lo += n
		f.left = 0
		return b, nil
	}
	b := make([]byte, 0, min(n, 1<<20))
	for len(b) < n {
		// The body grows with what arrives, not with what was announced.
		chunk, err := f.chunk()
		if err != nil {
			return nil, err
		}
		b = append(b, chunk...)
	}
	return b, nil
}

// chunk gives the next bytes of the body, as many as there are; none when the body is at its end.
func (f *frames) chunk() ([]byte, error) {
	if f.left == 0 {
		return nil, nil
	}
	if f.lo == f.hi {
		f.drained()
		if err := f.need(1); err != nil {
			return nil, unexpected(err)
		}
	}
	n := min(f.left, f.hi-f.lo)
	b := f.buf[f.lo : f.lo+n : f.lo+n]
	f.lo += n
	f.left -= n
	return b, nil
}

func (f *frames) skip() error {
	for f.left > 0 {
		if _, err := f.chunk(); err != nil {
			return err
		}
	}
	return nil
}

// ready says that a whole message, or one too large for the buffer, has begun to arrive, so that
// reading on will not block for long.
func (f *frames) ready() bool {
	n := f.hi - f.lo
	if n < 5 {
		return false
	}
	size := binary.BigEndian.Uint32(f.buf[f.lo+1:])
	return uint64(n) >= uint64(size)+1
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sink gathers frames and writes them with as few writes as possible. The first error sticks.
type sink struct {
	w    io.Writer
	pool *buffers
	buf  []byte // nil when nothing waits
	err  error
	// start of the frame that is being built.
	start int
}

func newSink(w io.Writer, pool *buffers) *sink { return &sink{w: w, pool: pool} }

// open makes sure that there is a buffer.
func (s *sink) open() {
	if s.buf == nil {
		s.buf = s.pool.get()[:0]
	}
}

func (s *sink) flush() error {
	if s.err == nil && len(s.buf) > 0 {
		_, s.err = s.w.Write(s.buf)
	}
	s.pool.put(s.buf)
	s.buf = nil
	return s.err
}

// begin starts a frame; end fills in its length.
func (s *sink) begin(kind byte) {
	if len(s.buf) >= bufferSize-1024 {
		_ = s.flush()
	}
	s.open()
	s.start = len(s.buf)
	s.buf = append(s.buf, kind, 0, 0, 0, 0)
}

func (s *sink) end() {
	binary.BigEndian.PutUint32(s.buf[s.start+1:], uint32(len(s.buf)-s.start-1))
	if len(s.buf) >= bufferSize {
		_ = s.flush()
	}
}

func (s *sink) bytes(b []byte)   { s.buf = append(s.buf, b...) }
func (s *sink) byte(b byte)      { s.buf = append(s.buf, b) }
func (s *sink) int16(v int)      { s.buf = binary.BigEndian.AppendUint16(s.buf, uint16(v)) }
func (s *sink) int32(v int)      { s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(int32(v))) }
func (s *sink) cstring(v string) { s.buf = append(append(s.buf, v...), 0) }

// frame writes a whole message.
func (s *sink) frame(kind byte, body []byte) {
	s.header(kind, len(body))
	s.raw(body)
}

// header writes the head of a message whose body follows through raw.
func (s *sink) header(kind byte, size int) {
	if len(s.buf)+5 > bufferSize {
		_ = s.flush()
	}
	s.open()
	s.buf = append(s.buf, kind)
	s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(size+4))
}

func (s *sink) raw(b []byte) {
	for len(b) > 0 && s.err == nil {
		n := min(len(b), bufferSize-len(s.buf))
		if n <= 0 {
			_ = s.flush()
			continue
		}
		s.open()
		s.buf = append(s.buf, b[:n]...)
		b = b[n:]
	}
}

// parts takes a body apart. After a failure every call gives zero values, and done says so.
type parts struct {
	b   []byte
	bad bool
}

func (p *parts) take(n int) []byte {
	if p.bad || n < 0 || n > len(p.b) {
		p.bad = true
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *parts) byte() byte {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *parts) int16() int {
	if b := p.take(2); b != nil {
		return int(int16(binary.BigEndian.Uint16(b)))
	}
	return 0
}

func (p *parts) int32() int {
	if b := p.take(4); b != nil {
		return int(int32(binary.BigEndian.Uint32(b)))
	}
	return 0
}

func (p *parts) uint32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (p *parts) cstring() string {
	if p.bad {
		return ""
	}
	for i, c := range p.b {
		if c == 0 {
			s := string(p.b[:i])
			p.b = p.b[i+1:]
			return s
		}
	}
	p.bad = true
	return ""
}

// done says that everything was there and nothing is left over.
func (p *parts) done() bool { return !p.bad && len(p.b) == 0 }
