package mcpd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Limits of one message.
const (
	maxRequest = 4 << 20
	maxAnswer  = 8 << 20
	maxID      = 128
	// maxValues bounds what parsing one takes: a value of two bytes takes a hundred once it is parsed.
	maxValues = 100_000
	maxMethod = 128
)

// JSON-RPC's codes, and MCP's.
const (
	codeParse          = -32700
	codeInvalid        = -32600
	codeNoMethod       = -32601
	codeParams         = -32602
	codeInternal       = -32603
	codeRefused        = -32003 // a decision said no
	codeHeaderMismatch = -32020
	codeVersion        = -32022 // a version of the protocol that isn't known
	codeAskUser        = -32042 // an error that asks the agent's user to open a page
)

type messageKind int

const (
	isRequest messageKind = iota
	isNotification
	isResponse
)

// message is one JSON-RPC message.
type message struct {
	kind   messageKind
	id     json.RawMessage // as it was sent; nil for a notification
	key    string          // the id, for comparing
	method string
	params object
	result json.RawMessage // nil in an error
	fault  object          // nil in a result
}

// object is a JSON object's members by their exact names.
type object map[string]json.RawMessage

func parseObject(raw []byte) (object, error) {
	if len(raw) == 0 || raw[0] != '{' {
		return nil, errors.New("it is no object")
	}
	var o object
	err := json.Unmarshal(raw, &o)
	return o, err
}

// text is a member that has to be a string.
func (o object) text(name string) (string, error) {
	raw, there := o[name]
	if !there || len(raw) == 0 || raw[0] != '"' {
		return "", fmt.Errorf("%q is missing, or no string", name)
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

// object is a member that has to be an object if it is there.
func (o object) object(name string) (object, error) {
	raw, there := o[name]
	if !there {
		return nil, nil
	}
	in, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	return in, nil
}

// spelledAs refuses a member that is one of some names but for case: many a reader of JSON takes "Arguments" for "arguments", and others don't.
func (o object) spelledAs(names []string) error {
	for name := range o {
		for _, exact := range names {
			if name != exact && strings.EqualFold(name, exact) {
				return fmt.Errorf("%.64q stands in the place of %q", name, exact)
			}
		}
	}
	return nil
}

// parseMessage takes exactly one message in its only reading: no member twice or twice but for case, none that JSON-RPC doesn't know, no
// batch. What two parsers could read in two ways is refused, since the target's is another one.
func parseMessage(data []byte) (message, error) {
	var m message
	if !fewValues(data) {
		return m, fmt.Errorf("it holds more than %d values", maxValues)
	}
	if err := strictjson.Check(data); err != nil {
		return m, err
	}
	o, err := parseObject(bytes.TrimLeft(data, " \t\r\n"))
	if err != nil {
		return m, err
	}
	for name := range o {
		switch name {
		case "jsonrpc", "id", "method", "params", "result", "error":
		default:
			return m, fmt.Errorf("a message of JSON-RPC has no member %.64q", name)
		}
	}
	if v, err := o.text("jsonrpc"); err != nil || v != "2.0" {
		return m, errors.New(`"jsonrpc" isn't "2.0"`)
	}
	_, hasParams := o["params"]
	_, hasResult := o["result"]
	_, hasError := o["error"]
	if raw, there := o["id"]; there && !(hasError && string(raw) == "null") { // of a request that couldn't be read
		if m.key, err = idKey(raw); err != nil {
			return m, err
		}
		m.id = raw
	}
	if _, there := o["method"]; there {
		m.kind = isNotification
		if m.id != nil {
			m.kind = isRequest
		}
		if hasResult || hasError {
			return m, errors.New("it is both a request and a response")
		}
		if m.method, err = o.text("method"); err != nil || m.method == "" || len(m.method) > maxMethod {
			return m, fmt.Errorf("%q is no string of 1 to %d bytes", "method", maxMethod)
		}
		m.params, err = o.object("params")
		return m, err
	}
	m.kind = isResponse
	switch {
	case hasParams || hasResult == hasError:
		return m, errors.New("it is neither a request nor a response")
	case m.id == nil && hasResult:
		return m, errors.New("a result needs the id of its request")
	case hasError:
		m.fault, err = parseObject(o["error"])
	default:
		m.result = o["result"]
		_, err = parseObject(m.result)
	}
	return m, err
}

// fewValues counts the values in a text, before it is parsed: each has a comma, a colon or a bracket before it, outside of strings.
func fewValues(data []byte) bool {
	n, inside, escaped := 0, false, false
	for _, c := range data {
		switch {
		case escaped:
			escaped = false
		case inside:
			escaped, inside = c == '\\', c != '"'
		case c == '"':
			inside = true
		case c == ',' || c == ':' || c == '[' || c == '{':
			n++
		}
	}
	return n <= maxValues
}

// idKey spells an id for comparing: a text, or an integer.
func idKey(raw json.RawMessage) (string, error) {
	if len(raw) > maxID {
		return "", fmt.Errorf("an id has at most %d bytes", maxID)
	}
	if raw[0] == '"' {
		var s string
		err := json.Unmarshal(raw, &s)
		return "s" + s, err
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return "", errors.New("an id is a text or an integer")
	}
	return "n" + strconv.FormatInt(n, 10), nil
}

// encode writes v on one line, and leaves raw parts as they are but for white space.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// errorMessage is a response that says no.
func errorMessage(id json.RawMessage, code int, text string, data map[string]any) []byte {
	if id == nil {
		id = json.RawMessage("null")
	}
	fault := map[string]any{"code": code, "message": text}
	if data != nil {
		fault["data"] = data
	}
	out, err := encode(map[string]any{"jsonrpc": "2.0", "id": id, "error": fault})
	if err != nil { // nothing in it can fail
		return []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"internal error"}}`)
	}
	return out
}
