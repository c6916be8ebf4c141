package mask

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
)

// maxValue bounds one name or string of a text, in bytes: it is held as a whole.
const maxValue = 16 << 20

// maxDepth bounds how deep a text is nested.
const maxDepth = 256

// JSON puts the masks of paths on JSON texts. It reads and writes them token by token. It isn't safe for concurrent use.
type JSON struct {
	rules []rule
	keyed *Keyed
}

type rule struct {
	policy.MaskRule
	steps  []policy.PathStep
	masker Masker
	values int64
}

// NewJSON makes one of rules that have a path.
func NewJSON(rules []policy.MaskRule, keyed *Keyed) *JSON {
	m := &JSON{keyed: keyed}
	for _, r := range rules {
		m.rules = append(m.rules, rule{MaskRule: r, steps: r.Steps(), masker: Masker(r.Masker.String())})
	}
	return m
}

// Bytes is one JSON text with its masks on.
func (m *JSON) Bytes(text []byte) ([]byte, error) {
	var out bytes.Buffer
	to := bufio.NewWriter(&out)
	if err := m.Copy(to, bytes.NewReader(text)); err != nil {
		return nil, err
	}
	if err := to.Flush(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Counts are the values that were masked so far, by path.
func (m *JSON) Counts() []audit.MaskedCount {
	var out []audit.MaskedCount
	for _, r := range m.rules {
		if r.values > 0 {
			out = append(out, audit.MaskedCount{Rule: r.MaskRule.Masker.String(), Column: r.Path, Values: r.values})
		}
	}
	return out
}

// frame is an open object or array.
type frame struct {
	object bool
	key    string // of the member whose value comes, in an object
	named  bool   // the key is there
	n      int
}

// Copy copies one JSON text token by token, with the masked values replaced. What isn't exactly one text is an error.
func (m *JSON) Copy(to *bufio.Writer, from io.Reader) error {
	allowed := &allowance{r: from}
	d := json.NewDecoder(allowed)
	d.UseNumber()
	var open []frame
	for {
		allowed.left = maxValue
		token, err := d.Token()
		if err != nil {
			return unexpected(err)
		}
		top := len(open) - 1
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			_ = to.WriteByte(byte(delim))
			open = open[:top]
			if len(open) == 0 {
				return onlyOne(d)
			}
			continue
		}
		if top >= 0 && open[top].object && !open[top].named {
			key, ok := token.(string)
			if !ok {
				return errors.New("the text has a member without a name")
			}
			separate(to, &open[top])
			if err := writeJSON(to, key); err != nil {
				return err
			}
			_ = to.WriteByte(':')
			open[top].key, open[top].named = key, true
			continue
		}
		if top >= 0 {
			if !open[top].object {
				separate(to, &open[top])
			}
			open[top].named = false
		}
		rule := m.match(open)
		switch v := token.(type) {
		case json.Delim:
			if rule != nil {
				if err := skip(d, allowed); err != nil {
					return err
				}
				err = m.hide(to, rule, nil, false)
				break
			}
			if len(open) >= maxDepth {
				return fmt.Errorf("the text is nested deeper than %d", maxDepth)
			}
			_ = to.WriteByte(byte(v))
			open = append(open, frame{object: v == '{'})
			continue
		case string:
			if rule != nil {
				err = m.hide(to, rule, []byte(v), true)
			} else {
				err = writeJSON(to, v)
			}
		case nil:
			_, err = to.WriteString("null")
		default: // a number or a boolean
			raw := fmt.Append(nil, v)
			if rule != nil {
				err = m.hide(to, rule, raw, false)
			} else {
				_, err = to.Write(raw)
			}
		}
		if err != nil {
			return err
		}
		if len(open) == 0 {
			return onlyOne(d)
		}
	}
}

// allowance lets so many bytes be read until it is raised again.
type allowance struct {
	r    io.Reader
	left int
}

func (a *allowance) Read(b []byte) (int, error) {
	if a.left <= 0 {
		return 0, fmt.Errorf("the text has a name or string of more than %d bytes", maxValue)
	}
	n, err := a.r.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}

func separate(to *bufio.Writer, f *frame) {
	if f.n > 0 {
		_ = to.WriteByte(',')
	}
	f.n++
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func onlyOne(d *json.Decoder) error {
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the text goes on after its JSON text")
	}
	return nil
}

// skip reads to the end of the object or array that was just opened.
func skip(d *json.Decoder, allowed *allowance) error {
	for depth := 1; depth > 0; {
		allowed.left = maxValue
		token, err := d.Token()
		if err != nil {
			return unexpected(err)
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
	return nil
}

func writeJSON(to *bufio.Writer, s string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return err
	}
	_, err := to.Write(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
	return err
}

// hide writes what stands for a masked value. Of an object or array, raw is nil, and nothing is kept.
func (m *JSON) hide(to *bufio.Writer, r *rule, raw []byte, text bool) error {
	r.values++
	masker := r.masker
	if raw == nil {
		raw = []byte("{}")
		if masker == Hash {
			masker = Redact
		}
	}
	oid := uint32(oidJSON)
	if text {
		oid = oidText
	}
	out, null, err := m.keyed.Apply(masker, raw, Text, oid)
	switch {
	case err != nil:
		return err
	case null:
		_, err = to.WriteString("null")
	case text:
		err = writeJSON(to, string(out))
	default:
		_, err = to.Write(out)
	}
	return err
}

// match is the strongest rule for the value that comes next, or nil.
func (m *JSON) match(open []frame) *rule {
	var found *rule
	for i := range m.rules {
		r := &m.rules[i]
		if leads(r.steps, open) && (found == nil || r.MaskRule.Masker > found.MaskRule.Masker) {
			found = r
		}
	}
	return found
}

// maxSteps is more than a path of a mask can have.
const maxSteps = 256

// leads says whether steps lead from the top of the text to the value that comes next. It keeps every number of steps that may be taken so far,
// so hostile answers cost no more than others.
func leads(steps []policy.PathStep, open []frame) bool {
	if len(steps) > maxSteps {
		return true // masked rather than shown
	}
	var taken [maxSteps + 1]bool
	taken[0] = true
	for _, f := range open {
		for i := len(steps); i >= 0; i-- {
			taken[i] = i < len(steps) && taken[i] && steps[i].Deep || i > 0 && taken[i-1] && fits(steps[i-1], f)
		}
	}
	return taken[len(steps)]
}

// fits says whether a step may lead to what comes next in an object or array. Names are compared without case: many a reader of JSON takes "Email"
// for "email".
func fits(s policy.PathStep, f frame) bool {
	return s.Index && !f.object || s.Any && f.object || s.Name != "" && f.object && strings.EqualFold(s.Name, f.key)
}
