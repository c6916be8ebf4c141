package sshd_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

const ok = "ok\n"

// exitStatus is what a server says when a program has ended.
func exitStatus(channel, status int) []byte {
	return message(msgChannelRequest, channel, "exit-status", false, status)
}

// scripted serves one program: opened is sent when its channel is asked for, before it is confirmed, started when the program is. Then
// it reads on, unless deaf.
func scripted(opened, started func(c *raw, channel int) error, deaf bool) func(*raw) error {
	return func(c *raw) error {
		p, err := c.await(msgChannelOpen)
		if err != nil {
			return err
		}
		channel := number(p, 5+number(p, 1))
		if opened != nil {
			if err := opened(c, channel); err != nil {
				return err
			}
		}
		if err := c.send(message(msgChannelConfirm, channel, 0, 1<<20, 1<<15)); err != nil {
			return err
		}
		if _, err = c.await(msgChannelRequest); err != nil {
			return err
		}
		if err := started(c, channel); err != nil {
			return err
		}
		if deaf {
			// Everything is left lying until the proxy goes away.
			for {
				if err := c.send(message(2, "ignored")); err != nil {
					return io.EOF
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		_, err = io.Copy(io.Discard, c.r)
		return err
	}
}

func sends(packets ...func(channel int) []byte) func(*raw, int) error {
	return func(c *raw, channel int) error {
		for _, p := range packets {
			if err := c.send(p(channel)); err != nil {
				return err
			}
		}
		return nil
	}
}

func says(s string) func(int) []byte {
	return func(ch int) []byte { return message(msgChannelData, ch, s) }
}

func status(n int) func(int) []byte { return func(ch int) []byte { return exitStatus(ch, n) } }

func succeeds(ch int) []byte { return message(msgChannelSuccess, ch) }
func ends(ch int) []byte     { return message(msgChannelEOF, ch) }
func closes(ch int) []byte   { return message(msgChannelClose, ch) }

func times(n int, p func(int) []byte) []func(int) []byte {
	out := make([]func(int) []byte, n)
	for i := range out {
		out[i] = p
	}
	return out
}

// Whatever a target sends, its agent hears what was decided or that it failed, nothing waits, and a revocation ends it all in a second.
func TestATargetThatSendsWhatItLikesBreaksNothing(t *testing.T) {
	good := []func(int) []byte{succeeds, says(ok), status(0), ends, closes}
	after := func(p ...func(int) []byte) []func(int) []byte { return append(p[:len(p):len(p)], good...) }
	big := strings.Repeat("x", 32<<10)
	for name, c := range map[string]struct {
		opened  func(*raw, int) error
		started func(*raw, int) error
		deaf    bool
		// want is what the agent gets: "" for an error in whichever words.
		want string
	}{
		"as it should be":                {nil, sends(good...), false, ok},
		"output before the channel is":   {sends(says("early"), ends), sends(good...), false, ok},
		"an exit before the start":       {nil, sends(status(0), succeeds, says(ok), ends, closes), false, ok},
		"output before the start":        {nil, sends(says(ok), succeeds, status(0), ends, closes), false, ok},
		"ten thousand exits":             {nil, sends(append(append([]func(int) []byte{succeeds, says(ok)}, times(10000, status(0))...), ends, closes)...), false, ok},
		"answers that nobody waits for":  {nil, sends(append(times(1000, succeeds), good...)...), false, ok},
		"no exit":                        {nil, sends(succeeds, says(ok), ends, closes), false, ""},
		"an exit and no end":             {nil, sends(succeeds, says(ok), status(0)), false, "stays"},
		"another stream":                 {nil, sends(succeeds, func(ch int) []byte { return message(95, ch, 99, "?") }, says(ok), status(0), ends, closes), false, ok},
		"output after the end":           {nil, sends(succeeds, says(ok), ends, says("more"), status(0), closes), false, ok + "…"}, // what comes after the end may be read or not
		"one wrong packet and many more": {nil, sends(append([]func(int) []byte{succeeds, func(int) []byte { return message(msgChannelData, 77, "x") }}, times(2000, says("x"))...)...), false, ""},
		"the same before the start":      {sends(append([]func(int) []byte{func(int) []byte { return message(msgChannelData, 77, "x") }}, times(2000, says("x"))...)...), sends(good...), false, ""},
		"output beyond the window":       {nil, sends(append([]func(int) []byte{succeeds}, times(400, says(big))...)...), false, "stays"},
		"a window that overflows":        {nil, sends(after(func(ch int) []byte { return message(msgWindowAdjust, ch, 1<<32-1) }, func(ch int) []byte { return message(msgWindowAdjust, ch, 1<<32-1) })...), false, ""},
		"a message of no kind":           {nil, sends(after(func(int) []byte { return []byte{200, 1} })...), false, "stays"},
		"an empty message":               {nil, sends(after(func(int) []byte { return nil })...), false, ""},
		"a channel that isn't there":     {nil, sends(after(func(int) []byte { return message(msgChannelData, 77, "x") })...), false, ""},
		"two closes":                     {nil, sends(succeeds, says(ok), status(0), closes, closes), false, "any"},
		"a long signal": {nil, sends(succeeds, says(ok), func(ch int) []byte {
			return message(msgChannelRequest, ch, "exit-signal", false, "TERM", false, strings.Repeat("x", 100<<10), "")
		}, ends, closes), false, ""},
		"a broken exit":                   {nil, sends(succeeds, says(ok), func(ch int) []byte { return message(msgChannelRequest, ch, "exit-status", false) }, ends, closes), false, ""},
		"channels of its own":             {sends(times(2000, func(int) []byte { return message(msgChannelOpen, "forwarded-tcpip", 1, 1<<20, 1<<15, "x", 1, "y", 2) })...), sends(good...), false, ok},
		"requests of its own":             {sends(times(2000, func(int) []byte { return message(msgGlobalRequest, "hostkeys-00@openssh.com", true) })...), sends(good...), false, ok},
		"requests, and it doesn't listen": {nil, sends(append([]func(int) []byte{succeeds}, times(20000, func(ch int) []byte { return message(msgChannelRequest, ch, "keepalive@openssh.com", true) })...)...), true, "stays"},
		"channels, and it doesn't listen": {nil, sends(append([]func(int) []byte{succeeds}, times(20000, func(int) []byte { return message(msgChannelOpen, "x11", 1, 1<<20, 1<<15, "x", 1) })...)...), true, "stays"},
		"new keys that never come":        {nil, sends(succeeds, func(int) []byte { return kexInit() }), true, "stays"},
	} {
		t.Run(name, func(t *testing.T) {
			w := atRaw(t, scripted(c.opened, c.started, c.deaf))
			client := w.client()
			s, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			s.Stdout, s.Stderr = &out, &errs
			done := make(chan error, 1)
			go func() { done <- s.Run("true") }()
			if c.want != "stays" {
				select {
				case err = <-done:
				case <-time.After(10 * time.Second):
					t.Fatalf("it hangs: %q %q", out.String(), errs.String())
				}
				switch {
				case c.want == "any":
				case strings.HasSuffix(c.want, "…") && err == nil && strings.HasPrefix(out.String(), strings.TrimSuffix(c.want, "…")):
				case c.want == "" && err == nil:
					t.Errorf("all was well: %q %q", out.String(), errs.String())
				case c.want != "" && (err != nil || out.String() != c.want):
					t.Errorf("%v: %q %q", err, out.String(), errs.String())
				}
			} else {
				w.ledger.await(t, "forwarded", "true")
				time.Sleep(100 * time.Millisecond) // nothing tells when it is stuck; without this it might not be yet
			}
			began := time.Now()
			w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
			_ = client.Wait()
			if took := time.Since(began); took > time.Second {
				t.Errorf("the end took %s", took)
			}
			w.ledger.await(t, "completed", "true")
			w.ledger.await(t, "closed", "")
		})
	}
}

// Whatever an agent sends, its session ends within a second of a revocation, with what it runs, and when it goes away.
func TestAnAgentThatSendsWhatItLikesIsEnded(t *testing.T) {
	w := newWorld(t, ops)
	open := func(window, packet int) []byte { return message(msgChannelOpen, "session", 7, window, packet) }
	run := func(c *raw, command string) error {
		if err := c.send(open(1<<20, 1<<15)); err != nil {
			return err
		}
		p, err := c.await(msgChannelConfirm)
		if err == nil {
			err = c.send(message(msgChannelRequest, number(p, 5), "exec", true, command))
		}
		if err == nil {
			_, err = c.await(msgChannelSuccess)
		}
		return err
	}
	for name, c := range map[string]struct {
		mark string
		act  func(*raw) error
	}{
		"new keys that never come": {"7031.1", func(c *raw) error { return c.send(kexInit()) }},
		"channels that it doesn't hear about": {"7032.1", func(c *raw) error {
			return flood(c, open(0, 1<<15))
		}},
		"one wrong packet and many more": {"7039.1", func(c *raw) error {
			if err := c.send(message(msgChannelData, 99, "x")); err != nil {
				return err
			}
			return flood(c, message(msgGlobalRequest, "keepalive@openssh.com", true))
		}},
		"channels of no kind": {"7033.1", func(c *raw) error {
			return flood(c, message(msgChannelOpen, strings.Repeat("x", 1000), 7, 0, 1<<15))
		}},
		"requests that it doesn't hear about": {"7034.1", func(c *raw) error {
			return flood(c, message(msgGlobalRequest, "keepalive@openssh.com", true))
		}},
		"signals": {"7035.1", func(c *raw) error { return flood(c, message(msgChannelRequest, 0, "signal", true, "USR9")) }},
		"reverse forwardings": {"7036.1", func(c *raw) error {
			return flood(c, message(msgGlobalRequest, "tcpip-forward", true, "0.0.0.0", 22))
		}},
		"programs in a channel that has one": {"7037.1", func(c *raw) error { return flood(c, message(msgChannelRequest, 0, "exec", true, "id")) }},
		"variables": {"7038.1", func(c *raw) error {
			return flood(c, message(msgChannelRequest, 0, "env", true, "LD_PRELOAD", "/tmp/x"))
		}},
	} {
		for _, goes := range []bool{false, true} {
			mark := c.mark
			if goes {
				name, mark = name+", and goes", c.mark+"1"
			}
			t.Run(name, func(t *testing.T) {
				a := w.rawAgent()
				session := w.ledger.last()
				if err := run(a, "sleep "+mark); err != nil {
					t.Fatal(err)
				}
				awaitAlive(t, mark, true)
				if err := c.act(a); err != nil && !errors.Is(err, errFull) {
					t.Fatal(err)
				}
				began := time.Now()
				if goes {
					_ = a.conn.Close()
				} else {
					session.cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
				}
				awaitAlive(t, mark, false)
				if took := time.Since(began); !goes && took > time.Second {
					t.Errorf("the end took %s", took)
				}
				w.ledger.await(t, "completed", "sleep "+mark)
				for end := time.Now().Add(10 * time.Second); !session.over(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("the session never closes")
					}
				}
			})
		}
	}
	if r := w.ssh("", "web", "echo fine"); r.out != "fine\n" {
		t.Errorf("after all that: %s", r)
	}
}

var errFull = errors.New("the proxy takes no more")

// flood sends a packet again and again, reading nothing, until the proxy takes no more for a while.
func flood(c *raw, packet []byte) error {
	for range 20000 {
		_ = c.conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if err := c.send(packet); err != nil {
			return errFull
		}
	}
	return nil
}

// What the library keeps of a connection that has ended at a wrong packet can be freed, as long as it is built as it is.
func TestWhatTheLibraryKeepsCanBeFreed(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	if !sshd.Unblocks(c.Conn) {
		t.Error("the client side of x/crypto/ssh is built another way: see over.go")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if c, err := ssh.Dial("tcp", l.Addr().String(), &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil {
			_ = c.Wait()
		}
	}()
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	cfg.AddHostKey(signer(t))
	s, _, _, err := ssh.NewServerConn(near, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !sshd.Unblocks(s) || !sshd.Unblocks(s.Conn) {
		t.Error("the server side of x/crypto/ssh is built another way: see over.go")
	}
	_ = s.Close()
	<-ended
}

// Before its session begins nobody may send more than that takes.
func TestAStartupIsBrief(t *testing.T) {
	w := newWorld(t, ops)
	conn, _, err := present(w.addr, w.tls(preface), goodCredential)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := rawSSH(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if err := c.send(message(2, strings.Repeat("x", 4<<10))); err != nil {
			break // it is over already
		}
	}
	if err := c.send(message(msgServiceRequest, "ssh-userauth")); err == nil {
		if p, err := c.await(msgServiceAccept); err == nil {
			t.Errorf("after 160 KiB of nothing: %v", p)
		}
	}
	w.ledger.await(t, "closed", "too much")
}

// breakOff leaves a handshake at a wrong packet with more behind it.
func breakOff(c *raw) {
	for range 60 {
		if c.send(message(200, strings.Repeat("x", 100))) != nil {
			return
		}
	}
}

// What a broken handshake leaves behind stays, so that nobody may break many; and nobody else is held to it.
func TestNobodyBreaksManyHandshakes(t *testing.T) {
	w := newWorld(t, ops)
	tried := func(cfg *tls.Config) (begun bool) {
		conn, err := tls.Dial("tcp", w.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		c, err := rawSSH(conn, nil)
		if err != nil {
			return false
		}
		breakOff(c)
		_, _ = io.Copy(io.Discard, conn)
		return true
	}
	n := 0
	for n < 100 && tried(w.tls()) {
		n++
	}
	if n < 8 || n == 100 {
		t.Errorf("an agent broke %d handshakes", n)
	}
	if _, _, err := present(w.addr, w.tls(preface), goodCredential); err == nil {
		t.Error("it goes on with a preface")
	}
	// A child counts with its parent, another agent by itself.
	of := func(id string) *tls.Config {
		svid, cfg := w.ca.SVID(spiffeid.RequireFromString(id)), w.tls()
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}
		return cfg
	}
	if tried(of(agentID + "/child/" + strings.Repeat("0", 32))) {
		t.Error("its child goes on")
	}
	if !tried(of("spiffe://mesh.test/agent/planner/" + strings.Repeat("1", 32))) {
		t.Error("another agent is refused")
	}
}

func TestATargetBreaksFewHandshakes(t *testing.T) {
	host := signer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var tried atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tried.Add(1)
			go func() {
				defer conn.Close()
				if c, err := rawSSH(conn, host); err == nil {
					breakOff(c)
					_, _ = io.Copy(io.Discard, conn)
				}
			}()
		}
	}()
	account := &testssh.Server{Account: "app", UserKey: signer(t), HostKey: host.PublicKey()}
	w := worldOf(t, account, ops, func(c *sshd.Config) { c.Upstream.Address = l.Addr().String() })
	for range 60 {
		if _, said, err := w.dial(sshd.AnyAccount, goodCredential); err == nil || !strings.Contains(said, "the target can't be reached") {
			t.Fatalf("%v: %s", err, said)
		}
	}
	if n := tried.Load(); n < 16 || n == 60 {
		t.Errorf("the target was tried %d times", n)
	}
}
