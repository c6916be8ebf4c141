//go:build linux

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func sshSigner(t *testing.T) (ssh.Signer, []byte) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer, pem.EncodeToMemory(block)
}

// A file that is to hold keys holds keys: a certificate in the place of a CA's key would vouch for whoever made it.
func TestAFileOfKeysHoldsNoCertificates(t *testing.T) {
	signer, _ := sshSigner(t)
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"x"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	path := filepath.Join(t.TempDir(), "keys")
	read := func(text string) ([]ssh.PublicKey, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return readSSHKeys(path)
	}
	if keys, err := read("# a comment\n\n" + line + " web\r\n" + line + "\n"); err != nil || len(keys) != 2 {
		t.Errorf("%d keys: %v", len(keys), err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"a certificate": {line + "\n" + string(ssh.MarshalAuthorizedKey(cert)), ":2: this is a certificate"},
		"a CA's mark":   {"cert-authority " + line, ":1: options"},
		"known hosts":   {"web " + line, ":1: "},
		"nothing":       {"# only a comment\n", "no public key"},
		"a private key": {"-----BEGIN OPENSSH PRIVATE KEY-----\n", ":1: "},
		"too much":      {strings.Repeat(line+"\n", 2000), "too many"},
	} {
		if _, err := read(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestAnSSHKeyIsItsOwnersAlone(t *testing.T) {
	_, raw := sshSigner(t)
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSSHKey(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := readSSHKey(path); err == nil || !strings.Contains(err.Error(), "may be read by others") {
		t.Errorf("open to a group: %v", err)
	}
}

func TestSSHTargetsAreChecked(t *testing.T) {
	good := func() *sshConfig {
		return &sshConfig{Address: "127.0.0.1:22", HostKeysFile: "k", Accounts: []sshAccountConfig{{Name: "deploy", KeyFile: "k", Roles: []string{"ops"}}}}
	}
	if err := good().check("$.ssh"); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*sshConfig){
		"$.ssh.address":                func(c *sshConfig) { c.Address = "host" },
		"host_keys_file or":            func(c *sshConfig) { c.HostKeysFile = "" },
		"$.ssh.accounts":               func(c *sshConfig) { c.Accounts = nil },
		"$.ssh.accounts[0].name":       func(c *sshConfig) { c.Accounts[0].Name = "-x" },
		"stands for the choice":        func(c *sshConfig) { c.Accounts[0].Name = "deputy" },
		"either key_file or":           func(c *sshConfig) { c.Accounts[0].CAKeyFile = "ca" },
		"key_file or ca_key_file":      func(c *sshConfig) { c.Accounts[0].KeyFile = "" },
		"$.ssh.accounts[0].principals": func(c *sshConfig) { c.Accounts[0].Principals = []string{"x"} },
	} {
		c := good()
		change(c)
		if err := c.check("$.ssh"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := (*sshConfig)(nil).check("$.ssh"); err == nil {
		t.Error("nothing at all is accepted")
	}
	both := targetConfig{Name: "web", Kind: "postgres", Listen: "127.0.0.1:1", SSH: good()}
	if err := both.check("$.targets[0]"); err == nil || !strings.Contains(err.Error(), "$.targets[0].ssh") {
		t.Errorf("ssh at a database: %v", err)
	}
}

// The file is always whole: ssh may read it while another connection writes it.
func TestAKnownHostIsPutInPlaceAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "known")
	for _, key := range []string{"ssh-ed25519 AAAA", "ssh-ed25519 BBBB"} {
		if err := writeKnownHost(path, "web", key); err != nil {
			t.Fatal(err)
		}
		if raw, err := os.ReadFile(path); err != nil || string(raw) != "web "+key+"\n" {
			t.Errorf("%q %v", raw, err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v %v", files, err)
	}
	if err := writeKnownHost(filepath.Join(dir, "nowhere", "known"), "web", "k"); err == nil {
		t.Error("written nowhere")
	}
}
