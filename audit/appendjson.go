package audit

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// The records of a command are encoded by hand: it takes a tenth of what reflection takes, and a test holds that the bytes
// are those of encoding/json.

// object appends the members of one JSON object.
type object struct {
	b     []byte
	begun bool
}

func (o *object) key(name string) {
	if o.begun {
		o.b = append(o.b, ',')
	} else {
		o.b = append(o.b, '{')
		o.begun = true
	}
	o.b = append(append(append(o.b, '"'), name...), '"', ':')
}

func (o *object) end() []byte {
	if !o.begun {
		o.b = append(o.b, '{')
	}
	return append(o.b, '}')
}

// str appends a member unless it is empty.
func (o *object) str(name, v string) {
	if v != "" {
		o.must(name, v)
	}
}

func (o *object) must(name, v string) {
	o.key(name)
	o.b = appendString(o.b, v)
}

func (o *object) int(name string, v int64) {
	if v != 0 {
		o.key(name)
		o.b = strconv.AppendInt(o.b, v, 10)
	}
}

func (o *object) yes(name string, v bool) {
	if v {
		o.key(name)
		o.b = append(o.b, "true"...)
	}
}

func (o *object) strs(name string, list []string) {
	if len(list) == 0 {
		return
	}
	o.key(name)
	for i, s := range list {
		o.b = append(o.b, separator(i))
		o.b = appendString(o.b, s)
	}
	o.b = append(o.b, ']')
}

// separator is what stands before the i-th element of a list.
func separator(i int) byte {
	if i == 0 {
		return '['
	}
	return ','
}

// appendString appends s as encoding/json writes it without HTML escapes.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			raw, err := compactJSON(s)
			if err != nil { // a string can always be encoded
				raw = []byte(`""`)
			}
			return append(b, raw...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func (h *wireHead) appendJSON(b []byte) []byte {
	o := object{b: b}
	o.key("v")
	o.b = strconv.AppendInt(o.b, int64(h.Version), 10)
	o.must("id", string(h.ID))
	o.must("type", string(h.Type))
	o.key("time")
	o.b = append(h.Time.AppendFormat(append(o.b, '"'), time.RFC3339Nano), '"')
	o.must("source", h.Source)
	o.yes("dev", h.Dev)
	o.str("txn", h.Txn)
	o.str("session", h.Session)
	o.str("connection", h.Connection)
	o.str("decision", string(h.Decision))
	o.str("chain", string(h.Chain))
	return o.end()
}

func (e *Decision) appendJSON(b []byte) []byte {
	o := object{b: b}
	o.must("effect", string(e.Effect))
	o.must("target", e.Target)
	o.must("action", e.Action)
	if len(e.Objects) > 0 {
		o.key("objects")
		for i, v := range e.Objects {
			m := object{b: append(o.b, separator(i))}
			m.must("kind", v.Kind)
			m.must("name", v.Name)
			m.strs("columns", v.Columns)
			m.yes("write", v.Write)
			o.b = m.end()
		}
		o.b = append(o.b, ']')
	}
	if t := e.Statement; t != nil {
		o.key("statement")
		m := object{b: o.b}
		m.must("scrubbed", t.Scrubbed)
		m.yes("truncated", t.Truncated)
		m.key("bytes")
		m.b = strconv.AppendInt(m.b, int64(t.Bytes), 10)
		m.str("hmac_sha256", t.Hash)
		o.b = m.end()
	}
	o.yes("read_only", e.ReadOnly)
	o.str("account", e.Account)
	o.strs("policies", e.Policies)
	o.str("policy_set", e.PolicySet)
	o.int("policy_version", e.PolicyVersion)
	o.str("policy_digest", string(e.PolicyDigest))
	if len(e.Obligations) > 0 {
		o.key("obligations")
		for i, v := range e.Obligations {
			m := object{b: append(o.b, separator(i))}
			m.must("name", v.Name)
			m.str("value", v.Value)
			o.b = m.end()
		}
		o.b = append(o.b, ']')
	}
	o.str("class", e.Class)
	o.str("reason", e.Reason)
	o.int("us", int64(e.Took))
	return o.end()
}

func (e *Completed) appendJSON(b []byte) []byte {
	o := object{b: b}
	o.must("status", e.Status)
	o.str("command", e.Command)
	o.int("rows", e.Rows)
	o.int("affected", e.Affected)
	o.int("bytes_in", e.BytesIn)
	o.int("bytes_out", e.BytesOut)
	o.str("code", e.Code)
	o.str("limit", e.Limit)
	if len(e.Masked) > 0 {
		o.key("masked")
		for i, v := range e.Masked {
			m := object{b: append(o.b, separator(i))}
			m.must("rule", v.Rule)
			m.str("column", v.Column)
			m.key("values")
			m.b = strconv.AppendInt(m.b, v.Values, 10)
			o.b = m.end()
		}
		o.b = append(o.b, ']')
	}
	o.int("us", int64(e.Duration))
	return o.end()
}
