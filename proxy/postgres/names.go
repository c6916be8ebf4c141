package postgres

import (
	"slices"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

// names tells the parser's facts what names mean at the target.
type names struct{ s *snapshot }

// Function implements [sqlparse.Catalog].
func (n names) Function(f sqlparse.Name) bool {
	if len(n.s.owners(n.s.functions, f.Schema, f.Name)) > 0 || !n.s.isSystem(f) {
		return false
	}
	if f.Schema == "information_schema" {
		return slices.Contains(informationFunctions, f.Name)
	}
	return sqlparse.Builtin{}.Function(f) || slices.Contains(readingFunctions, f.Name)
}

// readingFunctions only read the catalogue, though they aren't marked so or are on the parser's list of the denied: psql's \d
// family calls them. Sizes are those of whole files, in pages; a tablespace's place was a column of the catalogue before
// PostgreSQL 9.2; whether the server is a standby shows in every transaction_read_only, too.
var readingFunctions = []string{
	"pg_partition_ancestors", "pg_partition_tree",
	"pg_relation_size", "pg_table_size", "pg_indexes_size", "pg_total_relation_size", "pg_database_size", "pg_tablespace_size",
	"pg_tablespace_location", "pg_is_in_recovery",
}

// informationFunctions are initdb's own helpers of information_schema, in SQL: they compute, and read pg_index at most. JDBC's
// getPrimaryKeys and the schema's views call them.
var informationFunctions = []string{
	"_pg_char_max_length", "_pg_char_octet_length", "_pg_datetime_precision", "_pg_expandarray", "_pg_index_position",
	"_pg_interval_type", "_pg_numeric_precision", "_pg_numeric_precision_radix", "_pg_numeric_scale", "_pg_truetypid", "_pg_truetypmod",
}

// isContained says that one of PostgreSQL's own functions, called inside a view, shows nothing but its arguments and the catalogue.
func isContained(name string) bool {
	f := sqlparse.Name{Schema: "pg_catalog", Name: name}
	return sqlparse.Builtin{}.Function(f) || slices.Contains(readingFunctions, name) || slices.Contains(blindFunctions, name) ||
		slices.Contains(informationFunctions, name)
}

// Operator implements [sqlparse.Catalog].
func (n names) Operator(o sqlparse.Name) bool {
	if len(n.s.owners(n.s.operators, o.Schema, o.Name)) > 0 {
		return false
	}
	// An operator of an extension that is vouched for has no place in Builtin.
	return sqlparse.Builtin{}.Operator(o) || o.Schema != "pg_catalog"
}

// Type implements [sqlparse.Catalog].
func (n names) Type(t sqlparse.Name) bool {
	if len(n.s.owners(n.s.types, t.Schema, t.Name)) > 0 {
		return false
	}
	if (sqlparse.Builtin{}).Type(t) {
		return true
	}
	if t.Schema != "" {
		return n.s.knownTypes[qname{t.Schema, t.Name}]
	}
	return slices.ContainsFunc(n.s.schemas, func(p string) bool { return n.s.knownTypes[qname{p, t.Name}] })
}

// RowFunction implements [sqlparse.Catalog]: t.name calls a function only if one of that name isn't PostgreSQL's own,
// or is one that isn't harmless, and no relation has such a column.
func (n names) RowFunction(name string) bool {
	if len(n.s.owners(n.s.functions, "", name)) > 0 {
		return true
	}
	return !n.s.columnNamed(name) && sqlparse.Builtin{}.RowFunction(name)
}

func (s *snapshot) columnNamed(name string) bool {
	if slices.Contains(systemColumns, name) {
		return true
	}
	for _, r := range s.byOID {
		if r.has(name) {
			return true
		}
	}
	return false
}

// harmlessNames says that everything the statement names is known as harmless.
func harmlessNames(s *sqlparse.Statement, c names) bool {
	if len(s.Opaque) > 0 {
		return false
	}
	for _, f := range s.Functions {
		if !c.Function(f) {
			return false
		}
	}
	for _, o := range s.Operators {
		if !c.Operator(o) {
			return false
		}
	}
	for _, t := range s.Types {
		if !c.Type(t) {
			return false
		}
	}
	for _, n := range s.Calls {
		if c.RowFunction(n) {
			return false
		}
	}
	return true
}
