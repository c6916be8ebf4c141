package sshd_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy/sshd"
)

func TestACredentialComesInThePrefaceOrAsThePassword(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client() // by password
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Output("echo hello"); err != nil || string(out) != "hello\n" {
		t.Errorf("%v %q", err, out)
	}
	if got := w.ledger.last().conn; got.Protocol != "ssh" || got.Upstream != w.host.Address() {
		t.Errorf("the connection's record: %+v", got)
	}
	if _, said, err := w.dial("deputy", "another"); err == nil || !strings.Contains(said, "record: rec-open") {
		t.Errorf("a bad password: %v %q", err, said)
	}
	if _, _, err := present(w.addr, w.tls(preface), "another"); err == nil || !strings.Contains(err.Error(), "record: rec-open") {
		t.Errorf("a bad credential in the preface: %v", err)
	}
	conn, text, err := present(w.addr, w.tls(preface), goodCredential)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, key, _ := strings.Cut(text, "\n")
	host, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key))
	if err != nil || session != w.ledger.last().id {
		t.Fatalf("the welcome: %v %q", err, text)
	}
	// The key that was told is the key that SSH shows, and nothing is left to authenticate.
	inner, channels, requests, err := ssh.NewClientConn(conn, "web:22", &ssh.ClientConfig{User: sshd.AnyAccount, HostKeyCallback: ssh.FixedHostKey(host)})
	if err != nil {
		t.Fatal(err)
	}
	_ = ssh.NewClient(inner, channels, requests).Close()
	if r := w.ssh("", "web", "echo hello"); r.out != "hello\n" {
		t.Errorf("OpenSSH's client: %s", r)
	}
}

func TestOnlyAnAgentWithItsSVIDIsHeard(t *testing.T) {
	w := newWorld(t, ops)
	stranger := testca.New(t, "mesh.test")
	for name, change := range map[string]func(*tls.Config){
		"no certificate": func(c *tls.Config) { c.Certificates = nil },
		"another authority": func(c *tls.Config) {
			svid := stranger.SVID(stranger.ID("/agent/planner/0123456789abcdef0123456789abcdef"))
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}
		},
		"a role": func(c *tls.Config) {
			svid := w.ca.SVID(w.ca.ID("/deputy/proxy/p2"))
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}
		},
		"TLS 1.2":          func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 },
		"another protocol": func(c *tls.Config) { c.NextProtos = []string{"h2"} },
	} {
		cfg := w.tls(preface)
		change(cfg)
		if _, _, err := present(w.addr, cfg, goodCredential); err == nil {
			t.Errorf("%s: heard", name)
		}
	}
	// Without TLS there is nothing, not even a banner.
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, _ := io.ReadAll(conn); bytes.Contains(b, []byte("SSH-")) {
		t.Errorf("SSH without TLS: %q", b)
	}
	if len(w.ledger.sessions) != 0 {
		t.Error("a session was opened")
	}
}

func TestAMalformedPrefaceIsTheEnd(t *testing.T) {
	w := newWorld(t, ops, func(c *sshd.Config) { c.StartupTimeout = 2 * time.Second })
	frame := func(name string, n uint32, body string) string {
		return string(binary.BigEndian.AppendUint32([]byte(name), n)) + body
	}
	for name, sent := range map[string]string{
		"another name": frame("deputy-ssh/2", 3, "abc"), "SSH at once": "SSH-2.0-OpenSSH_9.2\r\n", "no credential": frame(preface, 0, ""),
		"too long": frame(preface, actor.MaxSize+1, "abc"), "cut off": frame(preface, 10, "abc"), "slow": "d",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", w.addr, w.tls(preface))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			if name == "cut off" {
				_ = conn.CloseWrite()
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			b, err := io.ReadAll(conn)
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() || len(b) != 0 {
				t.Errorf("%v %q", err, b)
			}
		})
	}
	if len(w.ledger.sessions) != 0 {
		t.Error("a session was opened")
	}
}

func TestAccountsFollowFromRoles(t *testing.T) {
	host := newWorld(t, nil).host
	change := func(c *sshd.Config) {
		c.Accounts = []sshd.Account{{Name: "admin", Key: host.UserKey, Roles: []string{"root"}}, {Name: host.Account, Key: host.UserKey, Roles: ops}}
	}
	w := worldOf(t, host, ops, change)
	if r := w.ssh("", "web", "id -un"); strings.TrimSpace(r.out) != host.Account {
		t.Errorf("none named: %s", r)
	}
	if r := w.ssh("", "-l", host.Account, "web", "id -un"); strings.TrimSpace(r.out) != host.Account {
		t.Errorf("the own one named: %s", r)
	}
	for _, user := range []string{"admin", "root"} {
		r := w.ssh("", "-o", "User="+user, "web", "id -un")
		if r.code != 255 || r.out != "" || !strings.Contains(r.err, "isn't one that the user's roles may use") || !strings.Contains(r.err, "rec-refused") {
			t.Errorf("%q: %s", user, r)
		}
	}
	if _, said, err := w.dial("nobody\x1b[2J", goodCredential); err == nil || !strings.Contains(said, "rec-refused") || strings.Contains(said, "\x1b") {
		t.Errorf("a name that drives a terminal: %v %q", err, said)
	}
	none := worldOf(t, host, reader, change)
	if r := none.ssh("", "web", "id"); r.code != 255 || !strings.Contains(r.err, "none of the user's roles has an account") {
		t.Errorf("no account: %s", r)
	}
	if strings.Contains(host.Log(), "admin") || strings.Contains(host.Log(), "for root") {
		t.Error("the target heard of another account")
	}
}

// A renewed credential may have fewer roles than the one that the account was chosen by.
func TestALostRoleTakesTheAccountAway(t *testing.T) {
	host := newWorld(t, nil).host
	w := worldOf(t, host, []string{"ops", "deployer"}, func(c *sshd.Config) {
		c.Forwarding = true
		c.Accounts = []sshd.Account{{Name: host.Account, Key: host.UserKey, Roles: []string{"deployer"}}}
	})
	c := w.client()
	run := func() (string, error) {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		out, err := s.CombinedOutput("echo hello")
		return string(out), err
	}
	if out, err := run(); err != nil || out != "hello\n" {
		t.Fatalf("%v %q", err, out)
	}
	w.ledger.become("ops")
	if out, err := run(); err == nil || !strings.Contains(out, "may use account") || !strings.Contains(out, "rec-refused") {
		t.Errorf("%v %q", err, out)
	}
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "may use account") {
		t.Errorf("a forwarding: %v", err)
	}
}

func TestStrangersTakeNoSessionsPlace(t *testing.T) {
	w := newWorld(t, ops, func(c *sshd.Config) { c.MaxConnections = 1 })
	for range 20 {
		conn, err := tls.Dial("tcp", w.addr, w.tls(preface))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	c := w.client()
	if _, _, err := present(w.addr, w.tls(preface), goodCredential); err == nil || !strings.Contains(err.Error(), "as many connections") {
		t.Errorf("one session more: %v", err)
	}
	_ = c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, _, err := present(w.addr, w.tls(preface), goodCredential)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the place isn't given back: %v", err)
		}
	}
}

func TestTheKeyOfAnAgentIsNotLookedAt(t *testing.T) {
	w := newWorld(t, ops)
	conn, err := tls.Dial("tcp", w.addr, w.tls())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Not even the key that the target itself would take.
	_, _, _, err = ssh.NewClientConn(conn, "web:22", &ssh.ClientConfig{
		User: w.host.Account, Auth: []ssh.AuthMethod{ssh.PublicKeys(w.host.UserKey)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err == nil || len(w.ledger.sessions) != 0 {
		t.Errorf("a key opens the door: %v", err)
	}
}
