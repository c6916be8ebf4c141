package main

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// shapeErr is a place of a file where something else than this was expected. It never repeats a value:
// that could be a password.
type shapeErr struct {
	at   *token.Token
	want string
}

func (e *shapeErr) Error() string { return e.want }

func shapeError(n ast.Node, format string, args ...any) error {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	return &shapeErr{n.GetToken(), fmt.Sprintf(format, args...)}
}

// placed adds file, line and column to what is wrong with a file's text.
func placed(path string, err error) error {
	var shape *shapeErr
	var ye yaml.Error
	switch {
	case errors.As(err, &shape) && shape.at != nil && shape.at.Position != nil:
		return fmt.Errorf("%s:%d:%d: %s", path, shape.at.Position.Line, shape.at.Position.Column, shape.want)
	case errors.As(err, &ye) && ye.GetToken() != nil && ye.GetToken().Position != nil:
		p := ye.GetToken().Position
		return fmt.Errorf("%s:%d:%d: %s", path, p.Line, p.Column, ye.GetMessage())
	}
	// Syntax errors without a place carry the text around; only what comes before it is said.
	text, _, _ := strings.Cut(err.Error(), "\n")
	return fmt.Errorf("%s: %s", path, text)
}

var durationType = reflect.TypeFor[time.Duration]()

// checkShape compares a document with the type that it is to be read into: keys that are not known, and
// values of another kind.
func checkShape(n ast.Node, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return nil
	case *ast.AliasNode, *ast.AnchorNode, *ast.TagNode:
		return shapeError(n, "a plain value is expected; anchors, aliases and tags aren't read here")
	}
	switch {
	case t == durationType:
		return checkDuration(n)
	case t.Kind() == reflect.Struct:
		return checkStruct(n, t)
	case t.Kind() == reflect.Map:
		m, ok := n.(*ast.MappingNode)
		if !ok {
			return shapeError(n, "names with values are expected, one a line, such as key: value")
		}
		for _, v := range m.Values {
			if err := checkShape(v.Value, t.Elem()); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Slice:
		s, ok := n.(*ast.SequenceNode)
		if !ok {
			return shapeError(n, "a list is expected: lines that begin with -, or [one, two]")
		}
		for _, v := range s.Values {
			if err := checkShape(v, t.Elem()); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Bool:
		if _, ok := n.(*ast.BoolNode); !ok {
			return shapeError(n, "true or false is expected")
		}
	case t.Kind() == reflect.String:
		if !isScalar(n) {
			return shapeError(n, "a single text is expected")
		}
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		if _, ok := n.(*ast.IntegerNode); !ok {
			return shapeError(n, "a whole number is expected")
		}
	case t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64:
		if n.Type() != ast.FloatType && n.Type() != ast.IntegerType {
			return shapeError(n, "a number is expected")
		}
	}
	return nil
}

func isScalar(n ast.Node) bool {
	_, ok := n.(ast.ScalarNode)
	_, literal := n.(*ast.LiteralNode)
	return ok || literal
}

func checkDuration(n ast.Node) error {
	if s, ok := n.(*ast.StringNode); ok {
		if _, err := time.ParseDuration(s.Value); err == nil {
			return nil
		}
	}
	return shapeError(n, "a duration is expected: a number with a unit, such as 10s, 5m or 12h")
}

func checkStruct(n ast.Node, t reflect.Type) error {
	m, ok := n.(*ast.MappingNode)
	known := keysOf(t)
	if !ok {
		return shapeError(n, "keys with values are expected here: %s", strings.Join(known.names, ", "))
	}
	for _, v := range m.Values {
		key := v.Key.String()
		field, ok := known.types[key]
		if !ok {
			return shapeError(v.Key, "unknown key %q; what can stand here: %s", key, strings.Join(known.names, ", "))
		}
		if err := checkShape(v.Value, field); err != nil {
			return err
		}
	}
	return nil
}

type knownKeys struct {
	names []string
	types map[string]reflect.Type
}

func keysOf(t reflect.Type) knownKeys {
	k := knownKeys{types: map[string]reflect.Type{}}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "inline" {
			inner := keysOf(f.Type)
			k.names = append(k.names, inner.names...)
			for n, ft := range inner.types {
				k.types[n] = ft
			}
			continue
		}
		if name != "" && name != "-" {
			k.names, k.types[name] = append(k.names, name), f.Type
		}
	}
	return k
}
