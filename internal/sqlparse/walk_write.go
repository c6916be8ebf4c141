//go:build cgo

package sqlparse

import (
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
)

func (w *walker) insert(s *pg.InsertStmt, sc *scope, sink Use) []Output {
	w.with(s.WithClause, sc)
	target := w.relation(s.Relation, Write)
	if w.err != nil {
		return nil
	}
	self := &scope{parent: sc.parent, ctes: sc.ctes, items: []item{w.itemOf(target)}}
	w.assignTo(s.Cols, self, target)
	if s.SelectStmt != nil {
		w.query(s.SelectStmt, &scope{parent: sc.parent, ctes: sc.ctes}, UseStore, false)
	}
	if c := s.OnConflictClause; c != nil {
		withExcluded := &scope{parent: sc.parent, ctes: sc.ctes, items: append(slices.Clone(self.items),
			item{name: "excluded", rels: []int{target}, excluded: true})}
		if c.Infer != nil {
			w.s.Relations[target].Access |= Read
			for _, n := range c.Infer.IndexElems {
				w.indexElem(n.GetIndexElem(), self, target)
			}
			w.expr(c.Infer.WhereClause, self, UseFilter)
			if c.Infer.Conname != "" { // its columns are the catalogue's knowledge
				w.column(Column{Star: true, From: []int{target}, Use: UseFilter})
			}
		}
		w.set(c.TargetList, withExcluded, target)
		w.expr(c.WhereClause, withExcluded, UseFilter)
	}
	out := w.targets(s.ReturningList, self, sink)
	w.readIfUsed(target, out)
	return out
}

// indexElem walks a column or expression that a unique index is inferred by: whether a row is there
// already shows.
func (w *walker) indexElem(e *pg.IndexElem, sc *scope, target int) {
	if e == nil {
		w.unknownNode("ON CONFLICT")
		return
	}
	if e.Name != "" {
		w.column(Column{Path: []string{e.Name}, From: []int{target}, Use: UseFilter})
	}
	w.expr(e.Expr, sc, UseFilter)
}

func (w *walker) update(s *pg.UpdateStmt, sc *scope, sink Use) []Output {
	w.with(s.WithClause, sc)
	target := w.relation(s.Relation, Write)
	if w.err != nil {
		return nil
	}
	sc.items = append(sc.items, w.itemOf(target))
	for _, f := range s.FromClause {
		w.from(f, sc)
	}
	w.set(s.TargetList, sc, target)
	w.expr(s.WhereClause, sc, UseFilter)
	out := w.targets(s.ReturningList, sc, sink)
	w.readIfUsed(target, out)
	return out
}

func (w *walker) delete(s *pg.DeleteStmt, sc *scope, sink Use) []Output {
	w.with(s.WithClause, sc)
	target := w.relation(s.Relation, Write)
	if w.err != nil {
		return nil
	}
	sc.items = append(sc.items, w.itemOf(target))
	for _, f := range s.UsingClause {
		w.from(f, sc)
	}
	w.expr(s.WhereClause, sc, UseFilter)
	out := w.targets(s.ReturningList, sc, sink)
	w.readIfUsed(target, out)
	return out
}

func (w *walker) merge(s *pg.MergeStmt, sc *scope, sink Use) []Output {
	w.with(s.WithClause, sc)
	target := w.relation(s.Relation, Write)
	if w.err != nil {
		return nil
	}
	sc.items = append(sc.items, w.itemOf(target))
	w.from(s.SourceRelation, sc)
	w.expr(s.JoinCondition, sc, UseJoin)
	for _, n := range s.MergeWhenClauses {
		c := n.GetMergeWhenClause()
		if c == nil {
			w.unknownNode("MERGE")
			continue
		}
		w.expr(c.Condition, sc, UseFilter)
		if c.CommandType == pg.CmdType_CMD_INSERT {
			w.assignTo(c.TargetList, sc, target)
			w.exprs(c.Values, sc, UseStore)
			continue
		}
		w.set(c.TargetList, sc, target)
	}
	out := w.targets(s.ReturningList, sc, sink)
	w.readIfUsed(target, out)
	return out
}

// assignTo walks the column list of an INSERT.
func (w *walker) assignTo(list []*pg.Node, sc *scope, target int) {
	for _, n := range list {
		t := n.GetResTarget()
		if t == nil {
			w.unknownNode("column list")
			continue
		}
		w.column(Column{Path: []string{t.Name}, From: []int{target}, Use: UseTarget})
		w.assignees(t.Indirection, sc)
	}
}

// set walks the list of a SET.
func (w *walker) set(list []*pg.Node, sc *scope, target int) {
	w.assignTo(list, sc, target)
	for _, n := range list {
		val := n.GetResTarget().GetVal()
		if m := val.GetMultiAssignRef(); m != nil {
			// (a, b) = source repeats the source for each column.
			if m.Colno == 1 {
				w.expr(m.Source, sc, UseStore)
			}
			continue
		}
		w.expr(val, sc, UseStore)
	}
}

// assignees walks the fields and subscripts after an assigned column: SET a[i] = …, SET a.b = ….
func (w *walker) assignees(list []*pg.Node, sc *scope) {
	for _, n := range list {
		if n.GetString_() == nil {
			w.expr(n, sc, UseStore)
		}
	}
}

// readIfUsed adds Read to a written relation if the statement uses what is in it.
func (w *walker) readIfUsed(target int, returning []Output) {
	if len(returning) > 0 {
		w.s.Relations[target].Access |= Read
		return
	}
	for _, c := range w.s.Columns {
		if c.Use != UseTarget && !c.Excluded && slices.Contains(c.From, target) {
			w.s.Relations[target].Access |= Read
			return
		}
	}
}
