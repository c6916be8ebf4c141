package mcpstdio

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits, which are those of the proxy.
const (
	maxToServer = 4 << 20
	maxToClient = 8 << 20
)

// Codes of JSON-RPC.
const (
	codeInvalid  = -32600
	codeNoMethod = -32601
	codeParams   = -32602
	codeInternal = -32603
	codeHeaders  = -32020
	codeVersion  = -32022
)

// message is what the relay has to know of one.
type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

func (m message) isRequest() bool  { return m.Method != "" && m.ID != nil }
func (m message) isResponse() bool { return m.Method == "" && (m.Result != nil || m.Error != nil) }

// parse reads one message, which is one object.
func parse(data []byte) (message, error) {
	var m message
	if b := bytes.TrimLeft(data, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		return m, errors.New("a JSON object is expected")
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, err
	}
	if string(m.ID) == "null" {
		m.ID = nil
	}
	if m.Method == "" && !m.isResponse() {
		return m, errors.New("it is neither a request nor a response")
	}
	return m, nil
}

// key spells an id for comparing.
func key(id json.RawMessage) string {
	var s string
	if json.Unmarshal(id, &s) == nil {
		return "s" + s
	}
	return "n" + string(bytes.TrimSpace(id))
}

// line puts a message on one line.
func line(data []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// errorMessage is a response that says no.
func errorMessage(id json.RawMessage, code int, text string, data any) []byte {
	if id == nil {
		id = json.RawMessage("null")
	}
	fault := map[string]any{"code": code, "message": text}
	if data != nil {
		fault["data"] = data
	}
	out, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": id, "error": fault})
	if err != nil { // an id that isn't JSON doesn't come so far
		return []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"internal error"}}`)
	}
	return out
}

// errLong is a line over its limit.
var errLong = errors.New("a message is longer than is taken")

// readLine reads a line of at most max bytes, without its end. Empty lines are skipped. What comes before the end of the stream without an end of
// line is a line, too.
func readLine(r *bufio.Reader, max int) ([]byte, error) {
	var out []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(out)+len(part) > max {
			return nil, fmt.Errorf("%w (%d bytes)", errLong, max)
		}
		out = append(out, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !(errors.Is(err, io.EOF) && len(bytes.TrimSpace(out)) > 0):
			return nil, err
		}
		if out = bytes.TrimSpace(out); len(out) > 0 {
			return out, nil
		}
	}
}
