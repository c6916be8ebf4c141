package integration_test

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testpg"
)

// hostileTarget is a PostgreSQL server that keeps to the protocol up to where a script says otherwise. What the proxy
// asks about its catalogue it answers from a real server, as long as nothing else is scripted.
type hostileTarget struct {
	t      *testing.T
	l      net.Listener
	cert   tls.Certificate
	caFile string
	pg     *testpg.Server // answers about the catalogue; set before the first connection

	mu     sync.Mutex
	script script
	relays map[net.Conn]bool // connections that a real server answers
	heard  []byte            // whatever came in before the session, over TLS and in plain
	conns  sync.WaitGroup
}

// script says what the next connections meet. A nil step is an honest one. What returns false ends the connection.
type script struct {
	plain     func(c net.Conn) bool // in place of TLS
	auth      func(c *targetConn) bool
	ready     func(c *targetConn) bool // after the authentication, in place of ReadyForQuery and what goes before it
	session   func(c *targetConn)      // everything after ReadyForQuery
	catalogue func(c *targetConn)      // the same, on the connection that reads the catalogue
}

type targetConn struct {
	net.Conn
	startup string
	binding []byte
}

func newHostileTarget(t *testing.T) *hostileTarget {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	certFile, keyFile, caFile := testca.New(t, "target.test").Server(dir, "127.0.0.1")
	h := &hostileTarget{t: t, caFile: caFile}
	if h.cert, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, caFile} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if h.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.conns.Go(func() {
		for {
			c, err := h.l.Accept()
			if err != nil {
				return
			}
			h.conns.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = c.Close() })
				defer stop()
				defer c.Close()
				h.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = h.l.Close()
		cancel()
		h.conns.Wait()
	})
	return h
}

// behind lets OtherTarget stand at the hostile server.
func (h *hostileTarget) behind() []testmesh.Option {
	return []testmesh.Option{testmesh.TwoTargets(), testmesh.Edit("proxy", func(c string) string {
		at := strings.Index(c, "  - name: "+testmesh.OtherTarget)
		rest := c[at:]
		address := cutOut(rest, "address: ", "\n")
		rest = strings.Replace(rest, address, h.l.Addr().String(), 1)
		return c[:at] + strings.Replace(rest, testmesh.OtherTarget+"-ca.pem", h.caFile, 1)
	})}
}

func cutOut(text, from, to string) string {
	_, rest, _ := strings.Cut(text, from)
	out, _, _ := strings.Cut(rest, to)
	return out
}

// play lets the next connections meet a script.
func (h *hostileTarget) play(s script) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.script, h.heard = s, nil
}

func (h *hostileTarget) heardSoFar() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.heard)
}

func (h *hostileTarget) overhear(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard = append(h.heard, b...)
}

func (h *hostileTarget) serve(raw net.Conn) {
	h.mu.Lock()
	s := h.script
	h.mu.Unlock()
	ask := make([]byte, 8)
	if _, err := io.ReadFull(raw, ask); err != nil {
		return
	}
	h.overhear(ask)
	if s.plain != nil && !s.plain(raw) {
		return
	}
	if _, err := raw.Write([]byte{'S'}); err != nil {
		return
	}
	secured := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{h.cert}, MinVersion: tls.VersionTLS12})
	c := &targetConn{Conn: secured, binding: certificateHash(h.cert)}
	length := make([]byte, 4)
	if _, err := io.ReadFull(c, length); err != nil {
		return
	}
	body := make([]byte, min(binary.BigEndian.Uint32(length), 10000)-4)
	if _, err := io.ReadFull(c, body); err != nil || len(body) < 12 && binary.BigEndian.Uint32(body) == 80877102 {
		return // a cancel
	}
	c.startup = string(body)
	h.overhear(body)
	catalogue := strings.Contains(c.startup, "deputy catalogue")
	auth := s.auth
	if auth == nil || catalogue && s.catalogue == nil {
		auth = h.honestSCRAM
	}
	if !auth(c) {
		return
	}
	if s.ready == nil || catalogue {
		c.say('R', "\x00\x00\x00\x00")
		for _, p := range []string{"standard_conforming_strings\x00on", "client_encoding\x00UTF8", "server_version\x0015.0 (hostile)", "application_name\x00x"} {
			c.say('S', p+"\x00")
		}
		c.say('K', "\x00\x00\x00\x01\x00\x00\x00\x02")
		c.say('Z', "I")
	} else if !s.ready(c) {
		return
	}
	switch {
	case catalogue && s.catalogue != nil:
		s.catalogue(c)
	case catalogue:
		h.relay(c)
	case s.session != nil:
		s.session(c)
	}
}

// relay lets a real server answer.
func (h *hostileTarget) relay(c *targetConn) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pg, err := h.pg.Connect(ctx, testpg.App, testpg.AppPassword, testmesh.Database)
	if err != nil {
		return
	}
	hijacked, err := pg.Hijack()
	if err != nil {
		return
	}
	defer hijacked.Conn.Close()
	h.mu.Lock()
	if h.relays == nil {
		h.relays = map[net.Conn]bool{}
	}
	h.relays[c.Conn] = true
	h.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(hijacked.Conn, c)
		_ = hijacked.Conn.Close()
	})
	_, _ = io.Copy(c, hijacked.Conn)
	_ = c.Close()
	both.Wait()
}

// hangUp ends the connections that a real server answers.
func (h *hostileTarget) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.relays {
		_ = c.Close()
	}
	clear(h.relays)
}

// message is one of the protocol's.
func message(kind byte, body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))) + body
}

func (c *targetConn) say(kind byte, body string) bool { return c.bytes(message(kind, body)) }

func (c *targetConn) bytes(b string) bool {
	_, err := io.WriteString(c, b)
	return err == nil
}

// hear reads one message.
func (c *targetConn) hear() (kind byte, body string, ok bool) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(c, head); err != nil {
		return 0, "", false
	}
	b := make([]byte, min(binary.BigEndian.Uint32(head[1:]), 1<<20)-4)
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, "", false
	}
	return head[0], string(b), true
}

// idle listens until the proxy hangs up.
func (c *targetConn) idle() { _, _ = io.Copy(io.Discard, c) }

// honestSCRAM is the server's side of SCRAM-SHA-256-PLUS (RFC 5802, RFC 5929 tls-server-end-point).
func (h *hostileTarget) honestSCRAM(c *targetConn) bool {
	return h.scram(c, "SCRAM-SHA-256-PLUS SCRAM-SHA-256", 4096, func(signature []byte) []byte { return signature })
}

// scram plays the server's side; sign may change what proves that the server knows the password.
func (h *hostileTarget) scram(c *targetConn, mechanisms string, iterations int, sign func([]byte) []byte) bool {
	c.say('R', "\x00\x00\x00\x0a"+strings.ReplaceAll(mechanisms, " ", "\x00")+"\x00\x00")
	kind, body, ok := c.hear()
	h.overhear([]byte(body))
	if !ok || kind != 'p' {
		return false
	}
	_, first, ok := strings.Cut(body, "\x00")
	if !ok || len(first) < 4 {
		return false
	}
	first = first[4:] // its length
	gs2 := first[:strings.Index(first, "n=")]
	bare := first[len(gs2):]
	nonce := cutOut(bare+",", "r=", ",") + rand.Text()
	salt := []byte("0123456789abcdef")
	serverFirst := fmt.Sprintf("r=%s,s=%s,i=%d", nonce, base64.StdEncoding.EncodeToString(salt), iterations)
	c.say('R', "\x00\x00\x00\x0b"+serverFirst)
	kind, body, ok = c.hear()
	h.overhear([]byte(body))
	if !ok || kind != 'p' {
		return false
	}
	withoutProof, _, _ := strings.Cut(body, ",p=")
	if want := base64.StdEncoding.EncodeToString(append([]byte(gs2), c.binding...)); cutOut(body+",", "c=", ",") != want {
		h.t.Errorf("the proxy bound SCRAM to another channel: %q", body)
	}
	key, err := pbkdf2.Key(sha256.New, testpg.AppPassword, salt, iterations, 32)
	if err != nil {
		h.t.Error(err)
		return false
	}
	serverKey := mac(key, "Server Key")
	signature := mac(serverKey, bare+","+serverFirst+","+withoutProof)
	return c.say('R', "\x00\x00\x00\x0cv="+base64.StdEncoding.EncodeToString(sign(signature)))
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func certificateHash(c tls.Certificate) []byte {
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(leaf.Raw)
	return sum[:]
}

// residentPeak is the most memory that a process ever had, in bytes.
func residentPeak(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(cutOut(string(raw), "VmHWM:", "\n"), "kB")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// scramFirst sends an iteration count and hangs on.
func (h *hostileTarget) scramFirst(c *targetConn, iterations int) bool {
	c.say('R', "\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00")
	_, body, ok := c.hear()
	if !ok {
		return false
	}
	nonce := cutOut(body+",", "r=", ",")
	c.say('R', fmt.Sprintf("\x00\x00\x00\x0br=%sx,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=%d", nonce, iterations))
	c.idle()
	return false
}

// newPlainTLS speaks TLS with a certificate of an authority that the proxy doesn't know.
func newPlainTLS(t *testing.T) func(net.Conn) net.Conn {
	certFile, keyFile, _ := testca.New(t, "elsewhere.test").Server(t.TempDir(), "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Error(err)
	}
	return func(c net.Conn) net.Conn {
		return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
}
