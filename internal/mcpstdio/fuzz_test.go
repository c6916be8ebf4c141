package mcpstdio_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/mcpstdio"
)

// What is read of a server's output or of a stream is the same however it is cut up, and goes on as one line each.
func FuzzFraming(f *testing.F) {
	for _, s := range []string{"{}\n{}\n", "{\"a\":1}", "\n\n {} \r\n", "data: {}\n\n", "data: {\ndata: }\n\n", "data:{}\r\n\r\n: x\n\ndata: a", "id: 1\ndata:\n\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, read := range []func(string, int) ([]string, error){mcpstdio.LinesForTest, mcpstdio.EventsForTest} {
			whole, err := read(text, 1<<20)
			parts, errParts := read(text, 1)
			if strings.Join(whole, "\x00") != strings.Join(parts, "\x00") || (err == nil) != (errParts == nil) {
				t.Fatalf("%q: %q %v, and %q %v", text, whole, err, parts, errParts)
			}
			for _, data := range whole {
				line, err := mcpstdio.LineForTest([]byte(data))
				if err == nil && (bytes.Count(line, []byte("\n")) != 1 || !bytes.HasSuffix(line, []byte("\n")) || !json.Valid(line)) {
					t.Fatalf("%q became %q", data, line)
				}
			}
		}
	})
}
