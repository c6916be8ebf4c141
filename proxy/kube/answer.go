package kube

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxObject bounds one object of a masked answer, in bytes; etcd's own limit is 1.5 MiB.
const maxObject = 4 << 20

var errTooLarge = fmt.Errorf("the answer has an object of more than %d bytes", maxObject)

// allowance lets so many bytes be read until it is raised again.
type allowance struct {
	r    io.Reader
	left int
}

func (a *allowance) Read(b []byte) (int, error) {
	if a.left <= 0 {
		return 0, errTooLarge
	}
	n, err := a.r.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}

// reader reads a masked answer object by object.
type reader struct {
	*json.Decoder
	allowed *allowance
}

func newReader(from io.Reader) *reader {
	a := &allowance{r: from, left: maxObject}
	r := &reader{json.NewDecoder(a), a}
	r.UseNumber()
	return r
}

// next reads one value.
func (r *reader) next(into any) error {
	r.allowed.left = maxObject
	return r.Decode(into)
}

func (r *reader) expect(want json.Delim) error {
	token, err := r.Token()
	if err == nil && token != want {
		err = fmt.Errorf("%v stands where %v is expected", token, want)
	}
	return err
}

// copy copies one answer, an object, a list or a table, with the masks on its objects. Of a list one object at a time is held.
func (m *masker) copy(to *bufio.Writer, from io.Reader) error {
	r := newReader(from)
	if err := r.expect('{'); err != nil {
		return err
	}
	rest := map[string]any{}
	listed := false
	held := int64(0) // of rest
	for r.More() {
		begin := r.InputOffset()
		token, err := r.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		list := key == "rows" || key == "items" && !m.one
		if _, twice := rest[key]; twice || listed && list {
			return errors.New("the answer has a member twice")
		}
		if !list {
			var v any
			if err := r.next(&v); err != nil {
				return err
			}
			rest[key] = v
			if held += r.InputOffset() - begin; held > maxObject {
				return errTooLarge
			}
			continue
		}
		if listed, err = m.list(to, r, key); err != nil {
			return err
		}
		if !listed {
			rest[key] = nil
		}
	}
	if err := r.expect('}'); err != nil {
		return err
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the answer goes on after its object")
	}
	if err := m.members(rest); err != nil {
		return err
	}
	text, err := m.object(rest)
	if err != nil {
		return err
	}
	if listed {
		if text = text[1:]; len(text) > 1 {
			_ = to.WriteByte(',')
		}
	}
	_, err = to.Write(text)
	return err
}

// members puts the masks on what one object calls items: it is an object like others, or a list under another name.
func (m *masker) members(o map[string]any) error {
	items, _ := o["items"].([]any)
	for i, item := range items {
		if one, ok := item.(map[string]any); ok {
			text, err := m.object(one)
			if err != nil {
				return err
			}
			items[i] = json.RawMessage(text)
		}
	}
	return nil
}

// list copies items or rows, and the brace before them; false if there are none.
func (m *masker) list(to *bufio.Writer, r *reader, key string) (bool, error) {
	token, err := r.Token()
	if err != nil || token == nil {
		return false, err
	}
	if token != json.Delim('[') {
		return false, errors.New("the answer has no list where one is expected")
	}
	_, _ = to.WriteString(`{"` + key + `":[`)
	for n := 0; r.More(); n++ {
		if n > 0 {
			_ = to.WriteByte(',')
		}
		var o map[string]any
		if err := r.next(&o); err != nil {
			return true, err
		}
		mask := m.object
		if key == "rows" {
			mask = m.row
		}
		text, err := mask(o)
		if err != nil {
			return true, err
		}
		if _, err := to.Write(text); err != nil {
			return true, err
		}
	}
	_ = to.WriteByte(']')
	return true, r.expect(']')
}

// row is a row of a table with the masks on its object.
func (m *masker) row(row map[string]any) ([]byte, error) {
	if !m.tables {
		return nil, errWithheld
	}
	out := map[string]any{"cells": row["cells"]}
	if o, ok := row["object"].(map[string]any); ok {
		text, err := m.object(o)
		if err != nil {
			return nil, err
		}
		out["object"] = json.RawMessage(text)
	}
	if conditions, ok := row["conditions"]; ok {
		out["conditions"] = conditions
	}
	return encode(out)
}

// frame is one event of a watch with the masks on its object.
func (m *masker) frame(r *reader) ([]byte, error) {
	var event struct {
		Type   string         `json:"type"`
		Object map[string]any `json:"object"`
	}
	if err := r.next(&event); err != nil {
		return nil, err
	}
	if rows, ok := event.Object["rows"].([]any); ok {
		for i, row := range rows {
			one, ok := row.(map[string]any)
			if !ok {
				return nil, errWithheld
			}
			text, err := m.row(one)
			if err != nil {
				return nil, err
			}
			rows[i] = json.RawMessage(text)
		}
	}
	text, err := m.object(event.Object)
	if err != nil {
		return nil, err
	}
	line, err := encode(map[string]any{"type": event.Type, "object": json.RawMessage(text)})
	return append(line, '\n'), err
}
