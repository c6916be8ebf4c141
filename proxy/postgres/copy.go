package postgres

import (
	"context"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// copyOps adds the ops of COPY: it reads or inserts, and is a right of its own besides, since it moves whole tables.
func (b *opBuilder) copyOps() error {
	s := b.dec.stmt
	if s.Copy == nil {
		return objection(classUnparsable, "the COPY isn't understood")
	}
	if s.Copy.Program || s.Copy.File != "" {
		return objection(classPinned, `COPY to and from files and programs of the target's server is never allowed here; use STDIN, STDOUT or psql's \copy`)
	}
	if len(s.Opaque) > 0 {
		return objection(classUnsupported, "the COPY runs code that can't be seen")
	}
	kind, access := sqlparse.KindSelect, sqlparse.Read
	if s.Copy.From {
		kind, access = sqlparse.KindInsert, sqlparse.Write
	} else if s.Copy.Query {
		if kind = s.Inner; kind != sqlparse.KindSelect {
			access |= sqlparse.Write
		}
	}
	b.names()
	if err := b.relations(kind); err != nil {
		return err
	}
	named := false
	for i, r := range s.Relations {
		if r.Access&access != 0 {
			b.table(i, "copy", s.Copy.From)
			named = true
		}
	}
	if !named {
		b.onDatabase("select", false, false)
		b.onDatabase("copy", false, false)
	}
	return nil
}

// checkCopy refuses a COPY that would give a masked column: its rows are text or binary of a format of its own, and no
// description says what they are made of.
func (x *exposure) checkCopy() error {
	s := x.d.stmt
	if s.Copy == nil || s.Copy.From {
		return nil
	}
	clean := len(s.Outputs) > 0
	for _, o := range s.Outputs {
		clean = clean && x.clean(o)
	}
	if clean {
		return nil
	}
	return objection(classMasked, "COPY would give a column that is masked or may be, and it can't be masked in a COPY; name the other columns, or use SELECT")
}

// copiesIn says that the run takes rows from the agent.
func (r *run) copiesIn() bool { return r.d.stmt.Copy != nil && r.d.stmt.Copy.From }

// copiesOut says that the run gives rows of a COPY.
func (r *run) copiesOut() bool { return r.d.stmt.Copy != nil && !r.d.stmt.Copy.From }

// copying follows a COPY FROM STDIN that was sent to the target. While the target takes rows, Sync and Flush mean nothing to
// it, and everything else but rows ends the COPY; so the front has to know whether it does.
type copying struct {
	query bool // it is part of a simple Query
	runs  []*run
	turns chan copyTurn
	done  <-chan struct{}

	last *run // that began to take rows; the back's alone

	// The front alone uses what follows.
	on   *run // takes rows now
	sent int64
	held bool // a Sync came after rows: it counts if the target had failed before it
}

// copyTurn says that the target takes rows of a run from now on, or takes none any more. Turns are taken in order: the end of one COPY of a Query may
// be heard of together with the beginning of the next.
type copyTurn struct {
	run   *run
	takes bool
}

// expectCopy prepares for the answers to an entry that copies in.
func (s *session) expectCopy(e *entry, runs ...*run) {
	n := 0
	for _, r := range runs {
		if r.copiesIn() {
			n++
		}
	}
	if n == 0 {
		return
	}
	done := make(chan struct{})
	e.done = done
	e.copying = &copying{query: e.step == stepQuery, runs: runs, turns: make(chan copyTurn, 2*n), done: done}
	s.copying = e.copying
}

// copyMessage handles a message of the agent while a COPY FROM STDIN is under way, or leaves it to others.
func (s *session) copyMessage(ctx context.Context, kind byte, size int) (taken bool, err error) {
	c := s.copying
	for c.on == nil {
		// The target flushes when it begins to take rows; that it is done it may keep to itself.
		if !c.query {
			s.up.out.frame('H', nil)
		}
		if err := s.up.out.flush(); err != nil {
			return false, &upstreamError{err}
		}
		select {
		case t := <-c.turns:
			if t.takes {
				c.on, c.sent, c.held = t.run, 0, false
			}
		case <-c.done:
			s.copying = nil
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	select {
	case <-c.turns: // its end, by an error: rows that still come go nowhere
		c.on = nil
		if c.query {
			return s.copyMessage(ctx, kind, size)
		}
		s.copying = nil
		if c.held {
			if err := s.sync(ctx); err != nil {
				return false, err
			}
		}
		return false, nil
	default:
	}
	switch kind {
	case 'd':
		c.sent += int64(size)
		return true, s.copyData(size)
	case 'S', 'H':
		if size > 0 {
			return false, badMessage(kind)
		}
		c.held = c.held || kind == 'S' && c.sent > 0
		return true, nil
	case 'X':
		return false, nil
	}
	body, err := s.in.body(kind, s.e.cfg.MaxMessage)
	if err != nil {
		return false, err
	}
	switch p := (parts{b: body}); kind {
	case 'c':
		if len(body) > 0 {
			return false, badMessage(kind)
		}
	case 'f':
		if p.cstring(); !p.done() {
			return false, badMessage(kind)
		}
	default:
		// As PostgreSQL does: the COPY fails, and the message is lost.
		kind, body = 'f', []byte("the agent sent something else than rows\x00")
	}
	c.on.forwarded(c.sent)
	c.on = nil
	s.up.out.frame(kind, body)
	return true, nil
}

// copyData streams rows to the target, as fast as it takes them.
func (s *session) copyData(size int) error {
	s.up.half = true
	s.up.out.header('d', size)
	for s.in.left > 0 {
		chunk, err := s.in.chunk()
		if err != nil {
			return err
		}
		s.up.out.raw(chunk)
		if s.up.out.err != nil {
			return &upstreamError{s.up.out.err}
		}
	}
	s.up.half = false
	return nil
}

// forwarded records how many bytes went to the target, as long as the outcome isn't recorded.
func (r *run) forwarded(bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.pass.Forwarded(bytes)
	}
}

// copyAnswer handles what the target says while it copies. It reports false for everything else.
func (s *session) copyAnswer(e *entry, r *run, kind byte, body []byte) (bool, error) {
	switch kind {
	case 'G':
		if r == nil || !r.copiesIn() || e.copying == nil || e.copying.last == r {
			return false, desync(kind, e)
		}
		e.copying.last = r
		select {
		case e.copying.turns <- copyTurn{r, true}:
		default: // more often than there are such statements
			return false, desync(kind, e)
		}
	case 'H':
		if r == nil || !r.copiesOut() || s.copyingOut {
			return false, desync(kind, e)
		}
		s.copyingOut = true
	case 'c':
		if !s.copyingOut {
			return false, desync(kind, e)
		}
		s.copyingOut = false
		if r.exceeded {
			return true, nil
		}
	default:
		return false, nil
	}
	s.out.frame(kind, body)
	return true, nil
}

// copyEnds tells the front that the target takes no more rows.
func (e *entry) copyEnds(r *run) {
	if e.copying != nil && r != nil && r.copiesIn() {
		select {
		case e.copying.turns <- copyTurn{r, false}:
		default: // said before
		}
	}
}

// copyRow relays a row of a COPY to the agent. The target sends one message per row.
func (s *session) copyRow(ctx context.Context, size int) error {
	e, r := s.answered()
	if r == nil || !s.copyingOut {
		return desync('d', e)
	}
	if err := s.release(ctx, r); err != nil {
		return err
	}
	c := r.d.stmt.Copy
	switch {
	case c.Header && !r.headed && !c.Binary:
		r.headed = true
	case c.Binary && (size == 2 || size == 21 && r.rows == 0): // the end of the format, also right behind its head
	case r.limited && r.rows >= r.allowed:
		if !r.exceeded {
			r.exceeded = true
			close(r.cut)
		}
		return nil // skipped by the next read
	default:
		r.rows++
	}
	r.bytes += int64(size) + 5
	return s.relayBody('d', size)
}
