package mcpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/mask"
)

// masks are the masks of one exchange.
type masks struct {
	json     *mask.JSON
	record   audit.RecordID
	withheld int64 // parts that no mask can be put on
}

func (m *masks) counts() []audit.MaskedCount {
	out := m.json.Counts()
	if m.withheld > 0 {
		out = append(out, audit.MaskedCount{Rule: "withheld", Column: "$", Values: m.withheld})
	}
	return out
}

// response is a response with the masks on.
func (m *masks) response(method string, r message) (message, error) {
	if !m.json.ByPath() {
		return m.searched(r)
	}
	if r.result == nil {
		// What the server says of its failure may quote anything.
		code, err := strconv.Atoi(string(r.fault["code"]))
		if err != nil {
			return r, fmt.Errorf("%w: an error without a code", errUnclear)
		}
		m.withheld++
		r.fault = object{"code": json.RawMessage(strconv.Itoa(code)), "message": quote("the server's text is withheld: it could hold a masked value (record: " + m.record.String() + ")")}
		return r, nil
	}
	in, err := parseObject(r.result)
	if err != nil {
		return r, fmt.Errorf("%w: %w", errUnclear, err)
	}
	out := object{}
	for name, value := range in {
		if !slices.Contains(maskable[method], name) {
			m.withheld++
			continue
		}
		switch name {
		case "content":
			value, err = m.each(value, m.block)
		case "contents":
			value, err = m.each(value, m.contents)
		case "messages":
			value, err = m.each(value, m.said)
		case "structuredContent":
			if value = m.text(value); value == nil {
				m.withheld++
				continue
			}
		case "isError":
			value, err = only(value, "true", "false")
		case "resultType":
			value, err = only(value, `"complete"`)
		case "ttlMs":
			if _, bad := strconv.ParseFloat(string(value), 64); bad != nil {
				err = bad
			}
		case "cacheScope":
			value = json.RawMessage(`"private"`)
		}
		if err != nil {
			return r, fmt.Errorf("%w: %s: %w", errUnclear, name, err)
		}
		out[name] = value
	}
	r.result, err = encode(out)
	return r, err
}

// searched is a response with what detectors find replaced, and what they can't look into withheld.
func (m *masks) searched(r message) (message, error) {
	if r.result == nil {
		fault, err := encode(r.fault)
		if err == nil {
			fault, err = m.json.Bytes(fault)
		}
		if err == nil {
			r.fault, err = parseObject(fault)
		}
		return r, err
	}
	result, err := parseObject(r.result)
	if err != nil {
		return r, err
	}
	for name, f := range map[string]func(object) object{"content": m.opaque, "contents": m.opaque, "messages": m.opaqueIn} {
		if list, there := result[name]; there {
			if result[name], err = m.each(list, f); err != nil {
				return r, fmt.Errorf("%w: %s: %w", errUnclear, name, err)
			}
		}
	}
	questions, err := result.object("inputRequests")
	if err != nil {
		return r, err
	}
	for name, raw := range questions {
		question, err := parseObject(raw)
		if err == nil {
			err = m.opaqueParams(question)
		}
		if err == nil {
			questions[name], err = encode(question)
		}
		if err != nil {
			return r, fmt.Errorf("%w: inputRequests: %w", errUnclear, err)
		}
	}
	if questions != nil {
		if result["inputRequests"], err = encode(questions); err != nil {
			return r, err
		}
	}
	if r.result, err = encode(result); err == nil {
		r.result, err = m.json.Bytes(r.result)
	}
	return r, err
}

// opaqueParams withholds bytes in the messages of what a server asks a model.
func (m *masks) opaqueParams(question object) error {
	params, err := question.object("params")
	if err != nil || params["messages"] == nil {
		return err
	}
	if params["messages"], err = m.each(params["messages"], m.opaqueIn); err == nil {
		question["params"], err = encode(params)
	}
	return err
}

// opaqueIn is a message, or a block that holds others, with its content: a block or a list of them.
func (m *masks) opaqueIn(o object) object {
	raw, there := o["content"]
	if !there {
		return o
	}
	one := raw[0] != '['
	if one {
		raw = slices.Concat([]byte("["), raw, []byte("]"))
	}
	out, err := m.each(raw, m.opaque)
	if err != nil {
		m.withheld++
		out, one = json.RawMessage(`{"text":`+string(m.instead())+`,"type":"text"}`), false
	}
	if one {
		out = out[1 : len(out)-1]
	}
	o["content"] = out
	return o
}

// opaque is a block of content or a resource, unless it is of bytes.
func (m *masks) opaque(o object) object {
	o = m.opaqueIn(o)
	in, _ := o.object("resource")
	_, blob := o["blob"]
	_, inner := in["blob"]
	inner = inner || in.spelledAs(inContent) != nil
	_, data := o["data"]
	if !blob && !inner && !data {
		return o
	}
	m.withheld++
	if blob {
		return object{"uri": o["uri"], "text": m.instead()}
	}
	return object{"type": quote("text"), "text": m.instead()}
}

// each puts masks on each entry of a list.
func (m *masks) each(raw json.RawMessage, f func(object) object) (json.RawMessage, error) {
	var entries []json.RawMessage
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, err
	}
	out := make([]object, 0, len(entries))
	for _, entry := range entries {
		o, err := parseObject(entry)
		if err == nil {
			err = o.spelledAs(inContent)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, f(o))
	}
	return encode(out)
}

// block is one block of content.
func (m *masks) block(o object) object {
	switch kind, _ := o.text("type"); kind {
	case "text":
		if text := m.member(o); text != nil {
			return object{"type": o["type"], "text": text}
		}
	case "resource":
		in, err := o.object("resource")
		if err != nil {
			break
		}
		if text := m.member(in); text != nil {
			resource, err := encode(m.resource(in, text))
			if err == nil {
				return object{"type": o["type"], "resource": resource}
			}
		}
	}
	m.withheld++
	return object{"type": quote("text"), "text": m.instead()}
}

// contents is one of a resource's contents.
func (m *masks) contents(o object) object {
	text := m.member(o)
	if text == nil {
		m.withheld++
		text = m.instead()
	}
	return m.resource(o, text)
}

// resource keeps the URI, which is a name, and the type.
func (m *masks) resource(o object, text json.RawMessage) object {
	out := object{"text": text}
	uri, _ := o.text("uri") // a resource without one is called so
	out["uri"] = quote(uri)
	if kind, err := o.text("mimeType"); err == nil {
		if kind, _, err = mime.ParseMediaType(kind); err == nil && len(kind) < 128 {
			out["mimeType"] = quote(kind)
		}
	}
	return out
}

// said is one message of a prompt.
func (m *masks) said(o object) object {
	var block object
	if in, err := o.object("content"); err == nil {
		block = m.block(in)
	} else {
		m.withheld++
		block = object{"type": quote("text"), "text": m.instead()}
	}
	role := "user"
	if r, _ := o.text("role"); r == "assistant" {
		role = r
	}
	content, err := encode(block)
	if err != nil { // its parts are JSON
		content = json.RawMessage("null")
	}
	return object{"role": quote(role), "content": content}
}

// member is the member "text" with masks on the JSON in it; nil if it holds none.
func (m *masks) member(o object) json.RawMessage {
	text, err := o.text("text")
	if err != nil {
		return nil
	}
	masked := m.text([]byte(text))
	if masked == nil {
		return nil
	}
	return quote(string(masked))
}

// text is an object or array with masks on; nil if it is neither.
func (m *masks) text(text []byte) []byte {
	begin := strings.TrimLeft(string(text[:min(len(text), 64)]), " \t\r\n")
	if begin == "" || begin[0] != '{' && begin[0] != '[' {
		return nil
	}
	out, err := m.json.Bytes(text)
	if err != nil {
		return nil
	}
	return out
}

// instead is what stands for what can't be masked.
func (m *masks) instead() json.RawMessage {
	return quote("withheld: the policy masks what is in it, and it is of a kind that can't be masked (record: " + m.record.String() + ")")
}

// notice is a notification of the server's while a masked result is under way, or nil: what it says could be what is to be hidden.
// token is what the agent knows its own request's progress by.
func (m *masks) notice(n message, raw, token []byte) []byte {
	if !m.json.ByPath() {
		return m.asked(raw)
	}
	switch n.method {
	case "notifications/progress":
		kept := object{}
		for _, name := range []string{"progressToken", "progress", "total"} {
			v, there := n.params[name]
			if _, err := strconv.ParseFloat(string(v), 64); there && (err == nil || name == "progressToken" && bytes.Equal(v, token)) {
				kept[name] = v
			}
		}
		if out, err := encode(map[string]any{"jsonrpc": "2.0", "method": n.method, "params": kept}); err == nil {
			return out
		}
	case "notifications/tools/list_changed", "notifications/resources/list_changed", "notifications/prompts/list_changed":
		if out, err := encode(map[string]any{"jsonrpc": "2.0", "method": n.method}); err == nil {
			return out
		}
	}
	m.withheld++
	return nil
}

// asked is a request or notification of the server's with what detectors find replaced; nil if it can't be read.
func (m *masks) asked(raw []byte) []byte {
	o, err := parseObject(raw)
	if err == nil {
		err = m.opaqueParams(o)
	}
	if params, there := o["params"]; there && err == nil {
		o["params"], err = m.json.Bytes(params)
	}
	if err == nil {
		raw, err = encode(o)
	}
	if err != nil {
		m.withheld++
		return nil
	}
	return raw
}

// only takes a value that is one of some texts.
func only(raw json.RawMessage, texts ...string) (json.RawMessage, error) {
	if !slices.Contains(texts, string(raw)) {
		return nil, fmt.Errorf("%.32q can't be masked", raw)
	}
	return raw, nil
}

func quote(s string) json.RawMessage {
	out, err := encode(s)
	if err != nil { // no string can't be encoded
		return json.RawMessage(`""`)
	}
	return out
}
