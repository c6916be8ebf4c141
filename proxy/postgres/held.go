package postgres

import (
	"context"
	"fmt"
	"slices"
)

// What one session may make the proxy hold, counted by the texts of its statements; facts take several times that.
const (
	maxHeldBytes   = 8 << 20
	statementBytes = 2 << 10 // what a statement costs besides its text
)

func (p *prepared) cost() int { return statementBytes + len(p.text) }

func (r *run) cost() int { return statementBytes + len(r.d.stmt.Text) }

// keep notes a run that ends with the batch if no Execute takes it. It says false, and notes nothing, if too many wait for
// their Sync.
func (s *session) keep(r *run) bool {
	if s.leftoverBytes+r.cost() > maxHeldBytes {
		s.leftover = slices.DeleteFunc(s.leftover, (*run).isOver)
		s.leftoverBytes = 0
		for _, old := range s.leftover {
			s.leftoverBytes += old.cost()
		}
		if s.leftoverBytes+r.cost() > maxHeldBytes {
			return false
		}
	}
	s.leftover = append(s.leftover, r)
	s.leftoverBytes += r.cost()
	return true
}

func tooMuchHeld() *fault {
	return &fault{code: codeTooLarge, message: "too many statements wait for their Sync", hint: "Send a Sync, or execute what was parsed."}
}

// fits says whether the named statement may be kept beside the others.
func (s *session) fits(name string, p *prepared) bool {
	sum := p.cost()
	if s.preparedBytes+sum <= maxHeldBytes {
		s.preparedBytes += sum
		return true
	}
	// Closed ones aren't counted down; count anew.
	s.preparedBytes = 0
	for other, old := range s.statements {
		if other != name {
			s.preparedBytes += old.cost()
		}
	}
	if s.preparedBytes+sum > maxHeldBytes {
		return false
	}
	s.preparedBytes += sum
	return true
}

func tooMuchPrepared() *fault {
	return &fault{code: codeTooLarge, message: "the prepared statements of this session are too many or too long", hint: "Close some."}
}

// firstOIDOfOthers is the first that isn't PostgreSQL's own.
const firstOIDOfOthers = 16384

// parameterTypes refuses parameters of types whose input runs what nobody vouches for: the text doesn't name such a type, and
// the target would run it at Bind.
func (s *session) parameterTypes(ctx context.Context, r *run, types []byte) (*fault, error) {
	for p := (parts{b: types}); len(p.b) >= 4; {
		oid := p.uint32()
		if oid < firstOIDOfOthers || r.d.snap.harmlessOIDs[oid] {
			continue
		}
		o := objection(classUnsupported, fmt.Sprintf("a parameter has the type %d, which isn't known to run nothing", oid))
		f, err := s.refuse(ctx, r.d.cmd, o)
		if f != nil {
			f.hint = "Leave the parameter's type open and cast it in the text."
		}
		return f, err
	}
	return nil, nil
}
