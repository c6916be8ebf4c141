package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The JWT authority is kept and rotated as the X.509 authority is: a next key is announced before it signs, and the one that
// signs is never announced second, so that a forgotten restart is noticed.
func TestTheJWTBundleBeginsWithTheKeyThatSigns(t *testing.T) {
	config, cfg := issuerFolder(t)
	td := spiffeid.RequireTrustDomainFromString("test.example")
	authority, keys, err := cfg.JWT.authority(config, td)
	if err != nil || len(keys) != 1 || !keys[0].Equal(authority.PublicKey()) {
		t.Fatalf("%v %v", keys, err)
	}
	bundle := beside(config, cfg.JWT.Bundle)
	own, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	next := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	for name, c := range map[string]struct {
		file []byte
		want string // of the error; "" for none
	}{
		"own, next":  {append(own[:len(own):len(own)], next...), ""},
		"next, own":  {append(next[:len(next):len(next)], own...), "first key"},
		"next alone": {next, "first key"},
		"nothing":    {nil, "0 keys"},
		"rubbish":    {[]byte("x"), "PEM"},
	} {
		if err := os.WriteFile(bundle, c.file, 0o644); err != nil {
			t.Fatal(err)
		}
		keys, err := cfg.JWT.keys(config, authority)
		if c.want == "" && (err != nil || len(keys) != 2) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v %v", name, keys, err)
		}
	}
	if err := os.Chmod(beside(config, cfg.JWT.Key), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cfg.JWT.authority(config, td); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
}
