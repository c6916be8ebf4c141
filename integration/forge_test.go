package integration_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// forge makes credentials, good and bad, for a running mesh. It has the SVIDs and keys of real agents, which gave them away; the
// keys of a provider that the mesh believes; and, because the test owns the mesh's files, the broker's and the issuer's keys
// for those attacks that assume them.
type forge struct {
	*testmesh.Mesh
	t       testing.TB
	bundle  *x509bundle.Bundle
	idp     *ownProvider
	clients sync.Map // by SVID: *http.Client
}

// ownProvider is an identity provider whose key the test holds.
type ownProvider struct {
	*httptest.Server
	key    *ecdsa.PrivateKey
	caFile string
}

func newProvider(t testing.TB) *ownProvider {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dp") // every uid must read the CA
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	certFile, keyFile, caFile := testca.New(t, "provider.test").Server(dir, "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, caFile} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := &ownProvider{key: testca.NewKey(t), caFile: caFile}
	o := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: p.key.Public(), KeyID: "k", Algorithm: "ES256"}}, Algorithms: []string{"ES256"}}
	p.Server = httptest.NewUnstartedServer(o)
	p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	p.StartTLS()
	t.Cleanup(p.Close)
	o.SetIssuer(p.URL)
	return p
}

// believed lets the roles of a mesh believe providers of the test's own, beside the mesh's.
func believed(ps ...*ownProvider) []testmesh.Option {
	entry := func(p *ownProvider) string {
		return fmt.Sprintf("  - issuer: %s\n    client_id: %s\n    algorithms: [ES256]\n    ca_file: %s\n", p.URL, testmesh.ClientID, p.caFile)
	}
	var proxies, broker string
	for _, p := range ps {
		proxies += entry(p)
		broker += entry(p) + "    roles_claim: groups\n    role_map:\n      analysts: analyst\n      support: support\n    operator_roles:\n      operators: admin\n"
	}
	before := func(line, add string) func(string) string {
		return func(c string) string { return strings.Replace(c, "\n"+line, "\n"+add+line, 1) }
	}
	return []testmesh.Option{
		testmesh.Edit("broker", before("targets:", broker)), testmesh.Edit("proxy", before("renewal_listen:", proxies)),
		testmesh.Edit("second", before("renewal_listen:", proxies)),
	}
}

// newForge starts a mesh that believes the forge's provider.
func newForge(t testing.TB, options ...testmesh.Option) *forge {
	t.Helper()
	p := newProvider(t)
	return forgeAt(t, testmesh.Start(t, append(believed(p), options...)...), p)
}

func forgeAt(t testing.TB, m *testmesh.Mesh, p *ownProvider) *forge {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString(testmesh.TrustDomain)
	bundle, err := x509bundle.Load(td, filepath.Join(m.Dir, "public", "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	f := &forge{Mesh: m, t: t, bundle: bundle, idp: p}
	f.vouch(p)
	return f
}

// vouch puts providers on the list that `deputy audit verify` believes.
func (f *forge) vouch(ps ...*ownProvider) {
	f.t.Helper()
	raw, err := os.ReadFile(f.KeysFile())
	if err != nil {
		f.t.Fatal(err)
	}
	keys, err := audit.ParseKeys(raw)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range ps {
		keys.IdentityProviders = append(keys.IdentityProviders, audit.IdentityProvider{Issuer: p.URL, Audiences: []string{testmesh.ClientID}})
	}
	if raw, err = keys.MarshalJSON(); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.KeysFile(), raw, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// tree is a first-level agent, two children of one name, and a child of the first of these. All are alive.
type tree struct{ planner, a, b, runner *x509svid.SVID }

// trees starts n of them, at once, as a user of the mesh.
func (f *forge) trees(t testing.TB, n int) []tree {
	t.Helper()
	alice := f.Login(t, "alice")
	out := make([]tree, n)
	dirs := make([]string, n)
	live := make([]*testmesh.Live, n)
	for i := range out {
		dirs[i] = filepath.Join(f.Root, fmt.Sprintf("keys-%s-%d", filepath.Base(t.TempDir()), i))
		if err := os.Mkdir(dirs[i], 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dirs[i], 0o777); err != nil { // agents have uids of their own
			t.Fatal(err)
		}
		reveal := testmesh.Program(t, "agentprobe") + " svid " + dirs[i]
		script := fmt.Sprintf(`%[1]s/planner
%[2]s run --as researcher -- sh -c '%[1]s/a; exec %[2]s run --as runner -- sh -c "%[1]s/runner; exec sleep 900"' &
%[2]s run --as researcher -- sh -c '%[1]s/b; exec sleep 900' &
wait`, reveal, testmesh.Deputy(t))
		live[i] = testmesh.Begin(t, alice.Agents(t, []string{"planner"}, "sh", "-c", script))
	}
	for i := range out {
		for name, to := range map[string]**x509svid.SVID{"planner": &out[i].planner, "a": &out[i].a, "b": &out[i].b, "runner": &out[i].runner} {
			*to = awaitSVID(t, filepath.Join(dirs[i], name), live[i])
		}
	}
	return out
}

func awaitSVID(t testing.TB, file string, from *testmesh.Live) *x509svid.SVID {
	t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		svid, err := x509svid.Parse(raw, raw)
		if err != nil {
			t.Fatal(err)
		}
		return svid
	}
	t.Fatalf("no SVID in %s: %s %s", file, from.Output(), from.Errors())
	return nil
}

// signIn is a user who signed in at a provider of the test's.
type signIn struct {
	key     *ecdsa.PrivateKey
	user    actor.SubjectID
	sid     string
	idToken string
}

func (p *ownProvider) signIn(t testing.TB, sub string, change ...func(claims map[string]any)) *signIn {
	t.Helper()
	key, now := testca.NewKey(t), time.Now()
	c := map[string]any{
		"iss": p.URL, "sub": sub, "aud": testmesh.ClientID, "nonce": actor.NonceFor(key.Public()), "sid": "sid-" + actor.NewHexID(),
		"iat": now.Unix(), "auth_time": now.Unix(), "exp": now.Add(time.Hour).Unix(), "groups": []string{"analysts"},
	}
	for _, f := range change {
		f(c)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	token := oidctest.SignIDToken(p.key, "k", "ES256", string(raw))
	sid, _ := c["sid"].(string)
	user := actor.SubjectID{Issuer: fmt.Sprint(c["iss"]), Subject: fmt.Sprint(c["sub"])}
	return &signIn{key: key, user: user, sid: actor.SessionID(token, sid), idToken: token}
}

// reach is the capability that the forge's users grant.
func reach(verbs ...string) actor.Details {
	td := spiffeid.RequireTrustDomainFromString(testmesh.TrustDomain)
	d := actor.PostgresDetail{Actions: verbs, Databases: []string{testmesh.Database}}
	for _, name := range []string{testmesh.Target, testmesh.OtherTarget} {
		d.Locations = append(d.Locations, spiffeid.RequireFromSegments(td, "target", name))
	}
	return actor.Details{d}
}

func targetID(name string) spiffeid.ID {
	return spiffeid.RequireFromSegments(spiffeid.RequireTrustDomainFromString(testmesh.TrustDomain), "target", name)
}

func agentOf(t testing.TB, s *x509svid.SVID) actor.AgentID {
	t.Helper()
	id, err := actor.ParseAgentID(s.ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// mesh is the broker's issuer URL.
func (f *forge) meshURL() string { return "https://" + f.Address("web") }

// root is the user's grant to a first agent.
func (f *forge) root(l *signIn, to *x509svid.SVID, change ...func(*actor.UserGrant)) string {
	f.t.Helper()
	now := time.Now()
	g := actor.UserGrant{
		Issuer: l.user.Issuer, Root: actor.Root{Issuer: l.user.Issuer, Hash: actor.Hash(l.idToken), SID: l.sid}, Delegate: agentOf(f.t, to),
		Mesh: f.meshURL(), Subject: l.user, Txn: actor.NewHexID(), Cap: reach("select", "call"), Left: 3, Purpose: testmesh.Purpose,
		IssuedAt: now, Expires: now.Add(30 * time.Minute), ID: actor.NewHexID(),
	}
	for _, c := range change {
		c(&g)
	}
	s, err := actor.SignUserGrant(l.key, g)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// pass makes from's grant to another agent, after the statement before.
func (f *forge) pass(from, to *x509svid.SVID, before string, change ...func(*actor.Grant)) string {
	f.t.Helper()
	now := time.Now()
	g, err := actor.Narrow(before, actor.Narrowing{
		Issuer: agentOf(f.t, from), Delegate: agentOf(f.t, to), IssuedAt: now, Expires: now.Add(time.Hour), NotAfter: from.Certificates[0].NotAfter,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, c := range change {
		c(&g)
	}
	s, err := actor.SignGrant(from.PrivateKey, from.Certificates, g)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// flow is one task of a user, down to the agent that presents its credential.
type flow struct {
	leaf  *x509svid.SVID
	parts []string // token, grants newest first, ID token
}

func (l flow) credential() string { return strings.Join(l.parts, "~") }
func (l flow) subject() string    { return strings.Join(l.parts[1:], "~") }

// flow makes a good one for agents, first to last, at a target.
func (f *forge) flow(l *signIn, root, target string, agents ...*x509svid.SVID) flow {
	f.t.Helper()
	grants := []string{root}
	for i := 1; i < len(agents); i++ {
		grants = append([]string{f.pass(agents[i-1], agents[i], grants[0])}, grants...)
	}
	out := flow{leaf: agents[len(agents)-1], parts: append(append([]string{""}, grants...), l.idToken)}
	out.parts[0] = f.ok(f.exchange(out.leaf, out.subject(), "resource", targetID(target).String()))
	return out
}

// answer is what the token endpoint said.
type answer struct {
	status int
	Token  string `json:"access_token"`
	Error  string `json:"error"`
	Text   string `json:"error_description"`
	body   string
}

func (a answer) String() string { return fmt.Sprintf("HTTP %d %s %s", a.status, a.Error, a.Text) }

// client speaks to the roles' mTLS listeners as an SVID.
func (f *forge) client(as *x509svid.SVID) *http.Client {
	if c, ok := f.clients.Load(as); ok {
		return c.(*http.Client)
	}
	transport := &http.Transport{TLSClientConfig: f.tls(as), MaxIdleConnsPerHost: 4}
	c := &http.Client{Timeout: patience, Transport: transport}
	f.clients.Store(as, c)
	f.t.Cleanup(transport.CloseIdleConnections)
	return c
}

func (f *forge) tls(as *x509svid.SVID) *tls.Config {
	cfg := tlsconfig.MTLSClientConfig(as, f.bundle, tlsconfig.AuthorizeMemberOf(f.bundle.TrustDomain()))
	cfg.MinVersion = tls.VersionTLS13
	return cfg
}

// form is a good exchange; pairs replace parameters, "" removes one.
func form(subject string, pairs ...string) url.Values {
	v := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":      {subject},
		"subject_token_type": {"urn:deputy:token-type:grants"},
		"resource":           {targetID(testmesh.Target).String()},
	}
	for i := 0; i < len(pairs); i += 2 {
		v.Del(pairs[i])
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

func (f *forge) exchange(as *x509svid.SVID, subject string, pairs ...string) answer {
	f.t.Helper()
	return f.post(as, "/token", form(subject, pairs...).Encode())
}

// post sends a form to the token listener, again where the agent's rate was the reason.
func (f *forge) post(as *x509svid.SVID, path, body string) answer {
	f.t.Helper()
	for {
		resp, err := f.client(as).Post("https://"+f.Address("token")+path, "application/x-www-form-urlencoded", strings.NewReader(body))
		if err != nil {
			f.t.Fatal(err)
		}
		a := readAnswer(f.t, resp)
		if a.status != http.StatusTooManyRequests {
			return a
		}
		time.Sleep(100 * time.Millisecond) // what the endpoint asks for
	}
}

func readAnswer(t testing.TB, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, body: string(raw)}
	_ = json.Unmarshal(raw, &a) // what isn't JSON has no token
	return a
}

func (f *forge) ok(a answer) string {
	f.t.Helper()
	if a.status != http.StatusOK || a.Token == "" {
		f.t.Fatalf("a good exchange: %s", a)
	}
	return a.Token
}

// connect presents a credential at a target's listener; the caller closes the connection that it gets.
func (f *forge) connect(as *x509svid.SVID, address, credential string) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return pgconn.ConnectConfig(ctx, f.pg(as, address, credential))
}

func (f *forge) pg(as *x509svid.SVID, address, credential string) *pgconn.Config {
	f.t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		f.t.Fatal(err)
	}
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s user=shop_app dbname=shop sslmode=disable target_session_attrs=any passfile=''", host, port))
	if err != nil {
		f.t.Fatal(err)
	}
	cfg.TLSConfig, cfg.Password, cfg.Fallbacks = f.tls(as), credential, nil
	return cfg
}

// letIn says whether a target lets a credential in, and the SQLSTATE and text of the refusal if it doesn't.
func (f *forge) letIn(as *x509svid.SVID, address, credential string) (bool, string) {
	conn, err := f.connect(as, address, credential)
	if err == nil {
		_ = conn.Close(context.Background())
		return true, ""
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return false, pg.Code + " " + pg.Message
	}
	return false, err.Error()
}

// served is the value that a statement gives over a connection.
func served(conn *pgconn.PgConn, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	if len(results) == 0 || len(results[0].Rows) == 0 {
		return "", nil
	}
	return string(results[0].Rows[0][0]), nil
}

// mustServe holds that a good credential works; without that a refusal would show nothing.
func (f *forge) mustServe(l flow, address string) {
	f.t.Helper()
	conn, err := f.connect(l.leaf, address, l.credential())
	if err != nil {
		f.t.Fatalf("a good credential: %v", err)
	}
	defer conn.Close(context.Background())
	if got, err := served(conn, "SELECT 'served'"); err != nil || got != "served" {
		f.t.Fatalf("a good credential: %q %v", got, err)
	}
}

// ca is the mesh's own authority, in the hands of whoever has the issuer's files.
func (f *forge) ca() *testca.CA {
	dir := filepath.Join(f.Dir, "issuer")
	return testca.Load(f.t, testmesh.TrustDomain, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
}

// mint makes another SVID of an agent's name with the mesh's own authority, for a key or, with nil, for one of its own.
func (f *forge) mint(of *x509svid.SVID, key crypto.Signer, options ...testca.Option) *x509svid.SVID {
	if key == nil {
		key = testca.NewKey(f.t)
	}
	return f.ca().SVIDFor(of.ID, key, options...)
}

// validFor begins and ends an SVID's life relative to now, to the second as certificates do.
func validFor(from, to time.Duration) testca.Option {
	now := time.Now().Truncate(time.Second)
	return testca.Validity(now.Add(from), now.Add(to))
}
