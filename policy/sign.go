package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Type is the typ of a signed policy set.
const Type = "deputy-policy+jwt"

// ErrRollback says that a set is older than one that was in force already.
var ErrRollback = errors.New("the policy set is older than the one that was in force")

// wireSource is the payload of the JWS. Lists instead of objects keep every member name known.
type wireSource struct {
	Version  int64        `json:"version"`
	Schema   string       `json:"schema"`
	IssuedAt int64        `json:"issued_at"`
	Files    []wireFile   `json:"files"`
	Targets  []wireTarget `json:"targets"`
}

type wireFile struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

type wireTarget struct {
	Name   string   `json:"name"`
	Kind   string   `json:"kind"`
	Groups []string `json:"groups,omitempty"`
}

type wireHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// Sign makes a signed set of a source. A source that wouldn't load isn't signed; the error joins
// [*Problem] values.
func Sign(key *ecdsa.PrivateKey, s Source) (string, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return "", errors.New("signing a policy set: the key must be an ECDSA key on P-256")
	}
	if _, err := Compile(s); err != nil {
		return "", fmt.Errorf("signing policy set %d: %w", s.Version, err)
	}
	w := wireSource{Version: int64(s.Version), Schema: s.Schema, IssuedAt: s.IssuedAt, Files: []wireFile{}, Targets: []wireTarget{}}
	for _, name := range sortedKeys(s.Files) {
		w.Files = append(w.Files, wireFile{Name: name, Text: s.Files[name]})
	}
	for _, name := range sortedKeys(s.Targets) {
		t := s.Targets[name]
		w.Targets = append(w.Targets, wireTarget{Name: name, Kind: t.Kind, Groups: t.Groups})
	}
	payload, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("signing policy set %d: %w", s.Version, err)
	}
	kid, err := KeyID(&key.PublicKey)
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}},
		(&jose.SignerOptions{}).WithType(Type),
	)
	if err != nil {
		return "", fmt.Errorf("signing policy set %d: %w", s.Version, err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing policy set %d: %w", s.Version, err)
	}
	signed, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("signing policy set %d: %w", s.Version, err)
	}
	if len(signed) > MaxSignedBytes {
		return "", fmt.Errorf("signing policy set %d: %d bytes; at most %d", s.Version, len(signed), MaxSignedBytes)
	}
	return signed, nil
}

// Open verifies a signed set under one of keys and loads it. It returns ErrRollback if the version is
// below lowest. keys are from the caller's own configuration; kid only chooses among them.
func Open(signed string, keys []*ecdsa.PublicKey, lowest uint64) (*Set, error) {
	payload, err := verify(signed, keys)
	if err != nil {
		return nil, fmt.Errorf("opening the policy set: %w", err)
	}
	var w wireSource
	if err := strictjson.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("opening the policy set: %w", err)
	}
	source, err := w.source()
	if err != nil {
		return nil, fmt.Errorf("opening the policy set: %w", err)
	}
	if source.Version < lowest {
		return nil, fmt.Errorf("opening the policy set: %w (version %d, in force was %d)", ErrRollback, source.Version, lowest)
	}
	set, err := Compile(source)
	if err != nil {
		return nil, fmt.Errorf("opening policy set %d: %w", source.Version, err)
	}
	sum := sha256.Sum256(payload)
	set.digest = "sha256:" + hex.EncodeToString(sum[:])
	return set, nil
}

func verify(signed string, keys []*ecdsa.PublicKey) ([]byte, error) {
	if len(signed) > MaxSignedBytes {
		return nil, fmt.Errorf("%d bytes; at most %d", len(signed), MaxSignedBytes)
	}
	parts := strings.Split(signed, ".")
	if len(parts) != 3 {
		return nil, errors.New("it is no compact JWS")
	}
	for _, p := range parts {
		if _, err := strictjson.DecodeBase64URL(p); err != nil {
			return nil, fmt.Errorf("it is no compact JWS: %w", err)
		}
	}
	raw, err := strictjson.DecodeBase64URL(parts[0])
	if err != nil {
		return nil, err
	}
	var h wireHeader
	if err := strictjson.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	if h.Type != Type || h.Algorithm != string(jose.ES256) {
		return nil, fmt.Errorf("its header says typ %q, alg %q; a policy set has %q, %q", h.Type, h.Algorithm, Type, jose.ES256)
	}
	for _, k := range keys {
		kid, err := KeyID(k)
		if err != nil {
			return nil, err
		}
		if kid != h.KeyID {
			continue
		}
		jws, err := jose.ParseSignedCompact(signed, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			return nil, err
		}
		payload, err := jws.Verify(k)
		if err != nil {
			return nil, fmt.Errorf("the signature doesn't verify under policy key %s", kid)
		}
		return payload, nil
	}
	return nil, fmt.Errorf("it is signed by key %q, which is none of the configured policy keys", h.KeyID)
}

func (w wireSource) source() (Source, error) {
	if w.Version < 0 {
		return Source{}, errors.New("version is negative")
	}
	s := Source{
		Version: uint64(w.Version), Schema: w.Schema, IssuedAt: w.IssuedAt,
		Files: map[string]string{}, Targets: map[string]Target{},
	}
	for _, f := range w.Files {
		if _, ok := s.Files[f.Name]; ok {
			return Source{}, fmt.Errorf("file %q stands there twice", f.Name)
		}
		s.Files[f.Name] = f.Text
	}
	for _, t := range w.Targets {
		if _, ok := s.Targets[t.Name]; ok {
			return Source{}, fmt.Errorf("target %q stands there twice", t.Name)
		}
		s.Targets[t.Name] = Target{Kind: t.Kind, Groups: t.Groups}
	}
	return s, nil
}

// KeyID is the RFC 7638 thumbprint of a policy key, base64url: the kid of the sets it signs.
func KeyID(key *ecdsa.PublicKey) (string, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return "", errors.New("a policy key must be an ECDSA key on P-256")
	}
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("making the id of a policy key: %w", err)
	}
	return strictjson.EncodeBase64URL(sum), nil
}
