package sqlparse

import (
	"errors"
	"fmt"
)

// Reasons why a text has no facts. All mean that it must not reach a server.
var (
	// ErrNoParser: this build has no cgo.
	ErrNoParser = errors.New("this build can't decide SQL: it was compiled without cgo; use a build with CGO_ENABLED=1")
	// ErrTooLarge: more bytes than the limit.
	ErrTooLarge = errors.New("the SQL text is too large to decide")
	// ErrTooComplex: too many operators, too deep, too many statements, or facts too large.
	ErrTooComplex = errors.New("the SQL text is too complex to decide")
	// ErrDied: the parser's process died or hung on it and was replaced.
	ErrDied = errors.New("the SQL parser died on this text")
	// ErrNoChild: a parser that was started doesn't answer, whatever the text.
	ErrNoChild = errors.New("the SQL parser doesn't start")
	// ErrClosed: the pool was closed.
	ErrClosed = errors.New("the SQL parser is closed")
)

// A SyntaxError is the parser's refusal: PostgreSQL 17 would not accept the text.
type SyntaxError struct {
	// Message is PostgreSQL's own; it quotes the offending token.
	Message string
	// Position counts characters from 1, as in ErrorResponse field P; 0 if not known.
	Position int
}

func (e *SyntaxError) Error() string {
	if e.Position == 0 {
		return "parsing SQL: " + e.Message
	}
	return fmt.Sprintf("parsing SQL: %s at character %d", e.Message, e.Position)
}
