package postgres_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/postgres"
)

// TestMain makes the test binary its own SQL parsing child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sqlparse.ChildArg {
		if err := sqlparse.ChildMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const goodCredential = "token~grant~grant"

// ledger stands in for the core: it decides by a real policy set and writes down what the engine did, in order.
type ledger struct {
	set    *policy.Set
	roles  []string
	served atomic.Int64

	mu     sync.Mutex
	events []event
	// durable, if set, is called where a decision becomes durable.
	durable  func(ctx context.Context, cmd proxy.Command) error
	sessions []*testSession
	counts   map[string]int
}

// userRoles are what the user has now.
func (l *ledger) userRoles() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.roles
}

// become gives the user other roles, as another policy set would.
func (l *ledger) become(roles ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roles = roles
}

type event struct {
	kind string // decided, refused, forwarded, completed, closed
	text string
	cmd  proxy.Command
	out  proxy.Outcome
	why  string
}

func (l *ledger) add(e event) {
	l.mu.Lock()
	l.events = append(l.events, e)
	l.mu.Unlock()
}

func (l *ledger) all(kind string) []event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []event
	for _, e := range l.events {
		if e.kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// outcomes waits for n completed commands of that text.
func (l *ledger) outcome(t testing.TB, text string) proxy.Outcome {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range l.all("completed") {
			if strings.Contains(e.text, text) {
				return e.out
			}
		}
	}
	t.Fatalf("no outcome of %q among %v", text, l.all("completed"))
	return proxy.Outcome{}
}

func (l *ledger) Open(_ context.Context, peer proxy.Peer, credential string, c proxy.Connection) (postgres.Session, error) {
	if credential != goodCredential {
		return nil, &proxy.Refusal{Class: "token", Reason: "the credential can't be read", RecordID: "rec-open"}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &testSession{l: l, ctx: ctx, cancel: cancel, id: fmt.Sprintf("s%d", l.served.Add(1)), conn: c}
	l.mu.Lock()
	l.sessions = append(l.sessions, s)
	l.mu.Unlock()
	return s, nil
}

func (l *ledger) MaskedTables() []policy.MaskedTable { return l.set.MaskedTables("orders-db") }
func (l *ledger) Count(class string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[class]++
}

func (l *ledger) last() *testSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions[len(l.sessions)-1]
}

type testSession struct {
	l      *ledger
	id     string
	ctx    context.Context
	cancel context.CancelCauseFunc
	conn   proxy.Connection
	once   sync.Once
}

func (s *testSession) ID() string               { return s.id }
func (s *testSession) Roles() []string          { return s.l.userRoles() }
func (s *testSession) Owner() actor.SubjectID   { return actor.SubjectID{} }
func (s *testSession) Context() context.Context { return s.ctx }
func (s *testSession) Close(reason, detail string) {
	s.once.Do(func() { s.l.add(event{kind: "closed", why: reason, text: detail}) })
	s.cancel(nil)
}

func (s *testSession) refuse(cmd proxy.Command, r *proxy.Refusal) *proxy.Refusal {
	r.RecordID = "rec-refused"
	s.l.add(event{kind: "refused", text: cmd.Text, cmd: cmd, why: r.Class + ": " + r.Reason})
	return r
}

func (s *testSession) Refuse(_ context.Context, cmd proxy.Command, o proxy.Objection) *proxy.Refusal {
	return s.refuse(cmd, &proxy.Refusal{Class: o.Class, Reason: o.Reason})
}

func (s *testSession) Authorize(ctx context.Context, cmd proxy.Command) (postgres.Pass, error) {
	if s.ctx.Err() != nil {
		return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true})
	}
	subject, err := policy.NewSubjectFromFacts(facts(s.l.userRoles()))
	if err != nil {
		return nil, err
	}
	var ob policy.Obligations
	for _, op := range cmd.Ops {
		d := s.l.set.Decide(policy.Request{
			Subject: subject, Now: time.Now(), Action: op.Action.Name(), Resource: op.Resource, Exact: op.Exact,
			Command: policy.Command{Database: cmd.Database, Account: cmd.Account, ReadOnly: cmd.ReadOnly, Kind: cmd.Kind},
		})
		if !d.Allow {
			return nil, s.refuse(cmd, &proxy.Refusal{Class: proxy.ClassPolicy, Reason: d.Reason, Err: d.Err})
		}
		ob = ob.And(d.Obligations)
	}
	if cmd.Check != nil {
		if err := cmd.Check(ob); err != nil {
			var o *proxy.Objection
			errors.As(err, &o)
			return nil, s.refuse(cmd, &proxy.Refusal{Class: o.Class, Reason: o.Reason})
		}
	}
	s.l.add(event{kind: "decided", text: cmd.Text, cmd: cmd})
	p := &testPass{s: s, cmd: cmd, ob: ob}
	if !cmd.ReadOnly {
		if err := p.Wait(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

type testPass struct {
	s       *testSession
	cmd     proxy.Command
	ob      policy.Obligations
	used    atomic.Bool
	durable atomic.Bool
	done    atomic.Bool
}

func (p *testPass) Obligations() policy.Obligations { return p.ob }

func (p *testPass) Use() error {
	if p.used.Swap(true) {
		return proxy.ErrPassUsed
	}
	if !p.cmd.ReadOnly && !p.durable.Load() {
		return errors.New("used before it was durable")
	}
	if p.s.ctx.Err() != nil {
		return &proxy.Refusal{Class: proxy.ClassRevoked, Reason: "revoked", Ended: true}
	}
	return nil
}

func (p *testPass) Wait(ctx context.Context) error {
	if p.durable.Load() {
		return nil
	}
	if p.s.l.durable != nil {
		if err := p.s.l.durable(ctx, p.cmd); err != nil {
			return err
		}
	}
	p.durable.Store(true)
	return nil
}

func (p *testPass) Forwarded(int64) {
	p.s.l.add(event{kind: "forwarded", text: p.cmd.Text, cmd: p.cmd})
}

func (p *testPass) Completed(_ context.Context, o proxy.Outcome) error {
	if p.done.Swap(true) {
		return nil
	}
	p.s.l.add(event{kind: "completed", text: p.cmd.Text, cmd: p.cmd, out: o})
	return nil
}

func facts(roles []string) policy.Facts {
	now := time.Now()
	return policy.Facts{
		User:        policy.User{Issuer: "https://idp.test", Subject: "ada", Grade: "attested"},
		TrustDomain: "mesh.test", Agents: []policy.Agent{{ID: "spiffe://mesh.test/agent/planner/0123456789abcdef0123456789abcdef", Grade: "attested"}},
		Roles: roles, RootEvidence: "verified", SignedIn: now, Started: now, Issued: now,
	}
}

const policies = `
@id("analyst")
@mask("public.customers.email=email, customers.phone=redact, customers.born=null, customers.attributes=redact")
permit (principal in Deputy::Role::"analyst", action in [Deputy::Action::"postgres:connect", Deputy::Action::"postgres:select"], resource in Deputy::Database::"orders-db/shop");
@id("clerk")
permit (principal in Deputy::Role::"clerk", action in [Deputy::Action::"postgres:connect", Deputy::Action::"read", Deputy::Action::"write"], resource in Deputy::Database::"orders-db/shop");
@id("copier")
permit (principal in Deputy::Role::"copier", action == Deputy::Action::"postgres:copy", resource in Deputy::Database::"orders-db/shop");
@id("filterer")
@mask("customers.email=hash+filter")
permit (principal in Deputy::Role::"filterer", action in [Deputy::Action::"postgres:connect", Deputy::Action::"postgres:select"], resource in Deputy::Database::"orders-db/shop");
@id("limited")
@limit("rows=10")
permit (principal in Deputy::Role::"limited", action in [Deputy::Action::"postgres:connect", Deputy::Action::"read", Deputy::Action::"write"], resource in Deputy::Database::"orders-db/shop");
@id("dba")
permit (principal in Deputy::Role::"dba", action, resource in Deputy::Database::"orders-db/shop");
@id("dba-calls")
permit (principal in Deputy::Role::"dba", action == Deputy::Action::"postgres:call", resource == Deputy::Database::"orders-db/shop");
@id("dba-calls-plus")
permit (principal in Deputy::Role::"dba", action == Deputy::Action::"postgres:call", resource == Deputy::Function::"orders-db/shop/public.plus");
@id("dba-opens")
permit (principal in Deputy::Role::"dba", action == Deputy::Action::"postgres:call", resource == Deputy::Function::"orders-db/shop/public.opens");
@id("listener")
permit (principal in Deputy::Role::"listener", action == Deputy::Action::"postgres:listen", resource == Deputy::Channel::"orders-db/shop/jobs");
@id("notifier")
permit (principal in Deputy::Role::"notifier", action == Deputy::Action::"postgres:call", resource == Deputy::Function::"orders-db/shop/pg_catalog.pg_notify");
@id("caller")
permit (principal in Deputy::Role::"caller", action == Deputy::Action::"postgres:call", resource == Deputy::Function::"orders-db/shop/public.add_one");
@id("view")
permit (principal in Deputy::Role::"analyst", action == Deputy::Action::"postgres:select", resource == Deputy::Table::"orders-db/shop/public.named_view");
@id("sleep")
permit (principal in Deputy::Role::"clerk", action == Deputy::Action::"postgres:call", resource == Deputy::Function::"orders-db/shop/pg_catalog.pg_sleep");
@id("nobody-reads-secrets")
forbid (principal, action, resource == Deputy::Table::"orders-db/shop/public.secrets");
`

func policySet(t testing.TB) *policy.Set {
	t.Helper()
	key := testca.NewKey(t)
	signed, err := policy.Sign(key, policy.Source{
		Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{"test.cedar": policies},
		Targets: map[string]policy.Target{"orders-db": {Kind: "postgres"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Open(signed, []*ecdsa.PublicKey{&key.PublicKey}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// world is one proxy in front of one server.
type world struct {
	t      testing.TB
	pg     *testpg.Server
	ca     *testca.CA
	agent  *x509svid.SVID
	ledger *ledger
	addr   string
	dir    string
	stop   context.CancelFunc
}

// newWorld starts a server and a proxy for a user with the roles.
func newWorld(t testing.TB, roles []string, change ...func(*postgres.Config)) *world {
	t.Helper()
	return worldOf(t, testpg.Start(t), roles, change...)
}

func worldOf(t testing.TB, pg *testpg.Server, roles []string, change ...func(*postgres.Config)) *world {
	t.Helper()
	return worldOn(t, pg, roles, func(l net.Listener) net.Listener { return l }, change...)
}

// worldOn is worldOf with a listener of the test's own around the real one.
func worldOn(t testing.TB, pg *testpg.Server, roles []string, around func(net.Listener) net.Listener, change ...func(*postgres.Config)) *world {
	t.Helper()
	w := &world{t: t, pg: pg, ca: testca.New(t, "mesh.test"), dir: t.TempDir()}
	w.agent = w.ca.SVID(w.ca.ID("/agent/planner/0123456789abcdef0123456789abcdef"))
	w.ledger = &ledger{set: policySet(t), roles: roles, counts: map[string]int{}}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := sqlparse.New(t.Context(), sqlparse.Config{Command: []string{self, sqlparse.ChildArg}, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	svid := w.ca.SVID(w.ca.ID("/deputy/proxy/p1"), testca.Hosts("localhost", "127.0.0.1"))
	cfg := postgres.Config{
		Core: w.ledger, Target: spiffeid.RequireFromString("spiffe://mesh.test/target/orders-db"),
		TLS:       proxy.ServerTLS(svid, w.ca.Bundle(), w.ca.TrustDomain()),
		Upstream:  postgres.Upstream{Address: pg.Address(), RootCAs: pg.RootCAs},
		Accounts:  []postgres.Account{{Name: testpg.App, Password: testpg.AppPassword}},
		Catalog:   &postgres.Account{Name: testpg.Catalog, Password: testpg.CatalogPass},
		Databases: []string{testpg.Database, "gone"}, DefaultDatabase: testpg.Database, Parser: pool,
		Logger: slog.New(slog.NewTextHandler(&testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, c := range change {
		c(&cfg)
	}
	e, err := postgres.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, around(l)) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve doesn't end")
		}
	})
	return w
}

type testLog struct{ t testing.TB }

func (l *testLog) Write(b []byte) (int, error) { l.t.Logf("%s", b); return len(b), nil }

func (w *world) port() int {
	_, p, _ := net.SplitHostPort(w.addr)
	n, _ := strconv.Atoi(p)
	return n
}

func (w *world) tls() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Certificate())
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost",
		Certificates: []tls.Certificate{{Certificate: [][]byte{w.agent.Certificates[0].Raw}, PrivateKey: w.agent.PrivateKey}},
	}
}

func (w *world) config() *pgx.ConnConfig {
	w.t.Helper()
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=shop sslmode=require", w.port(), testpg.App))
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.TLSConfig, cfg.Password, cfg.Fallbacks = w.tls(), goodCredential, nil
	return cfg
}

func (w *world) connect() *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.ConnectConfig(w.t.Context(), w.config())
	if err != nil {
		w.t.Fatalf("connecting through the proxy: %v", err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// env is what libpq needs to connect through the proxy.
func (w *world) env() []string {
	cert, key, ca := filepath.Join(w.dir, "svid.pem"), filepath.Join(w.dir, "svid.key"), filepath.Join(w.dir, "ca.pem")
	writePEM(w.t, cert, key, ca, w.agent, w.ca)
	return append(os.Environ(),
		"PGHOST=localhost", "PGHOSTADDR=127.0.0.1", "PGPORT="+strconv.Itoa(w.port()), "PGUSER="+testpg.App, "PGDATABASE=shop",
		"PGPASSWORD="+goodCredential, "PGSSLMODE=verify-full", "PGSSLROOTCERT="+ca, "PGSSLCERT="+cert, "PGSSLKEY="+key, "PGGSSENCMODE=disable",
		"PGCONNECT_TIMEOUT=10",
	)
}

// sqlState is the code of a server's error, "" if it is none.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// wantState demands an error with the code and part of the message.
func wantState(t testing.TB, err error, code, part string) {
	t.Helper()
	if sqlState(err) != code || !strings.Contains(fmt.Sprint(err), part) {
		t.Errorf("error %v, want SQLSTATE %s with %q", err, code, part)
	}
}

// table runs a query by the simple protocol and gives the rows as text, NULL as "∅".
func table(ctx context.Context, conn *pgx.Conn, sql string) ([]string, error) {
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	var out []string
	for _, r := range results {
		out = append(out, rowsText(r.Rows)...)
	}
	return out, err
}

func rowsText(rows [][][]byte) []string {
	var out []string
	for _, row := range rows {
		var cells []string
		for _, v := range row {
			if v == nil {
				cells = append(cells, "∅")
			} else {
				cells = append(cells, string(v))
			}
		}
		out = append(out, strings.Join(cells, "|"))
	}
	return out
}

var _ io.Writer = (*testLog)(nil)

func connectWith(t testing.TB, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	return conn, err
}

func query(sql string) *pgproto3.Query { return &pgproto3.Query{String: sql} }
