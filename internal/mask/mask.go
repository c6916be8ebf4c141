// Package mask replaces values that a policy hides. It knows how PostgreSQL writes values on the
// wire, in text and in binary, and which columns are masked is decided elsewhere; in a text it finds what the paths of a policy lead to ([JSON]), and what looks like what it hides ([Finder]).
//
// Invariant: no byte of the original leaves except what the chosen masker is documented to keep. A
// value that a masker can't treat (a number, an array, a row, a type it doesn't know) becomes NULL,
// never itself. The length of a value isn't kept either.
//
// Formats: PostgreSQL 15 documentation, "Frontend/Backend Protocol", "Formats and Format Codes".
package mask

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Masker says how a value is replaced.
type Masker string

// Maskers, spelled as in policies.
const (
	// Email keeps the first letter or digit and the domain: a***@example.com. It keeps nothing of a
	// local part of one character, and nothing at all of what isn't an address.
	Email Masker = "email"
	// Redact keeps nothing: ****.
	Redact Masker = "redact"
	// Last4 keeps the last four characters of eight or more: ****1234. Of less it keeps nothing.
	Last4 Masker = "last4"
	// Null keeps nothing: NULL.
	Null Masker = "null"
	// Hash gives 16 hex digits of a keyed hash, the same for the same value under one key: values
	// can be told apart and counted, and without the key not be guessed.
	Hash Masker = "hash"
)

// Parse gives the masker that a policy names.
func Parse(name string) (Masker, error) {
	switch m := Masker(name); m {
	case Email, Redact, Last4, Null, Hash:
		return m, nil
	default:
		return "", fmt.Errorf("unknown masker %q: there are email, redact, last4, null and hash", name)
	}
}

// Format is a PostgreSQL format code.
type Format int16

// Format codes of the wire protocol.
const (
	Text   Format = 0
	Binary Format = 1
)

// Object identifiers of the types that can hold masked text, from PostgreSQL's pg_type.dat. A domain
// has that of its base type in RowDescription.
const (
	oidName    = 19
	oidText    = 25
	oidJSON    = 114
	oidUnknown = 705
	oidBpchar  = 1042
	oidVarchar = 1043
	oidJSONB   = 3802
)

// stars stands for what is hidden.
const stars = "****"

// MinKey is the least number of bytes of a key.
const MinKey = 32

// A Keyed applies maskers with the key of [Hash]. It is safe for concurrent use.
type Keyed struct {
	key   []byte
	large chan struct{} // a place for each MiB of large values that are held, see allowance
}

// New makes a Keyed. The key has at least [MinKey] random bytes and belongs to one proxy.
func New(key []byte) (*Keyed, error) {
	if len(key) < MinKey {
		return nil, fmt.Errorf("the key of the hash masker has %d bytes; it needs %d or more", len(key), MinKey)
	}
	return withKey(slices.Clone(key)), nil
}

// Random makes a Keyed with a key of its own, which nobody sees: what it hashes can be compared for as long as it lives.
func Random() *Keyed {
	key := make([]byte, MinKey)
	rand.Read(key) // never fails
	return withKey(key)
}

func withKey(key []byte) *Keyed { return &Keyed{key: key, large: make(chan struct{}, maxLarge)} }

// Apply replaces one value of the type typeOID, as it stands in a DataRow with the given format; a
// nil value is NULL. It gives the bytes to send instead, or null.
//
//   - text, varchar, char(n), name, unknown: the same bytes in both formats, replaced by the masker.
//   - json, jsonb: a JSON string, "****" or the hash of the whole value, so that clients can still
//     parse it. The maskers email and last4 give "****".
//   - everything else: NULL.
//
// With an error, null is true.
func (k *Keyed) Apply(m Masker, value []byte, format Format, typeOID uint32) (out []byte, null bool, err error) {
	if _, err := Parse(string(m)); err != nil {
		return nil, true, err
	}
	if format != Text && format != Binary {
		return nil, true, fmt.Errorf("unknown format code %d", format)
	}
	if value == nil || m == Null {
		return nil, true, nil
	}
	switch typeOID {
	case oidText, oidVarchar, oidBpchar, oidName, oidUnknown:
		return []byte(k.text(m, value)), false, nil
	case oidJSON:
		return k.json(m, value), false, nil
	case oidJSONB:
		if format == Text {
			return k.json(m, value), false, nil
		}
		// Binary jsonb is a version byte and the text.
		if len(value) == 0 || value[0] != 1 {
			return nil, true, errors.New("a binary jsonb value has an unknown version")
		}
		return append([]byte{1}, k.json(m, value[1:])...), false, nil
	default:
		return nil, true, nil
	}
}

// text masks a value of a text type.
func (k *Keyed) text(m Masker, value []byte) string {
	switch m {
	case Email:
		return email(string(value))
	case Last4:
		return last4(string(value))
	case Hash:
		return k.hash(value)
	default:
		return stars
	}
}

// json masks a JSON value with a JSON string.
func (k *Keyed) json(m Masker, value []byte) []byte {
	if m == Hash {
		return []byte(`"` + k.hash(value) + `"`)
	}
	return []byte(`"` + stars + `"`)
}

func (k *Keyed) hash(value []byte) string {
	h := hmac.New(sha256.New, k.key)
	h.Write([]byte("deputy mask v1\x00"))
	h.Write(value)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// email keeps the first letter or digit of the local part, and the domain. The domain is held to
// the letters of host names, so that text around an address doesn't slip through.
func email(v string) string {
	v = strings.TrimRight(v, " ") // char(n) pads
	at := strings.LastIndexByte(v, '@')
	if at < 1 || strings.ContainsAny(v, " \t\r\n,;<>") || !isDomain(v[at+1:]) {
		return stars
	}
	first, size := utf8.DecodeRuneInString(v)
	if size == at || first == utf8.RuneError || !unicode.IsLetter(first) && !unicode.IsDigit(first) {
		return "***@" + v[at+1:]
	}
	return string(first) + "***@" + v[at+1:]
}

// maxDomain is the longest host name, RFC 1035 section 2.3.4.
const maxDomain = 253

func isDomain(d string) bool {
	if d == "" || len(d) > maxDomain {
		return false
	}
	for _, label := range strings.Split(d, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range label {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// last4 keeps the last four characters, of eight or more.
func last4(v string) string {
	v = strings.TrimRight(v, " ")
	if !utf8.ValidString(v) {
		return stars
	}
	runes := []rune(v)
	if len(runes) < 8 {
		return stars
	}
	return stars + string(runes[len(runes)-4:])
}
