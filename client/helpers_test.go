package client_test

import (
	"crypto/ecdsa"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/testca"
)

const (
	meshURL = "https://broker.test"
	idToken = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
)

// source is an identity that tests can rotate.
type source struct {
	ca *testca.CA
	mu sync.Mutex
	at *x509svid.SVID
}

func newSource(ca *testca.CA, path string) *source {
	return &source{ca: ca, at: ca.SVID(ca.ID(path))}
}

func (s *source) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at, nil
}

func (s *source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.ca.Bundle().GetX509BundleForTrustDomain(td)
}

func (s *source) rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.ca.SVID(s.at.ID)
}

func agentPath(names ...string) string {
	p := "/agent"
	for _, n := range names {
		p += "/" + n + "/" + actor.NewHexID()
	}
	return p
}

func targetID(t testing.TB, ca *testca.CA, name string) spiffeid.ID {
	t.Helper()
	id, err := actor.TargetID(ca.TrustDomain(), name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// userGrant is a first hop for an agent.
func userGrant(t testing.TB, ca *testca.CA, delegate spiffeid.ID, left int) string {
	t.Helper()
	key := testca.NewKey(t)
	return signUserGrant(t, ca, key, delegate, left)
}

func signUserGrant(t testing.TB, ca *testca.CA, key *ecdsa.PrivateKey, delegate spiffeid.ID, left int) string {
	t.Helper()
	id, err := actor.ParseAgentID(delegate)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	g, err := actor.SignUserGrant(key, actor.UserGrant{
		Issuer: "https://idp.test", Root: actor.Root{Issuer: "https://idp.test", Hash: actor.Hash(idToken), SID: "s1"},
		Delegate: id, Mesh: meshURL, Subject: actor.SubjectID{Issuer: "https://idp.test", Subject: "alice"}, Txn: actor.NewHexID(),
		Cap:  actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{targetID(t, ca, "orders-db")}, Actions: []string{"select", "insert"}}},
		Left: left, Purpose: "refunds", IssuedAt: now, Expires: now.Add(time.Hour), ID: actor.NewHexID(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func chainFor(t testing.TB, ca *testca.CA, delegate spiffeid.ID) client.Chain {
	return client.Chain{Grants: []string{userGrant(t, ca, delegate, 3)}, IDToken: idToken}
}

type noSource struct{ client.Source }

func newNoSource() client.Source { return noSource{} }

func (noSource) GetX509SVID() (*x509svid.SVID, error) { return nil, errNoIdentity }

var errNoIdentity = errors.New("no identity")
