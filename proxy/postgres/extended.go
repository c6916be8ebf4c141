package postgres

import (
	"context"
	"fmt"
)

const (
	maxStatements = 10000
	maxPortals    = 10000
	maxNameBytes  = 256
)

// parse handles Parse: the text is decided before the target sees it.
func (s *session) parse(ctx context.Context, p *parts) error {
	name, text := p.cstring(), p.cstring()
	types := p.b
	n := p.int16()
	if n < 0 || len(p.take(4*n)) != 4*n || !p.done() || len(name) > maxNameBytes {
		return badMessage('P')
	}
	s.open = true
	if name != "" {
		old, err := s.statement(ctx, name)
		if err != nil {
			return err
		}
		if old != nil {
			return s.poison(ctx, &fault{code: codeDupStatement, message: fmt.Sprintf("prepared statement %q already exists", name)})
		} else if len(s.statements) >= maxStatements {
			return s.poison(ctx, &fault{code: codeTooLarge, message: "too many prepared statements", hint: "Close some."})
		}
	}
	list, f, err := s.facts(ctx, text)
	if err != nil {
		return err
	}
	if f == nil && len(list) > 1 {
		f = &fault{code: codeSyntax, message: "cannot insert multiple commands into a prepared statement"}
	}
	if f != nil {
		return s.poison(ctx, f)
	}
	prep := &prepared{text: text, state: s.newState()}
	if name != "" {
		prep.upstream, prep.before = s.newName("d"), s.statements[name].ending()
	}
	e := &entry{step: stepParse, confirm: prep.state.confirm, undo: prep.state.undo}
	if len(list) == 1 {
		prep.stmt = &list[0]
		if prep.run, f, err = s.authorize(ctx, prep.stmt); err != nil {
			return err
		}
		if f != nil {
			return s.poison(ctx, f)
		}
		if prep.run.d.text != "" {
			prep.text, prep.alias = prep.run.d.text, prep.run.d.alias()
		}
		f, err := s.parameterTypes(ctx, prep.run, types[2:])
		if err != nil {
			return err
		}
		if f == nil && !s.keep(prep.run) {
			f = tooMuchHeld()
		}
		if f == nil && name != "" && !s.fits(name, prep) {
			f = tooMuchPrepared()
		}
		if f != nil {
			prep.run.dropped()
			return s.poison(ctx, f)
		}
		if err := s.usePasses(ctx, []*run{prep.run}); err != nil {
			return err
		}
		e.run = prep.run
	}
	s.statements[name] = prep
	if ok, err := s.send(ctx, e); err != nil || !ok {
		return err
	}
	o := s.up.out
	o.begin('P')
	o.cstring(prep.upstream)
	o.cstring(prep.text)
	o.bytes(types)
	o.end()
	return nil
}

func noStatement(name string) *fault {
	if name == "" {
		return &fault{code: codeNoStatement, message: "unnamed prepared statement does not exist"}
	}
	return &fault{code: codeNoStatement, message: fmt.Sprintf("prepared statement %q does not exist", clip(name, 64))}
}

// pass gives the run for what is done now with a prepared statement: the one of its Parse in this batch, or a new one.
func (s *session) pass(ctx context.Context, p *prepared) (*run, *fault, error) {
	if r := p.run; r != nil {
		p.run = nil
		if p.state.batch == s.batch && !r.old() {
			return r, nil, nil
		}
	}
	r, f, err := s.authorizeAs(ctx, p.stmt, p.alias)
	if err != nil || f != nil {
		return nil, f, err
	}
	return r, nil, s.usePasses(ctx, []*run{r})
}

// bind handles Bind. What could run already while the target plans needs its pass here.
func (s *session) bind(ctx context.Context, p *parts) error {
	name, source := p.cstring(), p.cstring()
	rest := p.b
	if !wellFormedBind(p) || len(name) > maxNameBytes {
		return badMessage('B')
	}
	s.open = true
	prep, err := s.statement(ctx, source)
	if err != nil {
		return err
	}
	if prep == nil {
		return s.poison(ctx, noStatement(source))
	}
	if name != "" {
		if old := s.portals[name]; old != nil {
			// A portal ends with its transaction, which only the target knows; its own name at the target makes a
			// second one harmless. Within one batch it is surely there.
			if old.state.batch == s.batch {
				return s.poison(ctx, &fault{code: codeDupPortal, message: fmt.Sprintf("cursor %q already exists", name)})
			}
		} else if s.buryPortals(); len(s.portals) >= maxPortals {
			return s.poison(ctx, &fault{code: codeTooLarge, message: "too many portals", hint: "Close some."})
		}
	}
	port := &portal{prepared: prep, state: s.newState()}
	if name != "" {
		port.upstream = s.newName("p")
	}
	e := &entry{step: stepBind, confirm: port.state.confirm, undo: port.state.undo}
	if prep.stmt != nil && s.planRuns(prep) {
		var f *fault
		if port.run, f, err = s.pass(ctx, prep); err != nil {
			return err
		}
		if f != nil {
			return s.poison(ctx, f)
		}
		if !s.keep(port.run) {
			port.run.dropped()
			return s.poison(ctx, tooMuchHeld())
		}
		e.run, e.scrub = port.run, port.run.touched
		if err := s.rename(ctx, source, prep, port.run); err != nil {
			return err
		}
	}
	port.text = prep.text
	s.portals[name] = port
	if ok, err := s.send(ctx, e); err != nil || !ok {
		return err
	}
	s.writeBind(port.upstream, prep.upstream, rest)
	return nil
}

// planRuns says whether planning the statement may run what isn't known as harmless. In doubt it says so.
func (s *session) planRuns(p *prepared) bool {
	if handles(p.stmt) {
		return true // what its names mean now is for the decision to say
	}
	if p.run != nil && p.state.batch == s.batch && !p.run.old() {
		return !p.run.d.planned
	}
	snap := s.e.catalogs[s.database].latest()
	return snap == nil || snap.casts || !harmlessNames(p.stmt, names{snap})
}

func wellFormedBind(p *parts) bool {
	formats := p.int16()
	if formats < 0 {
		return false
	}
	p.take(2 * formats)
	params := p.int16()
	if params < 0 || formats > 1 && formats != params {
		return false
	}
	for range params {
		if n := p.int32(); n > 0 {
			p.take(n)
		} else if n < -1 {
			return false
		}
		if p.bad {
			return false
		}
	}
	results := p.int16()
	if results < 0 {
		return false
	}
	p.take(2 * results)
	return p.done()
}

func (s *session) writeBind(portal, statement string, rest []byte) {
	o := s.up.out
	o.begin('B')
	o.cstring(portal)
	o.cstring(statement)
	o.bytes(rest)
	o.end()
}

// describeOrClose handles Describe and Close.
func (s *session) describeOrClose(ctx context.Context, kind byte, p *parts) error {
	what, name := p.byte(), p.cstring()
	if !p.done() || what != 'S' && what != 'P' {
		return badMessage(kind)
	}
	s.open = true
	// A name that nobody has: closing it succeeds, as it does for any unknown one.
	upstream := refusedPortal
	e := &entry{step: stepClose}
	if kind == 'D' {
		e.step = stepDescribeS
		if what == 'P' {
			e.step = stepDescribeP
		}
	}
	if what == 'S' {
		prep, err := s.statement(ctx, name)
		if err != nil {
			return err
		}
		switch {
		case prep != nil:
			upstream = prep.upstream
			if kind == 'C' {
				delete(s.statements, name)
			}
		case kind == 'D':
			return s.poison(ctx, noStatement(name))
		}
	} else {
		port, err := s.portal(ctx, name)
		if err != nil {
			return err
		}
		switch {
		case port != nil:
			upstream = port.upstream
			if kind == 'C' {
				delete(s.portals, name)
			}
		case kind == 'D':
			return s.poison(ctx, noPortal(name))
		}
	}
	if ok, err := s.send(ctx, e); err != nil || !ok {
		return err
	}
	o := s.up.out
	o.begin(kind)
	o.byte(what)
	o.cstring(upstream)
	o.end()
	return nil
}

func noPortal(name string) *fault {
	return &fault{code: codeNoPortal, message: fmt.Sprintf("portal %q does not exist", clip(name, 64))}
}
