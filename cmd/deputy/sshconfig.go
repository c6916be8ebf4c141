package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

// sshConfig is a host reached by SSH.
type sshConfig struct {
	Address string `yaml:"address"`
	// HostName is the name in the host's certificate; by default the host of address.
	HostName string `yaml:"host_name,omitempty"`
	// HostKeysFile pins the host's own keys, HostCAFile trusts those that sign its certificates: lines as in authorized_keys.
	HostKeysFile string `yaml:"host_keys_file,omitempty"`
	HostCAFile   string `yaml:"host_ca_file,omitempty"`
	// Forwarding lets policy allow forwardings to what the host reaches.
	Forwarding bool `yaml:"forwarding,omitempty"`
	// Restricted lets commands and files through alone: no shell, no terminal, no other subsystem.
	Restricted bool `yaml:"restricted,omitempty"`
	// Environment names the variables that agents may set.
	Environment []string           `yaml:"environment,omitempty"`
	Accounts    []sshAccountConfig `yaml:"accounts"`
}

// sshAccountConfig is an account at a host and the roles of users that may use it. It has a key of its own, or a CA's key that signs a
// certificate per session.
type sshAccountConfig struct {
	Name       string   `yaml:"name"`
	KeyFile    string   `yaml:"key_file,omitempty"`
	CAKeyFile  string   `yaml:"ca_key_file,omitempty"`
	Principals []string `yaml:"principals,omitempty"`
	Roles      []string `yaml:"roles"`

	// What stands in the files, once read.
	key, ca ssh.Signer
}

func (c *sshConfig) check(path string) error {
	if c == nil {
		return fieldError(path, "address, host_keys_file or host_ca_file, and accounts are expected")
	}
	if err := checkAddress(path+".address", c.Address); err != nil {
		return err
	}
	if c.HostKeysFile == "" && c.HostCAFile == "" {
		return fieldError(path, "host_keys_file or host_ca_file is expected: a host is always verified")
	}
	if c.Restricted && c.Forwarding {
		return fieldError(path+".forwarding", "a restricted target forwards nothing: leave one of both out")
	}
	if len(c.Accounts) == 0 {
		return fieldError(path+".accounts", "at least one account is expected (name, key_file or ca_key_file, roles)")
	}
	for i, a := range c.Accounts {
		at := fmt.Sprintf("%s.accounts[%d]", path, i)
		if err := actor.CheckAccount(a.Name); err != nil {
			return fieldError(at+".name", "%v", err)
		}
		if a.Name == sshd.AnyAccount {
			return fieldError(at+".name", "%s stands for the choice by roles and can't be an account", sshd.AnyAccount)
		}
		if (a.KeyFile == "") == (a.CAKeyFile == "") {
			return fieldError(at, "either key_file or ca_key_file is expected")
		}
		if a.KeyFile != "" && a.Principals != nil {
			return fieldError(at+".principals", "these go with ca_key_file")
		}
	}
	return nil
}

func (c *sshConfig) readSecrets(config string) error {
	for i := range c.Accounts {
		a := &c.Accounts[i]
		for file, to := range map[string]*ssh.Signer{a.KeyFile: &a.key, a.CAKeyFile: &a.ca} {
			if file == "" {
				continue
			}
			signer, err := readSSHKey(beside(config, file))
			if err != nil {
				return fmt.Errorf("account %s: %w", a.Name, err)
			}
			*to = signer
		}
	}
	return nil
}

// readSSHKey reads a private key as ssh-keygen writes it, without a passphrase.
func readSSHKey(path string) (ssh.Signer, error) {
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	raw, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: an SSH private key without a passphrase is expected: %w", path, err)
	}
	return signer, nil
}

func readKeyFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s: %d bytes are too many for keys", path, info.Size())
	}
	return os.ReadFile(path)
}

// readSSHKeys reads public keys, one a line. A certificate is none, and neither are options: what they would restrict isn't looked at here.
func readSSHKeys(path string) ([]ssh.PublicKey, error) {
	raw, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	var out []ssh.PublicKey
	for n, line := range bytes.Split(raw, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err == nil && len(options) > 0 {
			err = errors.New("options don't belong here; the line must begin with the key's type")
		}
		if _, certificate := key.(*ssh.Certificate); err == nil && certificate {
			err = errors.New("this is a certificate; a public key is expected")
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n+1, err)
		}
		out = append(out, key)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no public key stands there", path)
	}
	return out, nil
}

func (t *targetConfig) sshEngine(config string, td spiffeid.TrustDomain, core *proxy.Core, name target.Name, server *tls.Config, logger *slog.Logger) (proxy.Engine, error) {
	c := t.SSH
	up := sshd.Upstream{Address: c.Address, HostName: c.HostName}
	for file, to := range map[string]*[]ssh.PublicKey{c.HostKeysFile: &up.HostKeys, c.HostCAFile: &up.HostCAs} {
		if file == "" {
			continue
		}
		keys, err := readSSHKeys(beside(config, file))
		if err != nil {
			return nil, fmt.Errorf("target %s: %w", t.Name, err)
		}
		*to = append(*to, keys...)
	}
	var accounts []sshd.Account
	for _, a := range c.Accounts {
		accounts = append(accounts, sshd.Account{Name: a.Name, Key: a.key, CA: a.ca, Principals: a.Principals, Roles: a.Roles})
	}
	e, err := sshd.New(sshd.Config{
		Core: sshd.ForTarget(core, name), Target: name.ID(td), TLS: server, Upstream: up, Accounts: accounts,
		Environment: c.Environment, Forwarding: c.Forwarding, Restricted: c.Restricted, Logger: logger.With("target", t.Name),
	})
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return e, nil
}
