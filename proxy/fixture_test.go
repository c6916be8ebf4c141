package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

const (
	domain  = "example.org"
	meshURL = "https://broker.example.org"
	idpURL  = "https://login.example.org"
)

// mesh is everything around one core: an authority, a broker's keys, a signed-in user, two agents.
type mesh struct {
	t          testing.TB
	ca         *testca.CA
	certifying *ecdsa.PrivateKey
	tokenKey   *ecdsa.PrivateKey
	policyKey  *ecdsa.PrivateKey
	login      *ecdsa.PrivateKey
	target     target.Name
	id         spiffeid.ID
	clock      *clock
	stateDir   string
	log        *audit.Log
	state      *proxy.State
	core       *proxy.Core
	idTokens   *knownTokens

	planner, researcher *agent
	txn                 string
	revision            uint64
}

type agent struct {
	id  actor.AgentID
	key *ecdsa.PrivateKey
	crt []*x509.Certificate
}

// clock stands still until a test sets it ahead, so that a busy machine makes nothing stale.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// knownTokens stands in for the identity provider's keys: it knows which tokens the provider issued.
type knownTokens struct {
	mu     sync.Mutex
	claims map[string]actor.IdentityClaims
}

func (k *knownTokens) VerifyIDToken(_ context.Context, raw string) (actor.IdentityClaims, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.claims[raw]
	if !ok {
		return c, errors.New("no such key")
	}
	return c, nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type option func(*audit.Config, *proxy.Config, *proxy.StateConfig)

func newMesh(t testing.TB, opts ...option) *mesh {
	t.Helper()
	m := &mesh{
		t: t, ca: testca.New(t, domain), certifying: testca.NewKey(t), tokenKey: testca.NewKey(t),
		policyKey: testca.NewKey(t), login: testca.NewKey(t), target: must(target.ParseName("orders-db")),
		clock: newClock(), stateDir: t.TempDir(), idTokens: &knownTokens{claims: map[string]actor.IdentityClaims{}},
		txn: actor.NewHexID(),
	}
	m.id = m.target.ID(m.ca.TrustDomain())
	m.planner = m.agent(must(actor.NewAgentID(m.ca.TrustDomain(), "planner", actor.NewHexID())))
	m.researcher = m.agent(must(m.planner.id.Child("researcher", actor.NewHexID())))
	logCfg := audittest.Config(t)
	stateCfg := proxy.StateConfig{
		Mesh: meshURL, Certifying: &m.certifying.PublicKey, PolicyKeys: []*ecdsa.PublicKey{&m.policyKey.PublicKey},
		Dir: m.stateDir, Logger: slog.New(slog.DiscardHandler), Now: m.clock.Now,
	}
	cfg := proxy.Config{
		TrustDomain: m.ca.TrustDomain(), Bundles: m.ca.Bundle(), Mesh: meshURL, IdentityTokens: m.idTokens,
		Audiences: []string{"deputy"}, Targets: []proxy.Target{{Name: m.target}},
		Logger: slog.New(slog.DiscardHandler), Now: m.clock.Now,
	}
	for _, o := range opts {
		o(&logCfg, &cfg, &stateCfg)
	}
	if d, ok := logCfg.FS.(*disk); ok && d.mayBreak {
		m.log = must(audit.Open(logCfg))
		t.Cleanup(func() { _ = m.log.Close() })
	} else {
		m.log = audittest.OpenConfig(t, logCfg)
	}
	stateCfg.Log, cfg.Log = m.log, m.log
	m.state = must(proxy.NewState(stateCfg))
	cfg.State, cfg.IdentityKeys = m.state, proxy.NewIdentityKeys(m.log, 12*time.Hour, m.clock.Now)
	m.core = must(proxy.New(cfg))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.core.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	return m
}

// serving is a mesh whose proxy got its first snapshot.
func serving(t testing.TB, opts ...option) *mesh {
	t.Helper()
	m := newMesh(t, opts...)
	m.apply(m.snapshot())
	return m
}

// servingOnBrokenDisk is for tests that break the disk: closing a poisoned log fails, and may.
func servingOnBrokenDisk(t testing.TB, d *disk) *mesh {
	t.Helper()
	d.mayBreak = true
	return serving(t, d.use)
}

func (m *mesh) agent(id actor.AgentID) *agent {
	key := testca.NewKey(m.t)
	grade := must(actor.GradeExtension(actor.Attested, actor.Evidence{Kind: "unix", UID: 20001, GID: 20001}))
	svid := m.ca.SVIDFor(id.ID(), key, testca.Extension(grade))
	return &agent{id, key, svid.Certificates}
}

func (m *mesh) keyStatement(certifying *ecdsa.PrivateKey) string {
	now := m.clock.Now()
	return must(actor.SignKeyStatement(certifying, actor.KeyStatement{
		Mesh: meshURL, Key: &m.tokenKey.PublicKey, NotBefore: now.Add(-time.Hour), Expires: now.Add(24 * time.Hour),
	}))
}

// policySet is the example set of the demo, at a version, with more files.
func (m *mesh) policySet(version uint64, more map[string]string) string {
	m.t.Helper()
	s := policy.Source{
		Version: version, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{},
		Targets: map[string]policy.Target{"orders-db": {Kind: "postgres", Groups: []string{"demo"}}},
	}
	for _, p := range must(filepath.Glob("../examples/policy/*.cedar")) {
		s.Files[filepath.Base(p)] = string(must(os.ReadFile(p)))
	}
	for name, text := range more {
		s.Files[name] = text
	}
	return must(policy.Sign(m.policyKey, s))
}

func (m *mesh) update(kind feed.MessageKind, c feed.Changes) feed.Update {
	m.revision++
	return feed.Update{Revision: m.revision, SentAt: m.clock.Now(), Kind: kind, Changes: c}
}

func (m *mesh) snapshot() feed.Update {
	return m.update(feed.Snapshot, feed.Changes{
		TokenKeyStatements: []string{m.keyStatement(m.certifying)}, PolicySet: m.policySet(1, nil),
	})
}

func (m *mesh) apply(u feed.Update) int {
	m.t.Helper()
	n, err := m.state.Apply(context.Background(), u)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *mesh) heartbeat() {
	m.t.Helper()
	m.apply(feed.Update{Revision: m.revision, SentAt: m.clock.Now(), Kind: feed.Heartbeat})
}

func (m *mesh) revoke(match feed.Match) int {
	m.t.Helper()
	now := m.clock.Now()
	return m.apply(m.update(feed.Delta, feed.Changes{Revocations: []feed.Revocation{
		{ID: actor.NewHexID(), Of: match, IssuedAt: now, ExpiresAt: now.Add(time.Hour), Reason: "test"},
	}}))
}

// flow is a credential before it is signed. Tests change what they want to be different.
type flow struct {
	details, rootCap actor.Details
	roles            []string
	tokenLife        time.Duration
	tokenKey         *ecdsa.PrivateKey
	agents           []*agent
	txn, sid         string
	subject          string
	tokenID          string
}

func (m *mesh) details(actions ...string) actor.Details {
	return actor.Details{actor.PostgresDetail{
		Locations: []spiffeid.ID{m.id}, Actions: actions, Databases: []string{"shop"}, MaxRows: 500,
	}}
}

func (m *mesh) flow() *flow {
	wide := m.details("select", "insert", "update", "delete", "ddl", "lock")
	return &flow{
		details: wide, rootCap: wide, roles: []string{"analyst"}, tokenLife: 5 * time.Minute, tokenKey: m.tokenKey,
		agents: []*agent{m.planner, m.researcher}, txn: m.txn, sid: "sid-1", subject: "alice", tokenID: actor.NewHexID(),
	}
}

// credential signs a flow for its last agent.
func (m *mesh) credential(f *flow) string {
	m.t.Helper()
	now := m.clock.Now().Truncate(time.Second)
	signIn := now.Add(-time.Minute)
	user := actor.SubjectID{Issuer: idpURL, Subject: f.subject}
	claims := map[string]any{
		"iss": idpURL, "sub": f.subject, "aud": "deputy", "nonce": actor.NonceFor(m.login.Public()), "sid": f.sid,
		"auth_time": signIn.Unix(), "iat": signIn.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	idToken := m.jwt(claims)
	m.idTokens.mu.Lock()
	m.idTokens.claims[idToken] = actor.IdentityClaims{
		Issuer: idpURL, Subject: f.subject, Nonce: actor.NonceFor(m.login.Public()), SID: f.sid,
		AuthTime: signIn, IssuedAt: signIn, Expires: now.Add(time.Hour),
	}
	m.idTokens.mu.Unlock()
	expires := now.Add(30 * time.Minute)
	parts := []string{must(actor.SignUserGrant(m.login, actor.UserGrant{
		Issuer: idpURL, Root: actor.Root{Issuer: idpURL, Hash: actor.Hash(idToken), SID: f.sid},
		Delegate: f.agents[0].id, Mesh: meshURL, Subject: user, Txn: f.txn, Cap: f.rootCap, Left: 3, Purpose: "q3 refunds",
		IssuedAt: now.Add(-time.Second), Expires: expires, ID: actor.NewHexID(),
	}))}
	for i, a := range f.agents[:len(f.agents)-1] {
		parts = append(parts, must(actor.SignGrant(a.key, a.crt, actor.Grant{
			Issuer: a.id, Delegate: f.agents[i+1].id, Mesh: meshURL, Subject: user, Txn: f.txn,
			Previous: actor.Hash(parts[i]), Cap: f.rootCap, Left: 2 - i, Purpose: "", IssuedAt: now.Add(-time.Second),
			Expires: expires, ID: actor.NewHexID(),
		})))
	}
	var ids []actor.AgentID
	for _, a := range f.agents {
		ids = append(ids, a.id)
	}
	last := f.agents[len(f.agents)-1]
	token := must(actor.SignToken(f.tokenKey, actor.NonceFor(f.tokenKey.Public()), actor.Token{
		Issuer: meshURL, Audience: m.id, Subject: user, SID: f.sid, AuthTime: signIn, Actors: ids,
		Certificate: actor.CertificateHash(last.crt[0]), Details: f.details, Roles: f.roles, Purpose: "q3 refunds",
		Txn: f.txn, Head: actor.Hash(parts[len(parts)-1]), IssuedAt: now, NotBefore: now, Expires: now.Add(f.tokenLife),
		ID: f.tokenID,
	}))
	out := []string{token}
	for i := len(parts) - 1; i >= 0; i-- {
		out = append(out, parts[i])
	}
	return strings.Join(append(out, idToken), "~")
}

func (m *mesh) jwt(claims map[string]any) string {
	key := testca.NewKey(m.t)
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "idp-1")))
	return must(must(signer.Sign(must(json.Marshal(claims)))).CompactSerialize())
}

func (m *mesh) peer(a *agent) proxy.Peer {
	return proxy.Peer{Certificates: a.crt, Address: "127.0.0.1:5", TLS: "TLS 1.3"}
}

var shop = proxy.Connection{Protocol: "postgres", Database: "shop"}

// open opens a session for a flow; it must succeed.
func (m *mesh) open(f *flow) *proxy.Session {
	m.t.Helper()
	s, err := m.core.Open(context.Background(), m.peer(f.agents[len(f.agents)-1]), m.credential(f), m.target, shop)
	if err != nil {
		m.t.Fatalf("opening a session: %v (%v)", err, errors.Unwrap(err))
	}
	m.t.Cleanup(func() { s.Close("client", "") })
	return s
}

func (m *mesh) op(verb, table string) proxy.Op {
	return proxy.Op{
		Action:   actor.PostgresAction{Target: m.id, Verb: verb, Database: "shop", Schema: "public", Table: table},
		Resource: policy.Table("orders-db", "shop", "public", table), Write: verb != "select",
	}
}

func (m *mesh) command(verb, table string) proxy.Command {
	return proxy.Command{
		Kind: verb, Text: verb + " on " + table + " 'secret'", Scrubbed: verb + " on " + table + " $1",
		Database: "shop", Account: "shop_reader", Ops: []proxy.Op{m.op(verb, table)}, ReadOnly: verb == "select",
	}
}

// refusal is err as a refusal; anything else fails the test.
func refusal(t testing.TB, err error) *proxy.Refusal {
	t.Helper()
	var r *proxy.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if r.Reason == "" || r.Class == "" {
		t.Errorf("a refusal without class or reason: %+v", r)
	}
	return r
}

// recorded finds the one record with an id.
func (m *mesh) recorded(id audit.RecordID) *audit.Record {
	m.t.Helper()
	for _, r := range audittest.Records(m.t, m.log) {
		if r.ID == id {
			return r
		}
	}
	m.t.Fatalf("no record %s", id)
	return nil
}

// over waits until a session has ended and returns why.
func over(t testing.TB, s *proxy.Session, within time.Duration) *proxy.Ended {
	t.Helper()
	select {
	case <-s.Context().Done():
	case <-time.After(within):
		t.Fatalf("the session still lives after %s", within)
	}
	var e *proxy.Ended
	if !errors.As(context.Cause(s.Context()), &e) {
		t.Fatalf("the session ended by %v", context.Cause(s.Context()))
	}
	return e
}
