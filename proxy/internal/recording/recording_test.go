package recording_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy/internal/recording"
)

// tape keeps pieces as a log does.
type tape struct {
	bytes.Buffer
	pieces int
	err    error
}

func (k *tape) keep(b []byte) error {
	if k.err != nil {
		return k.err
	}
	k.pieces++
	k.Write(b)
	return nil
}

// play reads a recording as a player would, and what passed exactly.
func play(t testing.TB, file string) (head map[string]any, events [][3]any, in, out string) {
	t.Helper()
	for i, line := range strings.SplitAfter(strings.TrimSuffix(file, "\n"), "\n") {
		if i == 0 {
			if err := json.Unmarshal([]byte(line), &head); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var e [3]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		events = append(events, e)
		to := map[string]*string{"i": &in, "o": &out}[e[1].(string)[:1]]
		switch data := e[2].(string); {
		case to == nil:
		case len(e[1].(string)) == 2: // the exact bytes of the one before
			exact, err := base64.StdEncoding.DecodeString(data)
			if err != nil {
				t.Fatal(err)
			}
			*to = strings.TrimSuffix(*to, events[len(events)-2][2].(string)) + string(exact)
		default:
			*to += data
		}
	}
	return head, events, in, out
}

func TestWhatPassedIsThereByteForByte(t *testing.T) {
	clock := time.Unix(1000, 0)
	k := &tape{}
	r := recording.New(recording.Terminal{Width: 80, Height: 24, Type: "xterm", Title: "a shell"}, func() time.Time { clock = clock.Add(500 * time.Millisecond); return clock }, k.keep)
	if k.pieces != 0 {
		t.Error("something is kept before anything passed")
	}
	in := []string{"ls\r", "\x03", "\xff\xfe", "ü\"\\\u2028"}
	out := []string{"a b\r\n", "\x1b[31mred\x1b[0m", "half of \xc3", "\xbc\x00", strings.Repeat("\x01", recording.MaxPiece)}
	for _, s := range in {
		if err := r.Input([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	r.Resize(100, 30)
	for _, s := range out {
		if err := r.Output([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	head, events, gotIn, gotOut := play(t, k.String())
	if head["version"] != 2.0 || head["width"] != 80.0 || head["timestamp"] != 1000.0 || head["title"] != "a shell" || head["env"].(map[string]any)["TERM"] != "xterm" {
		t.Errorf("it begins with %v", head)
	}
	if gotIn != strings.Join(in, "") || gotOut != strings.Join(out, "") {
		t.Errorf("typed %q, shown %q", gotIn, gotOut)
	}
	if e := events[5]; e[0] != 2.5 || e[1] != "r" || e[2] != "100x30" {
		t.Errorf("the new size: %v", e)
	}
}

func TestNothingIsKeptBehindAFailure(t *testing.T) {
	k := &tape{err: errors.New("the disk is full")}
	r := recording.New(recording.Terminal{}, time.Now, k.keep)
	if err := r.Output([]byte("x")); !errors.Is(err, k.err) {
		t.Errorf("%v", err)
	}
	k.err = nil
	if err := r.Output([]byte("y")); err == nil || k.pieces != 0 {
		t.Errorf("it goes on with a hole: %v, %d pieces", err, k.pieces)
	}
}

func TestARecordingIsBounded(t *testing.T) {
	n := 0
	r := recording.New(recording.Terminal{}, time.Now, func([]byte) error { n++; return nil })
	for range 1 << 20 {
		r.Resize(1, 1)
	}
	piece := bytes.Repeat([]byte("x"), recording.MaxPiece)
	for {
		if err := r.Output(piece); err != nil {
			if !errors.Is(err, recording.ErrFull) || n != recording.MaxBytes/recording.MaxPiece {
				t.Errorf("%v after %d pieces", err, n)
			}
			break
		}
	}
	if err := recording.New(recording.Terminal{}, time.Now, func([]byte) error { return nil }).Input(make([]byte, recording.MaxPiece+1)); err == nil {
		t.Error("a piece that is too large is taken")
	}
}
