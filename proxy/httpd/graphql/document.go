package graphql

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/lexer"
	"github.com/vektah/gqlparser/v2/parser"
)

// canonical writes a document anew from its tokens, and says whether there are directives that may move values.
func canonical(text string) (out string, moving bool, err error) {
	if len(text) > maxText {
		return "", false, fmt.Errorf("the document has %d bytes; at most %d can be decided", len(text), maxText)
	}
	l := lexer.New(&ast.Source{Input: text})
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	before := lexer.EOF
	for n := 0; ; n++ {
		t, err := l.ReadToken()
		switch {
		case err != nil:
			return "", false, err
		case n > maxTokens:
			return "", false, fmt.Errorf("the document has more than %d tokens", maxTokens)
		case t.Kind == lexer.EOF:
			return strings.TrimSuffix(b.String(), " "), moving, nil
		case t.Kind == lexer.Comment:
			continue
		case t.Kind == lexer.Name && len(t.Value) > maxName:
			return "", false, fmt.Errorf("the document has a name of more than %d bytes", maxName)
		case t.Kind == lexer.String || t.Kind == lexer.BlockString:
			if err := enc.Encode(t.Value); err != nil {
				return "", false, err
			}
			b.Truncate(b.Len() - 1) // a line feed
		case t.Kind == lexer.Name || t.Kind == lexer.Int || t.Kind == lexer.Float:
			b.WriteString(t.Value)
			moving = moving || before == lexer.At && t.Value != "skip" && t.Value != "include"
		case punctuators[t.Kind] != "":
			b.WriteString(punctuators[t.Kind])
		default:
			return "", false, fmt.Errorf("a token of the kind %s", t.Kind)
		}
		b.WriteByte(' ')
		before = t.Kind
	}
}

var punctuators = map[lexer.Type]string{
	lexer.Bang: "!", lexer.Dollar: "$", lexer.Amp: "&", lexer.ParenL: "(", lexer.ParenR: ")", lexer.Spread: "...", lexer.Colon: ":", lexer.Equals: "=", lexer.At: "@",
	lexer.BracketL: "[", lexer.BracketR: "]", lexer.BraceL: "{", lexer.BraceR: "}", lexer.Pipe: "|",
}

// parse reads the operations.
func (r *Request) parse() error {
	doc, err := parser.ParseQueryWithTokenLimit(&ast.Source{Input: r.Text}, 2*maxTokens)
	if err != nil {
		return err
	}
	fragments := map[string]*ast.FragmentDefinition{}
	for _, f := range doc.Fragments {
		if fragments[f.Name] != nil {
			return fmt.Errorf("the fragment %s stands there twice", f.Name)
		}
		fragments[f.Name] = f
		r.Reshaped = r.Reshaped || aliased(f.SelectionSet)
	}
	names := map[string]bool{}
	fields := 0
	for _, o := range doc.Operations {
		if names[o.Name] {
			return errors.New("two operations have one name, or none")
		}
		names[o.Name] = true
		found := map[string]bool{}
		if err := roots(o.SelectionSet, fragments, map[string]bool{}, found); err != nil {
			return err
		}
		op := Operation{Type: string(o.Operation), Name: o.Name}
		for f := range found {
			op.Fields = append(op.Fields, f)
		}
		slices.Sort(op.Fields)
		if fields += len(op.Fields); len(op.Fields) == 0 || fields > maxFields {
			return fmt.Errorf("1 to %d fields of root types can be decided", maxFields)
		}
		r.Operations = append(r.Operations, op)
		r.Reshaped = r.Reshaped || aliased(o.SelectionSet)
	}
	switch {
	case len(doc.Operations) == 0:
		return errors.New("the document has no operation")
	case r.Name != "" && !names[r.Name]:
		return errors.New("operationName is none of the document's")
	case r.Name == "" && len(doc.Operations) > 1:
		return errors.New("the document has several operations, and operationName doesn't say which is to run")
	}
	return nil
}

// roots collects the fields that a selection on a root type asks for, also by way of fragments, whatever directives say.
func roots(set ast.SelectionSet, fragments map[string]*ast.FragmentDefinition, seen, found map[string]bool) error {
	for _, s := range set {
		switch s := s.(type) {
		case *ast.Field:
			found[s.Name] = true
		case *ast.InlineFragment:
			if err := roots(s.SelectionSet, fragments, seen, found); err != nil {
				return err
			}
		case *ast.FragmentSpread:
			f := fragments[s.Name]
			if f == nil {
				return fmt.Errorf("the fragment %.64s isn't in the document", s.Name)
			}
			if seen[s.Name] {
				continue
			}
			seen[s.Name] = true
			if err := roots(f.SelectionSet, fragments, seen, found); err != nil {
				return err
			}
		default:
			return fmt.Errorf("a selection of an unknown kind, %T", s)
		}
	}
	return nil
}

// aliased says whether some field at any depth has another name in the answer than its own.
func aliased(set ast.SelectionSet) bool {
	return slices.ContainsFunc(set, func(s ast.Selection) bool {
		switch s := s.(type) {
		case *ast.Field:
			return s.Alias != s.Name || aliased(s.SelectionSet)
		case *ast.InlineFragment:
			return aliased(s.SelectionSet)
		}
		return false
	})
}
