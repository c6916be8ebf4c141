package actor

import (
	"crypto"
	"crypto/ecdsa"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// KeyStatement certifies a broker's token key: the certifying key, which every
// proxy has in its configuration and the broker does not hold, says that tokens
// of Mesh may be signed by Key from NotBefore to Expires.
type KeyStatement struct {
	Mesh      string // iss
	Key       *ecdsa.PublicKey
	NotBefore time.Time
	Expires   time.Time
}

// KeyID is the kid: the key's thumbprint, so that no two keys share one.
func (k KeyStatement) KeyID() string { return NonceFor(k.Key) }

type keyStatementClaims struct {
	Issuer    string `json:"iss"`
	JWK       jwk    `json:"jwk"`
	KeyID     string `json:"kid"`
	NotBefore int64  `json:"nbf"`
	Expires   int64  `json:"exp"`
}

// SignKeyStatement signs with the certifying key.
func SignKeyStatement(certifying crypto.Signer, k KeyStatement) (string, error) {
	if _, err := P256(k.Key); err != nil {
		return "", err
	}
	j, err := newJWK(k.Key)
	if err != nil {
		return "", err
	}
	c := keyStatementClaims{k.Mesh, j, k.KeyID(), k.NotBefore.Unix(), k.Expires.Unix()}
	if err := firstError(checkIssuer(c.Issuer), checkTimes(c.NotBefore, c.Expires)); err != nil {
		return "", err
	}
	return sign(certifying, TypeKeyStatement, nil, false, c)
}

// ParseKeyStatement verifies the signature of the certifying key and that the
// statement is for mesh. Whether the key is valid now is asked at each use.
// Every refusal has the class [ClassKeyStatement].
func ParseKeyStatement(raw string, certifying *ecdsa.PublicKey, mesh string) (KeyStatement, error) {
	k, err := parseKeyStatement(raw, certifying, mesh)
	if err != nil {
		return KeyStatement{}, wrap(ClassKeyStatement, err)
	}
	return k, nil
}

func parseKeyStatement(raw string, certifying *ecdsa.PublicKey, mesh string) (KeyStatement, error) {
	if err := checkForm(raw); err != nil {
		return KeyStatement{}, err
	}
	j, err := splitJWS(raw)
	if err != nil {
		return KeyStatement{}, err
	}
	if _, err := j.readHeader(TypeKeyStatement, ""); err != nil {
		return KeyStatement{}, err
	}
	var c keyStatementClaims
	if err := strictjson.Unmarshal(j.payload, &c); err != nil {
		return KeyStatement{}, jsonError(err)
	}
	if _, err := P256(certifying); err != nil {
		return KeyStatement{}, err
	}
	if err := j.verify(certifying); err != nil {
		return KeyStatement{}, err
	}
	key, err := c.JWK.publicKey()
	if err != nil {
		return KeyStatement{}, err
	}
	switch {
	case c.Issuer != mesh:
		return KeyStatement{}, refuse(ClassClaim, "iss is %q, want %q", c.Issuer, mesh)
	case c.KeyID != NonceFor(key):
		return KeyStatement{}, refuse(ClassClaim, "kid is not the thumbprint of jwk")
	}
	if err := checkTimes(c.NotBefore, c.Expires); err != nil {
		return KeyStatement{}, err
	}
	return KeyStatement{c.Issuer, key, unix(c.NotBefore), unix(c.Expires)}, nil
}
