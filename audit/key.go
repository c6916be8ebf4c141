package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Key is a log's Ed25519 signing key with its name, the log's origin.
type Key struct {
	signer   note.Signer
	verifier note.Verifier
	private  string
	public   string
}

// GenerateKey makes a key for the log called origin, such as "demo.example/proxy/orders". The name has
// neither spaces nor plus signs.
func GenerateKey(rand io.Reader, origin string) (*Key, error) {
	skey, _, err := note.GenerateKey(rand, origin)
	if err != nil {
		return nil, fmt.Errorf("making a log key for %q: %w", origin, err)
	}
	return ParseKey(skey)
}

// ParseKey reads the text form of a private key, "PRIVATE+KEY+<name>+<hash>+<data>".
func ParseKey(private string) (*Key, error) {
	private = strings.TrimSpace(private)
	signer, err := note.NewSigner(private)
	if err != nil {
		return nil, errors.New("log key: not a private note key (PRIVATE+KEY+name+hash+data)")
	}
	// The name has no "+", the data may.
	parts := strings.SplitN(private, "+", 5)
	data, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(data) != 1+ed25519.SeedSize {
		return nil, errors.New("log key: not an Ed25519 key")
	}
	public := ed25519.NewKeyFromSeed(data[1:]).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	if verifier.KeyHash() != signer.KeyHash() {
		return nil, errors.New("log key: its hash isn't that of its public key")
	}
	return &Key{signer: signer, verifier: verifier, private: private, public: vkey}, nil
}

// Origin returns the name of the key and of the log that it signs.
func (k *Key) Origin() string { return k.signer.Name() }

// Public returns the verifier key, "<name>+<hash>+<data>", for the operator's list.
func (k *Key) Public() string { return k.public }

// Private returns the text form of the private key, for a 0600 file.
func (k *Key) Private() string { return k.private }
