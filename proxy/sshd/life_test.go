package sshd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/sshd"
)

// alive says whether a process with that argument runs.
func alive(mark string) bool { return exec.Command("pgrep", "-fx", "sleep "+mark).Run() == nil }

func awaitAlive(t testing.TB, mark string, want bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); alive(mark) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("sleep %s runs: %v, want %v", mark, !want, want)
		}
	}
}

func TestARevokedSessionEndsWithinASecondWithWhatItRuns(t *testing.T) {
	w := newWorld(t, ops)
	for name, c := range map[string]struct {
		mark string
		args []string
	}{
		"a command":             {"7011.1", []string{"web", "sleep 7011.1"}},
		"one that ignores TERM": {"7012.1", []string{"web", "trap '' TERM; sleep 7012.1; sleep 7012.1"}},
		"one with a terminal":   {"7013.1", []string{"-tt", "web", "sleep 7013.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			cmd := w.command("ssh", append([]string{"-F", w.config()}, c.args...)...)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			awaitAlive(t, c.mark, true)
			began := time.Now()
			w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the task is revoked"})
			err := cmd.Wait()
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %s", took)
			}
			if err == nil || !strings.Contains(out.String(), "this session has ended: the task is revoked") {
				t.Errorf("%v: %s", err, &out)
			}
			awaitAlive(t, c.mark, false)
			if took := time.Since(began); took > time.Second {
				t.Errorf("the command lived on for %s", took)
			}
			w.ledger.await(t, "closed", "ended the task is revoked")
		})
	}
}

// begun starts a program and waits until it has said "begun".
func (w *world) begun(c *ssh.Client, program string, stderr io.Writer) *ssh.Session {
	w.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		w.t.Fatal(err)
	}
	s.Stderr = stderr
	out, err := s.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.Start(program); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("begun\n"))); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// An agent hears why before what it runs is ended: behind the end of the program nothing can be said any more.
func TestWhyASessionEndsIsSaidBeforeItsProgramsEnd(t *testing.T) {
	w := newWorld(t, ops)
	for range 20 {
		c := w.client()
		var said bytes.Buffer
		s := w.begun(c, "echo begun; exec sleep 30.2", &said)
		w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the task is revoked"})
		if err := s.Wait(); err == nil || !strings.Contains(said.String(), "this session has ended: the task is revoked") {
			t.Fatalf("%v, and it was told %q", err, &said)
		}
		_ = c.Close()
	}
}

// A program that is ended with its session is on record as cut, whatever it makes of the signal.
func TestWhatEndsWithItsSessionIsCut(t *testing.T) {
	w := newWorld(t, ops)
	for name, program := range map[string]string{
		"it ends by the signal":    "echo begun; exec sleep 7018.1",
		"it says that all is well": "trap 'exit 0' TERM; echo begun; while :; do sleep 0.01; done",
		"it says that it failed":   "trap 'exit 3' TERM; echo begun; while :; do sleep 0.01; done",
	} {
		c := w.client()
		w.begun(c, program, io.Discard)
		w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
		if e := w.ledger.await(t, "completed", program); e.out.Status != "cut" {
			t.Errorf("%s: %+v", name, e.out)
		}
		_ = c.Close()
	}
}

func TestNobodyIsWaitedForWhenASessionEnds(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	// A reader that doesn't read: every window is full.
	if _, err := s.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start("cat /dev/zero; sleep 7014.1"); err != nil {
		t.Fatal(err)
	}
	w.ledger.await(t, "forwarded", "cat /dev/zero")
	began := time.Now()
	w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
	_ = c.Wait()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s", took)
	}
	w.ledger.await(t, "completed", "cat /dev/zero")
}

func TestNothingStartsInASessionThatIsOver(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	deciding, decided := make(chan struct{}), make(chan struct{})
	w.ledger.becomesDurable(func(_ context.Context, cmd proxy.Command) error {
		if cmd.Kind == "exec" {
			close(deciding)
			<-decided
		}
		return nil
	})
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	mark := w.host.Files + "/started"
	done := make(chan error, 1)
	go func() { done <- s.Run("touch " + mark) }()
	<-deciding
	w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
	close(decided)
	if err := <-done; err == nil || exists(mark) {
		t.Errorf("a command ran after its session was revoked: %v", err)
	}
}

func TestWhatAnAgentThatIsGoneLeftRunningIsEnded(t *testing.T) {
	w := newWorld(t, ops)
	cmd := w.command("ssh", "-F", w.config(), "web", "sleep 7015.1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitAlive(t, "7015.1", true)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	awaitAlive(t, "7015.1", false)
	w.ledger.await(t, "completed", "sleep 7015.1")
	w.ledger.await(t, "closed", "client")
}

func TestATargetThatIsGoneIsSaid(t *testing.T) {
	w := newWorld(t, ops)
	r := w.ssh("", "web", `echo begun; kill -9 "$(ps -o ppid= -p $$ | tr -d ' ')"; sleep 30.1`)
	if r.code == 0 || !strings.Contains(r.err, "the target closed the connection") {
		t.Errorf("%s", r)
	}
	if e := w.ledger.await(t, "completed", "echo begun"); e.out.Status != "cut" {
		t.Errorf("the outcome: %+v", e.out)
	}
}

func TestAShutdownEndsSessions(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 7017.1"); err != nil {
		t.Fatal(err)
	}
	awaitAlive(t, "7017.1", true)
	w.stop()
	_ = c.Wait()
	awaitAlive(t, "7017.1", false)
	w.ledger.await(t, "closed", "shutdown")
}

func TestManyChannelsShareAConnectionUpToALimit(t *testing.T) {
	w := worldOf(t, testssh.Start(t, "MaxSessions 50"), reader, func(c *sshd.Config) { c.MaxChannels = 5 })
	c := w.client()
	var sessions []*ssh.Session
	for range 5 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "too many channels") {
		t.Errorf("one channel more: %v", err)
	}
	// Each has a decision of its own.
	for i, s := range sessions {
		text := "echo fine"
		if i%2 == 1 {
			text = "touch x"
		}
		out, err := s.CombinedOutput(text)
		if allowed := i%2 == 0; (err == nil) != allowed || strings.Contains(string(out), "rec-refused") == allowed {
			t.Errorf("channel %d: %v %q", i, err, out)
		}
		_ = s.Close()
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatalf("after the others were closed: %v", err)
	}
	if out, err := s.Output("echo again"); err != nil || string(out) != "again\n" {
		t.Errorf("%v %q", err, out)
	}
	if n := len(w.ledger.sessions); n != 1 {
		t.Errorf("%d sessions for one connection", n)
	}
	if s, err := c.NewSession(); err == nil {
		if s.Start("echo one") != nil || s.Start("echo two") == nil {
			t.Error("a channel takes two commands")
		}
	}
}

// All connections of one user's agents share a bound: each channel may take memory.
func TestOneUsersChannelsAreBounded(t *testing.T) {
	w := newWorld(t, ops, func(c *sshd.Config) { c.MaxChannels = 40 })
	first, second := w.client(), w.client()
	var open []*ssh.Session
	for i := range 64 {
		c := first
		if i >= 32 {
			c = second
		}
		s, err := c.NewSession()
		if err != nil {
			t.Fatalf("channel %d: %v", i, err)
		}
		open = append(open, s)
	}
	if _, err := second.NewSession(); err == nil || !strings.Contains(err.Error(), "too many channels are open to this target") {
		t.Errorf("one more: %v", err)
	}
	_ = open[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s, err := second.NewSession()
		if err == nil {
			_ = s.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one was closed: %v", err)
		}
	}
	// A connection that ends gives all of its places back.
	_ = first.Close()
	_ = second.Close()
	w.ledger.await(t, "closed", "client")
	third := w.client()
	for i := range 40 {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			_, err := third.NewSession()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("channel %d of a new connection: %v", i, err)
			}
		}
	}
}

func TestASlowReaderHoldsNobodyElseUp(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	slow, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := slow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	const size = 32 << 20 // more than all windows and buffers on the way
	if err := slow.Start("head -c 33554432 /dev/zero"); err != nil {
		t.Fatal(err)
	}
	w.ledger.await(t, "forwarded", "head -c")
	for range 3 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Output("echo quick"); err != nil || string(got) != "quick\n" {
			t.Errorf("beside it: %v %q", err, got)
		}
		_ = s.Close()
	}
	if n := len(w.ledger.all("completed")); n != 4 { // connect and three
		t.Errorf("%d commands are over: somebody buffers 32 MiB", n)
	}
	if n, err := io.Copy(io.Discard, out); err != nil || n != size {
		t.Errorf("%d bytes: %v", n, err)
	}
	if err := slow.Wait(); err != nil {
		t.Error(err)
	}
}

func TestKeepalivesAndRekeysPass(t *testing.T) {
	w := worldOf(t, testssh.Start(t, "ClientAliveInterval 1", "ClientAliveCountMax 1", "RekeyLimit 1M"), ops)
	// Both sides ask whether the other lives, and nobody ends anything for it.
	r := w.ssh("", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1", "-o", "RekeyLimit=256K", "web", "sleep 3; echo lives; head -c 4194304 /dev/zero")
	if r.code != 0 || !strings.HasPrefix(r.out, "lives\n") || len(r.out) != 6+4<<20 {
		t.Errorf("exit %d, %d bytes: %s", r.code, len(r.out), r.err)
	}
	r = w.ssh(strings.Repeat("x", 4<<20), "-v", "-o", "RekeyLimit=256K", "web", "wc -c")
	if strings.TrimSpace(r.out) != "4194304" || strings.Count(r.err, "rekey") < 3 {
		t.Errorf("rekeys: exit %d, %q, %d times", r.code, r.out, strings.Count(r.err, "rekey"))
	}
}

// A session may end as its program does: what is said about the one and the end of the other's output don't get in each other's way. The race
// detector is the judge.
func TestASessionMayEndAsItsProgramDoes(t *testing.T) {
	w := worldOf(t, testssh.Start(t), ops)
	for range 40 {
		c := w.client()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("echo over"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(io.LimitReader(out, 5)); err != nil {
			t.Fatal(err)
		}
		w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the session was ended"})
		_ = s.Wait()
		_ = c.Close()
	}
	if n := len(w.ledger.all("completed")); n < 40 {
		t.Errorf("%d outcomes of 40 commands", n)
	}
}

// A session that ends while its target keeps the proxy waiting is over at once, and the agent hears why.
func TestASessionEndsWhileItsTargetIsAwaited(t *testing.T) {
	dials := make(chan struct{}, 8)
	w := newWorld(t, ops, func(c *sshd.Config) {
		c.Upstream.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	go func() {
		<-dials
		w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "the task is revoked"})
	}()
	began := time.Now()
	if r := w.ssh("", "web", "true"); r.code == 0 || !strings.Contains(r.err, "this session has ended: the task is revoked") {
		t.Errorf("%s", r)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if e := w.ledger.await(t, "completed", "connect"); e.out.Status != "cut" {
		t.Errorf("the outcome: %+v", e.out)
	}
}
