// Package testca is the one certificate authority of the tests: a SPIFFE trust domain in memory that
// makes X.509-SVIDs, good and bad, and plain server certificates for targets.
package testca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// CA is a trust domain's authority. Safe for use by one test at a time.
type CA struct {
	t    testing.TB
	td   spiffeid.TrustDomain
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// New makes an authority (ECDSA P-256) for a trust domain, valid from a day ago for ten years.
func New(t testing.TB, trustDomain string) *CA {
	t.Helper()
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		t.Fatalf("testca: %v", err)
	}
	key := NewKey(t)
	tmpl := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{CommonName: "testca " + trustDomain},
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  []*url.URL{td.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatalf("testca: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("testca: %v", err)
	}
	return &CA{t: t, td: td, key: key, cert: cert}
}

// Load is the CA of a mesh that the test owns: whoever has its files.
func Load(t testing.TB, trustDomain, certFile, keyFile string) *CA {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatalf("testca: %v", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("testca: the key in %s isn't ECDSA", keyFile)
	}
	return &CA{t: t, td: spiffeid.RequireTrustDomainFromString(trustDomain), key: key, cert: pair.Leaf}
}

// NewKey makes an ECDSA P-256 key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("testca: %v", err)
	}
	return key
}

// TrustDomain is the CA's trust domain.
func (ca *CA) TrustDomain() spiffeid.TrustDomain { return ca.td }

// Certificate is the CA's own certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Key is the CA's private key.
func (ca *CA) Key() *ecdsa.PrivateKey { return ca.key }

// Bundle is the trust domain's bundle. It also serves as an x509bundle.Source.
func (ca *CA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(ca.td, []*x509.Certificate{ca.cert})
}

// ID makes a SPIFFE ID in the CA's trust domain from a path such as "/deputy/broker".
func (ca *CA) ID(path string) spiffeid.ID {
	ca.t.Helper()
	id, err := spiffeid.FromPath(ca.td, path)
	if err != nil {
		ca.t.Fatalf("testca: %v", err)
	}
	return id
}

// Option changes a certificate before it is signed.
type Option func(*x509.Certificate)

// Validity sets both ends of the certificate's life.
func Validity(notBefore, notAfter time.Time) Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = notBefore, notAfter }
}

// Extension adds an extension, such as actor.GradeExtension makes.
func Extension(e pkix.Extension) Option {
	return func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, e) }
}

// URIs replaces the names in a certificate, whatever SPIFFE says of them.
func URIs(raw ...*url.URL) Option {
	return func(c *x509.Certificate) { c.URIs = raw }
}

// Hosts adds DNS names and IP addresses.
func Hosts(names ...string) Option {
	return func(c *x509.Certificate) {
		for _, n := range names {
			if ip := net.ParseIP(n); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, n)
			}
		}
	}
}

// SVID makes an X.509-SVID with a key of its own, valid for an hour.
func (ca *CA) SVID(id spiffeid.ID, opts ...Option) *x509svid.SVID {
	ca.t.Helper()
	key := NewKey(ca.t)
	return ca.SVIDFor(id, key, opts...)
}

// SVIDFor makes an X.509-SVID for a given key.
func (ca *CA) SVIDFor(id spiffeid.ID, key crypto.Signer, opts ...Option) *x509svid.SVID {
	ca.t.Helper()
	tmpl := &x509.Certificate{URIs: []*url.URL{id.URL()}}
	cert := ca.sign(tmpl, key.Public(), opts)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

// Server makes a plain server certificate for hosts, and writes it, its key and the CA as PEM files
// (server.crt, server.key, ca.crt) into dir.
func (ca *CA) Server(dir string, hosts ...string) (certFile, keyFile, caFile string) {
	ca.t.Helper()
	key := NewKey(ca.t)
	cert := ca.sign(&x509.Certificate{Subject: pkix.Name{CommonName: hosts[0]}}, key.Public(), []Option{Hosts(hosts...)})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatalf("testca: %v", err)
	}
	certFile, keyFile, caFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"), filepath.Join(dir, "ca.crt")
	ca.write(certFile, "CERTIFICATE", cert.Raw)
	ca.write(keyFile, "PRIVATE KEY", der)
	ca.write(caFile, "CERTIFICATE", ca.cert.Raw)
	return certFile, keyFile, caFile
}

func (ca *CA) write(path, kind string, der []byte) {
	ca.t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		ca.t.Fatalf("testca: %v", err)
	}
}

func (ca *CA) sign(tmpl *x509.Certificate, pub crypto.PublicKey, opts []Option) *x509.Certificate {
	ca.t.Helper()
	tmpl.SerialNumber = serial(ca.t)
	tmpl.NotBefore = time.Now().Add(-time.Minute)
	tmpl.NotAfter = time.Now().Add(time.Hour)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	tmpl.BasicConstraintsValid = true
	for _, o := range opts {
		o(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	if err != nil {
		ca.t.Fatalf("testca: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatalf("testca: %v", err)
	}
	return cert
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatalf("testca: %v", err)
	}
	return n
}
