package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/proxy"
)

// query handles a simple Query. All its statements are decided before any is sent.
func (s *session) query(ctx context.Context, text string) error {
	if skipped, err := s.beginQuery(ctx); err != nil || skipped {
		return err
	}
	list, f, err := s.facts(ctx, text)
	if err != nil {
		return err
	}
	if f != nil {
		return s.refuseQuery(ctx, f)
	}
	var runs []*run
	var undo []func()
	limited, takesRows := false, false
	for i := range list {
		r, f, err := s.authorize(ctx, &list[i])
		if err != nil {
			return err
		}
		if f == nil {
			limited, takesRows = limited || r.limit > 0, takesRows || r.copiesIn()
			if limited && takesRows {
				f, err = s.refuse(ctx, r.d.cmd, objection(classUnsupported, "the number of rows is limited, and COPY FROM STDIN can't stand beside that in one text; send them one by one"))
				if err != nil {
					return err
				}
				runs = append(runs, r)
			}
		}
		if f != nil {
			for _, r := range runs {
				r.dropped()
			}
			for _, u := range slices.Backward(undo) {
				u()
			}
			return s.refuseQuery(ctx, f)
		}
		runs = append(runs, r)
		// What it names or ends counts for the statements behind it already.
		undo = append(undo, s.apply(r))
	}
	// A simple Query does away with the unnamed statement and portal.
	delete(s.statements, "")
	delete(s.portals, "")
	if err := s.usePasses(ctx, runs); err != nil {
		return err
	}
	s.note(runs)
	if limited {
		return s.limitedQuery(ctx, runs)
	}
	e := &entry{step: stepQuery, runs: runs, batch: s.batch}
	// What one statement leaves to the end of the transaction is checked with the last.
	e.scrub = s.joins && s.sawMasked || len(runs) > 1 && slices.ContainsFunc(runs, func(r *run) bool { return r.defers })
	s.expectCopy(e, runs...)
	ok, err := s.send(ctx, e)
	s.batch++
	if err != nil || !ok {
		return err
	}
	o := s.up.out
	o.begin('Q')
	o.cstring(joined(text, runs))
	o.end()
	return nil
}

// beginQuery says whether the target skips a Query or FunctionCall that comes now. Where extended messages wait without a
// Sync, whether they failed decides that.
func (s *session) beginQuery(ctx context.Context) (skipped bool, err error) {
	s.joins = s.open
	if !s.open {
		return false, nil
	}
	if err := s.settle(ctx, 0); err != nil {
		return false, err
	}
	if s.q.skips() {
		return true, nil
	}
	s.open = false
	return false, nil
}

// joined is the text for the target: the agent's own, unless a statement has another.
func joined(text string, runs []*run) string {
	own := true
	for _, r := range runs {
		own = own && r.d.text == ""
	}
	if own {
		return text
	}
	var b strings.Builder
	for i, r := range runs {
		if i > 0 {
			b.WriteString(";\n")
		}
		b.WriteString(r.text())
	}
	return b.String()
}

// text is what goes to the target.
func (r *run) text() string {
	if r.d.text != "" {
		return r.d.text
	}
	return r.d.stmt.Text
}

// usePasses takes the passes of what is sent now; those of statements that may change something are durable already, and
// waiting for them costs nothing. With one such among several, all wait: they are sent as one message.
func (s *session) usePasses(ctx context.Context, runs []*run) error {
	write := false
	for _, r := range runs {
		write = write || !r.d.cmd.ReadOnly
	}
	for _, r := range runs {
		if write {
			if err := r.pass.Wait(ctx); err != nil {
				return passFault(err)
			}
		}
		if err := r.use(len(r.text())); err != nil {
			return passFault(err)
		}
	}
	return nil
}

// passFault is a pass that failed after the decision: the log is down or the session over.
func passFault(err error) error {
	f := &fault{code: codeInternal, message: "refused: " + err.Error(), fatal: true}
	var r *proxy.Refusal
	if errors.As(err, &r) {
		f = refusalFault(r)
		f.fatal = true
	}
	return f
}

// note remembers what later decisions need to know about statements that are on their way.
func (s *session) note(runs []*run) {
	for _, r := range runs {
		if r.d.stmt.Tag == "LISTEN" {
			s.listens(r.d.stmt.Object)
		}
		if r.d.calls {
			s.called, s.calledIn = true, s.batch
		}
		if r.d.defines {
			s.mu.Lock()
			s.defined = true
			s.mu.Unlock()
		}
	}
}

// limitedQuery runs the statements of a simple Query through portals, which can stop after a number of rows, one behind the
// other and before one Sync: as in a Query, they are one transaction. More rows than the limit end it with an error, as if the
// target had failed: what the statements changed is undone.
func (s *session) limitedQuery(ctx context.Context, runs []*run) error {
	for i, r := range runs {
		ok, err := s.throughPortal(ctx, r)
		if err != nil {
			return err
		}
		if !ok || s.failed || s.q.skips() {
			for _, r := range runs[i:] {
				r.dropped() // but for the one that failed, whose outcome is known
			}
			break
		}
	}
	return s.sync(ctx)
}

// throughPortal runs one statement by a portal and waits for its end. It says false if the target skipped it.
func (s *session) throughPortal(ctx context.Context, r *run) (bool, error) {
	for _, e := range []*entry{
		{step: stepParse, hidden: true, run: r},
		{step: stepBind, hidden: true, run: r},
		{step: stepDescribeP, run: r},
	} {
		e.scrub = r.touched
		if ok, err := s.send(ctx, e); err != nil || !ok {
			return false, err
		}
	}
	o := s.up.out
	o.begin('P')
	o.cstring("")
	o.cstring(r.text())
	o.int16(0)
	o.end()
	counted := r.counter(&portal{})
	formats := []byte{0, 0, 0, 0, 0, 0}
	if counted.binary {
		formats = []byte{0, 0, 0, 0, 0, 1, 0, 1}
	}
	s.writeBind("", "", formats)
	o.begin('D')
	o.byte('P')
	o.cstring("")
	o.end()
	return true, s.executeLimited(ctx, r, "", 0, true, counted)
}
