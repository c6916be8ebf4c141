package integration_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Connections that come all at once, more than proxy and target take, and connections that end in the middle of
// anything: each is served or told why not, in the protocol, and afterwards the proxy holds no file descriptor,
// no place and no connection to the target that it didn't hold before.
func TestAStormLeavesNothingBehind(t *testing.T) {
	f := newForge(t)
	one := f.trees(t, 1)[0]
	dora := f.idp.signIn(t, "dora")
	// One task may have 256 connections, and one agent opens 32 at a time: the oldest of more has to go.
	var flows []flow
	for _, agents := range [][]*x509svid.SVID{{one.planner}, {one.planner, one.a}, {one.planner, one.b}, {one.planner, one.a, one.runner}} {
		flows = append(flows, f.flow(dora, f.root(dora, one.planner), testmesh.Target, agents...))
	}
	address := f.Address("target")
	// What the proxy keeps for all, it has from now on: its own connection to the catalogue, parsers.
	storm(30, func() { f.mustServe(flows[0], address) })
	before := f.rests(t)

	t.Run("500 open", func(t *testing.T) {
		const each = 125
		var mu sync.Mutex
		var open []*pgconn.PgConn
		outcomes := map[string]int{}
		var all sync.WaitGroup
		turns := make([]chan struct{}, len(flows))
		for i := range turns {
			turns[i] = make(chan struct{}, 30)
		}
		for i := range each * len(flows) {
			all.Go(func() {
				l, turn := flows[i%len(flows)], turns[i%len(flows)]
				turn <- struct{}{}
				defer func() { <-turn }()
				conn, err := f.connect(l.leaf, address, l.credential())
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					open = append(open, conn)
				}
				outcomes[outcomeOf(err)]++
			})
		}
		all.Wait()
		// The target takes 100, a few of them for superusers.
		if ok, full := outcomes["ok"], outcomes["53300"]; ok < 50 || ok > 100 || ok+full != each*len(flows) {
			t.Errorf("outcomes: %v", outcomes)
		}
		for _, c := range open {
			all.Go(func() {
				if _, err := served(c, "SELECT 1"); err != nil {
					t.Errorf("a connection of the storm doesn't serve: %v", err)
				}
				_ = c.Close(context.Background())
			})
		}
		all.Wait()
		f.settles(t, before)
		f.mustServe(flows[0], address)
	})

	secured := func(c net.Conn) *tls.Conn {
		var ask [8]byte
		binary.BigEndian.PutUint32(ask[:], 8)
		binary.BigEndian.PutUint32(ask[4:], 80877103)
		_, _ = c.Write(ask[:])
		var yes [1]byte
		_, _ = c.Read(yes[:])
		cfg := f.tls(one.a).Clone()
		cfg.ServerName = "localhost"
		s := tls.Client(c, cfg)
		_ = s.Handshake()
		return s
	}
	startup := "\x00\x03\x00\x00user\x00shop_app\x00database\x00shop\x00\x00"
	framed := func(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)+4))) + s }
	query := func(c *pgconn.PgConn, sql string) { _, _ = c.Conn().Write([]byte("Q" + framed(sql+"\x00"))) }
	for _, phase := range []struct {
		name string
		n    int
		do   func(net.Conn)
	}{
		{"after the connect", 2000, func(net.Conn) {}},
		{"inside the first message", 2000, func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 0}) }},
		{"with a message that isn't one", 2000, func(c net.Conn) { _, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }},
		{"inside the TLS handshake", 2000, func(c net.Conn) {
			_, _ = c.Write([]byte("\x00\x00\x00\x08\x04\xd2\x16\x2f\x16\x03\x01\x02\x00\x01"))
		}},
		{"after the TLS handshake", 200, func(c net.Conn) { secured(c) }},
		{"inside the startup message", 200, func(c net.Conn) { _, _ = secured(c).Write([]byte(framed(startup)[:20])) }},
		{"inside the password", 200, func(c net.Conn) {
			s := secured(c)
			_, _ = s.Write([]byte(framed(startup)))
			_, _ = s.Write([]byte("p" + framed(flows[0].credential() + "\x00")[:200]))
		}},
		{"after the password", 200, func(c net.Conn) {
			s := secured(c)
			_, _ = s.Write([]byte(framed(startup) + "p" + framed(flows[0].credential()+"\x00")))
		}},
	} {
		t.Run("dropped "+phase.name, func(t *testing.T) {
			storm(phase.n, func() {
				c, err := net.DialTimeout("tcp", address, patience)
				if err != nil {
					t.Error(err)
					return
				}
				phase.do(c)
				_ = c.Close()
			})
			f.settles(t, before)
			f.mustServe(flows[0], address)
		})
	}
	flows[0], flows[1] = f.flow(dora, f.root(dora, one.planner), testmesh.Target, one.planner, one.a), f.flow(dora, f.root(dora, one.planner), testmesh.Target, one.planner, one.a)
	for _, phase := range []struct {
		name string
		do   func(*pgconn.PgConn)
	}{
		{"idle", func(*pgconn.PgConn) {}},
		{"inside a message", func(c *pgconn.PgConn) { _, _ = c.Conn().Write([]byte("Q\x00\x00\x10\x00SELECT")) }},
		{"inside a transaction", func(c *pgconn.PgConn) { _, _ = served(c, "BEGIN") }},
		{"while a query runs", func(c *pgconn.PgConn) { query(c, "SELECT pg_sleep(600)") }},
		{"while rows come", func(c *pgconn.PgConn) {
			query(c, "SELECT repeat('x', 1000) FROM generate_series(1, 200000)")
			_, _ = c.Conn().Read(make([]byte, 1000))
		}},
		// Half of a connection is none: nobody can tell whether the other half still listens.
		{"half", func(c *pgconn.PgConn) {
			_ = c.Conn().(*tls.Conn).CloseWrite()
			_ = c.Conn().SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c.Conn()); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a half-closed connection goes on")
			}
		}},
	} {
		t.Run("dropped "+phase.name, func(t *testing.T) {
			storm(60, func() {
				l := flows[1]
				conn, err := f.connect(l.leaf, address, l.credential())
				if err != nil {
					if outcomeOf(err) != "53300" {
						t.Error(err)
					}
					return
				}
				phase.do(conn)
				_ = conn.Conn().Close()
			})
			f.settles(t, before)
			f.mustServe(flows[0], address)
		})
	}
	f.Verify(t)
}

// storm does it n times, 30 at once.
func storm(n int, do func()) {
	var all sync.WaitGroup
	turns := make(chan struct{}, 30)
	for range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			do()
		})
	}
	all.Wait()
}

// outcomeOf is "ok", a SQLSTATE or another error's text.
func outcomeOf(err error) string {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &pg):
		return pg.Code
	default:
		return err.Error()
	}
}

// holdings are what a proxy holds at a moment.
type holdings struct {
	descriptors int // of its process
	agents      int // TCP connections to its listener
	backends    string
}

// holds looks from outside: at /proc and at the target.
func (f *forge) holds(t *testing.T) holdings {
	t.Helper()
	files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(f.Proxy.Pid()), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(f.Address("target"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	h := holdings{descriptors: len(files)}
	for _, line := range strings.Split(string(tcp), "\n") {
		// The proxy's end, established or waiting to be closed by it.
		if w := strings.Fields(line); len(w) > 3 && strings.HasSuffix(w[1], fmt.Sprintf(":%04X", n)) && (w[3] == "01" || w[3] == "08") {
			h.agents++
		}
	}
	h.backends = f.PG.Value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop_app' AND application_name <> 'deputy catalogue'")
	return h
}

// fewMore file descriptors aren't a leak where hundreds of connections came and went: a log has its next segment, a parser its
// second process.
const fewMore = 4

// settles waits until the proxy holds no more than before.
func (f *forge) settles(t *testing.T, before holdings) {
	t.Helper()
	var now holdings
	for limit := time.Now().Add(patience / 2); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
		if now = f.holds(t); now.descriptors <= before.descriptors+fewMore && now.agents == 0 && now.backends == "0" {
			return
		}
	}
	t.Errorf("the proxy holds %+v, before it was %+v", now, before)
}

// rests waits until nobody is connected, and gives what the proxy holds then.
func (f *forge) rests(t *testing.T) holdings {
	t.Helper()
	f.settles(t, holdings{descriptors: 1 << 20})
	return f.holds(t)
}
