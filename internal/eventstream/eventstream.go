// Package eventstream reads streams of server-sent events whose data are messages, as the Model Context Protocol has them. What two readers could
// read in two ways is refused. Types, ids and times of events say nothing there, and are left out; so is an event before whose first field a byte order
// mark stands.
//
// Specification: HTML, 9.2 "Server-sent events".
package eventstream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ErrRefused is a stream that can't be read in one way, or has an event over the limit.
var ErrRefused = errors.New("the event stream is refused")

// Reader reads one stream.
type Reader struct {
	r    *bufio.Reader
	max  int
	hold func(size int) error
}

// New reads from r events of at most max bytes each, with all their lines. Before an event of size bytes is held, hold is asked; what it returns ends the
// reading. It may be nil.
func New(r io.Reader, max int, hold func(size int) error) *Reader {
	if hold == nil {
		hold = func(int) error { return nil }
	}
	return &Reader{bufio.NewReader(r), max, hold}
}

// Next is the data of the next event that has any, or nil for a comment between events, as keeps a connection alive. What isn't ended is no event: it ends
// in the error of the reader beneath, such as io.EOF.
func (s *Reader) Next() ([]byte, error) {
	var data []byte
	has, size := false, 0
	for {
		line, err := s.line(&size)
		if err != nil {
			return nil, err
		}
		switch {
		case len(line) == 0 && len(data) > 0:
			return data, nil
		case len(line) == 0:
			data, has, size = nil, false, 0 // an event without data is none
		case line[0] == ':':
			if !has {
				return nil, nil
			}
		default:
			name, value, _ := bytes.Cut(line, []byte(":"))
			if string(name) == "data" {
				if has {
					data = append(data, '\n')
				}
				data, has = append(data, bytes.TrimPrefix(value, []byte(" "))...), true
			}
		}
	}
}

// line reads one line and adds what it took to size. A lone carriage return ends a line for some readers and not for others: it is refused.
func (s *Reader) line(size *int) ([]byte, error) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		if *size += len(part); *size > s.max {
			return nil, fmt.Errorf("%w: an event is longer than %d bytes", ErrRefused, s.max)
		}
		if err := s.hold(*size); err != nil {
			return nil, err
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err // what has no end is no line
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if bytes.IndexByte(line, '\r') >= 0 {
			return nil, fmt.Errorf("%w: a carriage return inside a line", ErrRefused)
		}
		return line, nil
	}
}
