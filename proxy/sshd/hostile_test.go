package sshd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

// An agent that goes away is noticed, whatever it asked for and doesn't read: what runs for it ends.
func TestAnAgentThatReadsNothingAndGoesIsNoticed(t *testing.T) {
	w := newWorld(t, ops)
	c := w.rawAgent()
	open := func(window int) int {
		t.Helper()
		if err := c.send(message(msgChannelOpen, "session", 0, window, 1<<15)); err != nil {
			t.Fatal(err)
		}
		p, err := c.await(msgChannelConfirm)
		if err != nil {
			t.Fatal(err)
		}
		return number(p, 5)
	}
	if err := c.send(message(msgChannelRequest, open(1<<20), "exec", false, "sleep 7021.1")); err != nil {
		t.Fatal(err)
	}
	awaitAlive(t, "7021.1", true)
	// Nothing can be said on a channel without a window.
	deaf := open(0)
	for range 100 {
		for _, kind := range []string{"auth-agent-req@openssh.com", "x11-req"} {
			if err := c.send(message(msgChannelRequest, deaf, kind, false)); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.ledger.await(t, "refused", "auth-agent-req")
	w.ledger.await(t, "refused", "x11-req")
	_ = c.conn.Close()
	awaitAlive(t, "7021.1", false)
	w.ledger.await(t, "closed", "client")
	if n := len(w.ledger.all("refused")); n != 2 {
		t.Errorf("%d records of what one channel asked for twice over", n)
	}
}

// stalled is a connection to a target that takes nothing any more, as one whose process was stopped.
type stalled struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	stop   <-chan struct{}
}

func (s *stalled) Write(b []byte) (int, error) {
	select {
	case <-s.stop:
		<-s.closed
		return 0, errors.New("closed")
	default:
		return s.Conn.Write(b)
	}
}

func (s *stalled) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

// A target that takes nothing holds its own program up, not the agent's connection.
func TestATargetThatTakesNothingHoldsNoConnectionUp(t *testing.T) {
	stop := make(chan struct{})
	w := newWorld(t, ops, func(c *sshd.Config) {
		c.Upstream.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return &stalled{Conn: conn, closed: make(chan struct{}), stop: stop}, err
		}
	})
	c := w.client()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 7022.1"); err != nil {
		t.Fatal(err)
	}
	awaitAlive(t, "7022.1", true)
	close(stop)
	for range 200 {
		if err := s.WindowChange(40, 100); err != nil {
			t.Fatal(err)
		}
		if err := s.Signal(ssh.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	// The connection still answers, and its end is noticed.
	answered := make(chan error, 1)
	go func() {
		_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the proxy doesn't answer any more")
	}
	_ = c.Close()
	w.ledger.await(t, "closed", "client")
	w.ledger.await(t, "completed", "sleep 7022.1")
}

// One destination has one spelling: a rule about it can't be led around by another that the host's resolver takes for the same.
func TestADestinationHasOneSpelling(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:80", "::ffff:127.0.0.1": "127.0.0.1:80", "::FFFF:7f00:1": "127.0.0.1:80", "0:0:0:0:0:0:0:1": "[::1]:80", "::1": "[::1]:80",
		"DB.Example": "db.example:80", "localhost": "localhost:80", "10.example": "10.example:80", "x1": "x1:80", "0xyz": "0xyz:80", "a.b-1": "a.b-1:80",
	} {
		if got, err := sshd.Destination(host, 80); err != nil || got != want {
			t.Errorf("%q leads to %q, want %q: %v", host, got, want, err)
		}
	}
	for _, host := range []string{
		"127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.01", "127.0.0.0x1", "1.2.3.4.5", "256.1.1.1", "0", "0x", "1.2.3.4.", "localhost.", ".localhost", "a..b", ".",
		"fe80::1%lo", "[::1]", "[127.0.0.1]", "127.0.0.1:22", "*", "", "a\x00b", "a b", "a/b", "a_b", "example.0x7f",
	} {
		if got, err := sshd.Destination(host, 80); err == nil {
			t.Errorf("%q leads to %q", host, got)
		}
	}
}

// atRaw is a world whose target does what serve says, packet by packet.
func atRaw(t *testing.T, serve func(*raw) error, change ...func(*sshd.Config)) *world {
	t.Helper()
	address, host := rawTarget(t, serve)
	account := &testssh.Server{Account: "app", UserKey: signer(t), HostKey: host.PublicKey()}
	return worldOf(t, account, ops, append([]func(*sshd.Config){func(c *sshd.Config) { c.Upstream.Address = address }}, change...)...)
}

// number is the uint32 at an offset of a packet.
func number(p []byte, at int) int { return int(binary.BigEndian.Uint32(p[at:])) }

// openings confirms every channel that is opened, and says how many; it answers the requests for programs, and closes nothing.
func openings(opened *atomic.Int64, start byte) func(*raw) error {
	return func(c *raw) error {
		var theirs []int // their channels, by ours
		for {
			p, err := c.await(msgChannelOpen, msgChannelRequest)
			if err != nil {
				return err
			}
			if p[0] == msgChannelRequest {
				if kind := number(p, 5); p[9+kind] == 1 {
					err = c.send(message(start, theirs[number(p, 1)]))
				}
			} else {
				opened.Add(1)
				theirs = append(theirs, number(p, 5+number(p, 1)))
				err = c.send(message(msgChannelConfirm, theirs[len(theirs)-1], len(theirs)-1, 1<<20, 1<<15))
			}
			if err != nil {
				return err
			}
		}
	}
}

// A target that never closes its side of a channel holds the agent's place there, so that the two together can't have the proxy keep more
// than the agent may have open at once.
func TestATargetThatClosesNothingGetsNoMoreChannels(t *testing.T) {
	for name, answer := range map[string]byte{"of programs that it started": msgChannelSuccess, "of programs that it refused": msgChannelFailure} {
		t.Run(name, func(t *testing.T) {
			var opened atomic.Int64
			w := atRaw(t, openings(&opened, answer))
			c := w.client()
			for range 40 {
				s, err := c.NewSession()
				if err != nil {
					continue
				}
				_ = s.Start("true")
				_ = s.Close()
			}
			if n := opened.Load(); n == 0 || n > sshd.DefaultMaxChannels {
				t.Errorf("%d channels are open at the target for an agent that may have %d", n, sshd.DefaultMaxChannels)
			}
			began := time.Now()
			w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
			_ = c.Wait()
			if took := time.Since(began); took > time.Second {
				t.Errorf("the end took %s", took)
			}
			w.ledger.await(t, "closed", "ended")
		})
	}
}

// A real server closes its side at once, also where what it runs lives on.
func TestPlacesAreFreeOnceTheTargetHasClosed(t *testing.T) {
	w := newWorld(t, ops, func(c *sshd.Config) { c.MaxChannels = 2 })
	c := w.client()
	for range 8 {
		var s *ssh.Session
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			var err error
			if s, err = c.NewSession(); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		before := len(w.ledger.all("forwarded"))
		if err := s.Start("trap '' HUP TERM; sleep 3.7023"); err != nil {
			t.Fatal(err)
		}
		for len(w.ledger.all("forwarded")) == before {
			time.Sleep(time.Millisecond)
		}
		_ = s.Close()
	}
}
