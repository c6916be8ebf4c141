package sqlparse

// A Catalog says what names mean at a server. [Builtin] knows PostgreSQL's own; an engine withholds
// from it whatever the server has under the same name in another schema of the search_path.
type Catalog interface {
	// Function says that every function of that name that the call can resolve to changes nothing,
	// reaches nothing outside the rows it is given, and is internal to PostgreSQL.
	Function(Name) bool
	// Operator says the same for an operator.
	Operator(Name) bool
	// Type says the same for a type's input function, its casts and its domain checks.
	Type(Name) bool
	// RowFunction says that t.name could call a function that is not harmless (see
	// [Statement].Calls). Where the engine knows every column of every relation it may answer for
	// these only.
	RowFunction(name string) bool
}

// ReadOnly says that the statement is proven to change nothing, as far as its text and c can tell:
// a select, show or explain (without ANALYZE), or BEGIN, SAVEPOINT, RELEASE, ROLLBACK, with
// no write and no lock inside and with nothing in it but what c knows as harmless. It can't see
// through relations: the caller must also know each of Relations to be a table, or a view whose
// definition it trusts.
func (s *Statement) ReadOnly(c Catalog) bool { return false }

// Builtin is the [Catalog] of PostgreSQL's own names, from committed and reviewed lists. It takes an
// unqualified name for pg_catalog's, which holds only where no other schema in the search_path has
// that name.
type Builtin struct{}

var _ Catalog = Builtin{}

// Function implements [Catalog].
func (Builtin) Function(n Name) bool { return false }

// Operator implements [Catalog].
func (Builtin) Operator(n Name) bool { return false }

// Type implements [Catalog].
func (Builtin) Type(n Name) bool { return false }

// RowFunction implements [Catalog].
func (Builtin) RowFunction(name string) bool { return true }
