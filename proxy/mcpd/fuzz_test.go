package mcpd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy/mcpd"
)

// A message that is accepted has the same method for a lenient parser, which takes the last of duplicates and any case.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		begin, `{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","arguments":{"a":[1,2.5e3,null,true]}}}`, `{"jsonrpc":"2.0","id":1,"result":{}}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}`, `[{"jsonrpc":"2.0"}]`, `{"jsonrpc":"2.0","method":"a","Method":"b"}`, "\ufeff{}", `{"jsonrpc":"2.0","\u006dethod":"a","id":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		method, request, err := mcpd.ParseForTest(data)
		if err != nil {
			return
		}
		var lenient struct {
			Method string
			ID     json.RawMessage
			Params json.RawMessage
		}
		if err := json.Unmarshal(data, &lenient); err != nil || lenient.Method != method || request && len(lenient.ID) == 0 {
			t.Errorf("%q: ours %q, theirs %q %v", data, method, lenient.Method, err)
		}
		if p := bytes.TrimSpace(lenient.Params); len(p) > 0 && p[0] != '{' {
			t.Errorf("%q: params %q", data, p)
		}
	})
}

// What is read of a stream is what a plain reading of its lines gives, however it is cut up.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{"data: a\n\n", "event: x\ndata:a\ndata: b\n\n", ": ping\n\ndata: a\r\n\r\n", "data\n\n", "data: a\rdata: b\n\n", "data: a", "id: 1\n\n", "\n\n\ndata: x\n:c\ndata: y\n\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := mcpd.EventsForTest(strings.NewReader(text))
		again, errAgain := mcpd.EventsForTest(io.MultiReader(strings.NewReader(text[:len(text)/2]), strings.NewReader(text[len(text)/2:])))
		if !slices.Equal(got, again) || errors.Is(err, io.EOF) != errors.Is(errAgain, io.EOF) {
			t.Errorf("%q: %q %v, and %q %v", text, got, err, again, errAgain)
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
