package actor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// The typ of each kind of statement. One kind is never read as another.
const (
	TypeToken           = "at+jwt"
	TypeGrant           = "deputy-grant+jwt"
	TypeUserGrant       = "deputy-user-grant+jwt"
	TypeKeyStatement    = "deputy-token-key+jwt"
	TypeOperatorRequest = "deputy-operator+jwt"
	TypeChain           = "deputy-chain+jwt"
)

const (
	// Skew is what clocks may differ by when times are compared.
	Skew = 30 * time.Second
	// MaxSize of a credential or subject, checked before anything else.
	MaxSize = 32 << 10
	// TokenLife is the longest life of a delegated token.
	TokenLife = 5 * time.Minute

	es256Bytes      = 32 // of each half of a signature
	maxCertificates = 4
	maxPurpose      = 200
	maxRoles        = 64
	maxTime         = 1 << 37 // far in the future, and safe to compute with
)

// jws is one statement in compact serialization, read strictly but not verified.
type jws struct {
	raw       string
	header    []byte
	payload   []byte
	signature []byte
	// ours says that readHeader took the header: ES256, and no member that changes what a signature means.
	ours bool
}

// splitJWS reads the form of one compact JWS. It does no cryptography and looks
// at no member.
func splitJWS(raw string) (jws, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return jws{}, refuse(ClassParts, "not a compact JWS with three parts")
	}
	var decoded [3][]byte
	for i, p := range parts {
		b, err := strictjson.DecodeBase64URL(p)
		if err != nil {
			return jws{}, wrap(ClassBase64, err)
		}
		decoded[i] = b
	}
	return jws{raw: raw, header: decoded[0], payload: decoded[1], signature: decoded[2]}, nil
}

// header has the members that some kind of ours uses; each kind says which.
type header struct {
	Alg string    `json:"alg,omitempty"`
	Typ string    `json:"typ,omitempty"`
	Kid *string   `json:"kid,omitempty"`
	JWK *jwk      `json:"jwk,omitempty"`
	X5C *[]string `json:"x5c,omitempty"`
}

// readHeader takes the header of one of our statements: exactly alg, typ and,
// where the kind has one, its own key member; ES256 and nothing else.
func (j *jws) readHeader(typ, keyMember string) (header, error) {
	var h header
	if err := strictjson.Unmarshal(j.header, &h); err != nil {
		err = jsonError(err)
		if ClassOf(err) == ClassJSONUnknown {
			err = wrap(ClassHeaderMember, err)
		}
		return h, err
	}
	if h.Typ != typ {
		return h, refuse(ClassHeaderType, "typ is %q, want %q", h.Typ, typ)
	}
	if h.Alg != string(jose.ES256) {
		return h, refuse(ClassHeaderAlg, "alg is %q, want ES256", h.Alg)
	}
	for _, m := range []struct {
		name string
		got  bool
	}{{"kid", h.Kid != nil}, {"jwk", h.JWK != nil}, {"x5c", h.X5C != nil}} {
		if want := m.name == keyMember; m.got != want {
			if want {
				return h, refuse(ClassHeaderMember, "%s is missing", m.name)
			}
			return h, refuse(ClassHeaderMember, "%s is not allowed for %s", m.name, typ)
		}
	}
	j.ours = true
	return h, nil
}

// peekType is the typ of a statement that may be anybody's; "" if it has none.
func (j jws) peekType() (string, error) {
	typ, err := strictjson.StringMember(j.header, "typ")
	if err != nil && !errors.Is(err, strictjson.ErrMissing) {
		return "", jsonError(err)
	}
	return typ, nil
}

// verify checks the signature over the exact bytes (RFC 7515 §5.2 with ES256, RFC 7518 §3.4). A general library would read
// header and payload again, which is most of what it costs: here they were read strictly, once, and say ES256.
func (j jws) verify(key *ecdsa.PublicKey) error {
	if !j.ours {
		return errors.New("verifying the signature: the header wasn't read as one of ours")
	}
	if _, err := P256(key); err != nil {
		return err
	}
	if len(j.signature) != 2*es256Bytes {
		return fmt.Errorf("verifying the signature: %d bytes, want %d", len(j.signature), 2*es256Bytes)
	}
	digest := sha256.Sum256([]byte(j.raw[:strings.LastIndexByte(j.raw, '.')]))
	r, s := new(big.Int).SetBytes(j.signature[:es256Bytes]), new(big.Int).SetBytes(j.signature[es256Bytes:])
	if !ecdsa.Verify(key, digest[:], r, s) {
		return errors.New("verifying the signature: it isn't one of this key over these bytes")
	}
	return nil
}

// sign makes a compact JWS of claims, with typ and one key member in its header.
func sign(key crypto.Signer, typ string, extra map[jose.HeaderKey]any, embed bool, claims any) (string, error) {
	if _, err := P256(key.Public()); err != nil {
		return "", err
	}
	opts := &jose.SignerOptions{EmbedJWK: embed, ExtraHeaders: map[jose.HeaderKey]any{jose.HeaderType: typ}}
	for k, v := range extra {
		opts.ExtraHeaders[k] = v
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cryptosigner.Opaque(key)}, opts)
	if err != nil {
		return "", fmt.Errorf("signing %s: %w", typ, err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encoding %s: %w", typ, err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing %s: %w", typ, err)
	}
	return signed.CompactSerialize()
}

// jwk is a P-256 public key and nothing else: no d, no kid, no use.
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

func newJWK(pub *ecdsa.PublicKey) (jwk, error) {
	point, err := pub.Bytes()
	if err != nil {
		return jwk{}, fmt.Errorf("encoding public key: %w", err)
	}
	return jwk{"EC", "P-256", strictjson.EncodeBase64URL(point[1:33]), strictjson.EncodeBase64URL(point[33:])}, nil
}

func (j jwk) publicKey() (*ecdsa.PublicKey, error) {
	if j.Kty != "EC" || j.Crv != "P-256" {
		return nil, refuse(ClassHeaderKey, "jwk is %q on %q, want EC on P-256", j.Kty, j.Crv)
	}
	x, errX := strictjson.DecodeBase64URL(j.X)
	y, errY := strictjson.DecodeBase64URL(j.Y)
	if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, refuse(ClassHeaderKey, "jwk coordinates are not 32 bytes in base64url")
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, refuse(ClassHeaderKey, "jwk is not a point on P-256")
	}
	return pub, nil
}

// P256 refuses every public key but ECDSA on P-256.
func P256(pub crypto.PublicKey) (*ecdsa.PublicKey, error) {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || k == nil || k.Curve != elliptic.P256() {
		return nil, refuse(ClassHeaderKey, "key is %T, want ECDSA on P-256", pub)
	}
	return k, nil
}

// NonceFor is the RFC 7638 thumbprint of a P-256 key in base64url: the nonce of
// a sign-in, the kid of a token key. It is empty for any other key.
func NonceFor(pub crypto.PublicKey) string {
	k, err := P256(pub)
	if err != nil {
		return ""
	}
	j, err := newJWK(k)
	if err != nil {
		return ""
	}
	// RFC 7638 §3.2: the required members in lexicographic order, no white space.
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, j.Crv, j.Kty, j.X, j.Y))
	return strictjson.EncodeBase64URL(sum[:])
}

// Hash is the base64url SHA-256 of the exact bytes of a statement: prh, head,
// and the hash of an ID token in root.
func Hash(raw string) string {
	sum := sha256.Sum256([]byte(raw))
	return strictjson.EncodeBase64URL(sum[:])
}

// CertificateHash is x5t#S256 of RFC 8705: the base64url SHA-256 of the DER.
func CertificateHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return strictjson.EncodeBase64URL(sum[:])
}

// NewHexID makes 128 random bits as 32 lower-case hexadecimal digits: jti, txn
// and the instances of agents.
func NewHexID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// IsHexID says whether s has the form of [NewHexID].
func IsHexID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

func checkHexID(name, s string) error {
	if !IsHexID(s) {
		return refuse(ClassClaim, "%s is not 32 lower-case hexadecimal digits", name)
	}
	return nil
}

// checkHash takes a SHA-256 in base64url.
func checkHash(name, s string) error {
	if b, err := strictjson.DecodeBase64URL(s); err != nil || len(b) != sha256.Size {
		return refuse(ClassClaim, "%s is not a SHA-256 in base64url", name)
	}
	return nil
}

func checkTimes(iat, exp int64) error {
	if iat <= 0 || exp <= iat || exp > maxTime {
		return refuse(ClassClaim, "exp %d does not follow iat %d", exp, iat)
	}
	return nil
}

func unix(t int64) time.Time { return time.Unix(t, 0).UTC() }

// parseX5C reads a leaf and its intermediates. x5c is padded standard base64 of
// DER (RFC 7515 §4.1.6), checked as strictly as everything else.
func parseX5C(list []string) ([]*x509.Certificate, error) {
	if len(list) == 0 || len(list) > maxCertificates {
		return nil, refuse(ClassHeaderKey, "x5c has %d certificates, want 1 to %d", len(list), maxCertificates)
	}
	out := make([]*x509.Certificate, 0, len(list))
	for i, s := range list {
		if strings.ContainsAny(s, "\r\n") {
			return nil, refuse(ClassBase64, "x5c holds a line break")
		}
		der, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil {
			return nil, refuse(ClassBase64, "x5c entry %d: %w", i, err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse(ClassHeaderKey, "x5c entry %d: %w", i, err)
		}
		out = append(out, c)
	}
	if _, err := P256(out[0].PublicKey); err != nil {
		return nil, err
	}
	return out, nil
}
