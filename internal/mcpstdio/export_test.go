package mcpstdio

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing/iotest"
)

func readAll(text string, piece int, next func(*bufio.Reader, int) ([]byte, error)) ([]string, error) {
	in := io.Reader(strings.NewReader(text))
	if piece == 1 {
		in = iotest.OneByteReader(in)
	}
	r := bufio.NewReaderSize(in, 16)
	var out []string
	for {
		data, err := next(r, 1<<16)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, string(data))
	}
}

// LinesForTest reads lines, EventsForTest the data of events, LineForTest writes a message.
func LinesForTest(text string, piece int) ([]string, error)  { return readAll(text, piece, readLine) }
func EventsForTest(text string, piece int) ([]string, error) { return readAll(text, piece, readEvent) }

// LineForTest puts a message on a line.
func LineForTest(data []byte) ([]byte, error) { return line(data) }
