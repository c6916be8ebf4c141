package postgres

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/proxy"
)

// maxControl bounds any message of the target but rows.
const maxControl = 1 << 20

// back reads the target's answers, gives each to the entry it answers, and writes to the agent.
func (s *session) back(ctx context.Context) error {
	for {
		if !s.up.in.ready() {
			if err := s.flush(); err != nil {
				return err
			}
		}
		kind, size, err := s.up.in.next()
		if err != nil {
			return err
		}
		switch kind {
		case 'D':
			err = s.dataRow(ctx, size)
		case 'd':
			err = s.copyRow(ctx, size)
		case 'V':
			err = s.callResult(ctx, size)
		default:
			var body []byte
			if body, err = s.up.in.body(kind, maxControl); err != nil {
				return err
			}
			err = s.answer(ctx, kind, body)
		}
		if err != nil {
			return err
		}
		if s.out.err != nil {
			s.cut = true
			return &clientError{s.out.err}
		}
	}
}

func (s *session) flush() error {
	if err := s.out.flush(); err != nil {
		s.cut = true
		return &clientError{err}
	}
	return nil
}

// clientError is a failure of the agent's connection that the back met.
type clientError struct{ err error }

func (e *clientError) Error() string { return "writing to the agent: " + e.err.Error() }
func (e *clientError) Unwrap() error { return e.err }

// desync says that the target answered what nobody asked. Nothing after it can be trusted to be what was decided.
func desync(kind byte, e *entry) error {
	if e == nil {
		return protocolError("the target sent %q where no answer was due", kind)
	}
	return protocolError("the target sent %q where it had something else to answer (step %d)", kind, e.step)
}

// release makes sure that the decision behind an answer is durable. Answers released before it may wait in the buffer with it:
// a frame of the log takes milliseconds, a write of its own costs more.
func (s *session) release(ctx context.Context, r *run) error {
	if r == nil || r.durable {
		return nil
	}
	if err := r.wait(ctx); err != nil {
		return passFault(err)
	}
	return nil
}

// answer handles everything but rows.
func (s *session) answer(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case 'N':
		return s.notice(ctx, body)
	case 'S':
		// Servers before 14 report at once what a statement changed, ahead of its own answer.
		if _, r := s.answered(); r != nil {
			if err := s.release(ctx, r); err != nil {
				return err
			}
		}
		return s.parameter(body)
	case 'A':
		return s.notification(ctx, body)
	}
	e := s.q.peek()
	if kind == 'E' {
		return s.failure(ctx, e, body)
	}
	if e == nil {
		return desync(kind, e)
	}
	if e.refusal != nil {
		return desync(kind, e)
	}
	if e.step == stepQuery {
		return s.queryAnswer(ctx, e, kind, body)
	}
	if e.step == stepCall {
		if kind != 'Z' || len(body) != 1 || e.at == 0 && !e.failed {
			return desync(kind, e)
		}
		s.settled(body[0], e.batch)
		s.out.frame(kind, body)
		s.q.pop()
		return s.flush()
	}
	if e.step != stepSync {
		if err := s.release(ctx, e.run); err != nil {
			return err
		}
	}
	if taken, err := s.copyAnswer(e, e.run, kind, body); taken || err != nil {
		return err
	}
	show := func() {
		if !e.hidden {
			s.out.frame(kind, body)
		}
	}
	switch {
	case kind == '1' && e.step == stepParse, kind == '2' && e.step == stepBind, kind == '3' && e.step == stepClose:
		if e.confirm != nil {
			e.confirm()
		}
		show()
	case kind == 't' && e.step == stepDescribeS:
		show()
		return nil
	case (kind == 'T' || kind == 'n') && (e.step == stepDescribeS || e.step == stepDescribeP):
		if e.step == stepDescribeP && e.run != nil && kind == 'T' {
			if err := s.described(e.run, body); err != nil {
				return err
			}
		}
		if e.run == nil || !e.run.limited || kind == 'T' {
			show()
		}
	case (kind == 'C' || kind == 'I' || kind == 's') && e.step == stepExecute:
		if err := s.executed(e, kind, body, show); err != nil {
			return err
		}
	case kind == 'Z' && e.step == stepSync:
		if len(body) != 1 {
			return desync(kind, e)
		}
		for _, r := range e.runs {
			if err := r.complete(proxy.Outcome{Status: "ok", Command: "PARSE"}); err != nil {
				return err
			}
		}
		s.settled(body[0], e.batch)
		show()
		s.q.pop()
		return s.flush()
	default:
		return desync(kind, e)
	}
	s.q.pop()
	return nil
}

// described plans the masking of a run by the description that the target gave of it just now.
func (s *session) described(r *run, body []byte) error {
	fields, err := parseFields(body)
	if err != nil {
		return err
	}
	r.plan = planMasks(r.d, r.obligations, s.snapshot(r), fields, s.keyed)
	r.planned = true
	return nil
}

// snapshot is the newest catalogue there is; the one of the decision at least.
func (s *session) snapshot(r *run) *snapshot {
	if latest := s.e.catalogs[s.database].latest(); latest != nil {
		return latest
	}
	return r.d.snap
}

// executed ends an Execute.
func (s *session) executed(e *entry, kind byte, body []byte, show func()) error {
	r := e.run
	if r == nil { // the empty statement
		show()
		return nil
	}
	if s.copyingOut {
		return desync(kind, e)
	}
	e.copyEnds(r)
	if r.exceeded {
		return r.complete(r.cutOutcome())
	}
	o := outcome(kind, body)
	if err := r.complete(o); err != nil {
		return err
	}
	show()
	return nil
}

func outcome(kind byte, body []byte) proxy.Outcome {
	o := proxy.Outcome{Status: "ok", Command: "EMPTY"}
	switch kind {
	case 's':
		o.Command = "SUSPENDED"
	case 'C':
		o.Command = strings.TrimSuffix(string(body), "\x00")
		words := strings.Fields(o.Command)
		if len(words) > 1 && words[0] != "SELECT" && words[0] != "FETCH" {
			o.Affected, _ = strconv.ParseInt(words[len(words)-1], 10, 64)
		}
	}
	return o
}

// settled notes what ReadyForQuery says.
func (s *session) settled(status byte, batch int) {
	s.mu.Lock()
	idle := status == 'I'
	if idle && batch > 0 {
		s.idleAfter = max(s.idleAfter, batch)
	}
	changed := s.defined
	if idle {
		s.defined = false
	}
	s.mu.Unlock()
	if changed {
		s.e.catalogs[s.database].changed()
	}
}

// queryAnswer handles the answers to a simple Query, statement by statement.
func (s *session) queryAnswer(ctx context.Context, e *entry, kind byte, body []byte) error {
	var r *run
	if e.at < len(e.runs) {
		r = e.runs[e.at]
		if err := s.release(ctx, r); err != nil {
			return err
		}
	}
	if taken, err := s.copyAnswer(e, r, kind, body); taken || err != nil {
		return err
	}
	switch kind {
	case 'T':
		if r == nil {
			return desync(kind, e)
		}
		if err := s.described(r, body); err != nil {
			return err
		}
	case 'C':
		if r == nil || s.copyingOut {
			return desync(kind, e)
		}
		e.copyEnds(r)
		if err := r.complete(outcome(kind, body)); err != nil {
			return err
		}
		e.at++
	case 'I':
		if len(e.runs) > 0 {
			return desync(kind, e)
		}
	case 'Z':
		if len(body) != 1 || e.at < len(e.runs) && !e.failed {
			return desync(kind, e)
		}
		for _, r := range e.runs {
			r.dropped()
		}
		s.settled(body[0], e.batch)
		s.out.frame(kind, body)
		s.q.pop()
		return s.flush()
	default:
		return desync(kind, e)
	}
	s.out.frame(kind, body)
	return nil
}

// dataRow relays a row: as it is where nothing is masked, else rebuilt.
func (s *session) dataRow(ctx context.Context, size int) error {
	e, r := s.answered()
	if e == nil || e.refusal != nil || e.step != stepExecute && e.step != stepQuery || r == nil || s.copyingOut {
		return desync('D', e)
	}
	if err := s.release(ctx, r); err != nil {
		return err
	}
	if len(r.obligations.Masks) > 0 && !r.planned {
		return protocolError("the target sent a row that it hadn't described, and some of it may have to be masked")
	}
	if r.limited && r.rows >= r.allowed {
		r.exceeded = true
		return nil // skipped by the next read
	}
	r.rows++
	r.bytes += int64(size) + 5
	if r.plan != nil {
		body, err := s.up.in.body('D', s.e.cfg.MaxRow)
		if err != nil {
			var long *errTooLong
			if errors.As(err, &long) {
				return &fault{code: codeTooLarge, message: "a row is too large to be masked", fatal: true}
			}
			return err
		}
		return r.plan.row(s.out, body)
	}
	return s.relayBody('D', size)
}

// answered gives the entry that the target answers now, and the command.
func (s *session) answered() (*entry, *run) {
	e := s.q.peek()
	if e == nil {
		return nil, nil
	}
	return e, e.current()
}

// relayBody passes a message on as it arrives.
func (s *session) relayBody(kind byte, size int) error {
	s.out.header(kind, size)
	for s.up.in.left > 0 {
		chunk, err := s.up.in.chunk()
		if err != nil {
			s.cut = true
			return err
		}
		s.out.raw(chunk)
	}
	return nil
}
