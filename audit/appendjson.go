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

func (d *Decision) appendJSON(b []byte) []byte {
	o := object{b: b}
	o.must("effect", string(d.Effect))
	o.must("target", d.Target)
	o.must("action", d.Action)
	if len(d.Objects) > 0 {
		o.key("objects")
		for i, v := range d.Objects {
			e := object{b: append(o.b, separator(i))}
			e.must("kind", v.Kind)
			e.must("name", v.Name)
			e.strs("columns", v.Columns)
			e.yes("write", v.Write)
			o.b = e.end()
		}
		o.b = append(o.b, ']')
	}
	if t := d.Statement; t != nil {
		o.key("statement")
		e := object{b: o.b}
		e.must("scrubbed", t.Scrubbed)
		e.yes("truncated", t.Truncated)
		e.key("bytes")
		e.b = strconv.AppendInt(e.b, int64(t.Bytes), 10)
		e.str("hmac_sha256", t.Hash)
		o.b = e.end()
	}
	o.yes("read_only", d.ReadOnly)
	o.str("account", d.Account)
	o.strs("policies", d.Policies)
	o.str("policy_set", d.PolicySet)
	o.int("policy_version", d.PolicyVersion)
	o.str("policy_digest", string(d.PolicyDigest))
	if len(d.Obligations) > 0 {
		o.key("obligations")
		for i, v := range d.Obligations {
			e := object{b: append(o.b, separator(i))}
			e.must("name", v.Name)
			e.str("value", v.Value)
			o.b = e.end()
		}
		o.b = append(o.b, ']')
	}
	o.str("class", d.Class)
	o.str("reason", d.Reason)
	o.int("us", int64(d.Took))
	return o.end()
}

func (c *Completed) appendJSON(b []byte) []byte {
	o := object{b: b}
	o.must("status", c.Status)
	o.str("command", c.Command)
	o.int("rows", c.Rows)
	o.int("affected", c.Affected)
	o.int("bytes_in", c.BytesIn)
	o.int("bytes_out", c.BytesOut)
	o.str("code", c.Code)
	o.str("limit", c.Limit)
	if len(c.Masked) > 0 {
		o.key("masked")
		for i, v := range c.Masked {
			e := object{b: append(o.b, separator(i))}
			e.must("rule", v.Rule)
			e.str("column", v.Column)
			e.key("values")
			e.b = strconv.AppendInt(e.b, v.Values, 10)
			o.b = e.end()
		}
		o.b = append(o.b, ']')
	}
	o.int("us", int64(c.Duration))
	return o.end()
}
