package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/testca"
)

const (
	meshURL  = "https://broker.test.invalid"
	idpURL   = "https://idp.test.invalid"
	clientID = "deputy-test"
)

// world makes real credentials and is the proxy that verifies them.
type world struct {
	t          *testing.T
	now        time.Time
	ca         *testca.CA
	certifying *ecdsa.PrivateKey
	token      *ecdsa.PrivateKey
	statement  string
	idp        *ecdsa.PrivateKey
	jwks       []byte
	target     spiffeid.ID
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: time.Now().UTC().Truncate(time.Second), ca: testca.New(t, "test.invalid"), certifying: testca.NewKey(t), token: testca.NewKey(t), idp: testca.NewKey(t)}
	w.target = w.ca.ID("/target/orders-db")
	var err error
	w.statement, err = actor.SignKeyStatement(w.certifying, actor.KeyStatement{Mesh: meshURL, Key: &w.token.PublicKey, NotBefore: w.now.Add(-time.Hour), Expires: w.now.Add(24 * time.Hour)})
	w.must(err)
	w.jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &w.idp.PublicKey, KeyID: "idp-1", Algorithm: "ES256", Use: "sig"}}})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) idToken(nonce string) string {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: w.idp, KeyID: "idp-1"}}, nil)
	w.must(err)
	claims, err := json.Marshal(map[string]any{"iss": idpURL, "sub": "alice", "aud": clientID, "nonce": nonce, "sid": "sid-1",
		"auth_time": w.now.Add(-time.Minute).Unix(), "iat": w.now.Add(-time.Minute).Unix(), "exp": w.now.Add(time.Hour).Unix()})
	w.must(err)
	jws, err := s.Sign(claims)
	w.must(err)
	out, err := jws.CompactSerialize()
	w.must(err)
	return out
}

// credential is alice's, carried by a researcher that her planner started.
func (w *world) credential() (credential string, peer []*x509.Certificate) {
	grade, err := actor.GradeExtension(actor.Asserted, actor.Evidence{})
	w.must(err)
	planner, err := actor.NewAgentID(w.ca.TrustDomain(), "planner", actor.NewHexID())
	w.must(err)
	researcher, err := planner.Child("researcher", actor.NewHexID())
	w.must(err)
	life := testca.Validity(w.now.Add(-time.Minute), w.now.Add(time.Hour))
	plannerSVID := w.ca.SVID(planner.ID(), life, testca.Extension(grade))
	researcherSVID := w.ca.SVID(researcher.ID(), life, testca.Extension(grade))

	login := testca.NewKey(w.t)
	id := w.idToken(actor.NonceFor(login.Public()))
	may := func(actions ...string) actor.Details {
		return actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{w.target}, Actions: actions}}
	}
	user := actor.SubjectID{Issuer: idpURL, Subject: "alice"}
	sid := actor.SessionID(id, "sid-1")
	root, err := actor.SignUserGrant(login, actor.UserGrant{Issuer: idpURL, Root: actor.Root{Issuer: idpURL, Hash: actor.Hash(id), SID: sid}, Delegate: planner, Mesh: meshURL,
		Subject: user, Txn: actor.NewHexID(), Cap: may("select", "update"), Left: 3, Purpose: "q3 refunds", IssuedAt: w.now, Expires: w.now.Add(30 * time.Minute), ID: actor.NewHexID()})
	w.must(err)
	left := 1
	narrowed, err := actor.Narrow(root, actor.Narrowing{Issuer: planner, Delegate: researcher, Cap: may("select"), Left: &left, Purpose: "read",
		IssuedAt: w.now, Expires: w.now.Add(20 * time.Minute), NotAfter: plannerSVID.Certificates[0].NotAfter})
	w.must(err)
	grant, err := actor.SignGrant(plannerSVID.PrivateKey, plannerSVID.Certificates, narrowed)
	w.must(err)
	token, err := actor.SignToken(w.token, actor.NonceFor(w.token.Public()), actor.Token{Issuer: meshURL, Audience: w.target, Subject: user, SID: sid, AuthTime: w.now.Add(-time.Minute),
		Actors: []actor.AgentID{planner, researcher}, Certificate: actor.CertificateHash(researcherSVID.Certificates[0]), Details: may("select"), Roles: []string{"analyst"},
		Purpose: "q3 refunds", Txn: narrowed.Txn, Head: actor.Hash(grant), IssuedAt: w.now, NotBefore: w.now, Expires: w.now.Add(5 * time.Minute), ID: actor.NewHexID()})
	w.must(err)
	return actor.JoinCredential(token, []string{grant, root}, id), researcherSVID.Certificates
}

type tokenKeys struct{ k actor.KeyStatement }

func (t tokenKeys) TokenKey(string) (actor.KeyStatement, error) { return t.k, nil }

type idTokens struct{ w *world }

func (i idTokens) VerifyIDToken(_ context.Context, raw string) (actor.IdentityClaims, error) {
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return actor.IdentityClaims{}, err
	}
	payload, err := jws.Verify(&i.w.idp.PublicKey)
	if err != nil {
		return actor.IdentityClaims{}, err
	}
	var c struct {
		Iss, Sub, Nonce, SID string
		AuthTime             int64 `json:"auth_time"`
		Iat, Exp             int64
	}
	err = json.Unmarshal(payload, &c)
	return actor.IdentityClaims{Issuer: c.Iss, Subject: c.Sub, Nonce: c.Nonce, SID: c.SID, AuthTime: time.Unix(c.AuthTime, 0).UTC(),
		IssuedAt: time.Unix(c.Iat, 0).UTC(), Expires: time.Unix(c.Exp, 0).UTC(), Payload: payload}, err
}

type nothingRevoked struct{}

func (nothingRevoked) Check([]actor.RevocationKey) error { return nil }

// record does what a proxy does: verify, keep, decide.
func (w *world) record(l *audit.Log, credential string, peer []*x509.Certificate, change func(*audit.CredentialInput)) (*audit.Chain, audit.Receipt) {
	w.t.Helper()
	k, err := actor.ParseKeyStatement(w.statement, &w.certifying.PublicKey, meshURL)
	w.must(err)
	v, err := actor.NewVerifier(actor.Config{TrustDomain: w.ca.TrustDomain(), Bundles: w.ca.Bundle(), Target: w.target, Mesh: meshURL,
		TokenKeys: tokenKeys{k}, IdentityTokens: idTokens{w}, Revocations: nothingRevoked{}, Now: func() time.Time { return w.now }})
	w.must(err)
	chain, err := v.Verify(w.t.Context(), peer, credential)
	w.must(err)
	in := audit.CredentialInput{Txn: chain.Txn, Credential: credential, Authorities: [][]byte{w.ca.Certificate().Raw}, KeyStatement: w.statement, IdentityKeys: w.jwks,
		VerifiedAt: w.now, TrustDomain: "test.invalid", Mesh: meshURL, Target: w.target.String(), RootEvidence: string(actor.RootVerified), Audiences: []string{clientID}}
	for _, c := range peer {
		in.Peer = append(in.Peer, c.Raw)
	}
	if change != nil {
		change(&in)
	}
	digest, err := l.PutCredential(w.t.Context(), in)
	w.must(err)
	recorded := audit.FromChain(chain, digest)
	r := allow(recorded)
	r.Time = w.now
	return recorded, mustAppend(w.t, l, r)
}

func (w *world) keys(cfg audit.Config) *audit.Keys {
	return &audit.Keys{Mesh: meshURL, TrustDomain: "test.invalid", Logs: []string{cfg.Key.Public()}, CertifyingKeys: []*ecdsa.PublicKey{&w.certifying.PublicKey},
		Authorities: []*x509.Certificate{w.ca.Certificate()}, IdentityProviders: []audit.IdentityProvider{{Issuer: idpURL, Audiences: []string{clientID}, Keys: w.jwks}}}
}

// Every signature in a chain is verified again, offline, as of the time when it was used, on the operator's keys alone.
func TestCredentialsAreVerifiedAgain(t *testing.T) {
	w := newWorld(t)
	cfg := audittest.Config(t)
	l := audittest.OpenConfig(t, cfg)
	credential, peer := w.credential()
	chain, _ := w.record(l, credential, peer, nil)
	mustAppend(t, l, allow(chain))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	fsys := os.DirFS(cfg.Dir)
	keys := w.keys(cfg)
	raw, err := json.Marshal(keys) // by way of the file
	w.must(err)
	keys, err = audit.ParseKeys(raw)
	w.must(err)
	report, err := audit.Verify(fsys, keys, audit.VerifyOptions{})
	if err != nil || report.Err() != nil {
		t.Fatalf("verify: %v, %v", err, report.Err())
	}
	if c := report.Credentials; c.Verified != 1 || c.Records != 4 || c.Without != 0 || c.RecordedKeys != 0 {
		t.Errorf("credentials: %+v", c)
	}

	other := newWorld(t)
	for name, change := range map[string]func(*audit.Keys){
		"another certifying key":     func(k *audit.Keys) { k.CertifyingKeys = []*ecdsa.PublicKey{&other.certifying.PublicKey} },
		"another trust bundle":       func(k *audit.Keys) { k.Authorities = []*x509.Certificate{other.ca.Certificate()} },
		"other keys of the provider": func(k *audit.Keys) { k.IdentityProviders[0].Keys = other.jwks },
		"no such provider":           func(k *audit.Keys) { k.IdentityProviders = nil },
		"another audience":           func(k *audit.Keys) { k.IdentityProviders[0].Audiences = []string{"another"} },
		"another mesh":               func(k *audit.Keys) { k.Mesh = "https://elsewhere.test.invalid" },
	} {
		wrong := w.keys(cfg)
		change(wrong)
		report, err := audit.Verify(fsys, wrong, audit.VerifyOptions{})
		if err != nil || len(report.Problems) == 0 || report.Problems[0].Kind != audit.ProblemCredential {
			t.Errorf("%s: %v, %v", name, err, report.Problems)
		}
	}
	// Where the list has no keys of the provider, those in the log are taken, and the report says so.
	lenient := w.keys(cfg)
	lenient.IdentityProviders[0].Keys = nil
	report, err = audit.Verify(fsys, lenient, audit.VerifyOptions{})
	if err != nil || report.Err() != nil || report.Credentials.RecordedKeys != 1 {
		t.Errorf("without the provider's keys: %v, %v, %+v", err, report.Err(), report.Credentials)
	}
}

// A proxy that lies about a chain, with its own good log key, is found out.
func TestChainThatTheCredentialDoesNotBearOut(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*audit.CredentialInput)
		chain  func(*audit.Chain)
		at     time.Duration
	}{
		"another user on the record":   {chain: func(c *audit.Chain) { c.User.Subject = "mallory" }},
		"a better grade on the record": {chain: func(c *audit.Chain) { c.Hops[2].Grade = actor.Attested }},
		"a hop left out":               {chain: func(c *audit.Chain) { c.Hops = append(c.Hops[:1:1], c.Hops[2]) }},
		"evidence that isn't there":    {chain: func(c *audit.Chain) { c.Verification = audit.DigestOf([]byte("nothing")) }},
		"used after its end":           {chain: func(*audit.Chain) {}, at: time.Hour},
		"a credential that was changed": {chain: func(*audit.Chain) {}, change: func(in *audit.CredentialInput) {
			i := strings.Index(in.Credential, ".") + 20
			flipped := []byte(in.Credential)
			flipped[i] = 'A' + (flipped[i]-'A'+1)%26
			in.Credential = string(flipped)
		}},
		"verified at another time": {chain: func(*audit.Chain) {}, change: func(in *audit.CredentialInput) { in.VerifiedAt = in.VerifiedAt.Add(2 * time.Hour) }},
		"presented by another":     {chain: func(*audit.Chain) {}, change: func(in *audit.CredentialInput) { in.Peer = [][]byte{in.Authorities[0]} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			cfg := audittest.Config(t)
			l := audittest.OpenConfig(t, cfg)
			credential, peer := w.credential()
			good, _ := w.record(l, credential, peer, c.change)
			lie := audit.Chain{Txn: good.Txn, User: good.User, SID: good.SID, AuthTime: good.AuthTime, ACR: good.ACR, Roles: good.Roles, Purpose: good.Purpose,
				RootEvidence: good.RootEvidence, Mesh: good.Mesh, Target: good.Target, Hops: append([]actor.Hop(nil), good.Hops...), Token: good.Token, Cap: good.Cap,
				Expires: good.Expires, Verification: good.Verification}
			c.chain(&lie)
			r := allow(&lie)
			r.Time = w.now.Add(c.at)
			mustAppend(t, l, r)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			report, err := audit.Verify(os.DirFS(cfg.Dir), w.keys(cfg), audit.VerifyOptions{})
			if err != nil || !errors.Is(report.Err(), audit.ErrEvidence) {
				t.Fatalf("verify: %v, %v", err, report.Err())
			}
			for _, p := range report.Problems {
				if p.Kind != audit.ProblemCredential {
					t.Errorf("problem %v, want only %s", p, audit.ProblemCredential)
				}
			}
		})
	}
}

func TestPublicKeysOnly(t *testing.T) {
	w := newWorld(t)
	cfg := audittest.Config(t)
	raw, err := json.Marshal(w.keys(cfg))
	w.must(err)
	private, err := x509.MarshalPKCS8PrivateKey(crypto.PrivateKey(w.certifying))
	w.must(err)
	if bytes.Contains(raw, private) || strings.Contains(string(raw), "PRIVATE") {
		t.Error("the list of keys holds a private one")
	}
}
