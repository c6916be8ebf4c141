package mcpstdio_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/mcpstdio"
)

// What is read of a server's output is the same however it is cut up, and goes on as one line each.
func FuzzLines(f *testing.F) {
	for _, s := range []string{"{}\n{}\n", "{\"a\":1}", "\n\n {} \r\n", "{}\r{}\n", "a\n", "{\n}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		whole, err := mcpstdio.LinesForTest(text, 1<<20)
		parts, errParts := mcpstdio.LinesForTest(text, 1)
		if strings.Join(whole, "\x00") != strings.Join(parts, "\x00") || (err == nil) != (errParts == nil) {
			t.Fatalf("%q: %q %v, and %q %v", text, whole, err, parts, errParts)
		}
		for _, data := range whole {
			line, err := mcpstdio.LineForTest([]byte(data))
			if err == nil && (bytes.Count(line, []byte("\n")) != 1 || !bytes.HasSuffix(line, []byte("\n")) || !json.Valid(line)) {
				t.Fatalf("%q became %q", data, line)
			}
		}
	})
}
