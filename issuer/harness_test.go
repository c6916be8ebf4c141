package issuer_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	"github.com/deputymesh/deputy/issuer/spawn"
	"github.com/deputymesh/deputy/issuer/sqlite"
)

const (
	trustDomain = "test.example"
	// userUID is an ordinary user outside the agents' range.
	userUID = 60999
)

var agentUIDs = spawn.UIDRange{First: 61000, Last: 61031}

// mesh is an issuer over its real socket, with real processes to talk to it.
type mesh struct {
	t       *testing.T
	dir     string // readable by every uid
	td      spiffeid.TrustDomain
	cfg     issuer.Config
	log     *audit.Log
	binary  string
	issuer  *issuer.Issuer
	store   *sqlite.Store
	stop    func()
	control net.Listener
	tokens  atomic.Int64

	mu      sync.Mutex
	waiting map[string]chan net.Conn
}

var asRoot = os.Geteuid() == 0

func uid(n uint32) *uint32 { return &n }

// newMesh starts an issuer. By default whoever runs the tests, and userUID, may start planners, and is no role.
func newMesh(t *testing.T, change ...func(*issuer.Config)) *mesh {
	t.Helper()
	dir, err := os.MkdirTemp("", "deputy-issuer-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, dir: dir, td: spiffeid.RequireTrustDomainFromString(trustDomain), waiting: map[string]chan net.Conn{}, log: audittest.Open(t)}
	m.binary = filepath.Join(dir, "driver")
	copyFile(t, m.binary, os.Args[0])
	authority := testca.New(t, trustDomain)
	signer, err := ca.New(ca.Config{TrustDomain: m.td, Certificate: authority.Certificate(), Key: authority.Key(), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	self := attest.Selectors{UID: uid(uint32(os.Geteuid()))}
	m.cfg = issuer.Config{
		CA:     signer,
		Agents: []spawn.Entry{{Name: "planner", Selectors: self}, {Name: "planner", Selectors: attest.Selectors{UID: uid(userUID)}}},
		UIDs:   agentUIDs, Log: m.log, Grace: time.Minute, TicketLife: time.Minute,
		Limits: spawn.Limits{SpawnRate: 1000, SpawnBurst: 1000},
		Logger: slog.New(slog.NewTextHandler(&testWriter{t: t}, nil)),
	}
	for _, f := range change {
		f(&m.cfg)
	}
	if m.control, err = net.Listen("unix", filepath.Join(dir, "control.sock")); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(dir, "control.sock"), 0o777)
	t.Cleanup(func() { m.control.Close() })
	go m.accept()
	m.serve()
	t.Cleanup(func() { m.stop() })
	return m
}

type testWriter struct {
	t    *testing.T
	mu   sync.Mutex
	over bool
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(dst, src)
	if err2 := dst.Close(); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

func (m *mesh) socket() string { return filepath.Join(m.dir, "issuer.sock") }

// serve starts the issuer on the mesh's database; it may be called again after stop.
func (m *mesh) serve() {
	m.t.Helper()
	var err error
	if m.store, err = sqlite.Open(filepath.Join(m.dir, "issuer.db")); err != nil {
		m.t.Fatal(err)
	}
	cfg := m.cfg
	if cfg.Store == nil {
		cfg.Store = m.store
	}
	if m.issuer, err = issuer.New(cfg); err != nil {
		m.t.Fatal(err)
	}
	l, err := net.Listen("unix", m.socket())
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.Chmod(m.socket(), 0o666); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.issuer.Serve(ctx, l) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				m.t.Errorf("serving: %v", err)
			}
		case <-time.After(20 * time.Second):
			m.t.Error("the issuer doesn't stop")
		}
		m.store.Close()
	})
}

func (m *mesh) restart() {
	m.t.Helper()
	m.stop()
	m.serve()
}

func (m *mesh) accept() {
	for {
		c, err := m.control.Accept()
		if err != nil {
			return
		}
		go func() {
			// One line, byte by byte: nothing that follows may be read ahead.
			var line []byte
			for b := make([]byte, 1); ; line = append(line, b[0]) {
				if _, err := c.Read(b); err != nil || b[0] == '\n' {
					break
				}
			}
			var token string
			if json.Unmarshal(line, &token) != nil {
				c.Close()
				return
			}
			m.mu.Lock()
			ch := m.waiting[token]
			m.mu.Unlock()
			if ch != nil {
				ch <- c
			}
		}()
	}
}

// process is a driver, seen from the test.
type process struct {
	m          *mesh
	conn       net.Conn
	dec        *json.Decoder
	pid        int
	startTicks uint64
}

// start starts a driver as a child of the test itself: outside every agent.
func (m *mesh) start(c command) *process {
	m.t.Helper()
	return m.launch(c, func(c command) {
		os.Setenv(controlVar, filepath.Join(m.dir, "control.sock"))
		os.Setenv(issuerVar, m.socket())
		self := os.Args[0]
		os.Args[0] = m.binary
		_, err := start(c)
		os.Args[0] = self
		if err != nil {
			m.t.Fatalf("starting a driver: %v", err)
		}
	})
}

// start starts a driver as a child of this one.
func (p *process) start(c command) *process {
	p.m.t.Helper()
	return p.m.launch(c, func(c command) {
		c.Op = "start"
		p.must(c)
	})
}

func (m *mesh) launch(c command, how func(command)) *process {
	m.t.Helper()
	c.Token = strconv.FormatInt(m.tokens.Add(1), 10)
	ch := make(chan net.Conn, 1)
	m.mu.Lock()
	m.waiting[c.Token] = ch
	m.mu.Unlock()
	how(c)
	select {
	case conn := <-ch:
		p := &process{m: m, conn: conn, dec: json.NewDecoder(conn)}
		m.t.Cleanup(func() { p.kill() })
		who := p.must(command{Op: "who"})
		p.pid, p.startTicks = who.PID, who.Start
		return p
	case <-time.After(20 * time.Second):
		m.t.Fatal("the driver didn't come up")
		return nil
	}
}

func (p *process) do(c command) result {
	p.m.t.Helper()
	p.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if err := json.NewEncoder(p.conn).Encode(c); err != nil {
		p.m.t.Fatalf("%s: %v", c.Op, err)
	}
	var r result
	if err := p.dec.Decode(&r); err != nil {
		p.m.t.Fatalf("%s: %v", c.Op, err)
	}
	return r
}

func (p *process) must(c command) result {
	p.m.t.Helper()
	r := p.do(c)
	if r.Code != ok {
		p.m.t.Fatalf("%s: %s: %s", c.Op, r.Code, r.Text)
	}
	return r
}

// refused demands that a command fails with a code and says a word.
func (p *process) refused(c command, code, word string) result {
	p.m.t.Helper()
	r := p.do(c)
	if r.Code != code || !strings.Contains(r.Text, word) {
		p.m.t.Errorf("%s: got %s %q, want %s and the word %q", c.Op, r.Code, r.Text, code, word)
	}
	return r
}

// kill ends the driver at once, as a crash does.
func (p *process) kill() {
	if now, err := startTime(p.pid); err == nil && now == p.startTicks {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	p.conn.Close()
	// Dead and reaped, so that whoever looks next doesn't find it.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if now, err := startTime(p.pid); err != nil || now != p.startTicks {
			return
		}
	}
}

// supervisor registers an agent through one process and attaches it by another (or the same).
func (p *process) attach(name string, by *process) result {
	p.m.t.Helper()
	reg := p.must(command{Op: "register", Name: name})
	r := by.must(command{Op: "attach", Stream: "own", Ticket: reg.Ticket})
	if r.ID != reg.ID {
		p.m.t.Fatalf("registered %s, attached %s", reg.ID, r.ID)
	}
	return r
}

// isolated starts a child under a uid that the launcher claims.
func (p *process) isolated(name string, launcher *process, how ...func(*command)) (*process, result) {
	p.m.t.Helper()
	reg := p.must(command{Op: "register", Name: name, Isolate: true})
	claim := launcher.must(command{Op: "claim", Ticket: reg.Ticket})
	c := command{UID: claim.UID, GID: claim.UID, SetIDs: true}
	for _, f := range how {
		f(&c)
	}
	child := launcher.start(c)
	r := child.must(command{Op: "attach", Stream: "own", Ticket: reg.Ticket})
	r.UID = claim.UID
	return child, r
}

// where asks the issuer about a process, from outside.
func (m *mesh) where(asker, p *process) result {
	m.t.Helper()
	return asker.do(command{Op: "locate", PID: p.pid, Start: p.startTicks})
}

// gone waits until an agent has ended, by the store, and returns why.
func (m *mesh) gone(id string) spawn.Ended {
	m.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		all, err := m.store.EndedAfter(m.t.Context(), 0, 1000)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, e := range all {
			if e.ID.String() == id {
				return e
			}
		}
	}
	m.t.Fatalf("%s hasn't ended", id)
	return spawn.Ended{}
}

func (m *mesh) alive(ids ...string) {
	m.t.Helper()
	all, err := m.store.EndedAfter(m.t.Context(), 0, 1000)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range all {
		for _, id := range ids {
			if e.ID.String() == id {
				m.t.Errorf("%s has ended: %s", id, e.Reason)
			}
		}
	}
}

func certificate(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func agentID(t *testing.T, s string) actor.AgentID {
	t.Helper()
	id, err := actor.AgentIDFromString(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// needsRoot runs f as root. Without root it asserts instead that what needs root is refused: nobody can claim a uid.
func needsRoot(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if asRoot {
		uidsAreFree(t)
		f(t)
		return
	}
	m := newMesh(t)
	p := m.start(command{})
	reg := p.must(command{Op: "register", Name: "planner", Isolate: true})
	p.refused(command{Op: "claim", Ticket: reg.Ticket}, "PermissionDenied", "root")
	p.refused(command{Op: "attach", Stream: "x", Ticket: reg.Ticket}, "PermissionDenied", "claimed")
}

// uidsAreFree waits until the processes of the test before have ended: each holds a uid of the range.
func uidsAreFree(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		used, err := attest.UIDsInUse()
		if err != nil {
			t.Fatal(err)
		}
		busy := false
		for uid := range used {
			busy = busy || agentUIDs.Contains(uid)
		}
		if !busy {
			return
		}
		if time.Now().After(end) {
			t.Fatal("processes of another test hold uids of the range")
		}
	}
}

// cgroup makes a control group of version 2, or returns "" where there is none to be had.
func (m *mesh) cgroup(name string) (dir, path string) {
	m.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	own, err := attest.OwnCgroup()
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range bytes.Lines(mounts) {
		before, after, _ := bytes.Cut(line, []byte(" - "))
		f := bytes.Fields(before)
		if !bytes.HasPrefix(after, []byte("cgroup2 ")) || len(f) < 5 {
			continue
		}
		path = filepath.Join(own, fmt.Sprintf("deputy-test-%d-%s", os.Getpid(), name))
		dir = filepath.Join(string(f[4]), path)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", ""
		}
		m.t.Cleanup(func() {
			os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
			for range 500 {
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			m.t.Errorf("the cgroup %s isn't empty", dir)
		})
		return dir, path
	}
	return "", ""
}

// nopStore is for issuers that never serve.
type nopStore struct{ spawn.Store }
