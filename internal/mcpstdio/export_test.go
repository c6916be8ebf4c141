package mcpstdio

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"testing/iotest"
	"time"
)

// LinesForTest reads lines, from single bytes if piece is 1.
func LinesForTest(text string, piece int) ([]string, error) {
	in := io.Reader(strings.NewReader(text))
	if piece == 1 {
		in = iotest.OneByteReader(in)
	}
	r := bufio.NewReaderSize(in, 16)
	var out []string
	for {
		data, err := readLine(r, 1<<16)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, string(data))
	}
}

// LineForTest puts a message on a line.
func LineForTest(data []byte) ([]byte, error) { return line(data) }

// WaitingForTest gives how many of some messages of a server wait for its session's own stream, each time that they come and are taken.
func WaitingForTest(messages []string, times int) (waiting []int) {
	s := newSession(nil, time.Time{})
	for range times {
		for _, text := range messages {
			m, err := parse([]byte(text))
			if err != nil || s.callFor(m, []byte(text)) != nil {
				panic(text)
			}
		}
		own, taken := s.listen(context.Background())
		s.leave(own)
		waiting = append(waiting, len(taken))
	}
	return waiting
}

// PlacesForTest are places of processes.
type PlacesForTest struct{ p *places }

// NewPlacesForTest makes them.
func NewPlacesForTest(most int) PlacesForTest { return PlacesForTest{newPlaces(most)} }

// Take takes one.
func (p PlacesForTest) Take(ctx context.Context) error { return p.p.take(ctx) }

// Ends says that a process is told to end.
func (p PlacesForTest) Ends() { p.p.ends() }

// HasEnded says that it has.
func (p PlacesForTest) HasEnded() { p.p.hasEnded() }

// GiveBack leaves a place without a process.
func (p PlacesForTest) GiveBack() { p.p.giveBack() }
