package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// resolution says what a statement does that names a prepared statement or a cursor.
//
// PostgreSQL has one name space for the statements of Parse and of PREPARE, and one for portals and cursors; so has a session
// here. At the target each gets a name that was never used before: whatever becomes of a transaction, such a name means what
// was decided under it, or nothing.
type resolution struct {
	// runs is what is decided and runs, arguments included; nil where nothing runs, as for CLOSE.
	runs *sqlparse.Statement
	// scrubbed is the text for the record, with that of what runs.
	scrubbed string
	// text is for the target, with its names.
	text string
	// silent says that the agent gets no rows of runs.
	silent bool
	// from is the portal that a FETCH, MOVE or CURRENT OF is about.
	from *portal

	// name is the agent's for what the statement makes, and makes or opens is that.
	name  string
	makes *prepared
	opens *portal
	// all statements or portals end, or the one.
	allStatements, allPortals bool
	ends                      *prepared
	closes                    *portal
}

// handles says whether the statement names prepared statements or cursors, or ends them all.
func handles(s *sqlparse.Statement) bool {
	switch s.Kind {
	case sqlparse.KindPrepare, sqlparse.KindExecute, sqlparse.KindDeallocate, sqlparse.KindDeclare, sqlparse.KindFetch,
		sqlparse.KindClose, sqlparse.KindDiscard:
		return true
	case sqlparse.KindUpdate, sqlparse.KindDelete:
		return s.Cursor != ""
	}
	return false
}

// alias is the name at the target of what the decision makes.
func (d *decision) alias() string {
	switch n := d.names; {
	case n == nil:
	case n.makes != nil:
		return n.makes.upstream
	case n.opens != nil:
		return n.opens.upstream
	}
	return ""
}

// counter is the portal that counts the rows of the run: the cursor that it fetches from, or the one it has itself.
func (r *run) counter(own *portal) *portal {
	if r.d.names != nil && r.d.names.from != nil {
		return r.d.names.from
	}
	return own
}

// resolveNames finds what the statement runs in this session. What it makes is to be called alias at the target, if that is
// known already.
func (s *session) resolveNames(ctx context.Context, stmt *sqlparse.Statement, alias string) (*resolution, error) {
	n := &resolution{text: stmt.Text, name: stmt.Object}
	switch stmt.Kind {
	case sqlparse.KindPrepare:
		return n, s.resolvePrepare(ctx, n, stmt, alias)
	case sqlparse.KindDeclare:
		if len(s.portals) >= maxPortals {
			return nil, objection(classUnsupported, "the session has too many cursors; close some")
		}
		n.opens = &portal{upstream: alias, hold: stmt.Hold, binary: stmt.Binary}
		if alias == "" {
			n.opens.upstream = s.newName("p")
		}
		inner, err := inside(stmt)
		n.runs, n.scrubbed, n.silent = inner, stmt.Normalized, true
		n.opens.prepared = &prepared{stmt: inner}
		n.text = renamed(stmt, n.opens.upstream)
		return n, err
	case sqlparse.KindExecute:
		return n, s.resolveExecute(ctx, n, stmt)
	case sqlparse.KindDeallocate:
		if n.allStatements = stmt.Object == ""; n.allStatements {
			return n, nil
		}
		p, err := s.statement(ctx, stmt.Object)
		if err != nil {
			return nil, err
		}
		if p == nil {
			return nil, objection(classNoStatement, fmt.Sprintf("prepared statement %q does not exist", stmt.Object))
		}
		n.ends, n.text = p, renamed(stmt, p.upstream)
		return n, nil
	case sqlparse.KindDiscard:
		all := stmt.Tag == "DISCARD ALL"
		n.allStatements, n.allPortals = all, all
		return n, nil
	case sqlparse.KindClose:
		if n.allPortals = stmt.Object == ""; n.allPortals {
			return n, nil
		}
	}
	// FETCH, MOVE, CLOSE, WHERE CURRENT OF
	if stmt.Cursor != "" {
		n.name = stmt.Cursor
	}
	p, err := s.portal(ctx, n.name)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, objection(classNoCursor, fmt.Sprintf("cursor %q does not exist, or wasn't made by a statement of this session", n.name))
	}
	n.text = renamed(stmt, p.upstream)
	if stmt.Kind == sqlparse.KindClose {
		n.closes = p
		return n, nil
	}
	if !plainRows(p.prepared.stmt) {
		return nil, objection(classUnsupported, fmt.Sprintf("%q doesn't run a query, and only those can be fetched from here", n.name))
	}
	n.from = p
	if stmt.Cursor != "" {
		n.runs, n.scrubbed = stmt, stmt.Normalized
		return n, nil
	}
	runs := *p.prepared.stmt
	runs.Text = stmt.Text
	n.runs, n.silent = &runs, stmt.Tag == "MOVE"
	n.scrubbed = stmt.Normalized + " -- " + runs.Normalized
	return n, nil
}

func (s *session) resolvePrepare(ctx context.Context, n *resolution, stmt *sqlparse.Statement, alias string) error {
	inner, err := inside(stmt)
	if err != nil {
		return err
	}
	old, err := s.statement(ctx, stmt.Object)
	if err != nil {
		return err
	}
	// A Parse of a PREPARE says nothing yet of what there will be when it is executed; that the target finds out itself.
	if old != nil && old.upstream != alias {
		return objection(classDupStatement, fmt.Sprintf("prepared statement %q already exists", stmt.Object))
	}
	p := &prepared{upstream: alias, stmt: inner, text: stmt.Text}
	if len(s.statements) >= maxStatements || !s.fits(stmt.Object, p) {
		return objection(classUnsupported, tooMuchPrepared().message)
	}
	if alias == "" {
		p.upstream = s.newName("d")
	}
	n.runs, n.scrubbed, n.silent, n.makes = inner, stmt.Normalized, true, p
	n.text = renamed(stmt, p.upstream)
	return nil
}

func (s *session) resolveExecute(ctx context.Context, n *resolution, stmt *sqlparse.Statement) error {
	p, err := s.statement(ctx, stmt.Object)
	if err != nil {
		return err
	}
	if p == nil {
		return objection(classNoStatement, fmt.Sprintf("prepared statement %q does not exist", stmt.Object))
	}
	if !plainRows(p.stmt) {
		return objection(classUnsupported, fmt.Sprintf("prepared statement %q can't be executed by SQL here", stmt.Object))
	}
	if len(stmt.Relations) > 0 || len(stmt.Columns) > 0 {
		return objection(classUnsupported, "an argument of EXECUTE holds a column or a query, and PostgreSQL allows neither")
	}
	// What the arguments call counts beside what the statement itself does.
	runs := *p.stmt
	runs.Text = stmt.Text
	runs.Functions = slices.Concat(runs.Functions, stmt.Functions)
	runs.Operators = slices.Concat(runs.Operators, stmt.Operators)
	runs.Types = slices.Concat(runs.Types, stmt.Types)
	runs.Calls = slices.Concat(runs.Calls, stmt.Calls)
	runs.WritesInside = runs.WritesInside || stmt.WritesInside
	for _, o := range stmt.Opaque {
		if o != "EXECUTE "+stmt.Object {
			runs.Opaque = append(slices.Clone(runs.Opaque), o)
		}
	}
	n.runs, n.scrubbed = &runs, stmt.Normalized+" -- "+runs.Normalized
	n.text = renamed(stmt, p.upstream)
	return nil
}

// inside is the statement inside PREPARE or DECLARE, whose facts are those of the whole.
func inside(stmt *sqlparse.Statement) (*sqlparse.Statement, error) {
	inner := *stmt
	inner.Kind, inner.Inner, inner.Object, inner.Handle, inner.Hold = stmt.Inner, "", "", [2]int{}, false
	if !plainRows(&inner) {
		return nil, objection(classUnsupported, tagOf(stmt)+" of this statement isn't supported by this proxy")
	}
	return &inner, nil
}

// plainRows says that the statement reads or changes rows and names no cursor or prepared statement itself.
func plainRows(s *sqlparse.Statement) bool {
	if s == nil || s.Cursor != "" {
		return false
	}
	switch s.Kind {
	case sqlparse.KindSelect, sqlparse.KindInsert, sqlparse.KindUpdate, sqlparse.KindDelete, sqlparse.KindMerge:
		return true
	}
	return false
}

// renamed is the statement's text with the target's name in the place of the agent's.
func renamed(stmt *sqlparse.Statement, name string) string {
	return stmt.Text[:stmt.Handle[0]] + name + stmt.Text[stmt.Handle[1]:]
}

// apply notes what a run that is on its way makes and ends, as if it had succeeded; how it ended is looked up when somebody
// asks for it. The function undoes it all, for a run that never leaves.
func (s *session) apply(r *run) (undo func()) {
	n := r.d.names
	if n == nil {
		return func() {}
	}
	var undos []func()
	done := s.newState()
	drop := func(mark **state) {
		if old := *mark; old == nil || old.batch != s.batch {
			*mark = done
			undos = append(undos, func() { *mark = old })
		}
	}
	if n.makes != nil {
		p, old := *n.makes, s.statements[n.name]
		p.state, p.before = done, old.ending()
		s.statements[n.name] = &p
		undos = append(undos, func() { s.statements[n.name] = old })
	}
	if n.opens != nil {
		p, old := *n.opens, s.portals[n.name]
		p.state = done
		s.portals[n.name] = &p
		undos = append(undos, func() { s.portals[n.name] = old })
	}
	if n.ends != nil {
		drop(&n.ends.drop)
	}
	if n.closes != nil {
		drop(&n.closes.drop)
	}
	if n.allStatements {
		for name, p := range s.statements {
			if name != "" { // the unnamed one stays
				drop(&p.drop)
			}
		}
	}
	if n.allPortals {
		for _, p := range s.portals {
			drop(&p.drop)
		}
	}
	r.mu.Lock()
	r.then = append(r.then, done)
	r.mu.Unlock()
	return func() {
		for _, u := range slices.Backward(undos) {
			u()
		}
	}
}

// rename gives a prepared statement to the target anew where a name in it means something else than when it was parsed: a
// cursor of that name was closed and another one opened, say.
func (s *session) rename(ctx context.Context, name string, p *prepared, r *run) error {
	if p.again != nil {
		if ok, err := s.usable(ctx, p.again); err != nil {
			return err
		} else if !ok {
			p.text = ""
		}
	}
	if p.text == r.text() {
		return nil
	}
	old := p.upstream
	p.text, p.again = r.text(), s.newState()
	if name != "" {
		p.upstream = s.newName("d")
	}
	ok, err := s.send(ctx, &entry{step: stepParse, hidden: true, run: r, scrub: r.touched, confirm: p.again.confirm, undo: p.again.undo})
	if err != nil || !ok {
		return err
	}
	o := s.up.out
	o.begin('P')
	o.cstring(p.upstream)
	o.cstring(p.text)
	o.int16(0)
	o.end()
	if old == "" {
		return nil
	}
	if ok, err := s.send(ctx, &entry{step: stepClose, hidden: true, run: r}); err != nil || !ok {
		return err
	}
	o.begin('C')
	o.byte('S')
	o.cstring(old)
	o.end()
	return nil
}
