//go:build cgo

package sqlparse

import (
	"errors"
	"fmt"

	pg "github.com/pganalyze/pg_query_go/v6"
	"github.com/pganalyze/pg_query_go/v6/parser"
)

// result is what one text comes to.
type result struct {
	statements []Statement
	// template says that other constants in the same places would give the same facts.
	template bool
}

// parse gives the facts of sql in this process. SQL that a peer wrote can kill the process: it goes
// through a [Pool].
func parse(sql string) (*result, error) {
	tokens, err := guard(sql)
	if err != nil {
		return nil, err
	}
	tree, err := pg.Parse(sql)
	if err != nil {
		return nil, syntaxError(err)
	}
	if len(tree.Stmts) > maxStatements {
		return nil, fmt.Errorf("%w: more than %d statements", ErrTooComplex, maxStatements)
	}
	r := &result{template: len(tree.Stmts) == 1}
	for _, raw := range tree.Stmts {
		s, template, err := facts(sql, tokens, raw)
		if err != nil {
			return nil, err
		}
		r.statements = append(r.statements, s)
		r.template = r.template && template && s.Start == 0
	}
	return r, nil
}

// facts gives those of one statement.
func facts(sql string, tokens []*pg.ScanToken, raw *pg.RawStmt) (Statement, bool, error) {
	start, end := int(raw.StmtLocation), len(sql)
	if raw.StmtLen > 0 {
		end = start + int(raw.StmtLen)
	}
	if start < 0 || start > end || end > len(sql) {
		return Statement{}, false, fmt.Errorf("%w: a statement lies outside of the text", ErrTooComplex)
	}
	w := newWalker()
	w.top(raw.Stmt)
	if w.err != nil {
		return Statement{}, false, w.err
	}
	s := w.finish()
	s.Text, s.Start = sql[start:end], start
	var own []*pg.ScanToken
	for _, t := range tokens {
		if int(t.Start) >= start && int(t.End) <= end {
			own = append(own, t)
		}
	}
	s.Normalized, s.Parameters, s.Literals = normalize(sql, own)
	s.handle(sql, start, own)
	return s, w.template, nil
}

// syntaxError makes the parser's error ours.
func syntaxError(err error) error {
	var e *parser.Error
	if errors.As(err, &e) {
		return &SyntaxError{Message: e.Message, Position: e.Cursorpos}
	}
	return fmt.Errorf("%w: %w", ErrTooComplex, err)
}
