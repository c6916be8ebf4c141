package postgres

import (
	"fmt"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/policy"
)

// rule finds the mask of a column of a relation: the strictest of those for itself and for its kin. A generated column without
// one is hidden where a column that it is made of is masked.
func rule(ob policy.Obligations, r *relation, column string) (policy.MaskRule, bool) {
	out, found := namedRule(ob, r, column)
	if found {
		return out, true
	}
	for _, k := range append([]*relation{r}, r.kin...) {
		for _, source := range k.madeOf[column] {
			if _, ok := namedRule(ob, k, source); ok {
				return policy.MaskRule{Schema: r.schema, Table: r.name, Column: column, Masker: policy.MaskNull}, true
			}
		}
	}
	return out, false
}

// namedRule finds the mask that policies give to the column by its name.
func namedRule(ob policy.Obligations, r *relation, column string) (policy.MaskRule, bool) {
	out, found := ob.Mask(r.schema, r.name, column)
	for _, k := range r.kin {
		m, ok := ob.Mask(k.schema, k.name, column)
		switch {
		case !ok:
		case !found:
			out, found = m, true
		default:
			out.Masker, out.Filter = max(out.Masker, m.Masker), out.Filter && m.Filter
		}
	}
	return out, found
}

// hasMasks says whether any column of the relation is masked.
func hasMasks(ob policy.Obligations, r *relation) bool {
	for _, c := range r.columns {
		if _, ok := rule(ob, r, c); ok {
			return true
		}
	}
	return false
}

// exposure is what obligations mean for the references of one statement.
type exposure struct {
	d  *decision
	ob policy.Obligations
	// tables says for each relation of the statement whether a column of it is masked.
	tables []bool
	// nested says that a masked column is an output of a subquery, so that whatever is derived may hold it; filter says that
	// all of those may be filtered by.
	nested, nestedFilter bool
	// met keeps what rule gave for columns of relations that have much kin.
	met map[columnOf]ruleMet
}

type columnOf struct {
	r      *relation
	column string
}

type ruleMet struct {
	rule  policy.MaskRule
	found bool
}

// muchKin is where asking again costs more than remembering: a short text names sixty thousand columns of a table, which may have
// a thousand partitions.
const muchKin = 16

// rule is [rule], remembered.
func (x *exposure) rule(r *relation, column string) (policy.MaskRule, bool) {
	if len(r.kin) < muchKin {
		return rule(x.ob, r, column)
	}
	key := columnOf{r, column}
	m, ok := x.met[key]
	if !ok {
		if x.met == nil {
			x.met = map[columnOf]ruleMet{}
		}
		m.rule, m.found = rule(x.ob, r, column)
		x.met[key] = m
	}
	return m.rule, m.found
}

// hasMasks is [hasMasks], remembered.
func (x *exposure) hasMasks(r *relation) bool {
	for _, c := range r.columns {
		if _, ok := x.rule(r, c); ok {
			return true
		}
	}
	return false
}

func expose(d *decision, ob policy.Obligations) *exposure {
	x := &exposure{d: d, ob: ob, nestedFilter: true}
	for i, r := range d.relations {
		// What the catalogue doesn't have may be a view that was made a moment ago, over anything.
		x.tables = append(x.tables, len(ob.Masks) > 0 && (r == nil && d.stmt.Relations[i].Access&sqlparse.Read != 0 || r != nil && x.hasMasks(r)))
	}
	for _, c := range d.stmt.Columns {
		if c.Use != sqlparse.UseNested {
			continue
		}
		if hit, filter := x.reaches(c); hit {
			x.nested, x.nestedFilter = true, x.nestedFilter && filter
		}
	}
	return x
}

// touched says whether a masked relation is in the statement at all.
func (x *exposure) touched() bool { return slices.Contains(x.tables, true) }

// reaches says whether a reference can mean a masked column, and whether all rules that it meets allow filtering.
func (x *exposure) reaches(c sqlparse.Column) (hit, filter bool) {
	filter = true
	if c.Excluded {
		return false, true
	}
	for _, i := range c.From {
		if i >= len(x.tables) || !x.tables[i] {
			continue
		}
		r, named := x.d.relations[i], x.d.stmt.Relations[i]
		wholeRow := slices.Contains(c.RowOf, i) && !x.ownColumn(i, c)
		if r != nil && !c.Star && !wholeRow && !named.Renamed {
			if m, ok := x.rule(r, c.Name()); ok {
				hit = true
				filter = filter && m.Filter
			}
			if r.has(c.Name()) || len(c.Path) == 1 {
				continue
			}
			// t.f, where f is no column, calls the function f with the whole row.
		}
		hit = true
		filter = filter && x.allFilter(i)
	}
	return hit, filter
}

// ownColumn says that a bare name, which is also that of the i-th relation, is a column of this same relation: where
// PostgreSQL sees the one it sees the other, and takes the column. A column of another relation may be hidden where the row
// isn't, and a system column is hidden by any join.
func (x *exposure) ownColumn(i int, c sqlparse.Column) bool {
	r := x.d.relations[i]
	return r != nil && !x.d.stmt.Relations[i].Renamed && r.hasOwn(c.Name())
}

// allFilter says that every masked column of the i-th relation may be filtered by.
func (x *exposure) allFilter(i int) bool {
	r := x.d.relations[i]
	if r == nil {
		return false
	}
	for _, c := range r.columns {
		if m, ok := x.rule(r, c); ok && !m.Filter {
			return false
		}
	}
	return true
}

// check refuses a statement that uses a masked column otherwise than as a plain output column.
func (x *exposure) check() error {
	if !x.touched() {
		return nil
	}
	for _, c := range x.d.stmt.Columns {
		var filters bool
		switch c.Use {
		case sqlparse.UseNested:
			if hit, _ := x.reaches(c); hit && x.d.stmt.Tag == "CREATE VIEW" {
				return objection(classMasked, fmt.Sprintf("%s may be a masked column, and a view would show it under a name that no rule knows", columnText(c)))
			}
			continue
		case sqlparse.UseOutput, sqlparse.UseTarget:
			continue
		case sqlparse.UseFilter, sqlparse.UseJoin, sqlparse.UseGroup, sqlparse.UseOrder, sqlparse.UseDistinct, sqlparse.UseSetOp, sqlparse.UseWindow:
			filters = true
		}
		hit, filter := x.reaches(c)
		if !hit && c.Derived && x.nested {
			hit, filter = true, x.nestedFilter
		}
		if hit && !(filters && filter) {
			return objection(classMasked, fmt.Sprintf("%s may be a masked column and stands in %s; a masked column may only be a plain output column", columnText(c), useText(c.Use)))
		}
	}
	return x.checkCopy()
}

func columnText(c sqlparse.Column) string {
	name := strings.Join(c.Path, ".")
	if c.Star {
		name = strings.TrimPrefix(name+".*", ".")
	}
	return fmt.Sprintf("%q", name)
}

func useText(u sqlparse.Use) string {
	switch u {
	case sqlparse.UseExpression:
		return "an expression"
	case sqlparse.UseFilter:
		return "a filter"
	case sqlparse.UseJoin:
		return "a join"
	case sqlparse.UseGroup:
		return "GROUP BY"
	case sqlparse.UseOrder:
		return "ORDER BY"
	case sqlparse.UseDistinct:
		return "DISTINCT"
	case sqlparse.UseSetOp:
		return "a set operation"
	case sqlparse.UseWindow:
		return "a window"
	case sqlparse.UseStore:
		return "a value that is stored"
	case sqlparse.UseFrom:
		return "an argument in FROM"
	default:
		return "another place"
	}
}

// clean says whether an output without an origin holds nothing masked: then every column that feeds it is known and
// unmasked.
func (x *exposure) clean(o sqlparse.Output) bool {
	if o.Derived && x.nested {
		return false
	}
	for _, i := range o.Columns {
		if i >= len(x.d.stmt.Columns) {
			return false
		}
		if hit, _ := x.reaches(x.d.stmt.Columns[i]); hit {
			return false
		}
	}
	return true
}

// outputClean says whether the n-th of total fields is clean, where it has no origin.
func (x *exposure) outputClean(n, total int) bool {
	if !x.touched() {
		return true
	}
	s := x.d.stmt
	if s.Kind == sqlparse.KindExplain || s.Kind == sqlparse.KindShow {
		return true
	}
	outputs := s.Outputs
	stars := 0
	for _, o := range outputs {
		if o.Kind == sqlparse.OutputStar {
			stars++
		}
	}
	// The place of a field among the outputs is sure before the first star, behind the only one, and nowhere else.
	if stars == 0 && len(outputs) == total {
		return x.clean(outputs[n])
	}
	if stars == 1 && len(outputs)-1 <= total {
		at := slices.IndexFunc(outputs, func(o sqlparse.Output) bool { return o.Kind == sqlparse.OutputStar })
		behind := len(outputs) - at - 1
		switch {
		case n < at:
			return x.clean(outputs[n])
		case n >= total-behind:
			return x.clean(outputs[len(outputs)-(total-n)])
		}
		return x.clean(outputs[at])
	}
	for _, o := range outputs {
		if !x.clean(o) {
			return false
		}
	}
	return len(outputs) > 0
}
