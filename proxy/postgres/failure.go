package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/proxy"
)

// failure handles ErrorResponse.
func (s *session) failure(ctx context.Context, e *entry, body []byte) error {
	fields, err := parseNotice(body)
	if err != nil {
		return err
	}
	if e == nil || fields['V'] == "FATAL" || fields['V'] == "PANIC" {
		// The target ends the session.
		return &fault{code: fields['C'], message: "the target ended the session: " + endText(e, fields), fatal: true}
	}
	if e.refusal != nil {
		e.refusal.write(s.out)
		s.q.fail()
		return nil //nolint:nilerr // the target's error made room for ours
	}
	if e.step == stepQuery {
		e.failed = true
	}
	r := e.current()
	if err := s.release(ctx, r); err != nil {
		return err
	}
	s.copyingOut = false
	e.copyEnds(r)
	if r != nil && r.exceeded {
		// It was cancelled because of its limit.
		if err := r.complete(r.cutOutcome()); err != nil {
			return err
		}
		r.cutFault().write(s.out)
		s.q.fail()
		return nil
	}
	if r != nil {
		o := proxy.Outcome{Status: "error", Code: fields['C']}
		if o.Code == "57014" {
			o.Status = "cancelled"
		}
		if err := r.complete(o); err != nil {
			return err
		}
	}
	if e.scrub || r != nil && r.touched || s.fromWithin(fields) {
		body = scrubbed(fields)
	}
	s.out.frame('E', body)
	switch e.step {
	case stepCall:
		e.failed = true
	case stepQuery, stepSync: // ReadyForQuery follows
	default:
		s.q.fail()
	}
	return nil
}

// current is the run whose answer is due; nil if there is none.
func (e *entry) current() *run {
	if e.step == stepQuery && e.at < len(e.runs) {
		return e.runs[e.at]
	}
	return e.run
}

// endText is why the target ended the session. With the session goes what could have held the text back until the decision is
// durable, so whatever runs, a text that may carry values stays here.
func endText(e *entry, fields map[byte]string) string {
	if e != nil && (e.scrub || e.current() != nil) && !strings.HasPrefix(fields['C'], "57") {
		return "its reason is withheld"
	}
	return clip(fields['M'], 1024)
}

// notice passes a NoticeResponse on, unless it may carry masked values.
func (s *session) notice(ctx context.Context, body []byte) error {
	fields, err := parseNotice(body)
	if err != nil {
		return err
	}
	if e, r := s.answered(); e != nil {
		if err := s.release(ctx, r); err != nil {
			return err
		}
		if e.scrub || r != nil && r.touched {
			body = scrubbed(fields)
		}
	}
	if s.fromWithin(fields) {
		body = scrubbed(fields)
	}
	s.out.frame('N', body)
	return nil
}

// fromWithin says that a message comes from inside code, a trigger or a cascade, where any policy masks something: what it
// speaks of isn't what the statement names. Its context says so; where rows of input were read it tells their place only.
func (s *session) fromWithin(fields map[byte]string) bool {
	for line := range strings.Lines(fields['W']) {
		if !strings.HasPrefix(line, "COPY ") && !strings.HasPrefix(line, "JSON data, line ") && !strings.HasPrefix(line, "parallel worker") {
			return len(s.e.cfg.Core.MaskedTables()) > 0
		}
	}
	return false
}

// parseNotice reads the fields of an ErrorResponse or NoticeResponse.
func parseNotice(body []byte) (map[byte]string, error) {
	fields := map[byte]string{}
	p := parts{b: body}
	for {
		code := p.byte()
		if p.bad {
			return nil, errors.New("the target sent an error that can't be read")
		}
		if code == 0 {
			return fields, nil
		}
		fields[code] = p.cstring()
	}
}

// scrubbed keeps severity and SQLSTATE of an error or notice and nothing that could hold a value.
func scrubbed(fields map[byte]string) []byte {
	var b []byte
	add := func(code byte, v string) {
		if v != "" {
			b = append(append(append(b, code), v...), 0)
		}
	}
	add('S', fields['V'])
	add('V', fields['V'])
	add('C', fields['C'])
	add('M', fmt.Sprintf("%s (the text is withheld: a table with masked columns is involved)", stateText(fields['C'])))
	return append(b, 0)
}

// stateText says in general words what a class of SQLSTATE means.
func stateText(code string) string {
	texts := map[string]string{
		"22": "the target found a value that it can't use", "23": "the target found a constraint violated", "25": "the transaction is in the wrong state",
		"40": "the target rolled the transaction back", "42": "the target refused the statement", "53": "the target lacks resources",
		"54": "the target's limits are exceeded", "57": "the target was told to stop", "01": "the target warns", "00": "the target has something to say",
	}
	if len(code) >= 2 {
		if t, ok := texts[code[:2]]; ok {
			return t
		}
	}
	return "the target reports a problem"
}
