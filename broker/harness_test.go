package broker_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/broker"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/broker/tokenapi"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/internal/testca"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const meshURL = "https://broker.corp.example"

// mesh is a broker with everything around it, over real TLS.
type mesh struct {
	t        *testing.T
	ca       *testca.CA
	idp      *provider
	clock    *clock
	issuer   *issuer
	log      *audit.Log
	cfg      broker.Config
	cert     actor.KeyStatement
	web      *http.Client
	dir      string
	meshAddr string
	feedAddr string
	webAddr  string
	stop     func()
	ready    func() error
	unready  bool // don't wait until it is
}

type option func(*mesh)

func newMesh(t *testing.T, opts ...option) *mesh {
	t.Helper()
	m := &mesh{t: t, ca: testca.New(t, "corp.example"), idp: newProvider(t), clock: &clock{}, dir: t.TempDir()}
	m.log = audittest.Open(t)
	m.issuer = &issuer{news: make(chan struct{})}
	socket := filepath.Join(m.dir, "issuer.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	spawnv1.RegisterSpawnServer(g, m.issuer)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)

	certifying, tokenKey := testca.NewKey(t), testca.NewKey(t)
	m.cert = actor.KeyStatement{Mesh: meshURL, Key: &tokenKey.PublicKey, NotBefore: time.Now().Add(-time.Hour), Expires: time.Now().Add(24 * time.Hour)}
	statement, err := actor.SignKeyStatement(certifying, m.cert)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, _ := m.ca.Server(m.dir, "127.0.0.1", "broker.corp.example")
	webCert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	orders, crm := name(t, "orders-db"), name(t, "crm-db")
	m.cfg = broker.Config{
		TrustDomain: m.ca.TrustDomain(), Mesh: meshURL, SVIDs: m.ca.SVID(m.ca.ID("/deputy/broker")), Bundles: m.ca.Bundle(),
		IssuerSocket: socket, Log: m.log, Logger: slog.New(slog.DiscardHandler), Now: m.clock.now,
		TokenKey: tokenKey, TokenKeyStatement: statement, CertifyingKey: &certifying.PublicKey, WebCertificate: webCert,
		Providers: []idp.Provider{m.idp.config()},
		Identity: claims.Mappings{m.idp.URL: {
			Claim: "groups", Roles: map[string]string{"analysts": "analyst", "dba-team": "dba"}, Operators: map[string]claims.Operator{"platform": claims.Admin},
		}},
		Targets:   map[target.Name]tokenapi.Target{orders: {Kind: target.Postgres}, crm: {Kind: target.Postgres, Roles: []string{"dba"}}},
		ApplyWait: 20 * time.Millisecond,
		Proxies:   map[string][]target.Name{"orders": {orders}, "crm": {crm}},
	}
	for _, o := range opts {
		o(m)
	}
	if m.cfg.Store == nil {
		store, err := sqlite.Open(filepath.Join(m.dir, "broker.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		m.cfg.Store = store
	}
	m.start()
	pool := x509.NewCertPool()
	pool.AddCert(m.ca.Certificate())
	m.web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(m.web.CloseIdleConnections)
	return m
}

func (p *provider) config() idp.Provider {
	return idp.Provider{Issuer: p.URL, ClientID: "deputy", Algorithms: []string{"ES256"}, Client: p.Client()}
}

func name(t *testing.T, s string) target.Name {
	t.Helper()
	n, err := target.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// start runs the broker until the test, or m.stop, ends it.
func (m *mesh) start() {
	m.t.Helper()
	b, err := broker.New(m.t.Context(), m.cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	var l broker.Listeners
	for _, p := range []struct {
		l    *net.Listener
		addr *string
	}{{&l.Mesh, &m.meshAddr}, {&l.Feed, &m.feedAddr}, {&l.Web, &m.webAddr}} {
		if *p.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			m.t.Fatal(err)
		}
		*p.addr = (*p.l).Addr().String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, l) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				m.t.Errorf("serving: %v", err)
			}
		case <-time.After(20 * time.Second):
			m.t.Error("the broker didn't stop")
		}
	})
	m.t.Cleanup(m.stop)
	m.ready = b.Ready
	if !m.unready {
		m.eventually("the broker is ready", func() bool { return b.Ready() == nil })
	}
}

// agent makes an identity: names from the first level down, with instances of its own.
func (m *mesh) agent(names ...string) *x509svid.SVID {
	m.t.Helper()
	var id actor.AgentID
	var err error
	for i, n := range names {
		if i == 0 {
			id, err = actor.NewAgentID(m.ca.TrustDomain(), n, actor.NewHexID())
		} else {
			id, err = id.Child(n, actor.NewHexID())
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	return m.ca.SVID(id.ID())
}

func (m *mesh) child(of *x509svid.SVID, n string) *x509svid.SVID {
	m.t.Helper()
	id, err := agentID(m.t, of).Child(n, actor.NewHexID())
	if err != nil {
		m.t.Fatal(err)
	}
	return m.ca.SVID(id.ID())
}

func agentID(t *testing.T, s *x509svid.SVID) actor.AgentID {
	t.Helper()
	id, err := actor.ParseAgentID(s.ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// client speaks to the mesh listener as an SVID.
func (m *mesh) client(s *x509svid.SVID) *http.Client {
	cfg := tlsconfig.MTLSClientConfig(s, m.ca.Bundle(), tlsconfig.AuthorizeID(m.ca.ID("/deputy/broker")))
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
}

// reply is what an endpoint answered.
type reply struct {
	status  int
	header  http.Header
	Token   string          `json:"access_token"`
	Type    string          `json:"issued_token_type"`
	Scheme  string          `json:"token_type"`
	Expires int64           `json:"expires_in"`
	Scope   string          `json:"scope"`
	Details json.RawMessage `json:"authorization_details"`
	Refresh string          `json:"refresh_token"`
	Error   string          `json:"error"`
	Text    string          `json:"error_description"`
}

func (r reply) String() string { return fmt.Sprintf("%d %s %s", r.status, r.Error, r.Text) }

// form is a well-formed exchange for orders-db; pairs of change replace parameters, "" removes one.
func form(subject string, change ...string) url.Values {
	f := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":      {subject},
		"subject_token_type": {"urn:deputy:token-type:grants"},
		"resource":           {"spiffe://corp.example/target/orders-db"},
	}
	for i := 0; i < len(change); i += 2 {
		f.Del(change[i])
		if change[i+1] != "" {
			f.Set(change[i], change[i+1])
		}
	}
	return f
}

func (m *mesh) exchange(as *x509svid.SVID, subject string, change ...string) reply {
	m.t.Helper()
	return m.post(as, "/token", form(subject, change...).Encode())
}

func (m *mesh) post(as *x509svid.SVID, path, body string) reply {
	m.t.Helper()
	resp, err := m.client(as).Post("https://"+m.meshAddr+path, "application/x-www-form-urlencoded", strings.NewReader(body))
	if err != nil {
		m.t.Fatalf("%s: %v", path, err)
	}
	return read(m.t, resp)
}

func read(t *testing.T, resp *http.Response) reply {
	t.Helper()
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &r); err != nil {
			t.Fatalf("answer %q: %v", raw, err)
		}
	}
	return r
}

func (m *mesh) ok(r reply) string {
	m.t.Helper()
	if r.status != http.StatusOK || r.Token == "" {
		m.t.Fatalf("refused: %s", r)
	}
	return r.Token
}

// refused wants a refusal with a code, whose record in the log has one of the classes.
func (m *mesh) refused(r reply, code string, classes ...string) {
	m.t.Helper()
	if r.status == http.StatusOK || r.Token != "" || r.Error != code {
		m.t.Fatalf("got %s, want a refusal with %s", r, code)
	}
	_, id, ok := strings.Cut(strings.TrimSuffix(r.Text, ")"), "(record: ")
	if !ok {
		m.t.Fatalf("no record is named in %q", r.Text)
	}
	for _, rec := range audittest.Records(m.t, m.log) {
		if rec.ID.String() != id {
			continue
		}
		e, ok := rec.Event.(*audit.Exchange)
		if !ok || e.Result != audit.Refusal || e.Error != code {
			m.t.Fatalf("the record is %+v", rec.Event)
		}
		for _, c := range classes {
			if e.Class == c {
				return
			}
		}
		m.t.Fatalf("the class is %s (%s), want %v", e.Class, e.Reason, classes)
	}
	m.t.Fatalf("record %s is not in the log", id)
}

// events are the recorded events of one type.
func events[E audit.Event](m *mesh) []E {
	m.t.Helper()
	var out []E
	for _, rec := range audittest.Records(m.t, m.log) {
		if e, ok := rec.Event.(E); ok {
			out = append(out, e)
		}
	}
	return out
}

// eventually waits for something that happens in the background.
func (m *mesh) eventually(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	m.t.Fatalf("it never happened: %s", what)
}

func join(parts ...string) string { return strings.Join(parts, "~") }
