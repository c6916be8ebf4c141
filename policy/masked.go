package policy

import (
	"slices"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// MaskedTable is a table of which some policy masks a column. An empty Schema means the table of that
// name in every schema.
type MaskedTable struct {
	Schema, Table string
}

// MaskedTables lists, sorted, every table that any @mask of the set names for the target, whoever the
// policy is for. An engine withholds views over them, since a view would show the column under a name
// that no rule covers. Where a policy's head doesn't tie it to another target, it counts.
func (s *Set) MaskedTables(target string) []MaskedTable {
	var out []MaskedTable
	for _, r := range s.rules {
		if !r.mayConcern(target) {
			continue
		}
		for _, m := range r.obligations.Masks {
			if m.OfAnswer() {
				continue
			}
			t := MaskedTable{Schema: m.Schema, Table: m.Table}
			if !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
	}
	slices.SortFunc(out, func(a, b MaskedTable) int {
		return compareMasks(MaskRule{Schema: a.Schema, Table: a.Table}, MaskRule{Schema: b.Schema, Table: b.Table})
	})
	return out
}

// Target returns what the set says of a target.
func (s *Set) Target(name string) (Target, bool) {
	t, ok := s.source.Targets[name]
	t.Groups = slices.Clone(t.Groups)
	return t, ok
}

// namesExactly reports whether the policy is written for exactly this resource (`resource == …`).
func (r *rule) namesExactly(uid types.EntityUID) bool {
	eq, ok := r.resourceScope().(ast.ScopeTypeEq)
	return ok && eq.Entity == uid
}

func (r *rule) resourceScope() ast.IsResourceScopeNode {
	return (*ast.Policy)(r.text.AST()).Resource
}

// mayConcern is false only if the head of the policy names a single object of another target.
func (r *rule) mayConcern(target string) bool {
	for _, uid := range scopeEntities(r.resourceScope()) {
		if uid.Type == typeTarget {
			return uid.ID == types.String(target)
		}
		if o, err := parseResource(uid); err == nil {
			return o.Target == target
		}
	}
	return true
}
