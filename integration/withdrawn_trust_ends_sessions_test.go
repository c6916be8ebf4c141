package integration_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// When an authority leaves the trust bundle, for instance since its key was stolen, what it vouched for ends: live sessions
// as well as new ones. Agents that the new authority vouches for work.
func TestWithdrawnTrustEndsSessions(t *testing.T) {
	f := newForge(t)
	x := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	root := f.root(dora, x.planner)
	old := f.flow(dora, root, testmesh.Target, x.planner, x.a)
	live, err := f.connect(x.a, f.Address("target"), old.credential())
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close(context.Background())
	if got, err := served(live, "SELECT 'served'"); err != nil || got != "served" {
		t.Fatalf("before: %q %v", got, err)
	}

	f.Issuer.Stop()
	// Whatever the thief of the old key makes, made now.
	thief := f.mint(x.a, x.a.PrivateKey)
	fresh := testca.New(t, testmesh.TrustDomain)
	key, err := x509.MarshalPKCS8PrivateKey(fresh.Key())
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: fresh.Certificate().Raw})
	for name, content := range map[string][]byte{"ca.pem": certificate, "ca.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		// In place: owner and mode stay.
		if err := os.WriteFile(filepath.Join(f.Dir, "issuer", name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.Issuer.Begin()

	// The session asks for nothing, and ends all the same; the agent is told why.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var told *pgconn.PgError
	_, err = live.ReceiveMessage(ctx)
	for err == nil {
		_, err = live.ReceiveMessage(ctx)
	}
	if !errors.As(err, &told) || told.Code != "57P01" || !anyIn(told.Message, []string{"not trusted any more", "revoked"}) {
		t.Errorf("the end of the session: %v", err)
	}
	f.AwaitRecord(t, "proxy", "the end of the session", func(r *audit.Record) bool {
		e, ok := r.Event.(*audit.ConnectionClosed)
		return ok && r.Chain != nil && r.Chain.Token.ID == parsedToken(t, old.parts[0]).ID && e.Reason == "revoked"
	})
	bundle := x509bundle.FromX509Authorities(f.bundle.TrustDomain(), []*x509.Certificate{fresh.Certificate()})
	after := forgeAt(t, f.Mesh, f.idp)
	after.bundle = bundle
	for limit := time.Now().Add(patience / 4); ; time.Sleep(50 * time.Millisecond) {
		if _, err := after.reach(after.ca().SVID(x.a.ID), "GET", f.Address("renewal"), "/ready", ""); err == nil {
			break
		} else if time.Now().After(limit) {
			t.Fatalf("the proxy doesn't come with an SVID of the new authority: %v", err)
		}
	}
	for name, as := range map[string]flow{"the agent": old, "a thief of the old key": {leaf: thief, parts: old.parts}} {
		if in, why := after.letIn(as.leaf, f.Address("target"), as.credential()); in || strings.HasPrefix(why, "28000") {
			t.Errorf("%s is let in: %v, or got past TLS: %s", name, in, why)
		}
		if status, err := after.reach(as.leaf, "POST", f.Address("token"), "/token", form(old.subject()).Encode()); err == nil {
			t.Errorf("the broker answered %s: HTTP %d", name, status)
		}
	}
	// A presenter of the new authority can't bring grants that the old one vouches for.
	renewed := after.ca().SVIDFor(x.a.ID, x.a.PrivateKey)
	if a := after.exchange(renewed, old.subject()); a.status == 200 || !strings.Contains(a.Text, "grant.certificate") && !strings.Contains(a.Text, "revoked") {
		t.Errorf("grants of the old authority: %s", a)
	}

	alice := f.Login(t, "alice")
	if r := alice.SQL(t, testmesh.Nested, "SELECT 'served'"); strings.TrimSpace(r.Stdout) != "served" {
		t.Errorf("a new agent under the new authority: %s", r)
	}
}
