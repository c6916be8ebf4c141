//go:build cgo

package sqlparse

import (
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// normalize renders the tokens of one statement for logs and counts its parameters and literals. It
// works on tokens, not on the tree, so that a literal in any statement (ALTER ROLE … PASSWORD) and
// whatever a comment holds stays out.
func normalize(sql string, tokens []*pg.ScanToken) (text string, parameters, literals int) {
	for _, t := range tokens {
		if t.Token == pg.Token_PARAM {
			if n, err := strconv.Atoi(sql[t.Start+1 : t.End]); err == nil && n > parameters {
				parameters = n
			}
		}
	}
	var b strings.Builder
	end := int32(-1)
	for _, t := range tokens {
		if t.Token == pg.Token_SQL_COMMENT || t.Token == pg.Token_C_COMMENT {
			continue
		}
		if end >= 0 && t.Start > end {
			b.WriteByte(' ')
		}
		end = t.End
		if !isLiteral(t.Token) {
			b.WriteString(sql[t.Start:t.End])
			continue
		}
		literals++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(parameters + literals))
	}
	return b.String(), parameters, literals
}
