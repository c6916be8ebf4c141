package strictjson

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// str reads a string. The data is known to be valid UTF-8. A lone surrogate
// escape is refused: others replace it, and then two statements look the same.
func (p *parser) str() (string, error) {
	p.pos++ // the opening quote
	start := p.pos
	for p.pos < len(p.data) {
		switch c := p.data[p.pos]; {
		case c == '"':
			p.pos++
			return p.text[start : p.pos-1], nil
		case c == '\\':
			return p.escaped(append([]byte(nil), p.data[start:p.pos]...))
		case c < 0x20:
			return "", p.syntax("control character in string")
		default:
			p.pos++
		}
	}
	return "", p.syntax("string has no end")
}

// escaped reads the rest of a string from its first backslash on.
func (p *parser) escaped(out []byte) (string, error) {
	for p.pos < len(p.data) {
		c := p.data[p.pos]
		switch {
		case c == '"':
			p.pos++
			return string(out), nil
		case c < 0x20:
			return "", p.syntax("control character in string")
		case c != '\\':
			out = append(out, c)
			p.pos++
			continue
		}
		p.pos++
		e := p.peek()
		p.pos++
		switch e {
		case '"', '\\', '/':
			out = append(out, e)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, err := p.unicode()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		default:
			return "", p.syntax("bad escape")
		}
	}
	return "", p.syntax("string has no end")
}

func (p *parser) unicode() (rune, error) {
	r, err := p.hex4()
	if err != nil {
		return 0, err
	}
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	if p.peek() != '\\' || p.pos+1 >= len(p.data) || p.data[p.pos+1] != 'u' {
		return 0, fmt.Errorf("%w: lone surrogate escape at offset %d", ErrUTF8, p.pos)
	}
	p.pos += 2
	low, err := p.hex4()
	if err != nil {
		return 0, err
	}
	full := utf16.DecodeRune(r, low)
	if full == utf8.RuneError {
		return 0, fmt.Errorf("%w: bad surrogate pair at offset %d", ErrUTF8, p.pos)
	}
	return full, nil
}

func (p *parser) hex4() (rune, error) {
	if p.pos+4 > len(p.data) {
		return 0, p.syntax("short unicode escape")
	}
	var r rune
	for _, c := range p.data[p.pos : p.pos+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, p.syntax("bad unicode escape")
		}
		r = r<<4 | rune(c)
	}
	p.pos += 4
	return r, nil
}

// DecodeBase64URL decodes unpadded base64url (RFC 4648 §5). Unlike
// base64.RawURLEncoding it refuses line breaks and stray bits, so that every
// byte string has one encoding.
func DecodeBase64URL(s string) ([]byte, error) {
	// The decoder skips these two and nothing else.
	for _, c := range []byte("\r\n") {
		if i := strings.IndexByte(s, c); i >= 0 {
			return nil, fmt.Errorf("%w: byte %d is outside the alphabet", ErrBase64, i)
		}
	}
	out, err := strictBase64URL.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBase64, err)
	}
	return out, nil
}

var strictBase64URL = base64.RawURLEncoding.Strict()

// EncodeBase64URL encodes without padding.
func EncodeBase64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
