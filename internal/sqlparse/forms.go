package sqlparse

// Forms are the words with which PostgreSQL 16 and 17 begin expressions that look like calls. A server before them sees a
// call of a function of that name, so it is listed among the functions: without such a function the statement fails there.
var Forms = []string{
	"json", "json_array", "json_arrayagg", "json_exists", "json_object", "json_objectagg", "json_query", "json_scalar", "json_serialize",
	"json_value", "merge_action",
}
