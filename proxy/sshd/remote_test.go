package sshd_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

func forwarding(c *sshd.Config) { c.Forwarding = true }

// freePort is one that nobody listens at just now.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// talk connects to a place at the host, says something and gives the answer.
func talk(network, address, text string) (string, error) {
	c, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

// serveEcho answers what comes to a listener of the agent's.
func serveEcho(l net.Listener) {
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
}

// Listening at the host is an action of its own, and so is each connection that comes.
func TestRemoteForwardingIsDecidedPerPlaceAndConnection(t *testing.T) {
	w := newWorld(t, ops, forwarding)
	c := w.client()
	port := freePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	l, err := c.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	go serveEcho(l)
	if d := w.ledger.await(t, "decided", "remote-forward "+at); d.cmd.Ops[0].Action.Name() != "ssh:remote-forward" || d.cmd.Ops[0].Resource.Name != at || !d.cmd.Ops[0].Write {
		t.Errorf("%+v", d.cmd)
	}
	if got, err := talk("tcp", at, "there and back, "); err != nil || got != "there and back, end" {
		t.Errorf("%q %v", got, err)
	}
	e := w.ledger.await(t, "completed", "connection to "+at+" from 127.0.0.1:")
	if e.out.Status != "ok" || e.out.Bytes != 16 || e.cmd.Ops[0].Resource.Name != at {
		t.Errorf("%+v", e)
	}
	// The same place twice, and what names no place.
	if _, err := c.Listen("tcp", at); err == nil {
		t.Error("it listens there twice")
	}
	for _, bad := range []struct {
		host string
		port uint32
	}{{"", 8080}, {"*", 8080}, {"0.0.0.0", 8080}, {"::", 8080}, {"127.1", 8080}, {"localhost", 0}, {"a b", 1}, {"localhost", 70000}} {
		if ok, _, err := c.SendRequest("tcpip-forward", true, ssh.Marshal(struct {
			H string
			P uint32
		}{bad.host, bad.port})); err != nil || ok {
			t.Errorf("%+v is listened at (%v)", bad, err)
		}
	}
	// What is cancelled is listened at no more.
	_ = l.Close()
	if got, err := talk("tcp", at, "x"); err == nil {
		t.Errorf("after the end: %q", got)
	}
	// A connection that policy doesn't permit any more doesn't reach the agent.
	if l, err = c.Listen("tcp", at); err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{}, 1)
	go func() {
		if _, err := l.Accept(); err == nil {
			reached <- struct{}{}
		}
	}()
	w.ledger.become("reader")
	if got, err := talk("tcp", at, "x"); got != "" {
		t.Errorf("it answers %q %v", got, err)
	}
	w.ledger.await(t, "refused", "connection to "+at)
	select {
	case <-reached:
		t.Error("it reached the agent")
	default:
	}
}

func TestRemoteForwardingOfSockets(t *testing.T) {
	w := newWorld(t, ops, forwarding)
	c := w.client()
	path := filepath.Join(w.host.Files, "back.sock")
	l, err := c.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	go serveEcho(l)
	if got, err := talk("unix", path, "x"); err != nil || got != "xend" {
		t.Errorf("%q %v", got, err)
	}
	w.ledger.await(t, "completed", "connection to "+path)
	for _, bad := range []string{"x.sock", "/a/../x.sock", ""} {
		if _, err := c.ListenUnix(bad); err == nil {
			t.Errorf("%q is listened at", bad)
		}
	}
	_ = l.Close()
}

// OpenSSH's client, and the end of what it began with the session.
func TestRemoteForwardingOfOpenSSHEndsWithItsSession(t *testing.T) {
	w := newWorld(t, ops, forwarding)
	l := echo(t, "tcp", "127.0.0.1:0")
	port := freePort(t)
	ready := filepath.Join(w.host.Files, "ready")
	done := make(chan result, 1)
	go func() {
		done <- w.ssh("", "-o", "ExitOnForwardFailure=yes", "-R", fmt.Sprintf("127.0.0.1:%d:%s", port, l.Addr()), "web", "touch "+ready+"; sleep 60")
	}()
	await(t, ready)
	at := "127.0.0.1:" + strconv.Itoa(port)
	if got, err := talk("tcp", at, "x"); err != nil || got != "xend" {
		t.Errorf("%q %v", got, err)
	}
	w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the task is revoked"})
	if r := <-done; r.code == 0 {
		t.Errorf("%s", r)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := talk("tcp", at, "x"); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the host still listens")
		}
	}
}

// Sockets of OpenSSH's client, there and back, with a connection of each under way when the session ends.
func TestSocketsOfOpenSSHAreForwardedAndCut(t *testing.T) {
	w := newWorld(t, ops, forwarding)
	at := func(name string) string { return filepath.Join(w.host.Files, name) }
	there := echo(t, "unix", at("there.sock"))
	if err := os.Chmod(there.Addr().String(), 0o777); err != nil { // the host's account isn't this test's
		t.Fatal(err)
	}
	back := echo(t, "unix", filepath.Join(w.dir, "back.sock"))
	done, ready := make(chan result, 1), at("ready")
	go func() {
		done <- w.ssh("", "-o", "ExitOnForwardFailure=yes", "-L", filepath.Join(w.dir, "l.sock")+":"+there.Addr().String(), "-R", at("r.sock")+":"+back.Addr().String(),
			"web", "touch "+ready+"; sleep 60")
	}()
	await(t, ready)
	for side, path := range map[string]string{"forward " + there.Addr().String(): filepath.Join(w.dir, "l.sock"), "connection to " + at("r.sock"): at("r.sock")} {
		if got, err := talk("unix", path, "x"); err != nil || got != "xend" {
			t.Errorf("%s: %q %v", side, got, err)
		}
		if e := w.ledger.await(t, "completed", side); e.out.Status != "ok" {
			t.Errorf("%s: %+v", side, e.out)
		}
		open, err := net.DialTimeout("unix", path, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		_ = open.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(open, "y"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(open, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the task is revoked"})
	if r := <-done; r.code == 0 {
		t.Errorf("%s", r)
	}
	// Both outcomes are there when the connection is over.
	w.ledger.await(t, "closed", "")
	got := map[string][]string{}
	for _, e := range w.ledger.all("completed") {
		got[e.cmd.Kind] = append(got[e.cmd.Kind], e.out.Status)
	}
	if fmt.Sprint(got["forward"]) != "[ok cut]" || fmt.Sprint(got["remote-forward"]) != "[ok ok cut]" { // one of the place itself
		t.Errorf("the outcomes: %v", got)
	}
}

// await waits for a file.
func await(t testing.TB, path string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it doesn't begin")
		}
	}
}

func TestRemoteForwardingIsRefusedWithoutPolicyAndBeyondItsBound(t *testing.T) {
	w := newWorld(t, reader, forwarding)
	if _, err := w.client().Listen("tcp", fmt.Sprintf("127.0.0.1:%d", freePort(t))); err == nil {
		t.Error("without a policy it listens")
	}
	if r := w.ledger.await(t, "refused", "remote-forward 127.0.0.1:"); !strings.Contains(r.why, "no policy permits") {
		t.Errorf("%+v", r)
	}
	o := worldOf(t, w.host, ops, forwarding)
	c := o.client()
	for i := range 9 {
		_, err := c.ListenUnix(filepath.Join(o.host.Files, fmt.Sprintf("bound%d.sock", i)))
		if (err == nil) != (i < 8) {
			t.Errorf("place %d: %v", i, err)
		}
	}
}

// What the agent hasn't taken when its session ends, it didn't fail to take.
func TestAConnectionThatNobodyTookIsCutWithItsSession(t *testing.T) {
	w := newWorld(t, ops, forwarding)
	c := w.client()
	at := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if _, err := c.Listen("tcp", at); err != nil {
		t.Fatal(err)
	}
	near, err := net.DialTimeout("tcp", at, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	w.ledger.await(t, "forwarded", "connection to "+at)
	w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
	if e := w.ledger.await(t, "completed", "connection to "+at); e.out.Status != "cut" {
		t.Errorf("%+v", e.out)
	}
}
