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
	"slices"
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
	truth   bool
	raw     []byte
	text    string // decoded string, or the literal of a number; most are parts of the whole text, and cloned when they are kept
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
	p := parser{data: data, text: string(data)}
	p.space()
	var n node
	if err := p.value(0, &n); err != nil {
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
	text string // the same
	pos  int
	// What is known of the arrays and objects that aren't at their end, the innermost last.
	elems   []node
	members []member
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

func (p *parser) value(depth int, n *node) (err error) {
	start := p.pos
	switch c := p.peek(); {
	case c == '{':
		n.kind = kindObject
		n.members, err = p.object(depth + 1)
	case c == '[':
		n.kind = kindArray
		n.elems, err = p.array(depth + 1)
	case c == '"':
		n.kind = kindString
		n.text, err = p.str()
	case c == '-' || c >= '0' && c <= '9':
		n.kind = kindNumber
		n.text, err = p.number()
	default:
		n.kind, n.truth, err = p.literal()
	}
	n.raw = p.data[start:p.pos]
	return err
}

func (p *parser) literal() (k kind, truth bool, err error) {
	rest := p.text[p.pos:]
	switch {
	case strings.HasPrefix(rest, "true"):
		k, truth = kindBool, true
		p.pos += len("true")
	case strings.HasPrefix(rest, "false"):
		k = kindBool
		p.pos += len("false")
	case strings.HasPrefix(rest, "null"):
		p.pos += len("null")
	default:
		err = p.syntax("no value")
	}
	return k, truth, err
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
	return p.text[start:p.pos], nil
}

func (p *parser) digits() bool {
	start := p.pos
	for p.pos < len(p.data) && p.data[p.pos] >= '0' && p.data[p.pos] <= '9' {
		p.pos++
	}
	return p.pos > start
}

func (p *parser) array(depth int) ([]node, error) {
	if depth > MaxDepth {
		return nil, fmt.Errorf("%w: more than %d levels", ErrDepth, MaxDepth)
	}
	first := len(p.elems)
	p.pos++
	p.space()
	if p.peek() == ']' {
		p.pos++
		return nil, nil
	}
	for {
		p.space()
		var e node
		if err := p.value(depth, &e); err != nil {
			return nil, err
		}
		p.elems = append(p.elems, e)
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			own := slices.Clone(p.elems[first:])
			p.elems = p.elems[:first]
			return own, nil
		default:
			return nil, p.syntax("no comma or end of array")
		}
	}
}

func (p *parser) object(depth int) ([]member, error) {
	if depth > MaxDepth {
		return nil, fmt.Errorf("%w: more than %d levels", ErrDepth, MaxDepth)
	}
	first := len(p.members)
	var seen map[string]string // folded name -> name; only for more members than fewMembers
	p.pos++
	p.space()
	if p.peek() == '}' {
		p.pos++
		return nil, nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return nil, p.syntax("no member name")
		}
		var m member
		var err error
		if m.name, err = p.str(); err != nil {
			return nil, err
		}
		other, again := "", false
		if known := p.members[first:]; len(known) < fewMembers {
			other, again = sameName(known, m.name)
		} else {
			if seen == nil {
				seen = make(map[string]string, 2*fewMembers)
				for _, k := range known {
					seen[fold(k.name)] = k.name
				}
			}
			folded := fold(m.name)
			other, again = seen[folded]
			seen[folded] = m.name
		}
		if again {
			if other == m.name {
				return nil, fmt.Errorf("%w: %q", ErrDuplicate, m.name)
			}
			return nil, fmt.Errorf("%w: %q and %q", ErrCase, other, m.name)
		}
		p.space()
		if p.peek() != ':' {
			return nil, p.syntax("no colon")
		}
		p.pos++
		p.space()
		if err := p.value(depth, &m.value); err != nil {
			return nil, err
		}
		p.members = append(p.members, m)
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			own := slices.Clone(p.members[first:])
			p.members = p.members[:first]
			return own, nil
		default:
			return nil, p.syntax("no comma or end of object")
		}
	}
}

// fewMembers are compared one by one, which is quicker than to hash them; an object of many would take quadratic time so.
const fewMembers = 16

// sameName finds a member with a name that is equal under case folding.
func sameName(members []member, name string) (string, bool) {
	for i := range members {
		if strings.EqualFold(members[i].name, name) {
			return members[i].name, true
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
