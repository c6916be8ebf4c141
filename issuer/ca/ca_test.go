package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/issuer/ca"
)

var td = spiffeid.RequireTrustDomainFromString("test.example")

const instance = "0123456789abcdef0123456789abcdef"

func newCA(t *testing.T, ttl time.Duration, life time.Duration, now func() time.Time) *ca.CA {
	t.Helper()
	key, cert, err := ca.Generate(td, now(), life)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.New(ca.Config{TrustDomain: td, Certificate: cert, Key: key, TTL: ttl, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func agent(t *testing.T) actor.AgentID {
	t.Helper()
	id, err := actor.NewAgentID(td, "planner", instance)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var evidence = actor.Evidence{Kind: "unix", UID: 1, GID: 2}

// TestSVIDsAreWhatSPIFFEAsksFor goes through X.509-SVID §2 to §5.
func TestSVIDsAreWhatSPIFFEAsksFor(t *testing.T) {
	c := newCA(t, time.Hour, 24*time.Hour, time.Now)
	key := testca.NewKey(t)
	agentCert, err := c.SignAgent(t.Context(), ca.Agent{ID: agent(t), Key: &key.PublicKey, Grade: actor.Attested, Evidence: evidence},
		func(context.Context, ca.Intent) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	roleCert, err := c.SignRole(ca.Role{ID: spiffeid.RequireFromPath(td, "/deputy/proxy/x"), Key: &key.PublicKey, DNSNames: []string{"x.example"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{c.Certificate()})
	for _, cert := range []*x509.Certificate{agentCert, roleCert} {
		id, _, err := x509svid.Verify([]*x509.Certificate{cert}, bundle)
		if err != nil {
			t.Fatalf("go-spiffe: %v", err)
		}
		if len(cert.URIs) != 1 || cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 2 {
			t.Errorf("%s: %+v", id, cert)
		}
		for _, e := range cert.Extensions {
			if e.Id.String() == "2.5.29.15" && !e.Critical {
				t.Errorf("%s: key usage isn't critical", id)
			}
		}
		if cert.NotAfter.After(time.Now().Add(time.Hour)) || cert.NotAfter.Before(time.Now().Add(59*time.Minute)) {
			t.Errorf("%s ends at %s", id, cert.NotAfter)
		}
	}
	if agentCert.SerialNumber.Cmp(roleCert.SerialNumber) == 0 || agentCert.SerialNumber.BitLen() < 64 {
		t.Error("serial numbers")
	}
	if _, err := roleCert.Verify(x509.VerifyOptions{DNSName: "x.example", Roots: pool(c)}); err != nil {
		t.Errorf("as a server: %v", err)
	}
	if g, e, err := actor.GradeFromCertificate(agentCert); err != nil || g != actor.Attested || e != evidence {
		t.Errorf("grade %v %+v %v", g, e, err)
	}
	if len(agentCert.DNSNames)+len(agentCert.IPAddresses) > 0 {
		t.Error("an agent has names of hosts")
	}
}

func pool(c *ca.CA) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.Certificate())
	return p
}

func TestNothingIsSignedWithoutItsRecord(t *testing.T) {
	c := newCA(t, time.Hour, 24*time.Hour, time.Now)
	key := testca.NewKey(t)
	a := ca.Agent{ID: agent(t), Key: &key.PublicKey, Grade: actor.Asserted}
	gone := errors.New("the disk is gone")
	if cert, err := c.SignAgent(t.Context(), a, func(context.Context, ca.Intent) error { return gone }); cert != nil || !errors.Is(err, gone) {
		t.Errorf("%v %v", cert, err)
	}
	var intent ca.Intent
	cert, err := c.SignAgent(t.Context(), a, func(_ context.Context, i ca.Intent) error { intent = i; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if intent.Serial != ca.SerialText(cert.SerialNumber) || !intent.NotAfter.Equal(cert.NotAfter) || intent.ID != a.ID {
		t.Errorf("recorded %+v, signed serial %x until %s", intent, cert.SerialNumber, cert.NotAfter)
	}
}

func TestSigningRefuses(t *testing.T) {
	c := newCA(t, time.Hour, 24*time.Hour, time.Now)
	key := testca.NewKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := actor.NewAgentID(spiffeid.RequireTrustDomainFromString("other.example"), "planner", instance)
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]ca.Agent{
		"another curve":             {ID: agent(t), Key: &p384.PublicKey, Grade: actor.Asserted},
		"no key":                    {ID: agent(t), Grade: actor.Asserted},
		"no ID":                     {Key: &key.PublicKey, Grade: actor.Asserted},
		"another trust domain":      {ID: foreign, Key: &key.PublicKey, Grade: actor.Asserted},
		"no grade":                  {ID: agent(t), Key: &key.PublicKey},
		"attested without evidence": {ID: agent(t), Key: &key.PublicKey, Grade: actor.Attested},
	} {
		recorded := false
		if _, err := c.SignAgent(t.Context(), a, func(context.Context, ca.Intent) error { recorded = true; return nil }); err == nil || recorded {
			t.Errorf("%s: signed (%v), recorded (%v)", name, err == nil, recorded)
		}
	}
	for _, id := range []string{"spiffe://other.example/deputy/broker", "spiffe://test.example/agent/planner/" + instance, "spiffe://test.example/agent", "spiffe://test.example/target/x", "spiffe://test.example"} {
		if _, err := c.SignRole(ca.Role{ID: spiffeid.RequireFromString(id), Key: &key.PublicKey}); err == nil {
			t.Errorf("%s was signed as a role", id)
		}
	}
}

func TestNoSVIDOutlivesTheCA(t *testing.T) {
	now := time.Now()
	clock := now
	c := newCA(t, time.Hour, 90*time.Minute, func() time.Time { return clock })
	key := testca.NewKey(t)
	sign := func() (*x509.Certificate, error) {
		return c.SignRole(ca.Role{ID: spiffeid.RequireFromPath(td, "/deputy/x"), Key: &key.PublicKey})
	}
	clock = now.Add(time.Hour)
	if cert, err := sign(); err != nil || cert.NotAfter.After(c.Certificate().NotAfter) {
		t.Errorf("%v", err)
	}
	clock = now.Add(2 * time.Hour)
	if _, err := sign(); err == nil || !strings.Contains(err.Error(), "CA certificate ended") {
		t.Errorf("after the CA's end: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := testca.New(t, td.Name())
	other := testca.New(t, "other.example")
	leaf := good.SVID(good.ID("/deputy/x"))
	for name, cfg := range map[string]ca.Config{
		"no certificate":       {TrustDomain: td, Key: good.Key()},
		"another trust domain": {TrustDomain: td, Certificate: other.Certificate(), Key: other.Key()},
		"another key":          {TrustDomain: td, Certificate: good.Certificate(), Key: other.Key()},
		"no key":               {TrustDomain: td, Certificate: good.Certificate()},
		"a leaf":               {TrustDomain: td, Certificate: leaf.Certificates[0], Key: leaf.PrivateKey},
		"too short":            {TrustDomain: td, Certificate: good.Certificate(), Key: good.Key(), TTL: time.Second},
		"too long":             {TrustDomain: td, Certificate: good.Certificate(), Key: good.Key(), TTL: 25 * time.Hour},
		"expired":              {TrustDomain: td, Certificate: good.Certificate(), Key: good.Key(), Now: func() time.Time { return time.Now().AddDate(20, 0, 0) }},
		"no trust domain":      {Certificate: good.Certificate(), Key: good.Key()},
	} {
		if _, err := ca.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDecodeCertificates(t *testing.T) {
	one, two, other := testca.New(t, td.Name()), testca.New(t, td.Name()), testca.New(t, "other.example")
	encode := func(kind string, certs ...*x509.Certificate) (b []byte) {
		for _, c := range certs {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: c.Raw})...)
		}
		return b
	}
	got, err := ca.DecodeCertificates(append(encode("CERTIFICATE", one.Certificate(), two.Certificate()), " \n"...), td)
	if err != nil || len(got) != 2 || !got[0].Equal(one.Certificate()) {
		t.Errorf("%v %v", got, err)
	}
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"no PEM":               []byte("hello"),
		"trailing bytes":       append(encode("CERTIFICATE", one.Certificate()), "rest"...),
		"another kind":         encode("PRIVATE KEY", one.Certificate()),
		"another trust domain": encode("CERTIFICATE", one.Certificate(), other.Certificate()),
		"a leaf":               encode("CERTIFICATE", one.SVID(one.ID("/x")).Certificates[0]),
	} {
		if _, err := ca.DecodeCertificates(b, td); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBundleWakesItsReaders(t *testing.T) {
	one, two := testca.New(t, td.Name()), testca.New(t, td.Name())
	b := ca.NewBundle(td, one.Certificate())
	certs, changed := b.Current()
	if len(certs) != 1 {
		t.Fatal(certs)
	}
	b.Set(one.Certificate(), two.Certificate())
	<-changed
	if certs, changed = b.Current(); len(certs) != 2 {
		t.Fatal(certs)
	}
	select {
	case <-changed:
		t.Error("nothing changed")
	default:
	}
}

func FuzzParseRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := ca.ParseRequest(der)
		if err != nil {
			return
		}
		// Whatever is accepted was signed by the key that it names.
		req, err := x509.ParseCertificateRequest(der)
		if err != nil || req.CheckSignature() != nil || !got.Equal(req.PublicKey) {
			t.Errorf("accepted %x", der)
		}
	})
}
