package main

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/policy"
)

const (
	caLife        = 10 * 365 * 24 * time.Hour
	webLife       = 365 * 24 * time.Hour
	tokenKeyLife  = 90 * 24 * time.Hour
	firstSVIDLife = ca.MaxTTL
)

// write makes every folder and file of the plan, then hands each folder to the uid that runs its role. What
// fails leaves nothing behind, so that the next try finds the folder empty again.
func (p *meshPlan) write() (err error) {
	entries, err := os.ReadDir(p.Dir)
	if err == nil && len(entries) > 0 {
		return errors.New("the folder is not empty; nothing is overwritten. Choose another one")
	}
	wasThere := err == nil
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove(wasThere))
		}
	}()
	for dir, mode := range map[string]os.FileMode{"issuer": 0o700, "broker": 0o700, "proxy": 0o700, "operator": 0o700, "run": 0o755, "agent": 0o755, "public": 0o755} {
		if err := os.Mkdir(filepath.Join(p.Dir, dir), mode); err != nil {
			return err
		}
	}
	td, err := spiffeid.TrustDomainFromString(p.TrustDomain)
	if err != nil {
		return err
	}
	caKey, caCert, err := ca.Generate(td, time.Now(), caLife)
	if err != nil {
		return err
	}
	keys := &audit.Keys{Mesh: p.Mesh, TrustDomain: p.TrustDomain, Authorities: []*x509.Certificate{caCert}}
	keys.IdentityProviders = []audit.IdentityProvider{{Issuer: p.IdentityProvider, Audiences: []string{p.ClientID}}}
	for _, step := range []func() error{
		func() error { return p.writeIssuer(caKey, caCert, keys) },
		func() error { return p.writeOperatorKeys(keys) },
		func() error { return p.writeBroker(keys) },
		func() error { return p.writeProxy(keys) },
		func() error { return p.writeFirstSVIDs(td, caKey, caCert) },
		p.writeSignIn,
		p.writeAgent,
		func() error { return p.writePublic(keys, caCert) },
		p.readBack,
		p.hand,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// remove takes away what write made; a folder that was there before stays.
func (p *meshPlan) remove(keepFolder bool) error {
	if !keepFolder {
		return os.RemoveAll(p.Dir)
	}
	entries, err := os.ReadDir(p.Dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(p.path(e.Name())))
	}
	return err
}

func (p *meshPlan) path(elem ...string) string {
	return filepath.Join(append([]string{p.Dir}, elem...)...)
}

func (p *meshPlan) writeIssuer(key *ecdsa.PrivateKey, cert *x509.Certificate, keys *audit.Keys) error {
	if err := writePrivateKey(p.path("issuer", "ca.key"), key); err != nil {
		return err
	}
	if err := writeCertificates(p.path("issuer", "ca.pem"), cert); err != nil {
		return err
	}
	if err := p.writeJWTKey(); err != nil {
		return err
	}
	if err := p.writeLogKey("issuer", "issuer", keys); err != nil {
		return err
	}
	return p.render("issuer.yaml", p.path("issuer", "issuer.yaml"))
}

// writeJWTKey makes the key of JWT-SVIDs, and its bundle for whoever verifies them without the Workload API.
func (p *meshPlan) writeJWTKey() error {
	key, err := newKey()
	if err != nil {
		return err
	}
	bundle, err := ca.EncodeJWTBundle(&key.PublicKey)
	if err != nil {
		return err
	}
	return firstOf(
		func() error { return writePrivateKey(p.path("issuer", "jwt.key"), key) },
		func() error { return writePublicKey(p.path("issuer", "jwt.pub"), &key.PublicKey) },
		func() error { return writeNew(p.path("public", "jwt-bundle.json"), append(bundle, '\n'), 0o644) },
	)
}

// writeOperatorKeys makes the keys that no role holds: the one that certifies token keys, and the one that
// signs policy sets.
func (p *meshPlan) writeOperatorKeys(keys *audit.Keys) error {
	certifying, err := newKey()
	if err != nil {
		return err
	}
	policyKey, err := newKey()
	if err != nil {
		return err
	}
	keys.CertifyingKeys = []*ecdsa.PublicKey{&certifying.PublicKey}
	return firstOf(
		func() error { return writePrivateKey(p.path("operator", "certifying.key"), certifying) },
		func() error { return writePrivateKey(p.path("operator", "policy.key"), policyKey) },
		func() error { return writePublicKey(p.path("public", "certifying.pub"), &certifying.PublicKey) },
		func() error { return writePublicKey(p.path("public", "policy.pub"), &policyKey.PublicKey) },
		func() error { return writePublicKey(p.path("proxy", "certifying.pub"), &certifying.PublicKey) },
		func() error { return writePublicKey(p.path("broker", "certifying.pub"), &certifying.PublicKey) },
		func() error { return writePublicKey(p.path("proxy", "policy.pub"), &policyKey.PublicKey) },
		func() error { return writePublicKey(p.path("broker", "policy.pub"), &policyKey.PublicKey) },
		func() error { return p.writeTokenKey(certifying) },
		func() error { return p.writePolicy(policyKey) },
	)
}

func firstOf(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

func (p *meshPlan) writeTokenKey(certifying *ecdsa.PrivateKey) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	if err := writePrivateKey(p.path("broker", "token.key"), key); err != nil {
		return err
	}
	now := time.Now()
	statement, err := actor.SignKeyStatement(certifying, actor.KeyStatement{
		Mesh: p.Mesh, Key: &key.PublicKey, NotBefore: now.Add(-time.Minute), Expires: now.Add(tokenKeyLife),
	})
	if err != nil {
		return err
	}
	return writeNew(p.path("broker", "token-key.jwt"), []byte(statement+"\n"), 0o644)
}

func (p *meshPlan) writePolicy(key *ecdsa.PrivateKey) error {
	source, err := readPolicyFolder(p.Policy)
	if err != nil {
		return err
	}
	if err := policy.Check(source); err != nil {
		return fmt.Errorf("policy set %s: %w", p.Policy, err)
	}
	signed, err := policy.Sign(key, source)
	if err != nil {
		return err
	}
	return writeNew(p.path("broker", "policy.jwt"), []byte(signed+"\n"), 0o644)
}

func (p *meshPlan) writeBroker(keys *audit.Keys) error {
	host, _, err := net.SplitHostPort(p.WebListen)
	if err != nil {
		return err
	}
	return firstOf(
		func() error {
			return writeWebCertificate(p.path("broker"), p.TrustDomain, []string{host, "localhost"}, webLife)
		},
		func() error { return p.copy(p.path("broker", "ca.pem"), p.path("agent", "web-ca.pem"), 0o644) },
		func() error { return p.copyProviderCA("broker") },
		func() error { return p.writeLogKey("broker", "broker", keys) },
		func() error { return p.render("broker.yaml", p.path("broker", "broker.yaml")) },
	)
}

func (p *meshPlan) writeProxy(keys *audit.Keys) error {
	done := map[string]bool{}
	for _, t := range p.Targets {
		if err := p.copy(t.CA, p.path("proxy", t.Name+"-ca.pem"), 0o644); err != nil {
			return err
		}
		for _, a := range t.Accounts {
			if done[a.PasswordFile] {
				continue
			}
			done[a.PasswordFile] = true
			if _, err := readSecret(a.source); err != nil {
				return fmt.Errorf("--account %s: %w", a.Role, err)
			}
			if err := p.copy(a.source, p.path("proxy", a.PasswordFile), 0o600); err != nil {
				return err
			}
		}
	}
	return firstOf(
		func() error { return p.copyProviderCA("proxy") },
		func() error { return p.writeLogKey("proxy", "proxy/"+p.ProxyName, keys) },
		func() error { return p.render("proxy.yaml", p.path("proxy", "proxy.yaml")) },
	)
}

// writeFirstSVIDs makes the SVIDs that broker and proxy use until the Workload API answers, so that roles
// can start in any order.
func (p *meshPlan) writeFirstSVIDs(td spiffeid.TrustDomain, key *ecdsa.PrivateKey, cert *x509.Certificate) error {
	authority, err := ca.New(ca.Config{TrustDomain: td, Key: key, Certificate: cert, TTL: firstSVIDLife})
	if err != nil {
		return err
	}
	for dir, segments := range map[string][]string{"broker": {"deputy", "broker"}, "proxy": {"deputy", "proxy", p.ProxyName}} {
		id, err := spiffeid.FromSegments(td, segments...)
		if err != nil {
			return err
		}
		leafKey, err := newKey()
		if err != nil {
			return err
		}
		leaf, err := authority.SignRole(ca.Role{ID: id, Key: &leafKey.PublicKey, DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
		if err != nil {
			return err
		}
		if err := firstOf(
			func() error { return writePrivateKey(p.path(dir, "svid.key"), leafKey) },
			func() error { return writeCertificates(p.path(dir, "svid.pem"), leaf) },
			func() error { return writeCertificates(p.path(dir, "bundle.pem"), cert) },
		); err != nil {
			return err
		}
	}
	return nil
}

func (p *meshPlan) writeSignIn() error {
	if p.ProviderCA != sampleCA {
		return nil
	}
	return p.render("sample-signin.yaml", p.path("sample-signin", "sample-signin.yaml"))
}

func (p *meshPlan) writeAgent() error {
	if err := p.copyProviderCA("agent"); err != nil {
		return err
	}
	path := p.path("agent", "agent.yaml")
	if err := p.render("agent.yaml", path); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

func (p *meshPlan) writePublic(keys *audit.Keys, cert *x509.Certificate) error {
	raw, err := keys.MarshalJSON()
	if err != nil {
		return err
	}
	if err := writeCertificates(p.path("public", "bundle.pem"), cert); err != nil {
		return err
	}
	return writeNew(p.path("public", "audit-keys.json"), append(raw, '\n'), 0o644)
}

func (p *meshPlan) writeLogKey(dir, role string, keys *audit.Keys) error {
	key, err := audit.GenerateKey(rand.Reader, p.TrustDomain+"/"+role)
	if err != nil {
		return err
	}
	keys.Logs = append(keys.Logs, key.Public())
	return writeNew(p.path(dir, "audit.key"), []byte(key.Private()+"\n"), 0o600)
}

// copyProviderCA gives a role the CA of the identity provider; the sample sign-in server's is made here.
func (p *meshPlan) copyProviderCA(dir string) error {
	source := p.ProviderCA
	switch source {
	case "":
		return nil
	case sampleCA:
		source = p.path("sample-signin", "ca.pem")
		if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
			if err := os.Mkdir(p.path("sample-signin"), 0o700); err != nil {
				return err
			}
			host, _, err := net.SplitHostPort(p.SignInListen)
			if err != nil {
				return err
			}
			if err := writeWebCertificate(p.path("sample-signin"), "sample sign-in", []string{host}, webLife); err != nil {
				return err
			}
		}
	}
	return p.copy(source, p.path(dir, "idp-ca.pem"), 0o644)
}

func (p *meshPlan) copy(from, to string, mode os.FileMode) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeNew(to, raw, mode)
}

// hand gives each role's folder to the uid that runs it.
func (p *meshPlan) hand() error {
	if os.Getuid() != 0 {
		return nil
	}
	for dir, uid := range map[string]int{"issuer": p.IssuerUID, "run": p.IssuerUID, "broker": p.BrokerUID, "proxy": p.ProxyUID, "sample-signin": p.SignInUID} {
		root := p.path(dir)
		if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, uid, uid)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
