//go:build cgo

package sqlparse

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// available says that this build can parse.
const available = true

// ChildMain answers requests on stdin with facts on stdout until stdin ends: the body of the hidden
// subcommand. It trusts nothing on stdin but its framing. On the process's own standard input it
// first bounds the process: stack, memory, no core file.
func ChildMain(stdin io.Reader, stdout io.Writer) error {
	if stdin == io.Reader(os.Stdin) {
		if err := boundProcess(); err != nil {
			return fmt.Errorf("bounding the SQL parser: %w", err)
		}
	}
	for {
		body, err := readFrame(stdin, maxRequest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading SQL to parse: %w", err)
		}
		if err := writeFrame(stdout, answer(string(body))); err != nil {
			return fmt.Errorf("writing the facts of SQL: %w", err)
		}
	}
}

// answer makes the reply to one text.
func answer(sql string) []byte {
	r := parseReply(sql)
	body, err := json.Marshal(r)
	if err == nil && len(body) <= maxReply {
		return body
	}
	body, err = json.Marshal(&reply{Refused: refusedComplex, Message: "its facts are too large"})
	if err != nil {
		panic(err) // three strings always marshal
	}
	return body
}

// parseReply parses one text. A panic of the walker refuses the text and leaves the child alive; what
// the parser does wrong in C can't be caught.
func parseReply(sql string) (r *reply) {
	defer func() {
		if v := recover(); v != nil {
			r = &reply{Refused: refusedInternal, Message: fmt.Sprintf("internal error: %v", v)}
		}
	}()
	res, err := parse(sql)
	if err != nil {
		var syntax *SyntaxError
		if errors.As(err, &syntax) {
			return &reply{Refused: refusedSyntax, Message: syntax.Message, Position: syntax.Position}
		}
		return &reply{Refused: refusedComplex, Message: strings.TrimPrefix(err.Error(), ErrTooComplex.Error()+": ")}
	}
	r = &reply{Statements: res.statements, Template: res.template}
	for i := range r.Statements {
		s := &r.Statements[i]
		r.Ends = append(r.Ends, s.Start+len(s.Text))
		s.Text = ""
	}
	return r
}
