//go:build bench

package load_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
)

// bareStatement is a signed statement, read with the standard library and no rule at all.
type bareStatement struct {
	header struct {
		X5C []string
		JWK struct{ X, Y string }
	}
	claims map[string]any
	digest [sha256.Size]byte
	sig    []byte
}

func readBare(part string) (*bareStatement, error) {
	var s bareStatement
	dot := strings.LastIndexByte(part, '.')
	if dot < 0 {
		return nil, errors.New("no JWS")
	}
	header, payload, _ := strings.Cut(part[:dot], ".")
	h, err1 := base64.RawURLEncoding.DecodeString(header)
	p, err2 := base64.RawURLEncoding.DecodeString(payload)
	sig, err3 := base64.RawURLEncoding.DecodeString(part[dot+1:])
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	if err := errors.Join(json.Unmarshal(h, &s.header), json.Unmarshal(p, &s.claims)); err != nil {
		return nil, err
	}
	s.sig, s.digest = sig, sha256.Sum256([]byte(part[:dot]))
	return &s, nil
}

// key is the one in the header: that of a leaf whose path is verified, or a bare one.
func (s *bareStatement) key(path func(*x509.Certificate) error) (*ecdsa.PublicKey, error) {
	if len(s.header.X5C) > 0 {
		der, err := base64.StdEncoding.DecodeString(s.header.X5C[0])
		if err != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if err := path(c); err != nil {
			return nil, err
		}
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		if !ok {
			return nil, errors.New("another kind of key")
		}
		return key, nil
	}
	x, err1 := base64.RawURLEncoding.DecodeString(s.header.JWK.X)
	y, err2 := base64.RawURLEncoding.DecodeString(s.header.JWK.Y)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
}

func (s *bareStatement) good(key *ecdsa.PublicKey) bool {
	return len(s.sig) == 64 && ecdsa.Verify(key, s.digest[:], new(big.Int).SetBytes(s.sig[:32]), new(big.Int).SetBytes(s.sig[32:]))
}
