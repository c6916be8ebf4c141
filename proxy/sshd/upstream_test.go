package sshd_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/proxy/sshd"
)

func signer(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func byCA(host *testssh.Server) func(*sshd.Config) {
	return func(c *sshd.Config) {
		c.Accounts = []sshd.Account{{Name: host.Account, CA: host.UserCA}}
		c.Upstream.HostKeys, c.Upstream.HostCAs, c.Upstream.HostName = nil, []ssh.PublicKey{host.HostCA}, testssh.HostName
	}
}

// The target's own log says which chain came: it stands in the certificate.
func TestAShortCertificateNamesTheChain(t *testing.T) {
	host := testssh.Start(t)
	w := worldOf(t, host, ops, byCA(host))
	if r := w.ssh("", "web", "id -un"); strings.TrimSpace(r.out) != host.Account {
		t.Fatalf("%s", r)
	}
	line := host.AwaitLog("Accepted publickey for " + host.Account)
	for _, part := range []string{"ED25519-CERT", "ID deputy session=" + w.ledger.last().id, "chain=sha256-of-the-chain", "agent=" + agentID} {
		if !strings.Contains(line, part) {
			t.Errorf("no %q in %s", part, line)
		}
	}
	// Nobody's certificate opens another account.
	other := worldOf(t, host, ops, byCA(host), func(c *sshd.Config) { c.Accounts[0].Principals = []string{"somebody"} })
	if r := other.ssh("", "web", "id"); r.code != 255 || !strings.Contains(r.err, "the target can't be reached, or didn't accept the proxy") {
		t.Errorf("another principal: %s", r)
	}
}

// What the certificate doesn't allow the target refuses, whatever the proxy would let through.
func TestTheCertificateAllowsNoMoreThanIsUsed(t *testing.T) {
	host := testssh.Start(t)
	var seen *ssh.Certificate
	for _, forwarding := range []bool{false, true} {
		w := worldOf(t, host, ops, byCA(host), func(c *sshd.Config) {
			c.Forwarding = forwarding
			c.Accounts[0].CA = spy{host.UserCA, &seen}
		})
		if r := w.ssh("", "web", "true"); r.code != 0 {
			t.Fatalf("%s", r)
		}
		if _, forwards := seen.Extensions["permit-port-forwarding"]; forwards != forwarding || len(seen.CriticalOptions) != 0 {
			t.Errorf("extensions %v", seen.Extensions)
		}
		for _, e := range []string{"permit-agent-forwarding", "permit-X11-forwarding", "permit-user-rc"} {
			if _, ok := seen.Extensions[e]; ok {
				t.Errorf("it has %s", e)
			}
		}
		if life := time.Duration(seen.ValidBefore-seen.ValidAfter) * time.Second; life > 3*time.Minute || time.Until(time.Unix(int64(seen.ValidBefore), 0)) > 2*time.Minute {
			t.Errorf("it lives for %s", life)
		}
		if len(seen.ValidPrincipals) != 1 || seen.ValidPrincipals[0] != host.Account || seen.CertType != ssh.UserCert {
			t.Errorf("it is for %v", seen.ValidPrincipals)
		}
	}
}

// spy shows what a CA signs.
type spy struct {
	ssh.Signer
	seen **ssh.Certificate
}

func (s spy) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	// What is signed is the certificate up to its signature.
	key, err := ssh.ParsePublicKey(append(append([]byte{}, data...), signature(s.Signer, data)...))
	if err == nil {
		*s.seen, _ = key.(*ssh.Certificate)
	}
	return s.Signer.Sign(r, data)
}

func signature(s ssh.Signer, data []byte) []byte {
	sig, err := s.Sign(rand.Reader, data)
	if err != nil {
		return nil
	}
	return ssh.Marshal(struct{ Signature []byte }{ssh.Marshal(sig)})
}

func TestATargetThatDoesNotProveItselfIsNotUsed(t *testing.T) {
	host := testssh.Start(t)
	another := signer(t)
	for name, change := range map[string]func(*sshd.Config){
		"another pinned key": func(c *sshd.Config) { c.Upstream.HostKeys = []ssh.PublicKey{another.PublicKey()} },
		"another CA": func(c *sshd.Config) {
			c.Upstream.HostKeys, c.Upstream.HostCAs, c.Upstream.HostName = nil, []ssh.PublicKey{another.PublicKey()}, testssh.HostName
		},
		"another name": func(c *sshd.Config) {
			c.Upstream.HostKeys, c.Upstream.HostCAs, c.Upstream.HostName = nil, []ssh.PublicKey{host.HostCA}, "other.test"
		},
		"its own key as the CA": func(c *sshd.Config) {
			c.Upstream.HostKeys, c.Upstream.HostCAs, c.Upstream.HostName = nil, []ssh.PublicKey{host.HostKey}, testssh.HostName
		},
		"the CA's key as its own": func(c *sshd.Config) { c.Upstream.HostKeys = []ssh.PublicKey{host.HostCA} },
	} {
		t.Run(name, func(t *testing.T) {
			w := worldOf(t, host, ops, change)
			if r := w.ssh("", "web", "id"); r.code != 255 || r.out != "" || !strings.Contains(r.err, "can't be reached") {
				t.Errorf("%s", r)
			}
			if e := w.ledger.await(t, "completed", "connect"); e.out.Status != "error" {
				t.Errorf("the outcome: %+v", e.out)
			}
		})
	}
	if strings.Contains(host.Log(), "Accepted") {
		t.Error("the proxy logged in at a target that didn't prove itself")
	}
}

// A certificate that is signed by a certificate would be taken for one signed by the key inside it.
func TestACertificateIsNeverTakenForACAKey(t *testing.T) {
	host := testssh.Start(t)
	ca := signer(t)
	middle := &ssh.Certificate{Key: ca.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{testssh.HostName}, ValidBefore: ssh.CertTimeInfinity}
	if err := middle.SignCert(rand.Reader, signer(t)); err != nil {
		t.Fatal(err)
	}
	pretender, err := ssh.NewCertSigner(middle, ca)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*sshd.Config){
		"a host CA that is a certificate":  func(c *sshd.Config) { c.Upstream.HostCAs = []ssh.PublicKey{middle} },
		"a host key that is a certificate": func(c *sshd.Config) { c.Upstream.HostKeys = []ssh.PublicKey{middle} },
		"a user CA that is a certificate":  func(c *sshd.Config) { c.Accounts[0] = sshd.Account{Name: host.Account, CA: pretender} },
		"an account's key that is one":     func(c *sshd.Config) { c.Accounts[0] = sshd.Account{Name: host.Account, Key: pretender} },
	} {
		cfg := newConfig(t, host)
		change(&cfg)
		if _, err := sshd.New(cfg); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// On the wire: a host certificate whose signer is the certificate of the very key that is trusted.
	up := sshd.Upstream{Address: "x:22", HostName: testssh.HostName, HostCAs: []ssh.PublicKey{ca.PublicKey()}}
	good := host.HostCertificate(ca, ssh.HostCert, testssh.HostName)
	if err := sshd.VerifyHost(&up, good); err != nil {
		t.Fatalf("the control: %v", err)
	}
	pretended := *good
	pretended.SignatureKey = middle
	for name, cert := range map[string]ssh.PublicKey{
		"signed by a certificate": &pretended,
		"a user's certificate":    host.HostCertificate(ca, ssh.UserCert, testssh.HostName),
		"for another":             host.HostCertificate(ca, ssh.HostCert, "other.test"),
		"the CA's key itself":     ca.PublicKey(),
		"a plain key":             host.HostKey,
	} {
		if err := sshd.VerifyHost(&up, cert); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAConfigurationThatCantWorkIsRefused(t *testing.T) {
	host := testssh.Start(t)
	for name, change := range map[string]func(*sshd.Config){
		"no core":                    func(c *sshd.Config) { c.Core = nil },
		"no TLS":                     func(c *sshd.Config) { c.TLS = nil },
		"TLS that verifies nobody":   func(c *sshd.Config) { c.TLS = c.TLS.Clone(); c.TLS.VerifyPeerCertificate = nil },
		"no account":                 func(c *sshd.Config) { c.Accounts = nil },
		"the placeholder as account": func(c *sshd.Config) { c.Accounts[0].Name = sshd.AnyAccount },
		"an option as account":       func(c *sshd.Config) { c.Accounts[0].Name = "-oProxyCommand" },
		"an account without a key":   func(c *sshd.Config) { c.Accounts[0].Key = nil },
		"two keys":                   func(c *sshd.Config) { c.Accounts[0].CA = c.Accounts[0].Key },
		"principals without a CA":    func(c *sshd.Config) { c.Accounts[0].Principals = []string{"x"} },
		"nothing to verify it with":  func(c *sshd.Config) { c.Upstream.HostKeys = nil },
		"no address":                 func(c *sshd.Config) { c.Upstream.Address = "host" },
		"no variable":                func(c *sshd.Config) { c.Environment = []string{"A B"} },
		"every variable":             func(c *sshd.Config) { c.Environment = []string{"*"} },
	} {
		cfg := newConfig(t, host)
		change(&cfg)
		if _, err := sshd.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
