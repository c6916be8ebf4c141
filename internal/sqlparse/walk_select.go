//go:build cgo

package sqlparse

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// query walks a statement that gives rows, at the top, in a CTE or as a subquery. Plain columns of
// its outputs have the use sink. sc is its own new level.
func (w *walker) query(n *pg.Node, sc *scope, sink Use, top bool) []Output {
	w.depth++
	defer func() { w.depth-- }()
	if w.depth > 2*maxDepth {
		w.fail("nested queries")
		return nil
	}
	if w.err != nil || n == nil {
		return nil
	}
	if !top && n.GetSelectStmt() == nil {
		w.s.WritesInside = true
	}
	switch v := n.Node.(type) {
	case *pg.Node_SelectStmt:
		return w.selectStmt(v.SelectStmt, sc, sink)
	case *pg.Node_InsertStmt:
		return w.insert(v.InsertStmt, sc, sink)
	case *pg.Node_UpdateStmt:
		return w.update(v.UpdateStmt, sc, sink)
	case *pg.Node_DeleteStmt:
		return w.delete(v.DeleteStmt, sc, sink)
	case *pg.Node_MergeStmt:
		return w.merge(v.MergeStmt, sc, sink)
	default:
		w.node(n, sc, UseOther)
		return nil
	}
}

// selectStmt walks a SELECT, VALUES, TABLE or set operation.
func (w *walker) selectStmt(s *pg.SelectStmt, sc *scope, sink Use) []Output {
	return mergeBranches(w.branches(s, sc, sink, false))
}

// branches walks a select and gives the outputs of each branch of its set operations. compared says
// that an operation around it compares rows.
func (w *walker) branches(s *pg.SelectStmt, sc *scope, sink Use, compared bool) [][]Output {
	if s == nil || w.err != nil {
		return nil
	}
	w.with(s.WithClause, sc)
	if s.Op == pg.SetOperation_SETOP_NONE {
		out := w.simpleSelect(s, sc, sink)
		if compared {
			w.alsoUse(outputColumns(out), UseSetOp)
		}
		return [][]Output{out}
	}
	compared = compared || s.Op != pg.SetOperation_SETOP_UNION || !s.All
	left := w.branches(s.Larg, &scope{parent: sc.parent, ctes: sc.ctes}, sink, compared)
	all := append(left, w.branches(s.Rarg, &scope{parent: sc.parent, ctes: sc.ctes}, sink, compared)...)
	if len(s.SortClause) > 0 {
		w.orderBy(s.SortClause, sc, mergeBranches(all))
	}
	w.limitAndLock(s, sc)
	return all
}

// mergeBranches lays the branches of set operations over each other by position. Behind a star no
// position is sure, and everything feeds everything.
func mergeBranches(branches [][]Output) []Output {
	if len(branches) == 0 {
		return nil
	}
	if len(branches) == 1 {
		return branches[0]
	}
	sure := true
	for _, b := range branches {
		sure = sure && len(b) == len(branches[0])
		for _, o := range b {
			sure = sure && o.Kind != OutputStar
		}
	}
	out := make([]Output, len(branches[0]))
	for i, o := range branches[0] {
		o.SetOp, o.Columns = true, nil
		seen := map[int]bool{}
		for _, b := range branches {
			for j, other := range b {
				if sure && i != j {
					continue
				}
				o.Derived = o.Derived || other.Derived
				for _, c := range other.Columns {
					if !seen[c] {
						seen[c] = true
						o.Columns = append(o.Columns, c)
					}
				}
			}
		}
		out[i] = o
	}
	return out
}

// simpleSelect walks one SELECT or VALUES without set operation.
func (w *walker) simpleSelect(s *pg.SelectStmt, sc *scope, sink Use) []Output {
	if s.IntoClause != nil {
		w.s.WritesInside = true
		w.relation(s.IntoClause.Rel, Write|Define)
		w.exprs(s.IntoClause.Options, sc, UseOther)
	}
	for _, f := range s.FromClause {
		w.from(f, sc)
	}
	outputs := w.targets(s.TargetList, sc, sink)
	if len(s.ValuesLists) > 0 {
		outputs = w.values(s.ValuesLists, sc, sink)
	}
	w.expr(s.WhereClause, sc, UseFilter)
	for _, g := range s.GroupClause {
		w.byOutput(g, sc, outputs, UseGroup)
	}
	w.expr(s.HavingClause, sc, UseFilter)
	for _, d := range s.WindowClause {
		w.windowDef(d.GetWindowDef(), sc)
	}
	for _, d := range s.DistinctClause {
		if d == nil || d.Node == nil { // plain DISTINCT
			w.alsoUse(outputColumns(outputs), UseDistinct)
			continue
		}
		w.byOutput(d, sc, outputs, UseDistinct)
	}
	w.orderBy(s.SortClause, sc, outputs)
	w.limitAndLock(s, sc)
	return outputs
}

// targets walks a select list or RETURNING.
func (w *walker) targets(list []*pg.Node, sc *scope, sink Use) []Output {
	var out []Output
	for _, n := range list {
		t := n.GetResTarget()
		if t == nil {
			w.unknownNode("select list")
			w.expr(n, sc, UseExpression)
			continue
		}
		mark := len(w.trail)
		o := Output{Name: t.Name, Kind: OutputExpression}
		ref := t.Val.GetColumnRef()
		if ref != nil {
			c := w.s.Columns[w.columnRef(ref, sc, sink)]
			o.Kind = OutputColumn
			if c.Star {
				o.Kind = OutputStar
			} else if o.Name == "" {
				o.Name = c.Name()
			}
		} else {
			w.expr(t.Val, sc, used(sink))
			if ind := t.Val.GetAIndirection(); ind != nil && endsInStar(ind) {
				o.Kind, o.Derived = OutputStar, true
			}
		}
		o.Columns = w.collect(mark)
		for _, i := range o.Columns {
			c := w.s.Columns[i]
			o.Derived = o.Derived || c.Derived || c.Row
		}
		out = append(out, o)
	}
	return out
}

func endsInStar(i *pg.A_Indirection) bool {
	n := len(i.Indirection)
	return n > 0 && i.Indirection[n-1].GetAStar() != nil
}

// values walks VALUES: one output per column, fed by that column of every row.
func (w *walker) values(rows []*pg.Node, sc *scope, sink Use) []Output {
	var out []Output
	for _, row := range rows {
		for i, n := range row.GetList().GetItems() {
			mark := len(w.trail)
			w.expr(n, sc, used(sink))
			if i == len(out) {
				out = append(out, Output{Kind: OutputExpression})
			}
			for _, c := range w.collect(mark) {
				out[i].Columns = appendNew(out[i].Columns, []int{c})
				out[i].Derived = out[i].Derived || w.s.Columns[c].Derived || w.s.Columns[c].Row
			}
		}
	}
	return out
}

// outputColumns gives the columns of all outputs.
func outputColumns(outputs []Output) []int {
	seen := map[int]bool{}
	var all []int
	for _, o := range outputs {
		for _, c := range o.Columns {
			if !seen[c] {
				seen[c] = true
				all = append(all, c)
			}
		}
	}
	return all
}

func (w *walker) orderBy(list []*pg.Node, sc *scope, outputs []Output) {
	for _, n := range list {
		w.sortBy(n, sc, outputs, UseOrder)
	}
}

// sortBy walks one entry of ORDER BY. In windows and aggregates there are no outputs to name.
func (w *walker) sortBy(n *pg.Node, sc *scope, outputs []Output, use Use) {
	s := n.GetSortBy()
	if s == nil {
		w.unknownNode("ORDER BY")
		w.expr(n, sc, use)
		return
	}
	if len(s.UseOp) > 0 {
		w.operator(s.UseOp)
	}
	w.byOutput(s.Node, sc, outputs, use)
}

// byOutput walks an entry of ORDER BY, GROUP BY or DISTINCT ON, which may name an output by its
// position or its label: then it uses what feeds that output.
func (w *walker) byOutput(n *pg.Node, sc *scope, outputs []Output, use Use) {
	if n == nil || n.Node == nil {
		return
	}
	switch v := n.Node.(type) {
	case *pg.Node_AConst:
		w.template = false
		w.byPosition(v.AConst, outputs, use)
	case *pg.Node_ColumnRef:
		if names := stringsOf(v.ColumnRef.Fields); len(names) == 1 && len(v.ColumnRef.Fields) == 1 {
			for _, o := range outputs {
				// Behind a star of a set operation may be any name; its scope holds none.
				if o.Name == names[0] || o.SetOp && o.Kind == OutputStar {
					w.alsoUse(o.Columns, use)
				}
			}
		}
		w.columnRef(v.ColumnRef, sc, use)
	case *pg.Node_GroupingSet:
		for _, c := range v.GroupingSet.Content {
			w.byOutput(c, sc, outputs, use)
		}
	case *pg.Node_RowExpr:
		for _, c := range v.RowExpr.Args {
			w.byOutput(c, sc, outputs, use)
		}
	default:
		w.expr(n, sc, use)
	}
}

func (w *walker) byPosition(c *pg.A_Const, outputs []Output, use Use) {
	if c.GetIval() == nil || len(outputs) == 0 {
		return
	}
	p := int(c.GetIval().Ival) - 1
	for i, o := range outputs {
		if o.Kind == OutputStar {
			w.alsoUse(outputColumns(outputs), use)
			return
		}
		if i == p {
			w.alsoUse(o.Columns, use)
			return
		}
	}
}

// limitAndLock walks LIMIT, OFFSET and FOR UPDATE.
func (w *walker) limitAndLock(s *pg.SelectStmt, sc *scope) {
	if s.LimitCount != nil || s.LimitOffset != nil {
		w.template = false
	}
	w.expr(s.LimitCount, sc, UseFilter)
	w.expr(s.LimitOffset, sc, UseFilter)
	for _, n := range s.LockingClause {
		l := n.GetLockingClause()
		w.s.Locks = true
		if l == nil {
			w.unknownNode("locking clause")
			continue
		}
		w.lock(l, sc)
	}
}

// lock marks what a locking clause locks. It reaches into subqueries and views, so one that names
// nothing, or something derived, marks every relation found so far.
func (w *walker) lock(l *pg.LockingClause, sc *scope) {
	if len(l.LockedRels) == 0 {
		w.lockAll()
		return
	}
	for _, n := range l.LockedRels {
		name := n.GetRangeVar().GetRelname()
		for _, it := range sc.items {
			if it.name != name || it.derived {
				continue
			}
			for _, i := range it.rels {
				w.s.Relations[i].Access |= Write
			}
			name = ""
		}
		if name != "" {
			w.lockAll()
		}
	}
}

func (w *walker) lockAll() {
	for i := range w.s.Relations {
		w.s.Relations[i].Access |= Write
	}
}
