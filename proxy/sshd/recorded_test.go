package sshd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/deputymesh/deputy/proxy"
)

var recordedRole = []string{"recorded"}

// recording is what was kept of a command, and what of it was typed and shown.
func (l *ledger) recording(t testing.TB, kind string) (head, in, out string) {
	t.Helper()
	var file strings.Builder
	for _, e := range l.all("kept") {
		if e.cmd.Kind == kind {
			file.WriteString(e.why)
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(file.String()), "\n") {
		if i == 0 {
			head = line
			continue
		}
		var e [3]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		switch e[1] {
		case "i":
			in += e[2].(string)
		case "o":
			out += e[2].(string)
		case "r":
			out += "<" + e[2].(string) + ">"
		}
	}
	return head, in, out
}

// A shell under @record("full") is on record, what is typed and what is shown.
func TestARecordedShellIsOnRecord(t *testing.T) {
	w := newWorld(t, recordedRole)
	x := w.terminal("web")
	x.write("echo $((6*7))-seen\r")
	x.await("42-seen")
	if err := pty.Setsize(x.file, &pty.Winsize{Rows: 44, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	// OpenSSH's client hears of the new size when it likes, and what is typed doesn't wait for it.
	x.write(`while ! stty size | grep "44 13[2]"; do sleep 0.05; done; exit` + "\r")
	x.await("44 132")
	w.ledger.await(t, "completed", "shell")
	head, in, out := w.ledger.recording(t, "shell")
	if !strings.Contains(head, `"width":101,"height":33`) || !strings.Contains(head, `"TERM":"xterm-256color"`) || !strings.Contains(head, w.host.Account+"@web: shell") {
		t.Errorf("it begins with %s", head)
	}
	if strings.ReplaceAll(in, "\r", "\n") != "echo $((6*7))-seen\nwhile ! stty size | grep \"44 13[2]\"; do sleep 0.05; done; exit\n" || !strings.Contains(out, "42-seen") || !strings.Contains(out, "<132x44>") || !strings.Contains(out, "44 132") {
		t.Errorf("typed %q, shown %q", in, out)
	}
}

func TestWhatIsRecorded(t *testing.T) {
	w := newWorld(t, recordedRole)
	w.must(w.ssh("echo shown; exit\n", "-T", "web"))
	if _, in, out := w.ledger.recording(t, "shell"); in != "echo shown; exit\n" || !strings.HasSuffix(out, "shown\n") {
		t.Errorf("a shell without a terminal: typed %q, shown %q", in, out)
	}
	w.must(w.ssh("", "web", "echo x"))
	if head, _, _ := w.ledger.recording(t, "exec"); head != "" {
		t.Error("a command without a terminal is recorded")
	}
	w.must(w.ssh("", "-tt", "web", "echo shown"))
	if _, _, out := w.ledger.recording(t, "exec"); !strings.Contains(out, "shown") {
		t.Errorf("a command on a terminal: %q", out)
	}
	plain := worldOf(t, w.host, ops)
	plain.must(plain.ssh("echo x\n", "-T", "web"))
	if len(plain.ledger.all("kept")) != 0 {
		t.Error("a shell is recorded that needn't be")
	}
}

// What is typed reaches the host when it is on record, and what is shown is on record before.
func TestNothingPassesThatIsNotRecorded(t *testing.T) {
	w := newWorld(t, recordedRole)
	arrived, release := make(chan struct{}), make(chan struct{})
	w.ledger.keep(func(context.Context, []byte) error {
		arrived <- struct{}{}
		<-release
		return nil
	})
	mark := w.host.Files + "/typed"
	done := make(chan result, 1)
	go func() { done <- w.ssh("touch "+mark+"\n", "-T", "web") }()
	<-arrived
	if exists(mark) {
		t.Error("what was typed ran before it was on record")
	}
	w.ledger.keep(nil)
	close(release)
	if r := <-done; r.code != 0 || !exists(mark) {
		t.Errorf("%s", r)
	}
}

func TestAShellEndsWhereItCannotBeRecorded(t *testing.T) {
	w := newWorld(t, recordedRole)
	w.ledger.keep(func(context.Context, []byte) error {
		return &proxy.Refusal{Class: proxy.ClassQuota, Reason: "this user's commands have filled his share of the log's disk"}
	})
	mark := w.host.Files + "/typed"
	r := w.ssh("touch "+mark+"; sleep 7041.1\n", "-T", "web")
	if r.code == 0 || !strings.Contains(r.err, "filled his share of the log's disk") || strings.Contains(r.err, "the target closed") {
		t.Errorf("%s", r)
	}
	if exists(mark) || exec.Command("pgrep", "-fx", "sleep 7041.1").Run() == nil {
		t.Error("what was typed ran")
	}
	if e := w.ledger.await(t, "completed", "shell"); e.out.Status != "cut" {
		t.Errorf("the outcome: %+v", e.out)
	}
}

// Why is said before the shell hears that it is over: behind its end nothing can be said. A shell that ends well at the same time has failed nevertheless.
func TestWhyAShellCannotBeRecordedIsSaidBeforeItsEnd(t *testing.T) {
	w := newWorld(t, recordedRole)
	w.ledger.keep(func(context.Context, []byte) error {
		return &proxy.Refusal{Class: proxy.ClassQuota, Reason: "the log's disk is full"}
	})
	for range 20 {
		c := w.client()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		s.Stdin, s.Stderr = strings.NewReader("echo x\n"), &said
		if err := s.Shell(); err != nil {
			t.Fatal(err)
		}
		if err := s.Wait(); err == nil || !strings.Contains(said.String(), "the log's disk is full") {
			t.Fatalf("%v, and it was told %q", err, &said)
		}
		_ = c.Close()
	}
}
