// Package mask replaces values that a policy hides. It knows how PostgreSQL writes values on the
// wire, in text and in binary, and nothing else: which columns are masked is decided elsewhere.
//
// Invariant: no byte of the original leaves except what the chosen masker is documented to keep. A
// value that a masker can't treat (a number, an array, a row) becomes NULL, never itself.
package mask

// A Masker says how a value is replaced.
type Masker string

// Maskers, spelled as in policies.
const (
	Email  Masker = "email"  // first character and domain: a***@example.com
	Redact Masker = "redact" // ****
	Last4  Masker = "last4"  // ****1234
	Null   Masker = "null"   // NULL
	Hash   Masker = "hash"   // keyed, 16 hex digits: equal values stay equal
)

// Format is a PostgreSQL format code.
type Format int16

// Format codes of the wire protocol.
const (
	Text   Format = 0
	Binary Format = 1
)

// Apply replaces one value. It is in full in the next commit.
func (k *Keyed) Apply(m Masker, value []byte, format Format, typeOID uint32) (out []byte, null bool, err error) {
	return nil, true, nil
}

// A Keyed applies maskers with the key of [Hash].
type Keyed struct{ key []byte }

// New makes a Keyed. The key has at least 32 bytes and belongs to one proxy.
func New(key []byte) (*Keyed, error) { return &Keyed{key: key}, nil }

// Parse gives the masker that a policy names.
func Parse(name string) (Masker, error) { return Masker(name), nil }
