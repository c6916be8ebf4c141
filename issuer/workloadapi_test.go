package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	goworkload "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/workloadapi"
)

// shortLived makes SVIDs end after ttl.
func shortLived(t *testing.T, ttl time.Duration) func(*issuer.Config) {
	return func(c *issuer.Config) {
		authority := testca.New(t, trustDomain)
		signer, err := ca.New(ca.Config{TrustDomain: authority.TrustDomain(), Certificate: authority.Certificate(), Key: authority.Key(), TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		c.CA = signer
	}
}

// TestGoSPIFFEsOwnClientIsServed uses X509Source of go-spiffe in this process: SVID, rotation at half-life, bundle push.
func TestGoSPIFFEsOwnClientIsServed(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(binary)
	m := newMesh(t, shortLived(t, 4*time.Second), func(c *issuer.Config) {
		c.Roles = []workloadapi.Entry{{
			ID:        spiffeid.RequireFromPath(c.CA.TrustDomain(), "/deputy/proxy/orders"),
			Selectors: attest.Selectors{UID: uid(uint32(os.Geteuid())), GID: uid(uint32(os.Getegid())), Path: exe, SHA256: hex.EncodeToString(sum[:])},
			DNSNames:  []string{"orders-db.test.example"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
		}}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	source, err := goworkload.NewX509Source(ctx, goworkload.WithClientOptions(goworkload.WithAddr("unix://"+m.socket())))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid := func() *x509svid.SVID {
		t.Helper()
		v, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	first := svid()
	leaf := first.Certificates[0]
	if first.ID.Path() != "/deputy/proxy/orders" || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
		cmp.Diff([]string{"orders-db.test.example"}, leaf.DNSNames) != "" || len(leaf.IPAddresses) != 1 || len(leaf.URIs) != 1 {
		t.Errorf("%s: KU %v, names %v %v %v", first.ID, leaf.KeyUsage, leaf.DNSNames, leaf.IPAddresses, leaf.URIs)
	}
	bundle := func() *x509bundle.Bundle {
		t.Helper()
		b, err := source.GetX509BundleForTrustDomain(m.td)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, _, err := x509svid.Verify(first.Certificates, bundle()); err != nil {
		t.Errorf("go-spiffe doesn't verify it: %v", err)
	}

	// The bundle is pushed, with the SVID as it was.
	changed := source.Updated()
	next := testca.New(t, trustDomain)
	m.issuer.SetBundle(next.Certificate())
	<-changed
	for end := time.Now().Add(5 * time.Second); len(bundle().X509Authorities()) != 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new bundle didn't come")
		}
	}

	// A new SVID with a new key comes at half of its life.
	for svid().Certificates[0].SerialNumber.Cmp(leaf.SerialNumber) == 0 {
		select {
		case <-source.Updated():
		case <-ctx.Done():
			t.Fatal("no rotation")
		}
	}
	if !time.Now().Before(leaf.NotAfter) {
		t.Errorf("rotated at %s, after the end at %s", time.Now(), leaf.NotAfter)
	}
	if first.PrivateKey.Public().(*ecdsa.PublicKey).Equal(svid().PrivateKey.Public()) {
		t.Error("the key stayed the same")
	}
	if _, _, err := x509svid.Verify(svid().Certificates, bundle()); err != nil {
		t.Errorf("the rotated one doesn't verify: %v", err)
	}
}

func TestTheWorkloadAPIRefuses(t *testing.T) {
	m := newMesh(t, withBroker)
	p := m.start(command{})
	if r := p.must(command{Op: "fetch"}); cmp.Diff([]string{"spiffe://test.example/deputy/broker"}, r.IDs) != "" {
		t.Errorf("the broker got %v", r.IDs)
	}
	if r := p.must(command{Op: "bundles"}); r.Count != 1 {
		t.Errorf("%d bundles", r.Count)
	}
	p.refused(command{Op: "fetch", Header: "none"}, "InvalidArgument", "workload.spiffe.io")
	p.refused(command{Op: "fetch", Header: "false"}, "InvalidArgument", "workload.spiffe.io")
	p.refused(command{Op: "jwt", Audience: []string{"x"}}, "Unimplemented", "JWT-SVID")
	p.refused(command{Op: "jwtbundles"}, "Unimplemented", "JWT-SVID")
	p.refused(command{Op: "validate"}, "Unimplemented", "JWT-SVID")
}

func TestAnAgentNeverBecomesARole(t *testing.T) {
	m := newMesh(t, withBroker)
	p := m.start(command{})
	a := p.attach("planner", p)
	program := p.start(command{})
	for _, q := range []*process{p, program} {
		q.refused(command{Op: "fetch"}, "PermissionDenied", "no identity")
		if r := q.must(command{Op: "bundles"}); r.Count != 1 { // public
			t.Errorf("%d bundles", r.Count)
		}
	}
	p.must(command{Op: "done", Stream: "own"})
	m.gone(a.ID)
	for _, q := range []*process{p, program} {
		q.refused(command{Op: "fetch"}, "PermissionDenied", "no identity")
		q.refused(command{Op: "bundles"}, "PermissionDenied", "no identity")
	}
}

func TestAllSelectorsMustMatch(t *testing.T) {
	self, group := uid(uint32(os.Geteuid())), uid(uint32(os.Getegid()))
	m := newMesh(t, func(c *issuer.Config) {
		add := func(name string, s attest.Selectors) {
			c.Roles = append(c.Roles, workloadapi.Entry{ID: spiffeid.RequireFromPath(c.CA.TrustDomain(), "/app/"+name), Selectors: s})
		}
		add("uid", attest.Selectors{UID: self})
		add("both", attest.Selectors{UID: self, GID: group})
		add("other-uid", attest.Selectors{UID: uid(4242)})
		add("other-gid", attest.Selectors{UID: self, GID: uid(4242)})
		add("other-path", attest.Selectors{UID: self, Path: "/usr/bin/env"})
		add("other-sum", attest.Selectors{UID: self, SHA256: strings.Repeat("0", 64)})
	})
	want := []string{"spiffe://test.example/app/uid", "spiffe://test.example/app/both"}
	if d := cmp.Diff(want, m.start(command{}).must(command{Op: "fetch"}).IDs); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if asRoot {
		other := m.start(command{UID: userUID, GID: userUID, SetIDs: true})
		other.refused(command{Op: "fetch"}, "PermissionDenied", "no identity")
		other.refused(command{Op: "bundles"}, "PermissionDenied", "no identity")
	}
}

func TestAReplacedExecutableMatchesNoPath(t *testing.T) {
	m := newMesh(t, func(c *issuer.Config) {
		// The path of the drivers isn't known yet, so by the entry below.
		c.Roles = nil
	})
	m.stop()
	m.cfg.Roles = []workloadapi.Entry{{ID: spiffeid.RequireFromPath(m.td, "/app/driver"), Selectors: attest.Selectors{Path: m.binary}}}
	m.serve()
	p := m.start(command{})
	p.must(command{Op: "fetch"})
	// Another file stands at the path now; what runs is not what the operator meant.
	moved := filepath.Join(m.dir, "moved")
	if err := os.Rename(m.binary, moved); err != nil {
		t.Fatal(err)
	}
	copyFile(t, m.binary, moved)
	p.refused(command{Op: "fetch"}, "PermissionDenied", "no identity")
	m.start(command{}).must(command{Op: "fetch"})
}

func TestNewRefuses(t *testing.T) {
	good := newMesh(t).cfg
	role := func(path string, s attest.Selectors) func(*issuer.Config) {
		return func(c *issuer.Config) {
			c.Roles = []workloadapi.Entry{{ID: spiffeid.RequireFromPath(c.CA.TrustDomain(), path), Selectors: s}}
		}
	}
	one := attest.Selectors{UID: uid(1)}
	for name, tc := range map[string]struct {
		change func(*issuer.Config)
		want   string
	}{
		"an agent as a role":       {role("/agent/planner/00000000000000000000000000000000", one), "/agent/"},
		"a target as a role":       {role("/target/orders", one), "/target/"},
		"no path":                  {role("", one), "no path"},
		"no selector":              {role("/deputy/broker", attest.Selectors{}), "selector"},
		"a relative path":          {role("/deputy/broker", attest.Selectors{Path: "bin/deputy"}), "absolute"},
		"half a digest":            {role("/deputy/broker", attest.Selectors{SHA256: "abcd"}), "64"},
		"a role as an agent's uid": {role("/deputy/broker", attest.Selectors{UID: uid(agentUIDs.First)}), "range"},
		"no CA":                    {func(c *issuer.Config) { c.CA = nil }, "CA"},
		"no log":                   {func(c *issuer.Config) { c.Log = nil }, "log"},
		"root as an agent's uid":   {func(c *issuer.Config) { c.UIDs.First = 0 }, "above 0"},
		"an agent's bad name":      {func(c *issuer.Config) { c.Agents[0].Name = "X" }, "name"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			cfg.Agents = append(cfg.Agents[:0:0], good.Agents...)
			tc.change(&cfg)
			cfg.Store = nopStore{}
			if _, err := issuer.New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want the word %q", err, tc.want)
			}
		})
	}
	t.Run("the trust domain of dev", func(t *testing.T) {
		dev := testca.New(t, issuer.DevTrustDomain)
		signer, err := ca.New(ca.Config{TrustDomain: dev.TrustDomain(), Certificate: dev.Certificate(), Key: dev.Key()})
		if err != nil {
			t.Fatal(err)
		}
		cfg := good
		cfg.CA, cfg.Store = signer, nopStore{}
		if _, err := issuer.New(cfg); err == nil || !strings.Contains(err.Error(), "--unsafe-dev") {
			t.Errorf("got %v", err)
		}
		cfg.UnsafeDev = true
		if _, err := issuer.New(cfg); err != nil {
			t.Errorf("with UnsafeDev: %v", err)
		}
	})
	t.Run("TCP", func(t *testing.T) {
		cfg := good
		cfg.Store = nopStore{}
		i, err := issuer.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "Unix") {
			t.Errorf("got %v", err)
		}
	})
}
