package testmesh

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/internal/testkube"
	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// Names that every mesh has.
const (
	TrustDomain = "test.example"
	Target      = "orders-db"
	OtherTarget = "crm-db" // where there are two
	Database    = "shop"
	ClientID    = "deputy-cli"
)

// Users of every mesh and the role or right that their group gives them: alice is an analyst, bob supports
// customers, ben runs benchmarks, oscar operates the mesh and has no role at any target.
var users = []struct{ name, group string }{
	{"alice", "analysts"}, {"bob", "support"}, {"ben", "bench"}, {"oscar", "operators"},
}

// The uids of the roles, where the test is root. Nobody else has them.
const (
	issuerUID = 64101 + iota
	brokerUID
	proxyUID
	signInUID
	secondUID
)

// Mesh is a running mesh: PostgreSQL, identity provider, issuer, broker and proxy.
type Mesh struct {
	t    testing.TB
	base int
	// Dir is what `deputy init` wrote; every uid may enter it.
	Dir string
	// Root holds Dir and what else belongs to the mesh.
	Root     string
	Provider string // issuer URL of the identity provider
	PG       *testpg.Server

	SignIn, Issuer, Broker, Proxy *Process
	// Second is the proxy of OtherTarget, if SecondProxy was asked for.
	Second *Process

	sessions atomic.Int32
}

type settings struct {
	foreign bool
	targets []string // beside Target
	second  bool
	edits   map[string]func(string) string
	pg      *testpg.Server
	policy  string
	host    *testssh.Server
	web     *testweb.Site
	graphql string
	cluster *testkube.Cluster
	tools   *toolServer
}

// Option changes what Start makes.
type Option func(*settings)

// ForeignProvider signs users in at npm's oidc-provider, which is not ours, and not at the sample server.
func ForeignProvider() Option { return func(s *settings) { s.foreign = true } }

// Edit changes a role's configuration ("issuer", "broker", "proxy") before the role starts; several edits follow each other.
func Edit(role string, change func(string) string) Option {
	return func(s *settings) {
		before := s.edits[role]
		s.edits[role] = func(c string) string {
			if before != nil {
				c = before(c)
			}
			return change(c)
		}
	}
}

// Postgres puts the mesh in front of a server that runs already, and not of a shop of its own.
func Postgres(pg *testpg.Server) Option { return func(s *settings) { s.pg = pg } }

// Policy takes the policy set from a folder; by default it is that of the integration tests.
func Policy(dir string) Option { return func(s *settings) { s.policy = dir } }

// Start makes a mesh and waits until every role is ready. It ends with the test, and the test fails if a
// role doesn't end when it is told to, or if the race detector spoke.
func Start(t testing.TB, options ...Option) *Mesh {
	t.Helper()
	s := settings{edits: map[string]func(string) string{}, policy: filepath.Join(moduleRoot(), "integration", "testdata", "policy")}
	for _, o := range options {
		o(&s)
	}
	m := &Mesh{t: t, base: FreePorts(t, 14)}
	// Short, since Unix sockets lie in it, and open, since other uids must pass.
	root, err := os.MkdirTemp("/tmp", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m.Root, m.Dir = root, filepath.Join(root, "mesh")
	if err := os.Mkdir(m.runtimeDirs(), 0o755); err != nil {
		t.Fatal(err)
	}
	m.Provider = "https://127.0.0.1:" + strconv.Itoa(m.base+11)
	if m.PG = s.pg; m.PG == nil {
		m.PG = Shop(t)
	}
	m.init(s)
	if s.second {
		m.splitProxy()
	}
	if s.host != nil {
		m.addHost(s.host)
	}
	if s.cluster != nil {
		m.addCluster(s.cluster)
	}
	if s.web != nil {
		m.addWeb(s.web)
	}
	if s.graphql != "" {
		m.addGraphQL(s.graphql)
	}
	if s.tools != nil {
		m.addTools(*s.tools)
	}
	for _, role := range m.roles() {
		// Small files: with the race detector it takes seconds to read the usual ones.
		m.EditConfig(t, role, func(c string) string {
			return strings.Replace(c, "\naudit:\n", "\naudit:\n  segment_bytes: 1048576\n", 1)
		})
		if change := s.edits[role]; change != nil {
			m.EditConfig(t, role, change)
		}
	}
	if !s.foreign {
		m.SignIn = m.role("sample-signin", signInUID).launch()
	}
	m.Issuer = m.role("issuer", issuerUID)
	// With it the issuer reads which program another user's process runs.
	m.Issuer.caps = []uintptr{unix.CAP_SYS_PTRACE}
	m.Issuer.launch()
	m.Broker = m.role("broker", brokerUID).launch()
	m.Proxy = m.role("proxy", proxyUID).launch()
	if s.second {
		m.Second = m.role(secondProxy, secondUID)
		m.Second.args[1] = "proxy"
		m.Second.launch()
	}
	return m
}

// role is a role's process, not started yet.
func (m *Mesh) role(name string, uid uint32) *Process {
	p := &Process{t: m.t, name: name, uid: uid, args: []string{Deputy(m.t), name, "--config", m.Config(name)}}
	m.t.Cleanup(p.checkRaces)
	return p
}

// agentUIDs is a range of this mesh alone: when an agent ends, everything of its uid is killed, and other tests run meshes at
// the same time. Ports are unique on the host while the mesh lives, so the range is, too.
func (m *Mesh) agentUIDs() string {
	first := 100_000 + 100*m.base
	return fmt.Sprintf("%d-%d", first, first+99)
}

// AgentUIDs are the uids that isolated agents of this mesh get.
func (m *Mesh) AgentUIDs() []int {
	first := 100_000 + 100*m.base
	out := make([]int, 100)
	for i := range out {
		out[i] = first + i
	}
	return out
}

// runtimeDirs holds the runtime folders of the sessions.
func (m *Mesh) runtimeDirs() string { return filepath.Join(m.Root, "r") }

// Config is the path of a role's configuration.
func (m *Mesh) Config(role string) string {
	if role == "agent" {
		return filepath.Join(m.Dir, "agent", "agent.yaml")
	}
	return filepath.Join(m.Dir, role, role+".yaml")
}

// RoleUIDs are the uids of issuer, broker and proxy, where the test is root.
func (m *Mesh) RoleUIDs() []uint32 { return []uint32{issuerUID, brokerUID, proxyUID} }

// IssuerSocket is where the issuer serves.
func (m *Mesh) IssuerSocket() string { return filepath.Join(m.Dir, "run", "issuer.sock") }

// EditConfig changes a role's configuration; a role that runs reads it when it starts again.
func (m *Mesh) EditConfig(t testing.TB, role string, change func(string) string) {
	t.Helper()
	path := m.Config(role)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// In place: owner and mode stay.
	if err := os.WriteFile(path, []byte(change(string(raw))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Address of a listener: web, token, feed, renewal, target or other-target, second-renewal, or host.
func (m *Mesh) Address(listener string) string {
	offset, ok := map[string]int{"web": 0, "token": 1, "feed": 2, "renewal": 3, "target": 4, "other-target": 5, "second-renewal": 6, "host": 7, "service": 8, "rpc": 9, "raw": 10, "tools": 12, "prod": 13}[listener]
	if !ok {
		panic("testmesh: no listener " + listener)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(m.base+offset))
}

// Shop starts a PostgreSQL with the demo's shop.
func Shop(t testing.TB, settings ...string) *testpg.Server {
	t.Helper()
	shop, err := os.ReadFile(filepath.Join(moduleRoot(), "examples", "demo", "shop.sql"))
	if err != nil {
		t.Fatal(err)
	}
	pg := testpg.Start(t, settings...)
	pg.Exec("set role "+testpg.App, "drop table orders, customers", string(shop))
	return pg
}

func (m *Mesh) init(s settings) {
	m.t.Helper()
	password := m.secretFile("app", testpg.AppPassword)
	args := []string{
		Deputy(m.t), "init", m.Dir, "--trust-domain", TrustDomain, "--base-port", strconv.Itoa(m.base),
		"--identity-provider", m.Provider, "--client-id", ClientID,
		"--postgres", fmt.Sprintf("%s=%s/%s", Target, m.PG.Address(), Database), "--postgres-ca", m.PG.CAFile,
		"--agent", "planner", "--agent", "clerk", "--agent-uids", m.agentUIDs(),
		"--policy", s.policy,
		"--operator", "operators=admin",
		"--uid", fmt.Sprintf("issuer=%d", issuerUID), "--uid", fmt.Sprintf("broker=%d", brokerUID),
		"--uid", fmt.Sprintf("proxy=%d", proxyUID), "--uid", fmt.Sprintf("sample-signin=%d", signInUID),
	}
	for _, name := range s.targets {
		args = append(args, "--postgres", fmt.Sprintf("%s=%s/%s", name, m.PG.Address(), Database))
	}
	for _, r := range []string{"analysts=analyst", "support=support", "bench=bench"} {
		args = append(args, "--role", r)
	}
	for _, r := range []string{"analyst", "support", "bench"} {
		args = append(args, "--account", r+"="+testpg.App+":"+password)
	}
	for _, u := range users {
		// The foreign provider takes any password; the sample server wants this one.
		file := m.secretFile(u.name, randomHex())
		if !s.foreign {
			args = append(args, "--sample-user", u.name+"="+u.group+":"+file)
		}
	}
	if s.foreign {
		args = append(args, "--identity-provider-ca", m.startForeignProvider())
	}
	if r := Exec(m.t, Command{Args: args}); r.Code != 0 {
		m.t.Fatalf("deputy init: %s", r)
	}
}

// secretFile writes a secret, and returns the path of its file.
func (m *Mesh) secretFile(name, secret string) string {
	m.t.Helper()
	path := m.passwordFile(name)
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *Mesh) passwordFile(name string) string { return filepath.Join(m.Root, name+".password") }

// Share copies a file to where every uid may read it, and returns its new path.
func (m *Mesh) Share(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(m.Root, filepath.Base(path))
	if err := os.WriteFile(to, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}

func randomHex() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// FreePorts finds n free loopback ports in a row, below those that the system gives to others.
func FreePorts(t testing.TB, n int) int {
	t.Helper()
	var pick [2]byte
	for range 100 {
		_, _ = rand.Read(pick[:])
		base := 10000 + (int(pick[0])<<8|int(pick[1]))%20000
		if allFree(base, n) {
			return base
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

func allFree(base, n int) bool {
	for p := base; p < base+n; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}
