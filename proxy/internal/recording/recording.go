// Package recording keeps what passes on a terminal, both ways, before it passes.
//
// A recording is a file of the format asciicast v2: a line that says how it began, and a line per event. It is kept in pieces, each durable
// before the bytes in it go on, so that nothing was typed or shown that isn't there. Where bytes are no text, the event that holds them as
// text as well as they can be is followed by one of a kind of its own ("ib", "ob") with the exact bytes in base64; players pass those over.
//
// Invariants: the pieces in the order in which they were kept are the file; nothing goes on whose piece wasn't kept; a recording is bounded.
package recording

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Bounds of a recording.
const (
	// MaxPiece is the most bytes that Input and Output take at once.
	MaxPiece = 8 << 10
	// MaxBytes is what a recording holds of what passed.
	MaxBytes = 64 << 20
)

// ErrFull says that a recording holds as much as it may.
var ErrFull = errors.New("the recording is full")

// Terminal is what a recording begins with.
type Terminal struct {
	Width, Height uint32
	// Type is the variable TERM; "" where there is no terminal.
	Type string
	// Title says what is recorded.
	Title string
}

// Recorder records one terminal. Its methods may be called by several goroutines.
type Recorder struct {
	keep  func([]byte) error
	now   func() time.Time
	began time.Time

	mu     sync.Mutex   // held while a piece is kept
	waits  bytes.Buffer // guarded by mu, as all that follows: lines that go with the next piece
	passed int64
	err    error

	resizing sync.Mutex
	sizes    []size // guarded by resizing: new ones that wait for the next piece
}

// size is a terminal's at a time.
type size struct {
	at            time.Time
	width, height uint32
}

// maxSizes is how many new sizes wait for a piece: who only resizes shows nothing.
const maxSizes = 64

// New begins a recording. keep returns when a piece is durable; after an error nothing is kept any more.
func New(t Terminal, now func() time.Time, keep func(piece []byte) error) *Recorder {
	r := &Recorder{keep: keep, now: now, began: now()}
	head := struct {
		Version   int               `json:"version"`
		Width     uint32            `json:"width"`
		Height    uint32            `json:"height"`
		Timestamp int64             `json:"timestamp"`
		Title     string            `json:"title,omitempty"`
		Env       map[string]string `json:"env,omitempty"`
	}{Version: 2, Width: t.Width, Height: t.Height, Timestamp: r.began.Unix(), Title: t.Title}
	if t.Type != "" {
		head.Env = map[string]string{"TERM": t.Type}
	}
	line, err := json.Marshal(head)
	r.err = err
	r.waits.Write(append(line, '\n'))
	return r
}

// Input keeps what the agent typed, at most MaxPiece bytes. Where it fails nothing of it may go on.
func (r *Recorder) Input(b []byte) error { return r.piece("i", b) }

// Output keeps what the agent is to see.
func (r *Recorder) Output(b []byte) error { return r.piece("o", b) }

// Resize notes a new size; it is kept with what passes next. It waits for nothing.
func (r *Recorder) Resize(width, height uint32) {
	r.resizing.Lock()
	defer r.resizing.Unlock()
	if len(r.sizes) == maxSizes {
		r.sizes = r.sizes[1:]
	}
	r.sizes = append(r.sizes, size{r.now(), width, height})
}

func (r *Recorder) piece(kind string, b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && len(b) > MaxPiece {
		r.err = fmt.Errorf("a piece of %d bytes; at most %d", len(b), MaxPiece)
	}
	if r.err == nil && r.passed+int64(len(b)) > MaxBytes {
		r.err = ErrFull
	}
	if r.err != nil {
		return r.err
	}
	r.passed += int64(len(b))
	r.resizing.Lock()
	for _, z := range r.sizes {
		r.line(z.at, "r", fmt.Sprintf("%dx%d", z.width, z.height))
	}
	r.sizes = nil
	r.resizing.Unlock()
	now := r.now()
	r.line(now, kind, strings.ToValidUTF8(string(b), "\uFFFD"))
	if !utf8.Valid(b) {
		r.line(now, kind+"b", base64.StdEncoding.EncodeToString(b))
	}
	// The lock is held meanwhile: pieces are kept in the order of their lines.
	r.err = r.keep(bytes.Clone(r.waits.Bytes()))
	r.waits.Reset()
	return r.err
}

// line adds an event. The caller holds mu.
func (r *Recorder) line(at time.Time, kind, data string) {
	seconds := strconv.FormatFloat(at.Sub(r.began).Seconds(), 'f', 6, 64)
	text, err := json.Marshal(data)
	if err != nil {
		r.err = err
		return
	}
	fmt.Fprintf(&r.waits, "[%s, %q, %s]\n", seconds, kind, text)
}
