package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/mod/sumdb/note"

	"github.com/deputymesh/deputy/internal/strictjson"
)

const (
	keysVersion  = 1
	maxKeysBytes = 4 << 20
	maxOrigin    = 256 // bytes of a log's name
)

// Keys is the operator's list of public keys: all that an offline verification believes. `deputy init` writes it as
// audit-keys.json; docs/spec/audit-log.md, "The list of keys".
type Keys struct {
	Mesh        string   // the broker's issuer URL
	TrustDomain string   // name of the mesh's trust domain
	Logs        []string // verifier keys of logs, "<name>+<hash>+<data>", earlier ones too
	// CertifyingKeys vouch for the broker's token keys.
	CertifyingKeys []*ecdsa.PublicKey
	// Authorities are the X.509 authorities of the trust domain, earlier ones too.
	Authorities       []*x509.Certificate
	IdentityProviders []IdentityProvider
}

// IdentityProvider is a provider of users' sign-ins. Without Keys the keys that were kept in the log are taken, and the
// report says so.
type IdentityProvider struct {
	Issuer    string          `json:"issuer"`
	Audiences []string        `json:"audiences,omitempty"`
	Keys      json.RawMessage `json:"jwks,omitempty"` // RFC 7517
}

type keysFile struct {
	Version           int                `json:"version"`
	Mesh              string             `json:"mesh"`
	TrustDomain       string             `json:"trust_domain"`
	Logs              []string           `json:"logs"`
	CertifyingKeys    []string           `json:"certifying_keys"`
	Authorities       []string           `json:"authorities"`
	IdentityProviders []IdentityProvider `json:"identity_providers,omitempty"`
}

// ParseKeys reads a list of keys, strictly.
func ParseKeys(data []byte) (*Keys, error) {
	if len(data) > maxKeysBytes {
		return nil, fmt.Errorf("list of keys: larger than %d bytes", maxKeysBytes)
	}
	var f keysFile
	if err := strictjson.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("list of keys: %w", err)
	}
	if f.Version != keysVersion {
		return nil, fmt.Errorf("list of keys: version %d; this program reads %d", f.Version, keysVersion)
	}
	k := &Keys{Mesh: f.Mesh, TrustDomain: f.TrustDomain, Logs: f.Logs, IdentityProviders: f.IdentityProviders}
	if _, err := k.verifiers(); err != nil {
		return nil, err
	}
	for i, text := range f.CertifyingKeys {
		der, err := onePEM(text, "PUBLIC KEY")
		if err != nil {
			return nil, fmt.Errorf("list of keys: certifying_keys[%d]: %w", i, err)
		}
		pub, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("list of keys: certifying_keys[%d]: %w", i, err)
		}
		ec, ok := pub.(*ecdsa.PublicKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, fmt.Errorf("list of keys: certifying_keys[%d]: not a P-256 key", i)
		}
		k.CertifyingKeys = append(k.CertifyingKeys, ec)
	}
	for i, text := range f.Authorities {
		der, err := onePEM(text, "CERTIFICATE")
		if err != nil {
			return nil, fmt.Errorf("list of keys: authorities[%d]: %w", i, err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("list of keys: authorities[%d]: %w", i, err)
		}
		k.Authorities = append(k.Authorities, c)
	}
	for i, p := range f.IdentityProviders {
		if p.Issuer == "" {
			return nil, fmt.Errorf("list of keys: identity_providers[%d]: no issuer", i)
		}
		if p.Keys != nil {
			if _, err := parseJWKS(p.Keys); err != nil {
				return nil, fmt.Errorf("list of keys: identity_providers[%d]: %w", i, err)
			}
		}
	}
	return k, nil
}

// MarshalJSON writes what ParseKeys reads.
func (k *Keys) MarshalJSON() ([]byte, error) {
	f := keysFile{Version: keysVersion, Mesh: k.Mesh, TrustDomain: k.TrustDomain, Logs: k.Logs, IdentityProviders: k.IdentityProviders,
		CertifyingKeys: []string{}, Authorities: []string{}}
	if f.Logs == nil {
		f.Logs = []string{}
	}
	for _, c := range k.CertifyingKeys {
		der, err := x509.MarshalPKIXPublicKey(c)
		if err != nil {
			return nil, fmt.Errorf("list of keys: %w", err)
		}
		f.CertifyingKeys = append(f.CertifyingKeys, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	for _, c := range k.Authorities {
		f.Authorities = append(f.Authorities, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
	}
	return json.Marshal(f)
}

func (k *Keys) verifiers() (note.Verifiers, error) {
	if len(k.Logs) == 0 {
		return nil, errors.New("list of keys: no log key, so nothing could be verified")
	}
	var list []note.Verifier
	for i, text := range k.Logs {
		v, err := note.NewVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("list of keys: logs[%d]: not a verifier key (name+hash+data): %w", i, err)
		}
		if len(v.Name()) > maxOrigin {
			return nil, fmt.Errorf("list of keys: logs[%d]: a name of more than %d bytes", i, maxOrigin)
		}
		if slices.ContainsFunc(list, func(o note.Verifier) bool { return o.Name() == v.Name() && o.KeyHash() == v.KeyHash() }) {
			return nil, fmt.Errorf("list of keys: logs[%d]: this key stands there twice", i)
		}
		list = append(list, v)
	}
	return note.VerifierList(list...), nil
}

func onePEM(text, kind string) ([]byte, error) {
	b, rest := pem.Decode([]byte(text))
	if b == nil || b.Type != kind || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("want one PEM block %q", kind)
	}
	return b.Bytes, nil
}

func parseJWKS(data []byte) (*jose.JSONWebKeySet, error) {
	if err := strictjson.Check(data); err != nil {
		return nil, fmt.Errorf("jwks: %w", err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("jwks: %w", err)
	}
	return &set, nil
}
