package sqlparse

import (
	"bufio"
	_ "embed"
	"slices"
	"strings"
	"sync"
)

// A Catalog says what names mean at a server. [Builtin] knows PostgreSQL's own; an engine withholds
// from it whatever the server has under the same name in another schema of the search_path.
type Catalog interface {
	// Function says that every function of that name that the call can resolve to changes nothing
	// and reads nothing but its arguments and catalogs: no other table, file, session or host.
	Function(Name) bool
	// Operator says the same of an operator.
	Operator(Name) bool
	// Type says the same of a type's input function, its casts and its domain checks.
	Type(Name) bool
	// RowFunction says that t.name can call a function that is not harmless: one of that name whose
	// only needed argument is a row, record or a pseudo-type (see [Statement].Calls). An engine may
	// say no to a name that it knows to be a column of every relation of the statement.
	RowFunction(name string) bool
}

// ReadOnly says that the statement is proven to change nothing, as far as its text and c can tell: a
// SELECT, SHOW or EXPLAIN without ANALYZE, or BEGIN, SAVEPOINT, RELEASE, ROLLBACK, with no write and
// no lock inside and nothing in it but what c knows as harmless.
//
// It can't see through relations: the caller also knows each of Relations to be a table without
// row security of its own making, or a view whose definition it trusts. Nor through EXPLAIN of a
// write, which plans and doesn't run it.
func (s *Statement) ReadOnly(c Catalog) bool {
	if len(s.Unknown) > 0 || len(s.Opaque) > 0 {
		return false
	}
	switch s.Kind {
	case KindSelect:
		if s.WritesInside || s.Locks {
			return false
		}
	case KindShow:
	case KindExplain:
		if s.Analyze || !explainable(s.Inner) {
			return false
		}
	case KindTransaction:
		return s.Transaction != nil && harmlessTransaction(s.Transaction)
	default:
		return false
	}
	for _, n := range s.Functions {
		if !c.Function(n) {
			return false
		}
	}
	for _, n := range s.Operators {
		if !c.Operator(n) {
			return false
		}
	}
	for _, n := range s.Types {
		if !c.Type(n) {
			return false
		}
	}
	for _, name := range s.Calls {
		if c.RowFunction(name) {
			return false
		}
	}
	return true
}

// explainable says that EXPLAIN of the kind only plans.
func explainable(k Kind) bool {
	switch k {
	case KindSelect, KindInsert, KindUpdate, KindDelete, KindMerge:
		return true
	default:
		return false
	}
}

// harmlessTransaction says that the statement makes nothing durable. COMMIT does, and runs deferred
// triggers; two-phase commit too.
func harmlessTransaction(t *Transaction) bool {
	switch t.Op {
	case TxBegin, TxSavepoint, TxRelease, TxRollback, TxRollbackTo:
		return true
	default:
		return false
	}
}

// Builtin is the [Catalog] of PostgreSQL's own names, from the committed lists in data/, which tests
// hold against a real server. A name without a schema is taken for pg_catalog's: with pg_catalog
// first in the search_path that holds unless another schema in it has an overload that fits the
// arguments better. An engine therefore says no to an unqualified name that any other schema of its
// search_path has too, and to names that pg_proc of its server shows otherwise than the lists.
type Builtin struct{}

var _ Catalog = Builtin{}

// Function implements [Catalog].
func (Builtin) Function(n Name) bool {
	return n.builtin() && (harmlessFunctions()[n.Name] || slices.Contains(Forms, n.Name))
}

// Operator implements [Catalog].
func (Builtin) Operator(n Name) bool { return n.builtin() && harmlessOperators()[n.Name] }

// Type implements [Catalog].
func (Builtin) Type(n Name) bool { return n.builtin() && harmlessTypes()[n.Name] }

// RowFunction implements [Catalog]: of PostgreSQL's own functions none that takes a row does harm.
// The server's other functions it doesn't know.
func (Builtin) RowFunction(string) bool { return false }

// Contained says that n is volatile and still does nothing outside of its statement: it tells the
// time or makes random numbers. Such a statement isn't read-only by proof, but needn't be refused
// for an unknown function.
func (Builtin) Contained(n Name) bool {
	switch n.Name {
	case "clock_timestamp", "timeofday", "random", "gen_random_uuid":
		return n.builtin()
	default:
		return false
	}
}

func (n Name) builtin() bool { return n.Schema == "" || n.Schema == "pg_catalog" }

//go:embed data/functions.txt
var functionsText string

//go:embed data/operators.txt
var operatorsText string

//go:embed data/types.txt
var typesText string

var (
	harmlessFunctions = sync.OnceValue(func() map[string]bool { return lines(functionsText) })
	harmlessOperators = sync.OnceValue(func() map[string]bool { return lines(operatorsText) })
	harmlessTypes     = sync.OnceValue(func() map[string]bool { return lines(typesText) })
)

// lines gives the lines of a list, without comments.
func lines(text string) map[string]bool {
	set := map[string]bool{}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		if l := sc.Text(); l != "" && !strings.HasPrefix(l, "#") {
			set[l] = true
		}
	}
	return set
}
