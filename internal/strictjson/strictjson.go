// Package strictjson decodes the JSON that Deputy believes because somebody
// signed it.
//
// encoding/json lets the last of two equal members win, matches SUB and ſub to
// sub, replaces invalid UTF-8 and ignores members it doesn't know. Two parsers
// that differ in one of these read two different statements out of one
// signature. This decoder has one reading or none:
//
//   - valid UTF-8, no byte order mark, nothing but white space after the value
//   - no member twice, and no two members equal under Unicode case folding
//   - every member known by its exact name, every required member present
//   - no null, no float or exponent where an integer is meant, no overflow
//   - at most [MaxDepth] nested arrays and objects
//
// The specification is docs/spec/credential.md, "Strict JSON".
package strictjson

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxDepth is the greatest number of arrays and objects inside each other.
const MaxDepth = 16

// The kinds of refusal. Every error of this package wraps exactly one.
var (
	ErrSyntax    = errors.New("not JSON")
	ErrUTF8      = errors.New("not valid UTF-8")
	ErrTrailing  = errors.New("bytes after the value")
	ErrDuplicate = errors.New("member appears twice")
	ErrCase      = errors.New("member name differs only in case")
	ErrUnknown   = errors.New("unknown member")
	ErrMissing   = errors.New("required member is missing")
	ErrType      = errors.New("wrong JSON type")
	ErrRange     = errors.New("number out of range or not an integer")
	ErrDepth     = errors.New("nested too deep")
	ErrBase64    = errors.New("not strict base64url")
)

type kind byte

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "boolean", "number", "string", "array", "object"}[k]
}

// node is one parsed value. Parsing and assigning are two steps so that an
// error of form is always found before one of content.
type node struct {
	kind    kind
	raw     []byte
	text    string // decoded string, or the literal of a number
	truth   bool
	elems   []node
	members []member
}

type member struct {
	name  string
	value node
}

// Check reports whether data is one strict JSON object of whatever members.
// It is for statements of others, such as ID tokens, that a library decodes
// afterwards.
func Check(data []byte) error {
	_, err := ParseObject(data)
	return err
}

func parse(data []byte) (node, error) {
	if !utf8.Valid(data) {
		return node{}, ErrUTF8
	}
	p := parser{data: data}
	p.space()
	n, err := p.value(0)
	if err != nil {
		return node{}, err
	}
	p.space()
	if p.pos != len(p.data) {
		return node{}, fmt.Errorf("%w at offset %d", ErrTrailing, p.pos)
	}
	return n, nil
}

type parser struct {
	data []byte
	pos  int
}

func (p *parser) syntax(what string) error {
	return fmt.Errorf("%w: %s at offset %d", ErrSyntax, what, p.pos)
}

func (p *parser) space() {
	for p.pos < len(p.data) {
		switch p.data[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) peek() byte {
	if p.pos < len(p.data) {
		return p.data[p.pos]
	}
	return 0
}

func (p *parser) value(depth int) (node, error) {
	start := p.pos
	var n node
	var err error
	switch c := p.peek(); {
	case c == '{':
		n, err = p.object(depth + 1)
	case c == '[':
		n, err = p.array(depth + 1)
	case c == '"':
		n.kind = kindString
		n.text, err = p.str()
	case c == '-' || c >= '0' && c <= '9':
		n.kind = kindNumber
		n.text, err = p.number()
	default:
		n, err = p.literal()
	}
	if err != nil {
		return node{}, err
	}
	n.raw = p.data[start:p.pos]
	return n, nil
}

func (p *parser) literal() (node, error) {
	rest := p.data[p.pos:]
	for _, l := range []struct {
		text string
		node node
	}{
		{"true", node{kind: kindBool, truth: true}},
		{"false", node{kind: kindBool}},
		{"null", node{kind: kindNull}},
	} {
		if len(rest) >= len(l.text) && string(rest[:len(l.text)]) == l.text {
			p.pos += len(l.text)
			return l.node, nil
		}
	}
	return node{}, p.syntax("no value")
}

func (p *parser) number() (string, error) {
	start := p.pos
	if p.peek() == '-' {
		p.pos++
	}
	switch c := p.peek(); {
	case c == '0':
		p.pos++
	case c >= '1' && c <= '9':
		p.digits()
	default:
		return "", p.syntax("bad number")
	}
	if p.peek() == '.' {
		p.pos++
		if !p.digits() {
			return "", p.syntax("bad fraction")
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if !p.digits() {
			return "", p.syntax("bad exponent")
		}
	}
	return string(p.data[start:p.pos]), nil
}

func (p *parser) digits() bool {
	start := p.pos
	for p.pos < len(p.data) && p.data[p.pos] >= '0' && p.data[p.pos] <= '9' {
		p.pos++
	}
	return p.pos > start
}

func (p *parser) array(depth int) (node, error) {
	if depth > MaxDepth {
		return node{}, fmt.Errorf("%w: more than %d levels", ErrDepth, MaxDepth)
	}
	n := node{kind: kindArray}
	p.pos++
	p.space()
	if p.peek() == ']' {
		p.pos++
		return n, nil
	}
	for {
		p.space()
		e, err := p.value(depth)
		if err != nil {
			return node{}, err
		}
		n.elems = append(n.elems, e)
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return n, nil
		default:
			return node{}, p.syntax("no comma or end of array")
		}
	}
}

func (p *parser) object(depth int) (node, error) {
	if depth > MaxDepth {
		return node{}, fmt.Errorf("%w: more than %d levels", ErrDepth, MaxDepth)
	}
	n := node{kind: kindObject}
	var seen map[string]string // folded name -> name; only for more members than fewMembers
	p.pos++
	p.space()
	if p.peek() == '}' {
		p.pos++
		return n, nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return node{}, p.syntax("no member name")
		}
		name, err := p.str()
		if err != nil {
			return node{}, err
		}
		other, again := "", false
		if len(n.members) < fewMembers {
			other, again = n.sameName(name)
		} else {
			if seen == nil {
				seen = make(map[string]string, 2*fewMembers)
				for _, m := range n.members {
					seen[fold(m.name)] = m.name
				}
			}
			folded := fold(name)
			other, again = seen[folded]
			seen[folded] = name
		}
		if again {
			if other == name {
				return node{}, fmt.Errorf("%w: %q", ErrDuplicate, name)
			}
			return node{}, fmt.Errorf("%w: %q and %q", ErrCase, other, name)
		}
		p.space()
		if p.peek() != ':' {
			return node{}, p.syntax("no colon")
		}
		p.pos++
		p.space()
		v, err := p.value(depth)
		if err != nil {
			return node{}, err
		}
		n.members = append(n.members, member{name, v})
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			return n, nil
		default:
			return node{}, p.syntax("no comma or end of object")
		}
	}
}

// fewMembers are compared one by one, which is quicker than to hash them; an object of many would take quadratic time so.
const fewMembers = 16

// sameName finds a member with a name that is equal under case folding.
func (n *node) sameName(name string) (string, bool) {
	for i := range n.members {
		if strings.EqualFold(n.members[i].name, name) {
			return n.members[i].name, true
		}
	}
	return "", false
}

// fold maps every rune to the smallest of its simple case folding orbit, which
// is the relation that strings.EqualFold and encoding/json use. For ASCII that is
// the upper case.
func fold(s string) string {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return strings.Map(foldRune, s)
		}
	}
	return strings.ToUpper(s)
}

func foldRune(r rune) rune {
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return least
}
