package sqlparse

// A Statement holds what one SQL statement says. Zero values mean "not said".
type Statement struct {
	Kind Kind `json:"kind"`
	// Tag is the command as PostgreSQL would name it, "DROP TABLE" or "SELECT INTO": for policy
	// attributes and for people.
	Tag string `json:"tag"`
	// Inner is the kind of the statement inside explain, prepare, declare, copy of a query, and
	// create … as. Its relations, columns and functions are among the facts of this one.
	Inner Kind `json:"inner,omitempty"`
	// Analyze says that an explain executes its inner statement.
	Analyze bool `json:"analyze,omitempty"`

	// Text is the exact slice of the input that is this statement, without its semicolon, and Start
	// the byte offset where it begins.
	Text  string `json:"text"`
	Start int    `json:"start"`
	// Normalized is Text for logs: comments gone, white space collapsed, each literal a $n that
	// counts on after the highest parameter.
	Normalized string `json:"normalized"`

	Relations []Relation `json:"relations,omitempty"`
	Columns   []Column   `json:"columns,omitempty"`
	// Functions are those called by name, aggregates too, and table sampling methods.
	Functions []Name `json:"functions,omitempty"`
	// Types are those that values are cast to or columns defined with, without array brackets.
	Types []Name `json:"types,omitempty"`
	// Operators are those written, and = for IN, USING, NATURAL and the like. The ones that a type
	// sorts and compares with in ORDER BY, GROUP BY, DISTINCT and UNION are the type's own.
	Operators []Name `json:"operators,omitempty"`
	// Calls holds the names n of references like t.n or (t).n. Where t has no such column and a
	// function n takes a row, PostgreSQL calls the function: SELECT u.drop_all FROM users u. A caller
	// must know each to be no such function, or treat it as one.
	Calls []string `json:"calls,omitempty"`

	// Outputs lists what the client gets, in order: the select list or RETURNING of the statement
	// (or of the one inside declare, prepare and copy). After a star the indexes are not those of
	// RowDescription any more.
	Outputs []Output `json:"outputs,omitempty"`

	// Settings are run-time parameters that the statement sets, resets or shows.
	Settings []Setting `json:"settings,omitempty"`
	// Transaction is set for kind transaction.
	Transaction *Transaction `json:"transaction,omitempty"`
	// Copy is set for kind copy.
	Copy *Copy `json:"copy,omitempty"`
	// Object is the name in prepare, execute, deallocate, declare, fetch, close, listen, unlisten,
	// notify; empty for DEALLOCATE ALL, CLOSE ALL and UNLISTEN *.
	Object string `json:"object,omitempty"`
	// Cursor is the name in WHERE CURRENT OF.
	Cursor string `json:"cursor,omitempty"`
	// Handle says where Cursor, or Object in the first six of its kinds, stands in Text: from byte
	// Handle[0] to before Handle[1].
	Handle [2]int `json:"handle,omitzero"`
	// Hold says that a declare is WITH HOLD, Binary that it is of a BINARY cursor.
	Hold   bool `json:"hold,omitempty"`
	Binary bool `json:"binary,omitempty"`
	// Roles are the roles named in grant, SET ROLE, owner and role statements.
	Roles []string `json:"roles,omitempty"`

	// Parameters is the highest n of the $n in the text.
	Parameters int `json:"parameters,omitempty"`
	// Literals counts the constants in the text.
	Literals int `json:"literals,omitempty"`

	// WritesInside says that something below the top writes: a data-modifying CTE, SELECT INTO, a
	// sequence function. It can be true for kind select.
	WritesInside bool `json:"writes_inside,omitempty"`
	// Locks says FOR UPDATE, NO KEY UPDATE, SHARE or KEY SHARE, or LOCK of more than ACCESS SHARE, which SELECT takes too.
	Locks bool `json:"locks,omitempty"`
	// Wide says that it may act on relations that it doesn't name: CASCADE, ALL TABLES IN SCHEMA, DROP OWNED, VACUUM alone.
	Wide bool `json:"wide,omitempty"`
	// Limited says that a top-level LIMIT or FETCH FIRST stands on the query.
	Limited bool `json:"limited,omitempty"`
	// Opaque lists what runs code that this parse can't see: "DO", "CALL", "EXECUTE p",
	// "CREATE FUNCTION", "COPY PROGRAM".
	Opaque []string `json:"opaque,omitempty"`
	// Unknown lists what the walker doesn't understand. Not empty: refuse.
	Unknown []string `json:"unknown,omitempty"`
}

// A Name is a possibly schema-qualified name, folded as PostgreSQL folds it. An empty schema means
// that the server's search_path decides.
type Name struct {
	Schema string `json:"schema,omitempty"`
	Name   string `json:"name"`
}

// String gives schema.name, unquoted: for people.
func (n Name) String() string {
	if n.Schema == "" {
		return n.Name
	}
	return n.Schema + "." + n.Name
}

// Access says what happens to a relation. The bits add up: UPDATE reads and writes its target.
type Access uint8

// The kinds of access to a relation.
const (
	Read   Access = 1 << iota // its rows are read
	Write                     // its rows are inserted, changed, removed or locked
	Define                    // it is created, altered, dropped, granted on, commented on …
)

// A Relation is a table, view, sequence or other relation that the statement names. One that is
// named twice is listed twice. CTEs are not relations.
type Relation struct {
	// Catalog is the database in db.schema.name, usually empty.
	Catalog string `json:"catalog,omitempty"`
	Schema  string `json:"schema,omitempty"`
	Name    string `json:"name"`
	// Alias is the name that the statement gives it, empty if none.
	Alias string `json:"alias,omitempty"`
	// Renamed says that its columns are renamed by position, FROM users u(a, b): a reference to it
	// by any column name may mean any of its columns.
	Renamed bool   `json:"renamed,omitempty"`
	Access  Access `json:"access"`
	// Only is the ONLY before it (children and partitions are left out).
	Only bool `json:"only,omitempty"`
}

// Use says where a column reference stands.
type Use string

// Uses. Only UseOutput is a plain output column that RowDescription shows with its origin; all
// others can carry what a masked column holds to somewhere that masking by origin doesn't see.
const (
	UseOutput     Use = "output"     // alone in the top-level select list or RETURNING
	UseNested     Use = "nested"     // alone in the select list of FROM (…), a CTE, EXISTS or a view: on its own it goes nowhere, a Derived reference picks it up
	UseExpression Use = "expression" // inside an expression in any select list, also as the result of a subquery in it
	UseFilter     Use = "filter"     // WHERE, HAVING, WHEN, FILTER, LIMIT, ON CONFLICT; also x IN (SELECT it)
	UseJoin       Use = "join"       // ON, USING, NATURAL
	UseGroup      Use = "group"      // GROUP BY, also by position or output name
	UseOrder      Use = "order"      // ORDER BY, also by position or output name
	UseDistinct   Use = "distinct"   // DISTINCT, DISTINCT ON
	UseSetOp      Use = "setop"      // compared by UNION, INTERSECT, EXCEPT
	UseWindow     Use = "window"     // PARTITION BY, ORDER BY or frame of a window
	UseStore      Use = "store"      // its value goes into a table: SET x = …, INSERT … SELECT, CREATE … AS
	UseTarget     Use = "target"     // it is written: INSERT (…), SET …
	UseFrom       Use = "from"       // argument of a function or of a lateral item in FROM
	UseOther      Use = "other"      // definitions and whatever else
)

// A Column is one reference to a column, a row or all columns. The same reference is listed once for
// each use it has: SELECT DISTINCT email lists output and distinct.
type Column struct {
	// Path is the reference as written, qualifiers first: ["u", "email"]. With Star it holds the
	// qualifiers only.
	Path []string `json:"path,omitempty"`
	// Star is u.*, * or NATURAL JOIN: every column of what From names.
	Star bool `json:"star,omitempty"`
	// Row says that the last name of Path is also that of something in FROM: the whole row may be
	// meant. RowOf indexes the relations whose rows that are, several for the alias of a join.
	Row   bool  `json:"row,omitempty"`
	RowOf []int `json:"row_of,omitempty"`
	// Excluded says that it is excluded.x of ON CONFLICT: the row that the statement itself brings.
	Excluded bool `json:"excluded,omitempty"`
	// From indexes Statement.Relations: those that the reference can mean. An unqualified one lists
	// every relation in scope.
	From []int `json:"from,omitempty"`
	// Derived says that it can also mean a column of a subquery, CTE, function or join alias, whose
	// own inputs are listed as columns of their own.
	Derived bool `json:"derived,omitempty"`
	Use     Use  `json:"use"`
}

// Name is the last name of the path, empty for a star.
func (c Column) Name() string {
	if c.Star || len(c.Path) == 0 {
		return ""
	}
	return c.Path[len(c.Path)-1]
}

// OutputKind says what an output is.
type OutputKind string

// Output kinds.
const (
	OutputColumn     OutputKind = "column"     // one plain column reference
	OutputStar       OutputKind = "star"       // * or t.*: any number of columns
	OutputExpression OutputKind = "expression" // anything else
)

// An Output is one entry of the list that the client gets.
type Output struct {
	// Name is the label given with AS, or the last name of a plain column.
	Name string     `json:"name,omitempty"`
	Kind OutputKind `json:"kind"`
	// Columns indexes Statement.Columns: every reference that can feed it, those of its subqueries
	// included. With SetOp those of the other branches are there too.
	Columns []int `json:"columns,omitempty"`
	// SetOp says that it is the result of UNION, INTERSECT or EXCEPT.
	SetOp bool `json:"set_op,omitempty"`
	// Derived says that it is fed through a subquery, CTE, function or row: any column of the
	// statement may be behind it.
	Derived bool `json:"derived,omitempty"`
}

// A Setting is a run-time parameter that a statement touches.
type Setting struct {
	Op SettingOp `json:"op"`
	// Name in lower case; "role", "session_authorization", "timezone", "transaction_isolation" and
	// the like for the special forms; empty for RESET ALL and SHOW ALL.
	Name string `json:"name,omitempty"`
	// Values as written, constants only.
	Values []string `json:"values,omitempty"`
	Local  bool     `json:"local,omitempty"`
}

// SettingOp says what happens to a setting.
type SettingOp string

// Operations on settings.
const (
	SettingSet   SettingOp = "set" // SET, also SET … FROM CURRENT and SET … TO DEFAULT
	SettingReset SettingOp = "reset"
	SettingShow  SettingOp = "show"
)

// A Transaction is a transaction control statement.
type Transaction struct {
	Op TransactionOp `json:"op"`
	// Savepoint is the name in savepoint, release and rollback-to; GID that of two-phase commit.
	Savepoint string `json:"savepoint,omitempty"`
	GID       string `json:"gid,omitempty"`
	// Modes as written: "transaction_isolation=serializable", "transaction_read_only=1".
	Modes []string `json:"modes,omitempty"`
	Chain bool     `json:"chain,omitempty"`
}

// TransactionOp names a transaction control statement.
type TransactionOp string

// Transaction control statements.
const (
	TxBegin            TransactionOp = "begin" // BEGIN, START TRANSACTION
	TxCommit           TransactionOp = "commit"
	TxRollback         TransactionOp = "rollback"
	TxSavepoint        TransactionOp = "savepoint"
	TxRelease          TransactionOp = "release"
	TxRollbackTo       TransactionOp = "rollback_to"
	TxPrepare          TransactionOp = "prepare_transaction"
	TxCommitPrepared   TransactionOp = "commit_prepared"
	TxRollbackPrepared TransactionOp = "rollback_prepared"
)

// A Copy says where COPY moves rows.
type Copy struct {
	From    bool   `json:"from,omitempty"` // into the table; else out of it
	Program bool   `json:"program,omitempty"`
	File    string `json:"file,omitempty"` // on the server; empty: STDIN or STDOUT, the client
	Query   bool   `json:"query,omitempty"`
	// Binary is FORMAT binary, or an unclear format; Header a first line with names, or perhaps one.
	Binary bool `json:"binary,omitempty"`
	Header bool `json:"header,omitempty"`
}
