//go:build cgo

package sqlparse

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// expr walks an expression whose plain references have the given use. A subquery inside it is
// walked as one: its select list has the expression's use, its WHERE is a filter.
func (w *walker) expr(n *pg.Node, sc *scope, use Use) {
	if n == nil || n.Node == nil {
		return
	}
	switch v := n.Node.(type) {
	case *pg.Node_ColumnRef:
		w.columnRef(v.ColumnRef, sc, use)
	case *pg.Node_AConst, *pg.Node_ParamRef, *pg.Node_SetToDefault:
	case *pg.Node_AExpr:
		w.operatorExpr(v.AExpr, sc, use)
	case *pg.Node_FuncCall:
		w.call(v.FuncCall, sc, use)
	case *pg.Node_TypeCast:
		w.typeName(v.TypeCast.TypeName, sc, use)
		w.expr(v.TypeCast.Arg, sc, use)
	case *pg.Node_SubLink:
		w.sublink(v.SubLink, sc, use)
	case *pg.Node_AIndirection:
		w.indirection(v.AIndirection, sc, use)
	case *pg.Node_List:
		w.exprs(v.List.Items, sc, use)
	case *pg.Node_CaseExpr:
		if v.CaseExpr.Arg != nil { // CASE x WHEN y compares
			w.operators[Name{Name: "="}] = true
		}
		w.node(n, sc, use)
	case *pg.Node_BoolExpr:
		w.exprs(v.BoolExpr.Args, sc, use)
	case *pg.Node_SelectStmt, *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt:
		w.query(n, sc.below(), used(use), false) // JSON_ARRAY(SELECT …)
	default:
		w.node(n, sc, use)
	}
}

func (w *walker) exprs(list []*pg.Node, sc *scope, use Use) {
	for _, n := range list {
		w.expr(n, sc, use)
	}
}

// operatorExpr notes the operators that an A_Expr stands for.
func (w *walker) operatorExpr(e *pg.A_Expr, sc *scope, use Use) {
	switch e.Kind {
	case pg.A_Expr_Kind_AEXPR_BETWEEN, pg.A_Expr_Kind_AEXPR_BETWEEN_SYM:
		w.operators[Name{Name: ">="}], w.operators[Name{Name: "<="}] = true, true
	case pg.A_Expr_Kind_AEXPR_NOT_BETWEEN, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM:
		w.operators[Name{Name: ">"}], w.operators[Name{Name: "<"}] = true, true
	default:
		w.operator(e.Name)
	}
	// A chain of operators leans left: a loop here keeps 1+1+1+… off the stack.
	w.expr(e.Lexpr, sc, use)
	w.expr(e.Rexpr, sc, use)
}

func (w *walker) operator(names []*pg.Node) {
	if n, ok := w.name(names, "operator name"); ok {
		w.operators[n] = true
	}
}

// call walks a function call: its name, arguments, and what aggregates and windows add.
func (w *walker) call(f *pg.FuncCall, sc *scope, use Use) {
	w.function(f.Funcname)
	w.exprs(f.Args, sc, use)
	for _, n := range f.AggOrder {
		w.sortBy(n, sc, nil, UseOrder)
	}
	w.expr(f.AggFilter, sc, UseFilter)
	if f.AggDistinct {
		w.operators[Name{Name: "="}] = true
	}
	w.windowDef(f.Over, sc)
}

func (w *walker) windowDef(d *pg.WindowDef, sc *scope) {
	if d == nil {
		return
	}
	w.exprs(d.PartitionClause, sc, UseWindow)
	for _, n := range d.OrderClause {
		w.sortBy(n, sc, nil, UseWindow)
	}
	w.expr(d.StartOffset, sc, UseWindow)
	w.expr(d.EndOffset, sc, UseWindow)
}

func (w *walker) sublink(l *pg.SubLink, sc *scope, use Use) {
	w.expr(l.Testexpr, sc, use)
	switch {
	case len(l.OperName) > 0:
		w.operator(l.OperName)
	case l.Testexpr != nil:
		w.operators[Name{Name: "="}] = true // x IN (SELECT …)
	}
	// Its rows end up in this expression without another reference: 'x' IN (SELECT email …). Only
	// EXISTS looks at none of their columns.
	sink := used(use)
	if l.SubLinkType == pg.SubLinkType_EXISTS_SUBLINK {
		sink = UseNested
	}
	w.query(l.Subselect, sc.below(), sink, false)
}

// used gives the use of what an expression takes in, where the expression has the given use.
func used(use Use) Use {
	if use == UseOutput || use == UseNested {
		return UseExpression
	}
	return use
}

// indirection walks (x).field, (x).* and x[i]. A field can be a function of the row.
func (w *walker) indirection(i *pg.A_Indirection, sc *scope, use Use) {
	inner := used(use)
	w.expr(i.Arg, sc, inner)
	for _, n := range i.Indirection {
		switch {
		case n.GetString_() != nil:
			w.calls[n.GetString_().Sval] = true
		case n.GetAStar() != nil:
		default:
			w.expr(n, sc, inner)
		}
	}
}

// typeName notes a type. regclass and its kin look names up that stand in constants.
func (w *walker) typeName(t *pg.TypeName, sc *scope, use Use) {
	if t == nil {
		return
	}
	if t.PctType {
		w.unknownNode("%TYPE")
	}
	n, ok := w.name(t.Names, "type name")
	if !ok {
		return
	}
	w.types[n] = true
	// float(n) is float4 or float8 by the value of a constant.
	if strings.HasPrefix(n.Name, "reg") || strings.HasPrefix(n.Name, "float") || len(t.Typmods) > 0 {
		w.template = false
	}
	w.exprs(t.Typmods, sc, use)
}
