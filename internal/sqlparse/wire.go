package sqlparse

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Between pool and child each message is its length in four bytes, big end first, and its body: the
// SQL text one way, a reply in JSON the other. The child has read hostile bytes, so its reply is
// bounded and checked like a peer's.
const (
	maxRequest = 1 << 20
	maxReply   = 8 << 20
)

// reply is what the child says about one text.
type reply struct {
	Statements []Statement `json:"statements,omitempty"`
	// Ends holds the byte offset behind each statement: texts don't travel back.
	Ends     []int `json:"ends,omitempty"`
	Template bool  `json:"template,omitempty"`

	Refused  refusal `json:"refused,omitempty"`
	Message  string  `json:"message,omitempty"`
	Position int     `json:"position,omitempty"`
}

// refusal is the kind of a child's refusal.
type refusal string

const (
	refusedSyntax   refusal = "syntax"
	refusedComplex  refusal = "complex"
	refusedInternal refusal = "internal"
)

func writeFrame(w io.Writer, body []byte) error {
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	_, err := w.Write(append(frame, body...))
	return err
}

func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("a frame of %d bytes is over the limit of %d", n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return body, nil
}

// decodeReply reads a reply to sql strictly and puts the texts back.
func decodeReply(body []byte, sql string) (*reply, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var r reply
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	if d.InputOffset() != int64(len(body)) {
		return nil, errors.New("the reply goes on behind its end")
	}
	if len(r.Ends) != len(r.Statements) {
		return nil, errors.New("the reply has texts missing")
	}
	for i := range r.Statements {
		s := &r.Statements[i]
		if s.Start < 0 || s.Start > r.Ends[i] || r.Ends[i] > len(sql) {
			return nil, errors.New("the reply places a statement outside of the text")
		}
		s.Text = sql[s.Start:r.Ends[i]]
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	return &r, nil
}

// check says whether kinds are known and indexes are in range.
func (s *Statement) check() error {
	if !s.Kind.known() || s.Inner != "" && !s.Inner.known() {
		return fmt.Errorf("the reply names an unknown kind %q", s.Kind)
	}
	if h := s.Handle; h[0] < 0 || h[0] > h[1] || h[1] > len(s.Text) {
		return errors.New("the reply places a name outside of its statement")
	}
	for _, c := range s.Columns {
		for _, i := range append(slices.Clone(c.From), c.RowOf...) {
			if i < 0 || i >= len(s.Relations) {
				return errors.New("the reply points to a relation that isn't there")
			}
		}
	}
	for _, o := range s.Outputs {
		for _, i := range o.Columns {
			if i < 0 || i >= len(s.Columns) {
				return errors.New("the reply points to a column that isn't there")
			}
		}
	}
	return nil
}

// err gives the error that a refusal stands for.
func (r *reply) err() error {
	switch r.Refused {
	case "":
		return nil
	case refusedSyntax:
		return &SyntaxError{Message: r.Message, Position: r.Position}
	default:
		return fmt.Errorf("%w: %s", ErrTooComplex, r.Message)
	}
}
