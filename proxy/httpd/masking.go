package httpd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// maxValue bounds one name or string of a masked answer, in bytes: it is held as a whole.
const maxValue = 16 << 20

// maxDepth bounds how deep a masked answer is nested.
const maxDepth = 256

const (
	oidText = 25
	oidJSON = 114
)

// jsonOnly refuses obligations that can't be carried out on an answer in JSON.
func jsonOnly(o policy.Obligations) error {
	if o.MaxRows > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for a limit of rows, and an HTTP answer has none"}
	}
	for _, m := range o.Masks {
		if m.Path == "" {
			return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks a table's column, and an HTTP answer has members: $.name=masker is expected"}
		}
	}
	return nil
}

// unmasked forbids what would show a part of an answer, or something about it, that a mask can't be put on.
func unmasked(h http.Header) {
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Te"} {
		h.Del(name)
	}
	h.Set("Accept-Encoding", "identity")
}

// errWithheld is an answer that no mask can be put on.
var errWithheld = errors.New("the answer is withheld: the policy masks members of JSON, and it isn't JSON that can be masked")

// maskAnswer puts the masks on an answer's body as it streams.
func (e *Engine) maskAnswer(r *http.Response, x *exchange) error {
	h := r.Header
	for _, name := range []string{"Etag", "Last-Modified", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Content-Length", "Accept-Ranges", "Trailer"} {
		h.Del(name)
	}
	if r.Request.Method == http.MethodHead || r.StatusCode == http.StatusNoContent || r.StatusCode == http.StatusNotModified || r.ContentLength == 0 {
		return nil
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	isJSON := kind == "application/json" || strings.HasSuffix(kind, "+json") && !strings.HasSuffix(kind, "seq+json")
	encoding := h.Get("Content-Encoding")
	if err != nil || !isJSON || charset != "" && charset != "utf-8" || encoding != "" && encoding != "identity" || r.StatusCode == http.StatusPartialContent {
		return errWithheld
	}
	masks := newJSONMasks(x.pass.Obligations().Masks, e.keyed)
	body := r.Body
	read, write := io.Pipe()
	r.Body, r.ContentLength = read, -1
	x.masking = make(chan struct{})
	go func() {
		defer close(x.masking)
		defer body.Close()
		to := bufio.NewWriter(write)
		err := masks.copy(to, counted{body, &x.received})
		if err == nil {
			err = to.Flush()
		}
		if err == nil {
			x.masked = masks.counts()
			// The end of the answer waits for the record of what was masked in it.
			status := "ok"
			if x.status >= 400 {
				status = "error"
			}
			err = e.complete(context.WithoutCancel(r.Request.Context()), x, status)
		}
		_ = write.CloseWithError(err) // nil is the end
	}()
	return nil
}

// jsonMasks puts masks on one JSON text.
type jsonMasks struct {
	rules []jsonRule
	keyed *mask.Keyed
}

type jsonRule struct {
	policy.MaskRule
	steps  []policy.PathStep
	masker mask.Masker
	values int64
}

func newJSONMasks(rules []policy.MaskRule, keyed *mask.Keyed) *jsonMasks {
	m := &jsonMasks{keyed: keyed}
	for _, r := range rules {
		m.rules = append(m.rules, jsonRule{MaskRule: r, steps: r.Steps(), masker: mask.Masker(r.Masker.String())})
	}
	return m
}

func (m *jsonMasks) counts() []audit.MaskedCount {
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

// copy copies one JSON text token by token, with the masked values replaced. What isn't exactly one text is an error.
func (m *jsonMasks) copy(to *bufio.Writer, from io.Reader) error {
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
				return errors.New("the answer has a member without a name")
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
				return fmt.Errorf("the answer is nested deeper than %d", maxDepth)
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
		return 0, fmt.Errorf("the answer has a name or string of more than %d bytes", maxValue)
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
		return errors.New("the answer goes on after its JSON text")
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
func (m *jsonMasks) hide(to *bufio.Writer, r *jsonRule, raw []byte, text bool) error {
	r.values++
	masker := r.masker
	if raw == nil {
		raw = []byte("{}")
		if masker == mask.Hash {
			masker = mask.Redact
		}
	}
	oid := uint32(oidJSON)
	if text {
		oid = oidText
	}
	out, null, err := m.keyed.Apply(masker, raw, mask.Text, oid)
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
func (m *jsonMasks) match(open []frame) *jsonRule {
	var found *jsonRule
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
