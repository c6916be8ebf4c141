package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/sock"
)

// front reads the agent's messages, decides, and writes to the target, until the agent or the session is done.
func (s *session) front(ctx context.Context) error {
	for {
		if !s.in.ready() {
			if err := s.up.out.flush(); err != nil {
				return &upstreamError{err}
			}
		}
		kind, size, err := s.in.next()
		if err != nil {
			if errors.Is(err, errFrameLength) {
				return protocolError("%v", err)
			}
			return err
		}
		if s.copying != nil {
			taken, err := s.copyMessage(ctx, kind, size)
			if err != nil {
				return err
			}
			if taken {
				continue
			}
		}
		body, err := s.in.body(kind, s.e.cfg.MaxMessage)
		if err != nil {
			var long *errTooLong
			if errors.As(err, &long) {
				return &fault{code: codeTooLarge, message: long.Error(), fatal: true}
			}
			return err
		}
		if err := s.message(ctx, kind, body); err != nil {
			return err
		}
		if s.up.out.err != nil {
			return &upstreamError{s.up.out.err}
		}
	}
}

// upstreamError is a failure of the connection to the target that the front met.
type upstreamError struct{ err error }

func (e *upstreamError) Error() string { return "writing to the target: " + e.err.Error() }
func (e *upstreamError) Unwrap() error { return e.err }

func (s *session) message(ctx context.Context, kind byte, body []byte) error {
	if s.failed || s.open && s.q.skips() {
		// As PostgreSQL does after an error in the extended protocol.
		switch kind {
		case 'S', 'X':
		case 'P', 'B', 'D', 'E', 'C', 'H', 'Q', 'F', 'd', 'c', 'f':
			return nil
		}
	}
	p := parts{b: body}
	switch kind {
	case 'Q':
		text := p.cstring()
		if !p.done() {
			return badMessage(kind)
		}
		return s.query(ctx, text)
	case 'P':
		return s.parse(ctx, &p)
	case 'B':
		return s.bind(ctx, &p)
	case 'D', 'C':
		return s.describeOrClose(ctx, kind, &p)
	case 'E':
		return s.execute(ctx, &p)
	case 'S', 'H':
		if len(body) > 0 {
			return badMessage(kind)
		}
		if kind == 'H' {
			s.up.out.frame('H', nil)
			return nil
		}
		return s.sync(ctx)
	case 'X':
		return s.terminate(ctx)
	case 'F':
		return s.functionCall(ctx, body)
	case 'd', 'c', 'f':
		// Left over from a COPY that was refused or failed.
		return nil
	default:
		return protocolError("message %q is not known", kind)
	}
}

// terminateGrace is how long what was sent before a Terminate may still run: PostgreSQL would run it to its end.
const terminateGrace = 10 * time.Second

func (s *session) terminate(ctx context.Context) error {
	if s.copying != nil {
		return errTerminate // the COPY never ends, so the target undoes it
	}
	ctx, cancel := context.WithTimeout(ctx, terminateGrace)
	defer cancel()
	if s.q.busy() {
		// How it ends is in the records; nobody is left to tell.
		_ = s.settle(ctx, 0)
	}
	return errTerminate
}

func badMessage(kind byte) error { return protocolError("message %q is not well formed", kind) }

// send pushes the entry and says whether the target will see it. The front waits here when too much is under way.
func (s *session) send(ctx context.Context, e *entry) (bool, error) {
	s.q.mu.Lock()
	full := s.q.len() >= maxPending
	s.q.mu.Unlock()
	if full {
		if err := s.settle(ctx, maxPending/2); err != nil {
			return false, err
		}
	}
	return s.q.push(e), nil
}

// settle makes the target answer and waits until at most n entries are open.
func (s *session) settle(ctx context.Context, n int) error {
	s.up.out.frame('H', nil)
	if err := s.up.out.flush(); err != nil {
		return &upstreamError{err}
	}
	ctx, stop := s.whileThere(ctx)
	defer stop()
	err := s.q.wait(ctx, n)
	if err != nil && ctx.Err() != nil {
		return ended(ctx)
	}
	return err
}

// ended says why a wait for the target is over.
func ended(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errGone) {
		return errGone
	}
	return ctx.Err()
}

// errGone says that the agent went away while the front waited for the target.
var errGone = fmt.Errorf("the agent's connection is closed: %w", io.ErrUnexpectedEOF)

// goneEvery is how often a front that waits looks whether its agent is still there: it doesn't read then, and what nobody waits
// for shouldn't run on.
const goneEvery = time.Second

// whileThere ends the context when the agent closes its connection.
func (s *session) whileThere(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(goneEvery, func() {
		for tick := time.NewTicker(goneEvery); ; {
			if sock.HasEnded(s.client) {
				cancel(errGone)
			}
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// ready settles what must be known before the next decision: definitions that the statements under way change.
func (s *session) ready(ctx context.Context) error {
	s.mu.Lock()
	wait := s.defined || s.called
	s.mu.Unlock()
	s.called = false
	if !wait {
		return nil
	}
	return s.settle(ctx, 0)
}

// authorize decides about a statement and gives its run. A refusal comes as a fault.
func (s *session) authorize(ctx context.Context, stmt *sqlparse.Statement) (*run, *fault, error) {
	return s.authorizeAs(ctx, stmt, "")
}

// authorizeAs is authorize for a statement that makes something which is to be called alias at the target.
func (s *session) authorizeAs(ctx context.Context, stmt *sqlparse.Statement, alias string) (*run, *fault, error) {
	if err := s.ready(ctx); err != nil {
		return nil, nil, err
	}
	d, err := s.decide(ctx, stmt, alias)
	if err == nil && stmt.Tag == "LISTEN" && s.listensToMany() {
		err = objection(classUnsupported, "the session listens to too many channels")
	}
	if err != nil {
		f, err := s.refuse(ctx, d.cmd, err)
		return nil, f, err
	}
	d.cmd.Check = func(ob policy.Obligations) error {
		if len(ob.Masks) == 0 {
			return nil
		}
		return expose(d, ob).check()
	}
	pass, err := s.core.Authorize(ctx, d.cmd)
	if err != nil {
		f, err := s.refuse(ctx, d.cmd, err)
		return nil, f, err
	}
	for _, name := range d.makes {
		s.made[name] = true
	}
	r := &run{pass: pass, d: d, made: time.Now(), record: context.WithoutCancel(ctx), obligations: pass.Obligations()}
	if d.givesRows() {
		r.limit = int64(min(r.obligations.MaxRows, 1<<31-2))
	}
	r.touched = d.blind || len(r.obligations.Masks) > 0 && expose(d, r.obligations).touched()
	r.defers = r.touched || d.fires && len(s.e.cfg.Core.MaskedTables()) > 0
	s.sawMasked = s.sawMasked || r.defers
	if s.sawMasked && (stmt.Kind == sqlparse.KindTransaction || stmt.Tag == "SET CONSTRAINTS") {
		// What was deferred to the end of the transaction speaks then.
		r.touched = true
	}
	return r, nil, nil
}

// givesRows says whether a limit of rows means anything.
func (d *decision) givesRows() bool {
	if d.names != nil && d.names.silent {
		return false
	}
	switch d.stmt.Kind {
	case sqlparse.KindSelect, sqlparse.KindInsert, sqlparse.KindUpdate, sqlparse.KindDelete, sqlparse.KindMerge:
		return true
	case sqlparse.KindCopy:
		return d.stmt.Copy != nil && !d.stmt.Copy.From
	default:
		return false
	}
}

// refuse turns an error of a decision into what the agent gets; one that isn't recorded yet is recorded.
func (s *session) refuse(ctx context.Context, cmd proxy.Command, err error) (*fault, error) {
	var refusal *proxy.Refusal
	if !errors.As(err, &refusal) {
		var o *proxy.Objection
		if !errors.As(err, &o) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("deciding: %w", err)
		}
		if _, joined := err.(interface{ Unwrap() []error }); joined {
			s.log.ErrorContext(ctx, "a statement couldn't be decided", "error", err)
		}
		refusal = s.core.Refuse(ctx, cmd, *o)
	}
	f := refusalFault(refusal)
	if refusal.Ended {
		f.fatal = true
		return nil, f
	}
	return f, nil
}

// refusalFault is a refusal in the words of the protocol.
func refusalFault(r *proxy.Refusal) *fault {
	f := &fault{code: codePrivilege, message: "refused: " + r.Error()}
	switch r.Class {
	case proxy.ClassCapability:
		f.hint = "The credential doesn't cover this. Ask for a delegation that does."
	case proxy.ClassPolicy:
		f.hint = "Ask the owner of the target for a policy that permits it, or do without."
	case proxy.ClassUndecided, proxy.ClassNotReady:
		f.code, f.hint = "55000", "Tell the operator of this proxy."
	case proxy.ClassStale:
		f.code, f.hint = codeShutdown, "The proxy has lost touch with its broker. Try again in a moment."
	case proxy.ClassRevoked, proxy.ClassExpired, proxy.ClassClosed:
		f.code, f.hint = codeShutdown, "Get a fresh credential and connect again, if you still may."
	case proxy.ClassEvidence:
		f.code, f.hint = codeInternal, "Nothing runs that can't be recorded. Tell the operator of this proxy."
	case proxy.ClassQuota:
		f.code, f.hint = "53400", "Slow down, and try again."
	case classUnparsable:
		f.code, f.hint = codeSyntax, "Write the statement another way."
	case classUnsupported:
		f.code, f.hint = codeUnsupported, ""
	case classMasked:
		f.hint = "Select the column as it is, or leave it out."
	case classNoStatement:
		f.code, f.hint = codeNoStatement, ""
	case classDupStatement:
		f.code, f.hint = codeDupStatement, ""
	case classNoCursor:
		f.code, f.hint = codeNoPortal, ""
	case classTarget:
		f.code, f.hint = codeNoConnection, "Try again."
	}
	return f
}

// facts parses a text. A text without facts is refused, and the refusal recorded.
func (s *session) facts(ctx context.Context, text string) ([]sqlparse.Statement, *fault, error) {
	if s.calledIn == s.batch && strings.ContainsFunc(text, func(r rune) bool { return r == '\\' || r >= utf8.RuneSelf }) {
		// PostgreSQL reports a change of standard_conforming_strings or client_encoding at the next ReadyForQuery only.
		o := objection(classPinned, "code ran in this batch that may have changed how text is read, and this text has backslashes or letters beyond ASCII; send a Sync between them")
		f, err := s.refuse(ctx, proxy.Command{Kind: "unparsable", Text: text, Database: s.database, Account: s.account}, o)
		return nil, f, err
	}
	owner := s.core.Owner()
	list, err := s.e.cfg.Parser.ParseFor(ctx, owner.Issuer+"\x00"+owner.Subject, text)
	if err == nil {
		return list, nil, nil
	}
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	o := objection(classUnparsable, err.Error())
	var syntax *sqlparse.SyntaxError
	position := 0
	switch {
	case errors.As(err, &syntax):
		position = syntax.Position
	case errors.Is(err, sqlparse.ErrTooLarge), errors.Is(err, sqlparse.ErrTooComplex), errors.Is(err, sqlparse.ErrDied):
	default:
		s.log.ErrorContext(ctx, "parsing SQL failed", "error", err)
		o.Reason = "the statement couldn't be parsed"
	}
	f, err := s.refuse(ctx, proxy.Command{Kind: "unparsable", Text: text, Database: s.database, Account: s.account}, o)
	if f != nil {
		f.position = position
	}
	return nil, f, err
}

// refusedPortal is the name of a portal that never exists: an Execute of it makes the target fail as it would for an error
// of its own, and stands in the target's log.
const refusedPortal = "refused by deputy"

// poison makes the target fail at this place of the pipeline, and puts the refusal in the place of its error.
func (s *session) poison(ctx context.Context, f *fault) error {
	ok, err := s.send(ctx, &entry{step: stepExecute, refusal: f})
	if err != nil {
		return err
	}
	if ok {
		s.writeExecute(refusedPortal, 0)
	}
	s.failed = true
	return nil
}

// refuseQuery answers a simple Query with a refusal.
func (s *session) refuseQuery(ctx context.Context, f *fault) error {
	if err := s.poison(ctx, f); err != nil {
		return err
	}
	return s.sync(ctx)
}

// sync ends a batch. Passes that were made at Parse or Bind and didn't come to an Execute end with it.
func (s *session) sync(ctx context.Context) error {
	e := &entry{step: stepSync, runs: s.leftover, scrub: s.sawMasked, batch: s.batch}
	s.leftover, s.leftoverBytes = nil, 0
	s.failed, s.open = false, false
	s.batch++
	if _, err := s.send(ctx, e); err != nil {
		return err
	}
	s.up.out.frame('S', nil)
	return nil
}

func (s *session) writeExecute(portal string, rows int) {
	o := s.up.out
	o.begin('E')
	o.cstring(portal)
	o.int32(rows)
	o.end()
}
