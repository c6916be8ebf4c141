package postgres_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/proxy/postgres"
)

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// wire is a connection for hostile bytes.
type wire struct {
	net.Conn
	t testing.TB
}

func (w *wire) send(parts ...[]byte) {
	w.t.Helper()
	if _, err := w.Write(bytes.Join(parts, nil)); err != nil {
		w.t.Logf("writing: %v", err)
	}
}

// readAll reads until the proxy closes, at most five seconds.
func (w *wire) readAll() string {
	_ = w.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(io.LimitReader(w, 1<<20))
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		w.t.Errorf("the proxy neither answers nor closes after %q", b)
	}
	return string(b)
}

func dial(t testing.TB, w *world) *wire {
	t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &wire{c, t}
}

// dialTLS goes through SSLRequest.
func dialTLS(t testing.TB, w *world, cfg *tls.Config) *wire {
	t.Helper()
	c := dial(t, w)
	c.send(be32(8), be32(80877103))
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != 'S' {
		t.Fatalf("SSLRequest: %q %v", b, err)
	}
	return &wire{tls.Client(c.Conn, cfg), t}
}

func startupPacket(version uint32, params ...string) []byte {
	body := be32(version)
	for _, p := range params {
		body = append(append(body, p...), 0)
	}
	body = append(body, 0)
	return append(be32(uint32(len(body)+4)), body...)
}

func passwordMessage(s string) []byte {
	return append(append([]byte{'p'}, be32(uint32(len(s)+5))...), append([]byte(s), 0)...)
}

func TestHostileStartups(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	long := strings.Repeat("x", 70<<10)
	for _, c := range []struct {
		name string
		send [][]byte
		want []string
	}{
		{"duplicate parameter", [][]byte{startupPacket(3<<16, "user", "a", "user", "b")}, []string{"08P01", "twice"}},
		{"duplicate parameter in another case", [][]byte{startupPacket(3<<16, "user", "a", "USER", "b")}, []string{"08P01", "twice"}},
		{"no end", [][]byte{be32(12), be32(3 << 16), []byte("user")}, []string{"08P01"}},
		{"bytes behind the end", [][]byte{append(be32(22), append(be32(3<<16), "user\x00a\x00\x00more\x00\x00"[:14]...)...)}, []string{"08P01"}},
		{"protocol 2", [][]byte{startupPacket(2<<16, "user", "a")}, []string{"0A000", "protocol 2.0"}},
		{"replication, by nobody", [][]byte{startupPacket(3<<16, "user", "a", "replication", "database"), passwordMessage("nonsense")}, []string{"28000", "rec-open"}},
		{"replication, signed in", [][]byte{startupPacket(3<<16, "user", testpg.App, "replication", "database"), passwordMessage(goodCredential)}, []string{"0A000", "replication", "rec-refused"}},
		{"physical replication, signed in", [][]byte{startupPacket(3<<16, "user", testpg.App, "replication", "true"), passwordMessage(goodCredential)}, []string{"0A000", "replication", "rec-refused"}},
		{"pinned setting", [][]byte{startupPacket(3<<16, "user", "a", "search_path", "x")}, []string{"42501", "pinned"}},
		{"pinned in options", [][]byte{startupPacket(3<<16, "user", "a", "options", "-c search_path=x")}, []string{"42501", "pinned"}},
		{"role in options", [][]byte{startupPacket(3<<16, "user", "a", "options", "-crole=postgres")}, []string{"42501", "pinned"}},
		{"strange options", [][]byte{startupPacket(3<<16, "user", "a", "options", "-f config")}, []string{"0A000", "option"}},
		{"unknown setting", [][]byte{startupPacket(3<<16, "user", "a", "session_preload_libraries", "x")}, []string{"42501"}},
		{"other encoding", [][]byte{startupPacket(3<<16, "user", "a", "client_encoding", "LATIN1")}, []string{"42501", "pinned"}},
		{"length zero", [][]byte{be32(0)}, []string{"08P01"}},
		{"length huge", [][]byte{be32(1 << 30), be32(3 << 16)}, []string{"08P01"}},
		{"TLS in TLS", [][]byte{be32(8), be32(80877103)}, []string{"08P01", "inside TLS"}},
		{"another message than a password", [][]byte{startupPacket(3<<16, "user", "a"), []byte("Q\x00\x00\x00\x0dselect 1\x00")}, []string{"08P01", "password message"}},
		{"huge credential", [][]byte{startupPacket(3<<16, "user", "a"), passwordMessage(long)}, []string{"28000", "larger than"}},
		{"negative length of the password", [][]byte{startupPacket(3<<16, "user", "a"), []byte("p\xff\xff\xff\xff")}, nil},
		{"bad credential", [][]byte{startupPacket(3<<16, "user", "a"), passwordMessage("nonsense")}, []string{"28000", "rec-open"}},
		{"other account", [][]byte{startupPacket(3<<16, "user", "postgres"), passwordMessage(goodCredential)}, []string{"28000", "account"}},
		{"unknown database", [][]byte{startupPacket(3<<16, "user", testpg.App, "database", "template1"), passwordMessage(goodCredential)}, []string{"3D000", "isn't served"}},
		{"database that policy doesn't allow", [][]byte{startupPacket(3<<16, "user", testpg.App, "database", "gone"), passwordMessage(goodCredential)}, []string{"42501", "postgres:connect"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dialTLS(t, w, w.tls())
			conn.send(c.send...)
			got := conn.readAll()
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in %q", want, got)
				}
			}
			if c.want != nil && !strings.Contains(got, "FATAL") {
				t.Errorf("not fatal: %q", got)
			}
		})
	}
	// Nobody got in.
	if n := len(w.ledger.all("decided")); n != 0 {
		t.Errorf("%d commands were decided", n)
	}
}

func TestPlainStartups(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := dial(t, w)
	conn.send(startupPacket(3<<16, "user", "a"))
	if got := conn.readAll(); !strings.Contains(got, "speaks TLS only") || !strings.Contains(got, "28000") {
		t.Errorf("plain: %q", got)
	}
	// GSSENCRequest gets N and the connection goes on; a second one is refused.
	conn = dial(t, w)
	conn.send(be32(8), be32(80877104))
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil || b[0] != 'N' {
		t.Fatalf("GSSENCRequest: %q %v", b, err)
	}
	conn.send(be32(8), be32(80877103))
	if _, err := io.ReadFull(conn, b[:]); err != nil || b[0] != 'S' {
		t.Fatalf("SSLRequest: %q %v", b, err)
	}
	secured := tls.Client(conn.Conn, w.tls())
	if err := secured.Handshake(); err != nil {
		t.Fatal(err)
	}
	conn = dial(t, w)
	conn.send(be32(8), be32(80877104), be32(8), be32(80877104))
	if got := conn.readAll(); !strings.HasPrefix(got, "N") || !strings.Contains(got, "08P01") {
		t.Errorf("two GSSENCRequests: %q", got)
	}
	// Plain SQL behind the SSLRequest must never be taken for something said inside TLS.
	conn = dial(t, w)
	conn.send(be32(8), be32(80877103), startupPacket(3<<16, "user", "a"))
	if got := conn.readAll(); !strings.HasPrefix(got, "S") || strings.Contains(got, "FATAL") {
		t.Errorf("injected plain bytes: %q", got)
	}
	for _, junk := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x08\x00\x00\x00\x00", "SSH-2.0-x\r\n"} {
		conn = dial(t, w)
		conn.send([]byte(junk))
		conn.readAll()
	}
	// A cancel in plain does nothing.
	session := w.connect()
	conn = dial(t, w)
	conn.send(be32(16), be32(80877102), be32(session.PgConn().PID()), session.PgConn().SecretKey())
	conn.readAll()
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	if w.ledger.counts["cancel_refused"] != 1 {
		t.Errorf("counts %v", w.ledger.counts)
	}
}

func TestPeersAreVerified(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	try := func(change func(*tls.Config)) error {
		cfg := w.config()
		change(cfg.TLSConfig)
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err == nil {
			_ = conn.Close(t.Context())
		}
		return err
	}
	if err := try(func(*tls.Config) {}); err != nil {
		t.Fatal(err)
	}
	if try(func(c *tls.Config) { c.Certificates = nil }) == nil {
		t.Error("no certificate was accepted")
	}
	if try(func(c *tls.Config) { c.MaxVersion, c.MinVersion = tls.VersionTLS12, tls.VersionTLS12 }) == nil {
		t.Error("TLS 1.2 was accepted")
	}
	if try(func(c *tls.Config) { c.NextProtos = []string{"h2"} }) == nil {
		t.Error("another protocol was accepted")
	}
	if err := try(func(c *tls.Config) { c.NextProtos = []string{"postgresql"} }); err != nil {
		t.Errorf("the protocol's own name was refused: %v", err)
	}
	direct := w.config()
	direct.SSLNegotiation = "direct"
	direct.TLSConfig.NextProtos = []string{"postgresql"}
	conn, err := pgx.ConnectConfig(t.Context(), direct)
	if err != nil {
		t.Fatalf("direct TLS: %v", err)
	}
	if _, err := table(t.Context(), conn, "select 1"); err != nil {
		t.Error(err)
	}
	_ = conn.Close(t.Context())
}

func TestNegotiation(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	conn := dialTLS(t, w, w.tls())
	conn.send(startupPacket(3<<16|9999, "user", testpg.App, "_pq_.command_tag", "1", "application_name", "mine", "options", "-c statement_timeout=7s --lock-timeout=5s"), passwordMessage(goodCredential),
		[]byte("Q\x00\x00\x00\x1bshow statement_timeout\x00"), []byte("X\x00\x00\x00\x04"))
	got := conn.readAll()
	for _, want := range []string{"v\x00\x00\x00\x1d\x00\x03\x00\x00\x00\x00\x00\x01_pq_.command_tag\x00", "deputy.session\x00s1\x00", "7s"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

func TestHostileMessages(t *testing.T) {
	w := newWorld(t, []string{"clerk"}, func(c *postgres.Config) { c.MaxMessage = 1 << 20 })
	hello := bytes.Join([][]byte{startupPacket(3<<16, "user", testpg.App), passwordMessage(goodCredential)}, nil)
	for _, c := range []struct{ name, send, want string }{
		{"unknown kind", "?\x00\x00\x00\x04", "08P01"},
		{"length too small", "Q\x00\x00\x00\x03", "08P01"},
		{"too long", "Q\x3f\xff\xff\xff", "54000"},
		{"query without end", "Q\x00\x00\x00\x07abc", "08P01"},
		{"query with a second string", "Q\x00\x00\x00\x08a\x00b\x00", "08P01"},
		{"bind that lies about its parameters", "B\x00\x00\x00\x0e\x00\x00\x00\x00\x7f\xff\x00\x00\x00\x00", "08P01"},
		{"parse that lies about its types", "P\x00\x00\x00\x09\x00\x00\x7f\xff\x00", "08P01"},
		{"describe of nothing", "D\x00\x00\x00\x06Z\x00", "08P01"},
		{"sync with a body", "S\x00\x00\x00\x05x", "08P01"},
		{"password again", "p\x00\x00\x00\x05\x00", "08P01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dialTLS(t, w, w.tls())
			conn.send(hello, []byte(c.send))
			if got := conn.readAll(); !strings.Contains(got, c.want) || !strings.Contains(got, "FATAL") {
				t.Errorf("%q, want FATAL %s", got, c.want)
			}
		})
	}
	// SQL that the parser can't take is refused, and the session goes on.
	conn := w.connect()
	for _, sql := range []string{"selec 1", "select " + strings.Repeat("1+", 30000) + "1", "select '" + strings.Repeat("x", 300<<10) + "'", "select \xff"} {
		_, err := table(t.Context(), conn, sql)
		if sqlState(err) != "42601" && sqlState(err) != "22021" {
			t.Errorf("%.20q…: %v", sql, err)
		}
	}
	if _, err := table(t.Context(), conn, "select 1"); err != nil {
		t.Error(err)
	}
}

func TestSlowPeersAreCutOff(t *testing.T) {
	w := newWorld(t, []string{"clerk"}, func(c *postgres.Config) { c.StartupTimeout = 300 * time.Millisecond })
	start := time.Now()
	dial(t, w).readAll()
	half := dial(t, w)
	half.send([]byte{0, 0, 0})
	half.readAll()
	dialTLS(t, w, w.tls()).readAll()
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("three silent peers held on for %s", d)
	}
}
