package postgres

import (
	"context"
	"fmt"
	"math"

	"github.com/deputymesh/deputy/proxy"
)

// execute handles Execute: each one has a pass of its own.
func (s *session) execute(ctx context.Context, p *parts) error {
	name, rows := p.cstring(), p.int32()
	if !p.done() {
		return badMessage('E')
	}
	rows = max(rows, 0)
	s.open = true
	port, err := s.portal(ctx, name)
	if err != nil {
		return err
	}
	if port == nil {
		return s.poison(ctx, noPortal(name))
	}
	if port.prepared.stmt == nil {
		// An empty statement does nothing, and the target says so.
		if ok, err := s.send(ctx, &entry{step: stepExecute}); err != nil || !ok {
			return err
		}
		s.writeExecute(port.upstream, rows)
		return nil
	}
	r, fresh := port.run, port.state.batch == s.batch
	port.run = nil
	if r == nil || !fresh || r.old() {
		var f *fault
		if r, f, err = s.pass(ctx, port.prepared); err != nil {
			return err
		}
		if f != nil {
			return s.poison(ctx, f)
		}
	}
	if r.d.names != nil && r.text() != port.text {
		return s.poison(ctx, &fault{code: codeNoPortal, message: "a name in the statement means something else than when the portal was bound", hint: "Bind it again."})
	}
	s.apply(r)
	s.note([]*run{r})
	describe := len(r.obligations.Masks) > 0
	if r.limit > 0 {
		return s.executeLimited(ctx, r, port.upstream, rows, false, r.counter(port))
	}
	if describe {
		if err := s.describeFor(ctx, r, port.upstream); err != nil {
			return err
		}
	}
	e := &entry{step: stepExecute, run: r, scrub: r.touched}
	s.expectCopy(e, r)
	if ok, err := s.send(ctx, e); err != nil || !ok {
		return err
	}
	s.writeExecute(port.upstream, rows)
	return nil
}

// describeFor asks the target what the portal gives, for masking alone.
func (s *session) describeFor(ctx context.Context, r *run, upstream string) error {
	ok, err := s.send(ctx, &entry{step: stepDescribeP, hidden: true, run: r, scrub: r.touched})
	if err != nil || !ok {
		return err
	}
	o := s.up.out
	o.begin('D')
	o.byte('P')
	o.cstring(upstream)
	o.end()
	return nil
}

// executeLimited executes a portal that may give at most r.limit rows, counted with those that are out already. It waits for
// the answer, since what follows depends on it: one row too many, and the target is made to fail.
func (s *session) executeLimited(ctx context.Context, r *run, upstream string, rows int, described bool, counted *portal) error {
	if !described {
		if err := s.describeFor(ctx, r, upstream); err != nil {
			return err
		}
	}
	ask := rows
	r.limited, r.allowed = true, math.MaxInt64
	if r.limit > 0 {
		r.allowed = max(r.limit-counted.rows, 0)
		if ask = int(min(r.allowed+1, 1<<31-1)); rows > 0 {
			ask = min(ask, rows)
		}
	}
	done := make(chan struct{})
	if r.copiesOut() {
		r.cut = make(chan struct{})
	}
	ok, err := s.send(ctx, &entry{step: stepExecute, run: r, scrub: r.touched, done: done})
	if err != nil || !ok {
		return err
	}
	s.writeExecute(upstream, ask)
	s.up.out.frame('H', nil)
	if err := s.up.out.flush(); err != nil {
		return &upstreamError{err}
	}
	ctx, stop := s.whileThere(ctx)
	defer stop()
	select {
	case <-done:
	case <-r.cut:
		// The target ignores how many rows it was asked for. Nothing else is under way that a cancel could hit.
		if err := s.up.cancel(ctx); err != nil {
			s.log.WarnContext(ctx, "a cancel didn't reach the target", "error", err)
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ended(ctx)
		}
	case <-ctx.Done():
		return ended(ctx)
	}
	counted.rows += r.rows
	if !r.exceeded {
		return nil
	}
	return s.poison(ctx, r.cutFault())
}

func (r *run) cutFault() *fault {
	return &fault{
		code: codeTooLarge, message: fmt.Sprintf("the result was cut after %d rows: that is the limit for this command", r.limit),
		hint: "Ask for fewer rows, or for a policy with a higher limit.",
	}
}

// cutOutcome is what the record says of a result that a limit cut.
func (r *run) cutOutcome() proxy.Outcome {
	return proxy.Outcome{Status: "cut", Code: codeTooLarge, Limit: fmt.Sprintf("rows=%d", r.limit)}
}
