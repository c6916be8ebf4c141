package postgres

import (
	"errors"
	"fmt"
)

// SQLSTATEs that this engine gives.
const (
	codeProtocol     = "08P01" // protocol_violation
	codeAuth         = "28000" // invalid_authorization_specification
	codePrivilege    = "42501" // insufficient_privilege
	codeUnsupported  = "0A000" // feature_not_supported
	codeSyntax       = "42601" // syntax_error
	codeShutdown     = "57P01" // admin_shutdown
	codeNoConnection = "08006" // connection_failure
	codeTooLarge     = "54000" // program_limit_exceeded
	codeNoStatement  = "26000" // invalid_sql_statement_name
	codeDupStatement = "42P05" // duplicate_prepared_statement
	codeNoPortal     = "34000" // invalid_cursor_name
	codeDupPortal    = "42P03" // duplicate_cursor
	codeNoDatabase   = "3D000" // invalid_catalog_name
	codeInternal     = "58000" // system_error
	codeTooMany      = "53300" // too_many_connections
)

// fault is an error in the words of the protocol. What stands in it is shown to the agent.
type fault struct {
	code     string
	message  string
	detail   string
	hint     string
	position int
	// severity is set for what is only a notice.
	severity string
	// fatal ends the session.
	fatal bool
}

func (f *fault) Error() string { return f.code + ": " + f.message }

func protocolError(format string, args ...any) *fault {
	return &fault{code: codeProtocol, message: fmt.Sprintf(format, args...), fatal: true}
}

// asFault finds the fault in err. Other errors aren't for the agent's eyes.
func asFault(err error) (*fault, bool) {
	var f *fault
	ok := errors.As(err, &f)
	return f, ok
}

// write encodes an ErrorResponse.
func (f *fault) write(s *sink) {
	severity := "ERROR"
	if f.fatal {
		severity = "FATAL"
	}
	kind := byte('E')
	if f.severity != "" {
		kind, severity = 'N', f.severity
	}
	s.begin(kind)
	field := func(code byte, v string) {
		if v != "" {
			s.byte(code)
			s.cstring(v)
		}
	}
	field('S', severity)
	field('V', severity)
	field('C', f.code)
	field('M', f.message)
	field('D', f.detail)
	field('H', f.hint)
	if f.position > 0 {
		field('P', fmt.Sprint(f.position))
	}
	s.byte(0)
	s.end()
}
