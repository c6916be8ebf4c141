package mask_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
)

type copier func(*mask.JSON, *bufio.Writer, io.Reader) error

func run(m *mask.JSON, c copier, from io.Reader) (string, error) {
	var out bytes.Buffer
	to := bufio.NewWriter(&out)
	err := c(m, to, from)
	_ = to.Flush()
	return out.String(), err
}

// However a text is cut into pieces, the same comes out.
func TestTextsInPieces(t *testing.T) {
	for _, c := range []struct {
		name          string
		copy          copier
		rules, in, to string
	}{
		{"text", (*mask.JSON).Text, "detect:email=redact", strings.Repeat("x", 600) + " ada@example.com " + strings.Repeat("y", 600), strings.Repeat("x", 600) + " **** " + strings.Repeat("y", 600)},
		{"JSON", (*mask.JSON).Copy, "detect:email=redact, $..k=null", ` {"a":["ada@example.com",{"k":[1]}]} `, `{"a":["****",{"k":null}]}`},
		{"lines", (*mask.JSON).Lines, "$.k=null", "{\"k\":1}\n\n{\"k\":2}{\"k\":3}", "{\"k\":null}\n{\"k\":null}\n{\"k\":null}\n"},
		{"no lines", (*mask.JSON).Lines, "$.k=null", "", ""},
		{"events", (*mask.JSON).Events, "$.k=null", "\ufeffdata: {\"k\":\r\ndata:1}\r\rdata:{\"k\":2}\n\n", "data: {\"k\":null}\n\ndata: {\"k\":null}\n\n"},
		{"fields of events", (*mask.JSON).Events, "detect:email=redact", "id\nevent:ada@example.com\nretry: 1x\nretry: 4111111111111111\nfoo: ada@example.com\ndata\ndata\n\nid: ada@example.com\n\n\n\n", "event: ****\nid: \ndata: \n\nid: ****\n\n"},
		{"a time to wait", (*mask.JSON).Events, "detect:email=redact", "retry: 2500\ndata: 1\n\n", "retry: 2500\ndata: 1\n\n"},
		{"an event without its end", (*mask.JSON).Events, "$.k=null", "data: 1\n\ndata: 2\n", "data: 1\n\n"},
	} {
		for name, from := range map[string]io.Reader{"as one": strings.NewReader(c.in), "in bytes": iotest.OneByteReader(strings.NewReader(c.in)), "with its end": iotest.DataErrReader(strings.NewReader(c.in))} {
			if got, err := run(paths(t, c.rules), c.copy, from); err != nil || got != c.to {
				t.Errorf("%s %s: %q %v, want %q", c.name, name, got, err, c.to)
			}
		}
	}
}

func TestWhatCannotBeReadIsCut(t *testing.T) {
	const secret = "ada@example.com"
	for _, c := range []struct {
		name      string
		copy      copier
		rules, in string
	}{
		{"a zero byte", (*mask.JSON).Text, "detect:email=redact", "a\x00d\x00a\x00@" + secret},
		{"text under a path", (*mask.JSON).Text, "$.k=null, detect:email=redact", secret},
		{"text without detectors", (*mask.JSON).Text, "$.k=null", secret},
		{"two texts", (*mask.JSON).Copy, "$.k=null", `{} "` + secret + `"`},
		{"depth behind a mask", (*mask.JSON).Copy, "$.k=null", `{"k":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `,"x":"` + secret + `"}`},
		{"nothing", (*mask.JSON).Copy, "$.k=null", ""},
		{"half a line", (*mask.JSON).Lines, "$.k=null", `{} {"k":`},
		{"no JSON in an event", (*mask.JSON).Events, "$.k=null", "data: {}\n\ndata: k=" + secret + "\n\n"},
		{"two texts in an event", (*mask.JSON).Events, "$.k=null", "data: {}\ndata: {\"k\":\"" + secret + "\"}\n\n"},
		{"a large event", (*mask.JSON).Events, "detect:email=redact", strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 1100) + secret + "\n\n"},
		{"a large line", (*mask.JSON).Events, "detect:email=redact", "data: " + strings.Repeat("x", 2<<20) + secret},
		{"a zero byte in an event", (*mask.JSON).Events, "detect:email=redact", "data: a\x00" + secret + "\n\n"},
		{"many fields nobody knows", (*mask.JSON).Events, "detect:email=redact", strings.Repeat("x: "+strings.Repeat("x", 1000)+"\n", 1100)},
	} {
		if got, err := run(paths(t, c.rules), c.copy, strings.NewReader(c.in)); err == nil || strings.Contains(got, secret) {
			t.Errorf("%s: %.200q %v", c.name, got, err)
		}
	}
	broken := errors.New("broken")
	for name, c := range map[string]copier{"text": (*mask.JSON).Text, "JSON": (*mask.JSON).Copy, "lines": (*mask.JSON).Lines, "events": (*mask.JSON).Events} {
		m := paths(t, "detect:email=redact")
		if _, err := run(m, c, io.MultiReader(strings.NewReader("[1"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("%s: a broken answer ends with %v", name, err)
		}
	}
	if _, err := paths(t, "t.c=null").Bytes([]byte("{}")); err == nil {
		t.Error("a column is masked in an answer")
	}
}

// Comments keep a stream open for as long as it likes.
func TestCommentsOfEventsAreNotCounted(t *testing.T) {
	got, err := run(paths(t, "detect:email=redact"), (*mask.JSON).Events, strings.NewReader(strings.Repeat(": "+strings.Repeat("x", 1000)+"\n", 2000)+"data: 1\n\n"))
	if err != nil || !strings.HasSuffix(got, ":\ndata: 1\n\n") {
		t.Errorf("%.100q %v", got, err)
	}
}

// No text, whatever it is, gets through with what its masks hide.
func FuzzEvents(f *testing.F) {
	f.Add("data: {\"k\":\"secret!\"}\n\n")
	f.Add("id: 1\r\rdata:{\"a\":[{\"K\":{\"k\":\"secret!\"}}],\ndata:\"k\":\"secret!\"}\n\n")
	f.Add("\ufeffdata: \"secret!\"\n\n: x\nevent: y\ndata\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := run(paths(t, "$..k=null"), (*mask.JSON).Events, strings.NewReader(in))
		if err != nil {
			return
		}
		again, err := run(paths(t, "$..k=null"), (*mask.JSON).Events, strings.NewReader(got))
		if err != nil || again != got {
			t.Fatalf("%q gave %q, and that %q %v", in, got, again, err)
		}
	})
}

// Large values take what there is of memory for them, small ones nothing; what was taken is given back.
func TestLargeValuesAreBoundedTogether(t *testing.T) {
	rules, err := policy.ParseMasks("$.k=null")
	if err != nil {
		t.Fatal(err)
	}
	k := keyed(t)
	k.HoldLarge(2)
	text := func(from io.Reader) error { return mask.NewJSON(rules, k).Copy(bufio.NewWriter(io.Discard), from) }
	large := func() error {
		return text(io.MultiReader(strings.NewReader(`"`), strings.NewReader(strings.Repeat("x", 2<<20-2)), strings.NewReader(`"`)))
	}
	type held struct {
		more *io.PipeWriter
		done chan error
	}
	var all []held
	for range 2 { // each has a MiB more than the first, which is free
		from, more := io.Pipe()
		h := held{more, make(chan error, 1)}
		go func() { h.done <- text(from) }()
		if _, err := io.WriteString(more, `"`+strings.Repeat("x", 2<<20-2)); err != nil { // which is read when this returns
			t.Fatal(err)
		}
		all = append(all, h)
	}
	if err := large(); err == nil || !strings.Contains(err.Error(), "large values") {
		t.Errorf("one more: %v", err)
	}
	if err := text(strings.NewReader(`{"a":"small"}`)); err != nil {
		t.Errorf("a small one: %v", err)
	}
	for i, h := range all {
		end := `"`
		if i == 0 {
			end = "" // broken off
		}
		_, _ = io.WriteString(h.more, end)
		_ = h.more.Close()
		if err := <-h.done; (err == nil) != (i > 0) {
			t.Errorf("text %d: %v", i, err)
		}
	}
	for range 3 {
		if err := large(); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}
