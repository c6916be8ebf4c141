package mask

// Withheld is the text that stands for a server's message, detail, hint or context where it may hold
// a masked value.
const Withheld = "the server's text is withheld: it could hold a masked value"

// Scrub gives a message that is safe to show for an error with the given SQLSTATE, without any of the
// server's own text: "invalid input syntax for type integer: \"…\"", "Key (email)=(…) already exists"
// and whatever RAISE says can all quote a value. DETAIL, HINT, CONTEXT, and the names of schema,
// table, column, type and constraint are dropped by the caller.
func Scrub(sqlstate string) string {
	if m, ok := messages[sqlstate]; ok {
		return m + " (" + Withheld + ")"
	}
	if len(sqlstate) == 5 {
		if m, ok := classes[sqlstate[:2]]; ok {
			return m + " (" + Withheld + ")"
		}
	}
	return Withheld
}

// messages are those that tell an agent what to do, by SQLSTATE (PostgreSQL 15, appendix A).
var messages = map[string]string{
	"22001": "a value is too long for its column",
	"22003": "a number is out of range",
	"22007": "a date or time is malformed",
	"22012": "division by zero",
	"22P02": "a value is malformed for its type",
	"23502": "a column that must not be null is null",
	"23503": "a foreign key is violated",
	"23505": "a unique constraint is violated",
	"23514": "a check constraint is violated",
	"40001": "the transaction could not be serialized; try it again",
	"40P01": "the transaction was ended to break a deadlock; try it again",
	"42501": "the account has no permission for this",
	"42601": "syntax error",
	"42703": "a column does not exist",
	"42804": "types do not match",
	"42883": "a function or operator does not exist for these types",
	"42P01": "a relation does not exist",
	"55P03": "a lock is not available",
	"57014": "the statement was cancelled",
}

// classes are the rest, by the first two characters.
var classes = map[string]string{
	"08": "the connection failed",
	"21": "a subquery gave more than one row",
	"22": "a value is wrong",
	"23": "a constraint is violated",
	"25": "the state of the transaction does not allow this",
	"40": "the transaction was rolled back",
	"42": "the statement is wrong",
	"53": "the server is short of resources",
	"54": "a limit of the server was passed",
	"55": "an object is not in the state that this needs",
	"57": "an operator intervened",
	"P0": "a function raised an error",
	"XX": "the server has an internal error",
}
