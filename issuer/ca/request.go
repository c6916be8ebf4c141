package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
)

// maxRequest bounds a PKCS#10 request; one for a P-256 key with no names takes about 200 bytes.
const maxRequest = 8 << 10

// ParseRequest returns the key of a PKCS#10 request that was signed with it. Everything else in the request is
// ignored: names are the issuer's to give.
func ParseRequest(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) == 0 {
		return nil, errors.New("certificate request: there is none")
	}
	if len(der) > maxRequest {
		return nil, fmt.Errorf("certificate request: larger than %d bytes", maxRequest)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	// The key's kind first: checking a signature by a huge RSA key would be the caller's to choose.
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: want an ECDSA P-256 key")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return key, nil
}
