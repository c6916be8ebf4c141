package eventstream_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/deputymesh/deputy/internal/eventstream"
)

// all gives the data of all events, and how many comments came between them.
func all(s *eventstream.Reader) (events []string, comments int, err error) {
	for {
		data, err := s.Next()
		switch {
		case err != nil:
			return events, comments, err
		case data == nil:
			comments++
		default:
			events = append(events, string(data))
		}
	}
}

func TestEventsAreRead(t *testing.T) {
	for text, want := range map[string]struct {
		events   []string
		comments int
		refused  bool
	}{
		"data: a\n\n":                         {events: []string{"a"}},
		"data:a\r\ndata:  b\r\n\r\n":          {events: []string{"a\n b"}},
		": x\n\n:\ndata: a\n: y\ndata\n\n":    {events: []string{"a\n"}, comments: 2},
		"id: 1\nevent: x\n\ndata:\n\n":        {},
		"Data: a\n\ndatas: a\n\n data: a\n\n": {},
		"\ufeffdata: a\n\ndata: b\n\n":        {events: []string{"b"}},
		"data: a\n\ndata: b\n":                {events: []string{"a"}},
		"data: a\n\ndata: b":                  {events: []string{"a"}},
		"data: a\n\ndata: b\rdata: c\n\n":     {events: []string{"a"}, refused: true},
		"data: a\r\r\n\n":                     {refused: true},
	} {
		events, comments, err := all(eventstream.New(strings.NewReader(text), 100, nil))
		if !slices.Equal(events, want.events) || comments != want.comments || errors.Is(err, eventstream.ErrRefused) != want.refused || errors.Is(err, io.EOF) == want.refused {
			t.Errorf("%q: %q, %d comments, %v", text, events, comments, err)
		}
	}
}

// An event is bounded with all its lines, whatever they are; a stream isn't.
func TestEventsAreBounded(t *testing.T) {
	const most = 64 << 10
	for name, c := range map[string]struct {
		text    string
		refused bool
	}{
		"many events":         {strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n\n", 200), false},
		"many comments":       {strings.Repeat(": "+strings.Repeat("x", 1000)+"\n", 200), false},
		"the longest":         {"data: " + strings.Repeat("x", most-8) + "\n\n", false},
		"one byte more":       {"data: " + strings.Repeat("x", most-7) + "\n\n", true},
		"a line without end":  {"data: " + strings.Repeat("x", 2*most), true},
		"many lines":          {strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 100), true},
		"fields of no use":    {strings.Repeat("id: "+strings.Repeat("x", 1000)+"\n", 100), true},
		"comments in between": {"data: x\n" + strings.Repeat(": "+strings.Repeat("x", 1000)+"\n", 100), true},
	} {
		_, _, err := all(eventstream.New(strings.NewReader(c.text), most, nil))
		if errors.Is(err, eventstream.ErrRefused) != c.refused || c.refused && !strings.Contains(err.Error(), "longer than 65536") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An event isn't held beyond what its holder allows, and it is asked anew for each.
func TestWhoHoldsAnEventIsAsked(t *testing.T) {
	no := errors.New("no place")
	const most = 8 << 10
	asked := 0
	hold := func(size int) error {
		if asked = max(asked, size); size > most {
			return no
		}
		return nil
	}
	events, _, err := all(eventstream.New(strings.NewReader(strings.Repeat("data: "+strings.Repeat("x", most/2)+"\n\n", 4)), 1<<20, hold))
	if len(events) != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("%d events, %v", len(events), err)
	}
	events, _, err = all(eventstream.New(strings.NewReader("data: "+strings.Repeat("x", 1<<19)+"\n\n"), 1<<20, hold))
	if len(events) > 0 || !errors.Is(err, no) || asked > 2*most {
		t.Errorf("%d events, asked for %d, %v", len(events), asked, err)
	}
}

// What is read of a stream is what a plain reading of its lines gives, however it is cut up.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{
		"data: a\n\n", "event: x\ndata:a\ndata: b\n\n", ": ping\n\ndata: a\r\n\r\n", "data\n\n", "data: a\rdata: b\n\n", "data: a", "id: 1\n\n", "\n\n\ndata: x\n:c\ndata: y\n\n",
		"data: {\ndata: }\n\n", "data:{}\r\n\r\n: x\n\ndata: a", "id: 1\ndata:\n\n", "data: " + strings.Repeat("x", 5000) + "\n\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		const most = 1 << 16
		got, _, err := all(eventstream.New(strings.NewReader(text), most, nil))
		for name, in := range map[string]io.Reader{
			"halves": io.MultiReader(strings.NewReader(text[:len(text)/2]), strings.NewReader(text[len(text)/2:])),
			"bytes":  iotest.OneByteReader(strings.NewReader(text)),
		} {
			again, _, errAgain := all(eventstream.New(in, most, nil))
			if !slices.Equal(got, again) || errors.Is(err, io.EOF) != errors.Is(errAgain, io.EOF) {
				t.Errorf("%q: %q %v, and in %s %q %v", text, got, err, name, again, errAgain)
			}
		}
		if !errors.Is(err, io.EOF) {
			return
		}
		var want []string
		var data []string
		lines := strings.Split(text, "\n")
		for _, line := range lines[:len(lines)-1] {
			line = strings.TrimSuffix(line, "\r")
			switch {
			case line == "":
				if joined := strings.Join(data, "\n"); joined != "" {
					want = append(want, joined)
				}
				data = nil
			case line == "data":
				data = append(data, "")
			case strings.HasPrefix(line, "data:"):
				data = append(data, strings.TrimPrefix(line[5:], " "))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	})
}
