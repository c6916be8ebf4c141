//go:build cgo

package sqlparse

import (
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// with walks the CTEs of a WITH and makes them visible in sc. In WITH RECURSIVE each sees all, else
// each sees those before it: WITH t AS (SELECT * FROM t) reads the table t.
func (w *walker) with(clause *pg.WithClause, sc *scope) {
	if clause == nil {
		return
	}
	own := &ctes{parent: sc.ctes, names: map[string]bool{}}
	if clause.Recursive {
		for _, n := range clause.Ctes {
			own.names[n.GetCommonTableExpr().GetCtename()] = true
		}
	}
	for _, n := range clause.Ctes {
		c := n.GetCommonTableExpr()
		if c == nil {
			w.unknownNode("WITH")
			continue
		}
		inner := &scope{parent: sc.parent, ctes: own}
		w.query(c.Ctequery, inner, UseNested, false)
		for _, name := range stringsOf(c.SearchClause.GetSearchColList()) {
			w.column(Column{Path: []string{name}, Derived: true, Use: UseOrder})
		}
		if c.CycleClause != nil {
			for _, name := range stringsOf(c.CycleClause.CycleColList) {
				w.column(Column{Path: []string{name}, Derived: true, Use: UseFilter})
			}
			w.expr(c.CycleClause.CycleMarkValue, inner, UseOther)
			w.expr(c.CycleClause.CycleMarkDefault, inner, UseOther)
			w.operators[Name{Name: "="}] = true
		}
		own.names[c.Ctename] = true
	}
	sc.ctes = own
}

// from walks one entry of FROM and adds what it brings to sc.
func (w *walker) from(n *pg.Node, sc *scope) {
	if n == nil || w.err != nil {
		return
	}
	switch v := n.Node.(type) {
	case *pg.Node_RangeVar:
		w.fromTable(v.RangeVar, sc)
	case *pg.Node_JoinExpr:
		w.join(v.JoinExpr, sc)
	case *pg.Node_RangeSubselect:
		s := v.RangeSubselect
		inner := sc.beside()
		if s.Lateral {
			inner = sc.below()
		}
		w.query(s.Subquery, inner, UseNested, false)
		w.derived(sc, s.Alias, "")
	case *pg.Node_RangeFunction:
		w.fromFunction(v.RangeFunction, sc)
	case *pg.Node_RangeTableFunc:
		w.fields(v.RangeTableFunc.ProtoReflect(), sc, UseFrom)
		w.derived(sc, v.RangeTableFunc.Alias, "xmltable")
	case *pg.Node_JsonTable:
		w.fields(v.JsonTable.ProtoReflect(), sc, UseFrom)
		w.derived(sc, v.JsonTable.Alias, "json_table")
	case *pg.Node_RangeTableSample:
		s := v.RangeTableSample
		w.from(s.Relation, sc)
		w.function(s.Method)
		// Its arguments see nothing of this FROM.
		w.exprs(s.Args, sc.beside(), UseFrom)
		w.expr(s.Repeatable, sc.beside(), UseFrom)
	default:
		w.unknownNode("FROM")
		w.node(n, sc, UseFrom)
	}
}

// fromTable adds a relation, or a CTE if the name is surely one.
func (w *walker) fromTable(r *pg.RangeVar, sc *scope) {
	if r.Schemaname == "" && r.Catalogname == "" && sc.ctes.has(r.Relname) {
		w.derived(sc, r.Alias, r.Relname)
		return
	}
	i := w.relation(r, Read)
	if w.err == nil {
		sc.items = append(sc.items, w.itemOf(i))
	}
}

// derived adds something whose columns aren't those of a relation.
func (w *walker) derived(sc *scope, alias *pg.Alias, name string) {
	if alias != nil && alias.Aliasname != "" {
		name = alias.Aliasname
	}
	sc.items = append(sc.items, item{name: name, derived: true})
}

// join walks a join. NATURAL and USING compare columns without naming their tables.
func (w *walker) join(j *pg.JoinExpr, sc *scope) {
	start := len(sc.items)
	w.from(j.Larg, sc)
	w.from(j.Rarg, sc)
	rels, derived := itemsRefs(sc.items[start:])
	if j.IsNatural {
		w.column(Column{Star: true, From: rels, Derived: derived, Use: UseJoin})
		w.operators[Name{Name: "="}] = true
	}
	for _, name := range stringsOf(j.UsingClause) {
		w.column(Column{Path: []string{name}, From: rels, Derived: derived, Use: UseJoin})
		w.operators[Name{Name: "="}] = true
	}
	// ON sees what is joined and not what else stands in this FROM; a name that is hidden here means
	// what an outer query calls so.
	on := &scope{parent: sc.parent, ctes: sc.ctes, items: slices.Clone(sc.items[start:])}
	w.expr(j.Quals, on, UseJoin)
	if j.JoinUsingAlias != nil {
		sc.items = append(sc.items, item{name: j.JoinUsingAlias.Aliasname, rels: rels, derived: derived})
	}
	if j.Alias != nil {
		// The alias of a join hides the names inside it.
		sc.hide(start)
		sc.items = append(sc.items, item{name: j.Alias.Aliasname, rels: rels, derived: derived})
		if len(j.Alias.Colnames) > 0 {
			for _, i := range rels {
				w.s.Relations[i].Renamed = true
			}
		}
	}
}

// fromFunction walks a function in FROM; it sees the entries to its left.
func (w *walker) fromFunction(f *pg.RangeFunction, sc *scope) {
	name := ""
	for _, n := range f.Functions {
		// Each is a list of the call and its own column definitions.
		items := n.GetList().GetItems()
		if len(items) == 0 {
			w.unknownNode("function in FROM")
		}
		for _, it := range items {
			w.expr(it, sc, UseFrom)
			if call := it.GetFuncCall(); call != nil {
				if names := stringsOf(call.Funcname); len(names) > 0 {
					name = names[len(names)-1]
				}
			}
		}
	}
	w.exprs(f.Coldeflist, sc, UseFrom)
	w.derived(sc, f.Alias, name)
}
