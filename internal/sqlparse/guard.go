//go:build cgo

package sqlparse

import (
	"fmt"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// Limits of one text. The parser recurses once per operator and nesting level and has no working
// stack guard: about 16,000 operators end the process at 8 MB of stack.
const (
	maxOperators  = 2000
	maxDepth      = 500
	maxStatements = 256
)

// guard refuses what could break the parser, before it sees it. Scanning is linear and doesn't
// recurse. It gives back the tokens.
func guard(sql string) ([]*pg.ScanToken, error) {
	if err := checkText(sql); err != nil {
		return nil, err
	}
	scan, err := pg.Scan(sql)
	if err != nil {
		return nil, syntaxError(err)
	}
	operators, depth := 0, 0
	for _, t := range scan.Tokens {
		switch t.Token {
		case pg.Token_ASCII_40, pg.Token_ASCII_91: // ( [
			depth++
			if depth > maxDepth {
				return nil, fmt.Errorf("%w: nested deeper than %d", ErrTooComplex, maxDepth)
			}
		case pg.Token_ASCII_41, pg.Token_ASCII_93: // ) ]
			depth--
		case pg.Token_ASCII_44, pg.Token_ASCII_46, pg.Token_ASCII_59, // , . ;
			pg.Token_IDENT, pg.Token_UIDENT, pg.Token_PARAM,
			pg.Token_SQL_COMMENT, pg.Token_C_COMMENT,
			pg.Token_NULL_P, pg.Token_TRUE_P, pg.Token_FALSE_P, pg.Token_DEFAULT:
		default:
			if isLiteral(t.Token) {
				continue
			}
			operators++
			if operators > maxOperators {
				return nil, fmt.Errorf("%w: more than %d operators and keywords", ErrTooComplex, maxOperators)
			}
		}
	}
	return scan.Tokens, nil
}

func isLiteral(t pg.Token) bool {
	switch t {
	case pg.Token_FCONST, pg.Token_ICONST, pg.Token_SCONST, pg.Token_USCONST, pg.Token_BCONST, pg.Token_XCONST:
		return true
	default:
		return false
	}
}
