//go:build cgo

package sqlparse

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// handle finds the token that names the prepared statement or cursor of a statement: a caller that keeps names of its own
// puts another in its place. tokens are those of the statement, which begins at start.
func (s *Statement) handle(sql string, start int, tokens []*pg.ScanToken) {
	var words []*pg.ScanToken
	for _, t := range tokens {
		if t.Token != pg.Token_SQL_COMMENT && t.Token != pg.Token_C_COMMENT {
			words = append(words, t)
		}
	}
	var at *pg.ScanToken
	name := s.Object
	switch {
	case s.Cursor != "":
		name = s.Cursor
		for i := 3; i < len(words); i++ {
			if words[i-3].Token == pg.Token_WHERE && words[i-2].Token == pg.Token_CURRENT_P && words[i-1].Token == pg.Token_OF {
				if at != nil {
					s.unclear("WHERE CURRENT OF")
					return
				}
				at = words[i]
			}
		}
	case name == "":
		return
	case s.Kind == KindPrepare || s.Kind == KindExecute || s.Kind == KindDeclare:
		if len(words) > 1 {
			at = words[1]
		}
	case s.Kind == KindDeallocate || s.Kind == KindFetch || s.Kind == KindClose:
		if len(words) > 1 {
			at = words[len(words)-1]
		}
	default:
		return
	}
	if at == nil || !spells(sql[at.Start:at.End], name) {
		s.unclear("a name")
		return
	}
	s.Handle = [2]int{int(at.Start) - start, int(at.End) - start}
}

func (s *Statement) unclear(what string) { s.Unknown = append(s.Unknown, what) }

// maxIdentifier is where PostgreSQL cuts a name.
const maxIdentifier = 63

// spells says that the token, plain or in quotes, is the name. U&"…" isn't looked into.
func spells(token, name string) bool {
	if in, ok := strings.CutPrefix(token, `"`); ok {
		in, ok = strings.CutSuffix(in, `"`)
		token = strings.ReplaceAll(in, `""`, `"`)
		if !ok {
			return false
		}
	} else {
		token = asciiLower(token)
	}
	return token == name || len(token) > maxIdentifier && len(name) > maxIdentifier-4 && strings.HasPrefix(token, name)
}

func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
