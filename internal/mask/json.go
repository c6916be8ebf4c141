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

// maxDepth bounds how deep a text is nested, masked or not: the decoder remembers every level.
const maxDepth = 256

var errDeep = fmt.Errorf("the text is nested deeper than %d", maxDepth)

// JSON puts masks on JSON texts, by path and by detector, and on texts that hold some ([JSON.Lines], [JSON.Events]) or none ([JSON.Text]). It reads
// them and writes them anew as they come, in any size: JSON token by token, events field by field. It isn't safe for concurrent use.
//
// Invariant: what can't be read as what it is said to be is an error, and nothing of it goes on.
type JSON struct {
	rules  []rule
	finds  []policy.MaskRule
	finder *Finder // nil without detectors
	keyed  *Keyed
	broken error
	// within is how many texts may stand inside each other as strings and be masked by path, too; 0 leaves strings alone.
	within int
}

type rule struct {
	policy.MaskRule
	steps  []policy.PathStep
	masker Masker
	values int64
}

// NewJSON makes one of rules that have a path or a detector. With another rule every text is an error.
func NewJSON(rules []policy.MaskRule, keyed *Keyed) *JSON {
	m := &JSON{keyed: keyed}
	var findings []Finding
	for _, r := range rules {
		switch d, err := ParseDetector(r.Detect); {
		case r.Path != "":
			m.rules = append(m.rules, rule{MaskRule: r, steps: r.Steps(), masker: Masker(r.Masker.String())})
		case err != nil:
			m.broken = fmt.Errorf("%s can't be put on a text that is answered", r)
		default:
			m.finds = append(m.finds, r)
			findings = append(findings, Finding{Detector: d, Masker: Masker(r.Masker.String())})
		}
	}
	if len(findings) > 0 {
		m.finder = keyed.Finder(findings)
	}
	return m
}

// ByPath says whether there are masks that only JSON has a place for.
func (m *JSON) ByPath() bool { return len(m.rules) > 0 }

// Within puts masks by path on the objects and arrays that stand as text in strings, too: each is a text of its own. What begins like one and
// can't be read is hidden.
func (m *JSON) Within() *JSON {
	m.within = maxWithin
	return m
}

// maxWithin bounds how many texts stand inside each other.
const maxWithin = 4

// inner is what stands for a string that no path leads to.
func (m *JSON) inner(s string) string {
	begin := strings.TrimLeft(s, " \t\r\n\ufeff")
	if m.within == 0 || !m.ByPath() || begin == "" || begin[0] != '{' && begin[0] != '[' {
		return m.String(s)
	}
	in := *m // which counts in the same places
	in.within--
	out, err := in.Bytes([]byte(s))
	if err != nil || in.within == 0 {
		return stars
	}
	return string(out)
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

// Counts are the values that were masked so far, by path and detector.
func (m *JSON) Counts() []audit.MaskedCount {
	var out []audit.MaskedCount
	for _, r := range m.rules {
		if r.values > 0 {
			out = append(out, audit.MaskedCount{Rule: r.MaskRule.Masker.String(), Column: r.Path, Values: r.values})
		}
	}
	for i, r := range m.finds {
		if n := m.finder.Count(i); n > 0 {
			out = append(out, audit.MaskedCount{Rule: r.Masker.String(), Column: r.What(), Values: n})
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

// decoder reads tokens, each of a bounded size. It is closed when its texts are over.
type decoder struct {
	*json.Decoder
	allowed *allowance
}

func newDecoder(from io.Reader, large chan struct{}) decoder {
	allowed := &allowance{r: from, large: large}
	d := decoder{json.NewDecoder(allowed), allowed}
	d.UseNumber()
	return d
}

func (d decoder) Token() (json.Token, error) {
	d.allowed.left = maxValue
	return d.Decoder.Token()
}

func (d decoder) close() {
	for ; d.allowed.held > 0; d.allowed.held-- {
		<-d.allowed.large
	}
}

// maxLarge bounds what all texts together hold of values of more than a MiB, in MiB: each is several times in memory while it is masked.
const (
	largeValue = 1 << 20
	maxLarge   = 64
)

var errLarge = errors.New("too much of large values is being masked at once; try again in a moment")

// allowance lets so many bytes be read until it is raised again, and takes a place for each MiB of them. The decoder keeps what it once needed, so
// places are kept to its end.
type allowance struct {
	r     io.Reader
	left  int
	large chan struct{}
	held  int
}

func (a *allowance) Read(b []byte) (int, error) {
	if a.left <= 0 {
		return 0, fmt.Errorf("the text has a name or string of more than %d bytes", maxValue)
	}
	n, err := a.r.Read(b[:min(len(b), a.left)])
	a.left -= n
	for maxValue-a.left > (a.held+1)*largeValue {
		select {
		case a.large <- struct{}{}:
			a.held++
		default:
			return 0, errLarge
		}
	}
	return n, err
}

// Copy copies one JSON text token by token, with the masked values replaced. What isn't exactly one text is an error.
func (m *JSON) Copy(to *bufio.Writer, from io.Reader) error {
	d := newDecoder(from, m.keyed.large)
	defer d.close()
	if err := m.one(to, d); err != nil {
		return unexpected(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the text goes on after its JSON text")
	}
	return nil
}

// one copies one JSON text token by token. io.EOF says that there is none.
func (m *JSON) one(to *bufio.Writer, d decoder) error {
	if m.broken != nil {
		return m.broken
	}
	var open []frame
	for first := true; ; first = false {
		token, err := d.Token()
		if err != nil {
			if first {
				return err
			}
			return unexpected(err)
		}
		top := len(open) - 1
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			_ = to.WriteByte(byte(delim))
			if open = open[:top]; len(open) == 0 {
				return nil
			}
			continue
		}
		if top >= 0 && open[top].object && !open[top].named {
			key, ok := token.(string)
			if !ok {
				return errors.New("the text has a member without a name")
			}
			separate(to, &open[top])
			if err := writeJSON(to, m.String(key)); err != nil {
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
		delim, opens := token.(json.Delim)
		rule := m.match(open)
		switch {
		case opens && rule != nil:
			if err = skip(d); err == nil {
				err = m.hide(to, rule, nil, false)
			}
		case opens:
			if len(open) >= maxDepth {
				return errDeep
			}
			_ = to.WriteByte(byte(delim))
			open = append(open, frame{object: delim == '{'})
			continue
		default:
			err = m.scalar(to, token, rule)
		}
		if err != nil {
			return err
		}
		if len(open) == 0 {
			return nil
		}
	}
}

// scalar writes a string, a number, a boolean or null.
func (m *JSON) scalar(to *bufio.Writer, token json.Token, rule *rule) error {
	switch v := token.(type) {
	case string:
		if rule != nil {
			return m.hide(to, rule, []byte(v), true)
		}
		return writeJSON(to, m.inner(v))
	case nil:
		_, err := to.WriteString("null")
		return err
	default: // a number or a boolean
		raw := fmt.Append(nil, v)
		if rule != nil {
			return m.hide(to, rule, raw, false)
		}
		// The number of a card may be a number.
		if masked := m.String(string(raw)); masked != string(raw) {
			return writeJSON(to, masked)
		}
		_, err := to.Write(raw)
		return err
	}
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

// skip reads to the end of the object or array that was just opened.
func skip(d decoder) error {
	for depth := 1; depth > 0; {
		token, err := d.Token()
		if err != nil {
			return unexpected(err)
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return errDeep
			}
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
