package sshd_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy/sshd"
)

// An agent that goes away is noticed, whatever it asked for and doesn't read: what runs for it ends.
func TestAnAgentThatReadsNothingAndGoesIsNoticed(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	other, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start("sleep 7021.1"); err != nil {
		t.Fatal(err)
	}
	awaitAlive(t, "7021.1", true)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StdoutPipe(); err != nil { // never read: the channel's window is soon used up, also for what is said beside the output
		t.Fatal(err)
	}
	if err := s.Start("cat /dev/zero"); err != nil {
		t.Fatal(err)
	}
	w.ledger.await(t, "forwarded", "cat /dev/zero")
	time.Sleep(300 * time.Millisecond)
	for range 100 {
		for _, kind := range []string{"auth-agent-req@openssh.com", "x11-req"} {
			if _, err := s.SendRequest(kind, false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.ledger.await(t, "refused", "auth-agent-req")
	w.ledger.await(t, "refused", "x11-req")
	_ = c.Close()
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
