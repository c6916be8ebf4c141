package mask

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxEvent bounds one event, in bytes: its data is held as a whole.
const maxEvent = 1 << 20

// maxRetry bounds the digits of a time to wait, in milliseconds: no detector looks for as few.
const maxRetry = 9

// done is what some services end a stream with instead of JSON; it has no members.
const done = "[DONE]"

// Events copies a stream of server-sent events (HTML, 9.2 "Server-sent events"). An event goes on as soon as it is whole: its data with the masks put on,
// with its type, id and retry time. Where members are masked, the data of each event must be one JSON text. Comments keep a connection alive, and nothing more.
// Unlike internal/eventstream, whose streams hold messages of one protocol, it reads what any service may write, as HTML says: lines that end in a carriage
// return, a byte order mark, fields beside the data. It may, since every event is written anew, so that who reads it finds one way to read it.
func (m *JSON) Events(to *bufio.Writer, from io.Reader) error {
	lines := &lines{r: bufio.NewReader(from)}
	var event, id, retry string
	var data [][]byte
	size := 0
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return nil // an event that isn't ended is no event
		}
		if err != nil {
			return err
		}
		if size += len(line) + 1; size > maxEvent {
			return fmt.Errorf("the text has an event of more than %d bytes", maxEvent)
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) > 0 && len(name) == 0:
			_, _ = to.WriteString(":\n")
			size -= len(line) + 1
			if err := to.Flush(); err != nil {
				return err
			}
		case string(name) == "data":
			data = append(data, bytes.Clone(value))
		case string(name) == "event":
			event = string(value)
		case string(name) == "id":
			id = string(line)
		case string(name) == "retry":
			if retry = string(value); len(retry) > maxRetry || strings.Trim(retry, "0123456789") != "" {
				retry = ""
			}
		case len(line) == 0 && (data != nil || event != "" || id != "" || retry != ""):
			if err := m.event(to, event, id, retry, data); err != nil {
				return err
			}
			event, id, retry, data, size = "", "", "", nil, 0
		case len(line) == 0:
			size = 0
		}
	}
}

// event writes one event.
func (m *JSON) event(to *bufio.Writer, event, id, retry string, data [][]byte) error {
	if event != "" {
		_, _ = to.WriteString("event: " + m.String(event) + "\n")
	}
	if id != "" {
		_, value, _ := strings.Cut(id, ":")
		_, _ = to.WriteString("id: " + m.String(strings.TrimPrefix(value, " ")) + "\n")
	}
	if retry != "" {
		_, _ = to.WriteString("retry: " + retry + "\n")
	}
	if data != nil {
		masked, err := m.data(bytes.Join(data, []byte("\n")))
		if err != nil {
			return err
		}
		for line := range bytes.SplitSeq(masked, []byte("\n")) {
			_, _ = to.WriteString("data: ")
			_, _ = to.Write(line)
			_ = to.WriteByte('\n')
		}
	}
	_ = to.WriteByte('\n')
	return to.Flush()
}

// data puts the masks on the data of one event.
func (m *JSON) data(raw []byte) ([]byte, error) {
	trimmed := bytes.TrimSpace(raw)
	if len(trimmed) == 0 || string(trimmed) == done {
		return trimmed, nil
	}
	// JSON is masked as JSON also where detectors are all there is: they see what its escapes stand for.
	if !json.Valid(raw) {
		if m.ByPath() {
			return nil, errors.New("the policy masks members of JSON, and an event holds something else")
		}
		return []byte(m.String(string(raw))), nil
	}
	var out bytes.Buffer
	to := bufio.NewWriter(&out)
	if err := m.Copy(to, bytes.NewReader(raw)); err != nil {
		return nil, err
	}
	_ = to.Flush()
	return out.Bytes(), nil
}

// lines reads lines that end in a line feed, a carriage return or both.
type lines struct {
	r       *bufio.Reader
	begun   bool
	skipLF  bool
	current []byte
}

// next is the next line without its end; io.EOF throws away what has no end. The line is good until the next call.
func (l *lines) next() ([]byte, error) {
	l.current = l.current[:0]
	for {
		c, err := l.r.ReadByte()
		if err != nil {
			return nil, err
		}
		skip := l.skipLF && c == '\n'
		l.skipLF = c == '\r'
		switch {
		case skip:
		case c == '\n' || c == '\r':
			if !l.begun {
				l.begun = true
				l.current = bytes.TrimPrefix(l.current, []byte("\xef\xbb\xbf"))
			}
			return l.current, nil
		case c == 0:
			return nil, errors.New("the text holds a zero byte, so it is no text that can be read in one way")
		case len(l.current) >= maxEvent:
			return nil, fmt.Errorf("the text has an event of more than %d bytes", maxEvent)
		default:
			l.current = append(l.current, c)
		}
	}
}
