//go:build bench

package load_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
)

const (
	flowDomain = "bench.example"
	flowMesh   = "https://broker.bench.example"
)

// flow is everything that a chain is made of, with all keys in this process.
type flow struct {
	b                           *bench
	ca                          *testca.CA
	target                      target.Name
	certifying, tokenKey, login *ecdsa.PrivateKey
	provider                    *httptest.Server
	providerKey                 *ecdsa.PrivateKey
	tokens                      *idp.Verifier
	user                        actor.SubjectID
	idToken                     string
	signedIn                    time.Time
}

func (b *bench) flow() *flow {
	b.t.Helper()
	name, err := target.ParseName("orders-db")
	if err != nil {
		b.t.Fatal(err)
	}
	f := &flow{b: b, ca: testca.New(b.t, flowDomain), target: name, certifying: testca.NewKey(b.t), tokenKey: testca.NewKey(b.t),
		login: testca.NewKey(b.t), providerKey: testca.NewKey(b.t), signedIn: time.Now().Add(-time.Minute).Truncate(time.Second)}
	o := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: f.providerKey.Public(), KeyID: "k", Algorithm: "ES256"}}, Algorithms: []string{"ES256"}}
	f.provider = httptest.NewTLSServer(o)
	b.t.Cleanup(f.provider.Close)
	o.SetIssuer(f.provider.URL)
	f.user = actor.SubjectID{Issuer: f.provider.URL, Subject: "ben"}
	f.signIn()
	f.tokens, err = idp.New(idp.Config{Providers: []idp.Provider{f.providerConfig()}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := f.tokens.Fetch(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	return f
}

// signIn makes another ID token for the user; what is signed from now on belongs to it.
func (f *flow) signIn() {
	f.idToken = oidctest.SignIDToken(f.providerKey, "k", "ES256", string(f.json(map[string]any{
		"iss": f.provider.URL, "sub": "ben", "aud": "deputy", "nonce": actor.NonceFor(f.login.Public()), "sid": "sid-1",
		"iat": f.signedIn.Unix(), "auth_time": f.signedIn.Unix(), "exp": f.signedIn.Add(8 * time.Hour).Unix(), "groups": []string{"bench"},
		"name": "Ben Chmark", "email": "ben@bench.example", "email_verified": true, "jti": actor.NewHexID(),
	})))
}

func (f *flow) providerConfig() idp.Provider {
	return idp.Provider{Issuer: f.provider.URL, ClientID: "deputy", Algorithms: []string{"ES256"}, Client: f.provider.Client()}
}

func (f *flow) json(v any) []byte {
	f.b.t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		f.b.t.Fatal(err)
	}
	return raw
}

func (f *flow) must(s string, err error) string {
	f.b.t.Helper()
	if err != nil {
		f.b.t.Fatal(err)
	}
	return s
}

// agents makes the identities of a chain of that depth, attested, outermost first.
func (f *flow) agents(depth int) []*x509svid.SVID {
	f.b.t.Helper()
	grade, err := actor.GradeExtension(actor.Attested, actor.Evidence{Kind: "unix", UID: 20001, GID: 20001})
	if err != nil {
		f.b.t.Fatal(err)
	}
	id, err := actor.NewAgentID(f.ca.TrustDomain(), "planner", actor.NewHexID())
	var out []*x509svid.SVID
	for i := range depth {
		if i > 0 {
			id, err = id.Child("worker", actor.NewHexID())
		}
		if err != nil {
			f.b.t.Fatal(err)
		}
		out = append(out, f.ca.SVID(id.ID(), testca.Extension(grade)))
	}
	return out
}

func (f *flow) agentID(s *x509svid.SVID) actor.AgentID {
	f.b.t.Helper()
	id, err := actor.ParseAgentID(s.ID)
	if err != nil {
		f.b.t.Fatal(err)
	}
	return id
}

func (f *flow) details() actor.Details {
	d := actor.PostgresDetail{Actions: []string{"select", "insert", "update", "delete"}, Databases: []string{"shop"}}
	d.Locations = append(d.Locations, f.target.ID(f.ca.TrustDomain()))
	return actor.Details{d}
}

// userGrant is the user's grant for the first agent.
func (f *flow) userGrant(first *x509svid.SVID, txn string) string {
	f.b.t.Helper()
	now := time.Now().Truncate(time.Second)
	return f.must(actor.SignUserGrant(f.login, actor.UserGrant{
		Issuer: f.user.Issuer, Root: actor.Root{Issuer: f.user.Issuer, Hash: actor.Hash(f.idToken), SID: actor.SessionID(f.idToken, "sid-1")},
		Delegate: f.agentID(first), Mesh: flowMesh, Subject: f.user, Txn: txn, Cap: f.details(), Left: actor.MaxLeft, Purpose: "measurements",
		IssuedAt: now.Add(-time.Second), Expires: now.Add(50 * time.Minute), ID: actor.NewHexID(),
	}))
}

// grants passes on what first signed, down the agents; newest first, as in a credential.
func (f *flow) grants(agents []*x509svid.SVID, userGrant string) []string {
	f.b.t.Helper()
	out := []string{userGrant}
	for i, from := range agents[:len(agents)-1] {
		now := time.Now().Truncate(time.Second)
		g, err := actor.Narrow(out[0], actor.Narrowing{
			Issuer: f.agentID(from), Delegate: f.agentID(agents[i+1]), IssuedAt: now.Add(-time.Second), Expires: now.Add(45 * time.Minute), NotAfter: from.Certificates[0].NotAfter,
		})
		if err != nil {
			f.b.t.Fatal(err)
		}
		out = append([]string{f.must(actor.SignGrant(from.PrivateKey, from.Certificates, g))}, out...)
	}
	return out
}

// credential is what the last agent presents at the target.
func (f *flow) credential(agents []*x509svid.SVID, txn string) string {
	f.b.t.Helper()
	now := time.Now().Truncate(time.Second)
	grants := f.grants(agents, f.userGrant(agents[0], txn))
	var ids []actor.AgentID
	for _, a := range agents {
		ids = append(ids, f.agentID(a))
	}
	token := f.must(actor.SignToken(f.tokenKey, actor.NonceFor(f.tokenKey.Public()), actor.Token{
		Issuer: flowMesh, Audience: f.target.ID(f.ca.TrustDomain()), Subject: f.user, SID: actor.SessionID(f.idToken, "sid-1"), AuthTime: f.signedIn,
		Actors: ids, Certificate: actor.CertificateHash(agents[len(agents)-1].Certificates[0]), Details: f.details(), Roles: []string{"bench"},
		Purpose: "measurements", Txn: txn, Head: actor.Hash(grants[0]), IssuedAt: now, NotBefore: now, Expires: now.Add(actor.TokenLife), ID: actor.NewHexID(),
	}))
	return actor.JoinCredential(token, grants, f.idToken)
}

// keyStatement is the certifying key's word for the token key.
func (f *flow) keyStatement() actor.KeyStatement {
	now := time.Now()
	return actor.KeyStatement{Mesh: flowMesh, Key: &f.tokenKey.PublicKey, NotBefore: now.Add(-time.Hour), Expires: now.Add(24 * time.Hour)}
}

// TokenKey makes a flow the token keys of a verifier.
func (f *flow) TokenKey(string) (actor.KeyStatement, error) { return f.keyStatement(), nil }
