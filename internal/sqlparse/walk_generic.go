//go:build cgo

package sqlparse

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// node walks whatever a Node holds.
func (w *walker) node(n *pg.Node, sc *scope, use Use) {
	m := n.ProtoReflect()
	fd := m.WhichOneof(m.Descriptor().Oneofs().Get(0))
	if fd == nil {
		return
	}
	w.message(m.Get(fd).Message(), sc, use)
}

// message walks a message of any type: with its handler if it has one, field by field if all that it
// can say is in its fields, and else as unknown.
func (w *walker) message(m protoreflect.Message, sc *scope, use Use) {
	if w.err != nil {
		return
	}
	switch v := m.Interface().(type) {
	case *pg.Node:
		w.expr(v, sc, use)
	case *pg.RangeVar:
		w.defined(v, sc)
	case *pg.TypeName:
		w.typeName(v, sc, use)
	case *pg.SelectStmt:
		w.selectStmt(v, sc.below(), used(use))
	case *pg.FuncCall:
		w.call(v, sc, use)
	case *pg.WindowDef:
		w.windowDef(v, sc)
	case *pg.SortBy:
		if len(v.UseOp) > 0 {
			w.operator(v.UseOp)
		}
		w.expr(v.Node, sc, UseOrder)
	case *pg.RoleSpec:
		w.role(v)
	case *pg.CurrentOfExpr:
		w.template = false // where the name stands depends on the constants before it
		if w.s.Cursor != "" || w.s.Object != "" || v.CursorName == "" {
			w.unknownNode("WHERE CURRENT OF together with another name")
		}
		w.s.Cursor = v.CursorName
	case *pg.VariableSetStmt:
		w.setting(v)
	case *pg.Constraint:
		w.constraint(v, sc, use)
	case *pg.JsonAggConstructor:
		w.expr(v.AggFilter, sc, UseFilter)
		for _, n := range v.AggOrder {
			w.sortBy(n, sc, nil, UseOrder)
		}
		w.windowDef(v.Over, sc)
		if v.Output != nil {
			w.fields(v.Output.ProtoReflect(), sc, use)
		}
	default:
		name := string(m.Descriptor().Name())
		if f := form(v); f != "" {
			w.functions[Name{Name: f}] = true
		}
		if !understood[name] {
			w.unknownNode(name)
		}
		w.fields(m, sc, use)
	}
}

// fields walks every message in the fields of m, in the order of the definition.
func (w *walker) fields(m protoreflect.Message, sc *scope, use Use) {
	w.depth++
	defer func() { w.depth-- }()
	fds := m.Descriptor().Fields()
	for i := range fds.Len() {
		fd := fds.Get(i)
		if fd.Message() == nil || !m.Has(fd) {
			continue
		}
		if fd.IsList() {
			for list, j := m.Get(fd).List(), 0; j < list.Len(); j++ {
				w.message(list.Get(j).Message(), sc, use)
			}
			continue
		}
		w.message(m.Get(fd).Message(), sc, use)
	}
}

// defined notes a relation that a definition names. References after it can mean its columns.
func (w *walker) defined(r *pg.RangeVar, sc *scope) {
	i := w.relation(r, Define)
	if w.err == nil {
		sc.items = append(sc.items, w.itemOf(i))
	}
}

// understood holds the messages that say all they say in their fields: walking those is enough.
// What is neither here nor handled is unknown.
var understood = set(
	// Expressions.
	"String", "Integer", "Float", "Boolean", "BitString", "List", "IntList", "A_Const", "A_Star",
	"A_Indices", "A_ArrayExpr", "Alias", "ParamRef", "SetToDefault", "NullTest", "BooleanTest",
	"CaseExpr", "CaseWhen", "CoalesceExpr", "MinMaxExpr", "RowExpr", "CollateClause", "NamedArgExpr",
	"SQLValueFunction", "GroupingFunc", "GroupingSet", "ResTarget", "MergeSupportFunc",
	// XML and JSON: values and paths, no names that resolve.
	"XmlExpr", "XmlSerialize", "RangeTableFuncCol", "JsonFormat", "JsonReturning", "JsonValueExpr",
	"JsonIsPredicate", "JsonBehavior", "JsonOutput", "JsonArgument", "JsonFuncExpr", "JsonTablePathSpec",
	"JsonTableColumn", "JsonTable", "JsonKeyValue", "JsonParseExpr", "JsonScalarExpr", "JsonSerializeExpr",
	"JsonObjectConstructor", "JsonArrayConstructor", "JsonArrayQueryConstructor", "JsonObjectAgg",
	"JsonArrayAgg",
	// Parts of definitions.
	"DefElem", "ColumnDef", "Constraint", "TableLikeClause", "IndexElem", "PartitionElem", "PartitionSpec",
	"PartitionBoundSpec", "PartitionRangeDatum", "SinglePartitionSpec", "PartitionCmd", "AlterTableCmd",
	"ReplicaIdentityStmt", "FunctionParameter", "ObjectWithArgs", "AccessPriv", "StatsElem",
	"VacuumRelation", "PublicationTable", "PublicationObjSpec", "CreateOpClassItem", "TriggerTransition",
	"ReturnStmt", "GrantStmt", "CreateStmt", "IntoClause",
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}
