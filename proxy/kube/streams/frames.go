package streams

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/moby/spdystream/spdy"
)

// Limits of frames of SPDY.
const (
	maxControl = 16 << 10 // its headers packed
	maxHeaders = 16
	maxField   = 4 << 10
)

// lengths are those that a control frame may have, by type. HEADERS, CREDENTIAL and what isn't known are refused.
var lengths = map[spdy.ControlFrameType]struct{ min, max uint32 }{
	spdy.TypeSynStream: {10, maxControl}, spdy.TypeSynReply: {4, maxControl}, spdy.TypeRstStream: {8, 8}, spdy.TypePing: {4, 4},
	spdy.TypeGoAway: {8, 8}, spdy.TypeSettings: {4, maxControl}, spdy.TypeWindowUpdate: {8, 8},
}

// frames reads those of one peer. Each is taken from the connection whole, within limits, before the library reads it: the library believes lengths.
type frames struct {
	r       *bufio.Reader
	frame   bytes.Reader
	buffer  []byte
	library *spdy.Framer
}

func newFrames(r io.Reader) (*frames, error) {
	f := &frames{r: bufio.NewReaderSize(r, 32<<10)}
	var err error
	f.library, err = spdy.NewFramerWithOptions(io.Discard, &f.frame, spdy.WithMaxControlFramePayloadSize(maxControl),
		spdy.WithMaxHeaderCount(maxHeaders), spdy.WithMaxHeaderFieldSize(maxField))
	return f, err
}

// next returns a frame that is valid until the next is read. SETTINGS and WINDOW_UPDATE are passed over: nobody here heeds them, and there is
// no flow control but the connection's.
func (f *frames) next() (spdy.Frame, error) {
	for {
		frame, err := f.read()
		if frame != nil || err != nil {
			return frame, err
		}
	}
}

func (f *frames) read() (spdy.Frame, error) {
	var head [8]byte
	if n, err := io.ReadFull(f.r, head[:]); err != nil {
		if n > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	word, flags, length := binary.BigEndian.Uint32(head[:4]), head[4], binary.BigEndian.Uint32(head[4:])&0xffffff
	if word>>31 == 0 {
		if word == 0 || length > maxMessage || flags&^byte(spdy.DataFlagFin) != 0 {
			return nil, fmt.Errorf("data of %d bytes with flags %#x on stream %d", length, flags, word)
		}
		data, err := f.payload(length)
		return &spdy.DataFrame{StreamId: spdy.StreamId(word), Flags: spdy.DataFlags(flags), Data: data}, err
	}
	kind := spdy.ControlFrameType(word & 0xffff)
	allowed, ok := lengths[kind]
	if word>>16&0x7fff != spdy.Version || !ok || length < allowed.min || length > allowed.max {
		return nil, fmt.Errorf("a control frame of type %d, %d bytes", kind, length)
	}
	payload, err := f.payload(length)
	if err != nil || kind == spdy.TypeSettings || kind == spdy.TypeWindowUpdate {
		return nil, err
	}
	f.frame.Reset(append(head[:], payload...))
	frame, err := f.library.ReadFrame()
	if err == nil && f.frame.Len() > 0 {
		err = fmt.Errorf("%d bytes after a control frame of type %d", f.frame.Len(), kind)
	}
	return frame, err
}

func (f *frames) payload(n uint32) ([]byte, error) {
	if uint32(cap(f.buffer)) < n {
		f.buffer = make([]byte, n)
	}
	_, err := io.ReadFull(f.r, f.buffer[:n])
	if err == io.EOF { //nolint:errorlint // of the reader itself
		err = io.ErrUnexpectedEOF
	}
	return f.buffer[:n], err
}

// peer is one end of a connection that speaks SPDY. It may be written to by several goroutines.
type peer struct {
	conn io.ReadWriteCloser
	in   *frames

	mu      sync.Mutex // guards what follows
	w       *bufio.Writer
	library *spdy.Framer
}

func newPeer(conn io.ReadWriteCloser, r io.Reader) (*peer, error) {
	in, err := newFrames(r)
	if err != nil {
		return nil, err
	}
	p := &peer{conn: conn, in: in, w: bufio.NewWriterSize(conn, 32<<10)}
	p.library, err = spdy.NewFramer(p.w, nil)
	return p, err
}

// write sends frames at once.
func (p *peer) write(all ...spdy.Frame) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range all {
		if err := p.library.WriteFrame(f); err != nil {
			return err
		}
	}
	return p.w.Flush()
}
