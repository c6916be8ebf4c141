package integration_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A target proves that it knows the password, on this very TLS connection, or gets nothing of it: one that offers
// SCRAM without channel binding (as a man in the middle must), wants the password in the clear or as md5, lets
// everybody in, or ends TLS, hears the account's name and no more. Where the configuration does without channel
// binding, SCRAM is still the least.
func TestNoPasswordToAWeakerTarget(t *testing.T) {
	target := newWeakTarget(t)
	m := testmesh.Start(t, testmesh.Edit("proxy", func(c string) string {
		return strings.Replace(c, "      ca_file: orders-db-ca.pem", "      server_name: localhost\n      ca_file: orders-db-ca.pem", 1)
	}))
	ca, err := os.ReadFile(target.caFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dirOf(m.Config("proxy"))+"/orders-db-ca.pem", ca, 0o644); err != nil {
		t.Fatal(err)
	}
	weaker := map[string][]byte{
		"SCRAM without channel binding": auth(10, "SCRAM-SHA-256\x00\x00"),
		"a mechanism of its own":        auth(10, "OAUTHBEARER\x00PLAIN\x00\x00"),
		"the password in the clear":     auth(3, ""),
		"the password as md5":           auth(5, "salt"),
		"Kerberos":                      auth(7, ""),
		"everybody in":                  append(auth(0, ""), 'Z', 0, 0, 0, 5, 'I'),
		"no TLS":                        nil,
	}
	for _, binding := range []string{"", "      no_channel_binding: true\n"} {
		m.EditConfig(t, "proxy", func(c string) string {
			return strings.Replace(strings.Replace(c, m.PG.Address(), target.address, 1), "      databases:", binding+"      databases:", 1)
		})
		m.Proxy.Stop()
		m.Proxy.Begin()
		alice := m.Login(t, "alice")
		for name, answer := range weaker {
			may := binding != "" && name == "SCRAM without channel binding"
			target.offer(answer)
			r := alice.SQL(t, []string{"planner"}, "SELECT 1")
			heard := target.heard()
			if r.Code == 0 || !strings.Contains(r.Stderr, "the target can't be reached, or didn't accept the proxy") || strings.Contains(r.Stderr, "SCRAM") {
				t.Errorf("%s%s: %s", name, binding, r)
			}
			if len(heard) == 0 {
				t.Errorf("%s%s: the proxy didn't ask the target at all", name, binding)
			}
			for _, h := range heard {
				if said := len(h.typed) > 0; said != may {
					t.Errorf("%s%s: after the target's offer the proxy said %q", name, binding, h.typed)
				}
				if may && !bytes.Contains(h.typed, []byte("SCRAM-SHA-256\x00")) {
					t.Errorf("%s%s: the proxy said %q, not the beginning of SCRAM", name, binding, h.typed)
				}
			}
		}
	}
	m.Verify(t)
}

// auth is an Authentication message.
func auth(kind uint32, rest string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'R'}, uint32(8+len(rest)))
	return append(binary.BigEndian.AppendUint32(b, kind), rest...)
}

// weakTarget takes startup messages over TLS, answers with an offer, and keeps what is said then.
type weakTarget struct {
	address, caFile string

	mu     sync.Mutex
	offers int
	answer []byte
	said   []hearing
	live   sync.WaitGroup
}

type hearing struct{ typed []byte }

func newWeakTarget(t *testing.T) *weakTarget {
	t.Helper()
	w := &weakTarget{}
	cert, key, caFile := testca.New(t, "target.test").Server(t.TempDir(), "localhost", "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address, w.caFile = l.Addr().String(), caFile
	w.live.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.live.Go(func() { w.serve(conn, pair) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); w.live.Wait() })
	return w
}

func (w *weakTarget) offer(answer []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offers++
	w.answer, w.said = answer, nil
}

// heard is what each connection said since the offer.
func (w *weakTarget) heard() []hearing {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said)
}

func (w *weakTarget) serve(conn net.Conn, pair tls.Certificate) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	w.mu.Lock()
	answer, offer := w.answer, w.offers
	w.mu.Unlock()
	var ask [8]byte
	if _, err := io.ReadFull(conn, ask[:]); err != nil {
		return
	}
	note := func(typed []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if offer == w.offers { // and no straggler of the offer before
			w.said = append(w.said, hearing{typed})
		}
	}
	if answer == nil {
		_, _ = conn.Write([]byte{'N'})
		rest, _ := io.ReadAll(conn)
		note(rest)
		return
	}
	_, _ = conn.Write([]byte{'S'})
	secured := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	var head [4]byte
	if _, err := io.ReadFull(secured, head[:]); err != nil {
		return
	}
	startup := make([]byte, binary.BigEndian.Uint32(head[:])-4)
	if _, err := io.ReadFull(secured, startup); err != nil {
		return
	}
	if binary.BigEndian.Uint32(startup) == 80877102 {
		return // a cancel of a connection that was given up
	}
	_, _ = secured.Write(answer)
	// The proxy hangs up, or says something and waits for more.
	typed := make([]byte, 4096)
	n, _ := secured.Read(typed)
	if n > 0 && typed[0] == 'X' {
		n = 0
	}
	note(typed[:n])
}
