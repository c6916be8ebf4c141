package sshd_test

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy/sshd"
)

// echo is a server that the target reaches.
func echo(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
				_, _ = io.WriteString(c, "end")
			}()
		}
	}()
	return l
}

func TestForwardingIsRefusedWithItsRecord(t *testing.T) {
	w := newWorld(t, ops)
	l := echo(t, "tcp", "127.0.0.1:0")
	c := w.client()
	if conn, err := c.Dial("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "record: rec-refused") {
		t.Errorf("-L: %v %v", conn, err)
	}
	if _, err := c.Dial("unix", "/run/x.sock"); err == nil || !strings.Contains(err.Error(), "record: rec-refused") {
		t.Errorf("a socket: %v", err)
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("-R is done")
	}
	if _, err := c.ListenUnix(filepath.Join(w.host.Files, "x.sock")); err == nil {
		t.Error("-R of a socket is done")
	}
	for _, kind := range []string{"x11", "forwarded-tcpip", "tun@openssh.com", "auth-agent@openssh.com", "nonsense"} {
		if _, _, err := c.OpenChannel(kind, nil); err == nil || !strings.Contains(err.Error(), "record: rec-refused") {
			t.Errorf("channel %s: %v", kind, err)
		}
	}
	for _, kind := range []string{"forward 127.0.0.1", "forward /run/x.sock", "remote-forward 127.0.0.1:0", "remote-forward " + filepath.Join(w.host.Files, "x.sock"), "channel x11", "channel tun@"} {
		w.ledger.await(t, "refused", kind)
	}
	if n := len(w.ledger.all("forwarded")); n != 0 {
		t.Errorf("%d things left for the target", n)
	}
	if r := w.ssh("", "-W", l.Addr().String(), "web"); r.code == 0 || !strings.Contains(r.err, "rec-refused") {
		t.Errorf("-W: %s", r)
	}
	if r := w.ssh("", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "web", "echo x"); r.code == 0 || r.out != "" {
		t.Errorf("-R: %s", r)
	}
}

func TestForwardingOfAgentsAndScreensIsRefusedBesideTheCommand(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	for kind, record := range map[string]string{"auth-agent-req@openssh.com": "auth-agent-req", "x11-req": "x11-req"} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var errs strings.Builder
		s.Stderr = &errs
		payload := ssh.Marshal(struct {
			Single         bool
			Protocol, Data string
			Screen         uint32
		}{false, "MIT-MAGIC-COOKIE-1", "00", 0})
		if ok, _ := s.SendRequest(kind, true, payload); ok {
			t.Errorf("%s is done", kind)
		}
		out, err := s.Output("echo [$SSH_AUTH_SOCK$DISPLAY]")
		if err != nil || string(out) != "[]\n" || !strings.Contains(errs.String(), "record: rec-refused") {
			t.Errorf("%s: %v %q %q", kind, err, out, errs.String())
		}
		w.ledger.await(t, "refused", record)
	}
}

func TestForwardingThatIsOnIsDecidedPerDestination(t *testing.T) {
	w := newWorld(t, ops, func(c *sshd.Config) { c.Forwarding = true })
	l := echo(t, "tcp", "127.0.0.1:0")
	port := l.Addr().(*net.TCPAddr).Port
	c := w.client()
	conn, err := c.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "there and back, "); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "there and back, end" {
		t.Errorf("%q %v", got, err)
	}
	_ = conn.Close()
	e := w.ledger.await(t, "completed", fmt.Sprintf("forward 127.0.0.1:%d", port))
	if e.out.Status != "ok" || e.out.Bytes != 19 {
		t.Errorf("the outcome: %+v", e.out)
	}
	if r := w.ssh("x", "-W", fmt.Sprintf("127.0.0.1:%d", port), "web"); r.out != "xend" {
		t.Errorf("-W: %s", r)
	}
	for _, d := range []struct {
		kind string
		body any
	}{
		{"direct-tcpip", struct {
			H string
			P uint32
			O string
			Q uint32
		}{"a b", 1, "x", 1}},
		{"direct-tcpip", struct {
			H string
			P uint32
			O string
			Q uint32
		}{"host", 65536, "x", 1}},
		{"direct-tcpip", struct {
			H string
			P uint32
			O string
			Q uint32
		}{"0.0.0.0", uint32(port), "x", 1}},
		{"direct-tcpip", struct {
			H string
			P uint32
			O string
			Q uint32
		}{"::ffff:0.0.0.0", uint32(port), "x", 1}},
		{"direct-streamlocal@openssh.com", struct {
			S, R string
			P    uint32
		}{"/run/../x", "", 0}},
		{"direct-streamlocal@openssh.com", struct {
			S, R string
			P    uint32
		}{"run/x", "", 0}},
	} {
		if _, _, err := c.OpenChannel(d.kind, ssh.Marshal(d.body)); err == nil || !strings.Contains(err.Error(), "rec-refused") {
			t.Errorf("%+v: %v", d.body, err)
		}
	}
	reads := worldOf(t, w.host, reader, func(c *sshd.Config) { c.Forwarding = true })
	if _, err := reads.client().Dial("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "no policy permits") {
		t.Errorf("without a policy: %v", err)
	}
}
