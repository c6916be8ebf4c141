//go:build cgo

package sqlparse

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// form gives the word of [Forms] with which a message begins, if it is one of those.
func form(m any) string {
	switch v := m.(type) {
	case *pg.JsonParseExpr:
		return "json"
	case *pg.JsonArrayConstructor, *pg.JsonArrayQueryConstructor:
		return "json_array"
	case *pg.JsonArrayAgg:
		return "json_arrayagg"
	case *pg.JsonObjectConstructor:
		return "json_object"
	case *pg.JsonObjectAgg:
		return "json_objectagg"
	case *pg.JsonScalarExpr:
		return "json_scalar"
	case *pg.JsonSerializeExpr:
		return "json_serialize"
	case *pg.MergeSupportFunc:
		return "merge_action"
	case *pg.JsonFuncExpr:
		switch v.Op {
		case pg.JsonExprOp_JSON_EXISTS_OP:
			return "json_exists"
		case pg.JsonExprOp_JSON_VALUE_OP:
			return "json_value"
		default:
			return "json_query"
		}
	}
	return ""
}
