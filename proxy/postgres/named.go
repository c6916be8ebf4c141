package postgres

import (
	"context"
	"fmt"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// prepared is one of the agent's prepared statements, whether a Parse or a PREPARE made it.
type prepared struct {
	upstream string // its name at the target
	stmt     *sqlparse.Statement
	text     string // as the target has it
	alias    string // what its text calls the thing that it makes, if it makes one
	run      *run   // the pass of the Parse, until an Execute takes it
	state    *state
	again    *state    // of another Parse that gave it other names
	drop     *state    // of the DEALLOCATE that may end it
	before   *prepared // what had the name before, as long as its end isn't sure
}

// portal is one of the agent's portals or cursors.
type portal struct {
	upstream string
	prepared *prepared
	text     string // what it runs, as the target has it
	run      *run
	rows     int64 // handed out so far
	hold     bool  // WITH HOLD: it doesn't end with its transaction
	binary   bool  // a BINARY cursor
	state    *state
	drop     *state // of the CLOSE that may end it
}

// state says whether the target has something: made in this batch (then it is there if anything after it runs), known to
// be there, or known to be gone.
type state struct {
	batch int
	q     *queue // its lock guards what follows
	there bool
	gone  bool
}

func (s *session) newState() *state { return &state{batch: s.batch, q: s.q} }

func (t *state) confirm() { t.q.mu.Lock(); t.there = true; t.q.mu.Unlock() }
func (t *state) undo()    { t.q.mu.Lock(); t.gone = true; t.q.mu.Unlock() }

// usable says whether the target has it. Where that isn't known yet, it waits for the target.
func (s *session) usable(ctx context.Context, t *state) (bool, error) {
	for range 2 {
		s.q.mu.Lock()
		there, gone := t.there, t.gone
		s.q.mu.Unlock()
		if gone {
			return false, nil
		}
		if there || t.batch == s.batch {
			return true, nil
		}
		if err := s.settle(ctx, 0); err != nil {
			return false, err
		}
	}
	return false, nil
}

// statement finds a prepared statement that the target has.
func (s *session) statement(ctx context.Context, name string) (*prepared, error) {
	for p := s.statements[name]; p != nil; p = s.statements[name] {
		there, err := s.usable(ctx, p.state)
		if err != nil {
			return nil, err
		}
		if !there {
			// It never was; what had the name before still may have it.
			s.statements[name] = p.before
			continue
		}
		dropped, err := s.happened(ctx, p.drop)
		if err != nil {
			return nil, err
		}
		if !dropped {
			p.drop = nil
			return p, nil
		}
		if p.drop.batch == s.batch {
			return nil, nil // if that fails, nothing behind it counts
		}
		break
	}
	delete(s.statements, name)
	return nil, nil
}

// ending is the statement itself where only its end at the target may make room for another of its name. It forgets what
// was before: a chain of such would grow without end.
func (p *prepared) ending() *prepared {
	if p == nil || p.drop == nil {
		return nil
	}
	q := *p
	q.before = nil
	return &q
}

// happened says whether something that was sent to the target has been done there; nil is nothing.
func (s *session) happened(ctx context.Context, t *state) (bool, error) {
	if t == nil {
		return false, nil
	}
	return s.usable(ctx, t)
}

// newName makes a name for the target that was never used in this session: it can mean one thing only.
func (s *session) newName(kind string) string {
	s.serial++
	return fmt.Sprintf("%s%d", kind, s.serial)
}

func (s *session) portal(ctx context.Context, name string) (*portal, error) {
	p := s.portals[name]
	if p == nil {
		return nil, nil
	}
	if s.buried(p) {
		delete(s.portals, name)
		return nil, nil
	}
	ok, err := s.usable(ctx, p.state)
	if err != nil || !ok {
		return nil, err
	}
	dropped, err := s.happened(ctx, p.drop)
	if err != nil || dropped {
		return nil, err
	}
	p.drop = nil
	return p, nil
}

// buried says that the transaction of the portal is over.
func (s *session) buried(p *portal) bool {
	if p.hold {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.state.batch <= s.idleAfter
}

// buryPortals forgets portals of transactions that are over, when there are many.
func (s *session) buryPortals() {
	if len(s.portals) < 256 {
		return
	}
	for name, p := range s.portals {
		if s.buried(p) {
			delete(s.portals, name)
		}
	}
}
