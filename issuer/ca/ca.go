// Package ca is the X.509 authority of a trust domain: ECDSA P-256, X.509-SVIDs as the SPIFFE X.509-SVID
// specification has them (one URI SAN, no CA, critical key usage digitalSignature, both extended key usages).
//
// An agent's certificate can't be signed without its intent being recorded before: SignAgent itself calls the
// recorder between choosing the serial number and signing, so the unsafe order can't be written.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
)

// Bounds of an SVID's life. Certificates count whole seconds, so anything shorter than the minimum is noise.
const (
	MinTTL = 2 * time.Second
	// MaxTTL is less than broker and proxies remember an agent's end, so that no key outlives that.
	MaxTTL     = 3 * time.Hour
	DefaultTTL = time.Hour
)

// backdate allows for clocks that are a little behind.
const backdate = 30 * time.Second

// Config makes a CA.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Certificate *x509.Certificate
	Key         crypto.Signer // ECDSA P-256, of Certificate
	TTL         time.Duration // of SVIDs; DefaultTTL when zero
	Now         func() time.Time
}

// CA signs SVIDs. Safe for concurrent use.
type CA struct {
	td   spiffeid.TrustDomain
	cert *x509.Certificate
	key  crypto.Signer
	ttl  time.Duration
	now  func() time.Time
}

// New checks that the certificate is a signing certificate of the trust domain and belongs to the key.
func New(cfg Config) (*CA, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.TTL < MinTTL || cfg.TTL > MaxTTL {
		return nil, fmt.Errorf("CA: SVID lifetime %s: want %s to %s", cfg.TTL, MinTTL, MaxTTL)
	}
	if cfg.TrustDomain.IsZero() {
		return nil, errors.New("CA: no trust domain")
	}
	if err := checkAuthority(cfg.Certificate, cfg.TrustDomain); err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	pub, ok := cfg.Certificate.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("CA certificate: want an ECDSA P-256 key")
	}
	if cfg.Key == nil || !pub.Equal(cfg.Key.Public()) {
		return nil, errors.New("CA: the key doesn't belong to the certificate")
	}
	now := cfg.Now()
	if now.Before(cfg.Certificate.NotBefore) || !now.Before(cfg.Certificate.NotAfter) {
		return nil, fmt.Errorf("CA certificate: valid from %s to %s, which isn't now", cfg.Certificate.NotBefore, cfg.Certificate.NotAfter)
	}
	return &CA{cfg.TrustDomain, cfg.Certificate, cfg.Key, cfg.TTL, cfg.Now}, nil
}

// checkAuthority holds a signing certificate to X.509-SVID §3: its SPIFFE ID has no path.
func checkAuthority(c *x509.Certificate, td spiffeid.TrustDomain) error {
	switch {
	case c == nil:
		return errors.New("there is none")
	case !c.IsCA || !c.BasicConstraintsValid:
		return errors.New("it isn't a CA certificate (basic constraints)")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its key usage lacks keyCertSign")
	case len(c.URIs) != 1 || c.URIs[0].String() != td.IDString():
		return fmt.Errorf("its one URI name must be %s", td.IDString())
	}
	return nil
}

// TrustDomain is the CA's trust domain.
func (c *CA) TrustDomain() spiffeid.TrustDomain { return c.td }

// Certificate is the signing certificate; it stands in the trust bundle.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// Role is a request for the SVID of a role or another workload that isn't an agent.
type Role struct {
	ID       spiffeid.ID
	Key      *ecdsa.PublicKey
	DNSNames []string
	IPs      []net.IP
}

// SignRole signs the SVID of something that is no agent; an ID under /agent/ is refused.
func (c *CA) SignRole(r Role) (*x509.Certificate, error) {
	if err := CheckRoleID(r.ID, c.td); err != nil {
		return nil, fmt.Errorf("signing an SVID: %w", err)
	}
	tmpl, err := c.template(r.ID, r.Key, c.ttl)
	if err != nil {
		return nil, fmt.Errorf("signing an SVID for %s: %w", r.ID, err)
	}
	tmpl.DNSNames, tmpl.IPAddresses = r.DNSNames, r.IPs
	return c.sign(tmpl, r.Key)
}

// CheckRoleID says whether an ID may be issued to something that is no agent.
func CheckRoleID(id spiffeid.ID, td spiffeid.TrustDomain) error {
	if !id.MemberOf(td) {
		return fmt.Errorf("%q isn't in the trust domain %s", id, td.Name())
	}
	first := ""
	if p := id.Path(); p != "" {
		first, _, _ = strings.Cut(p[1:], "/")
	}
	switch first {
	case "":
		return fmt.Errorf("%q has no path", id)
	case "agent":
		return fmt.Errorf("%q lies under /agent/, which only the spawn service issues", id)
	case "target":
		return fmt.Errorf("%q lies under /target/, which names audiences, not workloads", id)
	}
	return nil
}

// Agent is a request for an agent's SVID.
type Agent struct {
	ID       actor.AgentID
	Key      *ecdsa.PublicKey
	Grade    actor.Grade
	Evidence actor.Evidence
}

// Intent is what is going to be signed for an agent.
type Intent struct {
	Agent
	Serial   string // hexadecimal
	NotAfter time.Time
}

// SignAgent signs an agent's SVID after record has made the intent durable. When record fails nothing is signed.
// A recorded intent may remain without a certificate (a crash in between), never the other way round.
func (c *CA) SignAgent(ctx context.Context, a Agent, record func(context.Context, Intent) error) (*x509.Certificate, error) {
	fail := func(err error) (*x509.Certificate, error) {
		return nil, fmt.Errorf("signing an SVID for %s: %w", a.ID, err)
	}
	if a.ID.IsZero() || a.ID.TrustDomain() != c.td {
		return fail(fmt.Errorf("it isn't an agent of the trust domain %s", c.td.Name()))
	}
	ext, err := actor.GradeExtension(a.Grade, a.Evidence)
	if err != nil {
		return fail(err)
	}
	tmpl, err := c.template(a.ID.ID(), a.Key, c.ttl)
	if err != nil {
		return fail(err)
	}
	tmpl.ExtraExtensions = []pkix.Extension{ext}
	if err := record(ctx, Intent{Agent: a, Serial: SerialText(tmpl.SerialNumber), NotAfter: tmpl.NotAfter}); err != nil {
		return fail(fmt.Errorf("recording the intent: %w", err))
	}
	return c.sign(tmpl, a.Key)
}

// SerialText is how records show a serial number.
func SerialText(n *big.Int) string { return hex.EncodeToString(n.Bytes()) }

func (c *CA) template(id spiffeid.ID, key *ecdsa.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return nil, errors.New("want an ECDSA P-256 key")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := c.now()
	end := c.end(now, ttl)
	if !end.After(now) {
		return nil, fmt.Errorf("the CA certificate ended at %s; make a new one", c.cert.NotAfter)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{c.td.Name()}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()},
	}, nil
}

func (c *CA) end(now time.Time, ttl time.Duration) time.Time {
	if end := now.Add(ttl).Truncate(time.Second); !end.After(c.cert.NotAfter) {
		return end
	}
	return c.cert.NotAfter
}

// End is when an SVID ends that is signed now.
func (c *CA) End() time.Time { return c.end(c.now(), c.ttl) }

func (c *CA) sign(tmpl *x509.Certificate, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key, c.key)
	if err != nil {
		return nil, fmt.Errorf("signing an SVID: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("signing an SVID: %w", err)
	}
	return cert, nil
}

// newSerial returns 127 random bits: positive, and never zero in practice or in fact.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// KeyDigest is the SHA-256 of a key's SubjectPublicKeyInfo.
func KeyDigest(key *ecdsa.PublicKey) ([sha256.Size]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(spki), nil
}
