package sshd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func (w *world) must(r result) result {
	w.t.Helper()
	if r.code != 0 {
		w.t.Fatalf("%s", r)
	}
	return r
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOldScpCopiesBothWays(t *testing.T) {
	w := newWorld(t, ops)
	here := filepath.Join(w.dir, "here")
	text := strings.Repeat("a line of text\n", 100_000)
	if err := os.WriteFile(here, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	there := w.host.Files + "/there"
	w.must(w.run("", "scp", "-O", "-F", w.config(), here, "web:"+there))
	if read(t, there) != text {
		t.Error("the copy differs")
	}
	back := filepath.Join(w.dir, "back")
	w.must(w.run("", "scp", "-O", "-F", w.config(), "web:"+there, back))
	if read(t, back) != text {
		t.Error("the copy back differs")
	}
	// It is a command, and decided as one.
	w.ledger.await(t, "completed", "scp -t "+there)
	w.ledger.await(t, "completed", "scp -f "+there)
	refused := worldOf(t, w.host, reader)
	if r := refused.run("", "scp", "-O", "-F", refused.config(), "web:"+there, back); r.code == 0 || !strings.Contains(r.err, "rec-refused") {
		t.Errorf("without a policy: %s", r)
	}
}

func TestRsyncCopiesTrees(t *testing.T) {
	w := newWorld(t, ops)
	from := filepath.Join(w.dir, "tree")
	for i := range 40 {
		dir := filepath.Join(from, fmt.Sprint(i%4))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(strings.Repeat(fmt.Sprint(i), 10_000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.must(w.run("", "rsync", "-r", from+"/", "web:"+w.host.Files+"/tree/"))
	back := filepath.Join(w.dir, "back")
	w.must(w.run("", "rsync", "-r", "web:"+w.host.Files+"/tree/", back+"/"))
	w.must(w.run("", "diff", "-r", from, back))
	w.ledger.await(t, "completed", "rsync --server")
	refused := worldOf(t, w.host, reader)
	if r := refused.run("", "rsync", "-r", from+"/", "web:"+w.host.Files+"/refused/"); r.code == 0 || !strings.Contains(r.err, "rec-refused") {
		t.Errorf("without a policy: %s", r)
	}
	if exists(w.host.Files + "/refused") {
		t.Error("a refused copy is there")
	}
}

func TestGitClonesAndPushes(t *testing.T) {
	w := newWorld(t, ops)
	bare := w.host.Files + "/repo.git"
	w.must(w.ssh("", "web", "git init -q --bare -b main "+bare))
	work := filepath.Join(w.dir, "work")
	w.must(w.run("", "git", "clone", "-q", "web:"+bare, work))
	if err := os.WriteFile(filepath.Join(work, "file"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) result {
		return w.must(w.run("", "git", append([]string{"-C", work, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...))
	}
	git("checkout", "-q", "-B", "main")
	git("add", "file")
	git("commit", "-q", "-m", "one")
	git("push", "-q", "origin", "main")
	again := filepath.Join(w.dir, "again")
	w.must(w.run("", "git", "-c", "protocol.version=2", "clone", "-q", "web:"+bare, again))
	if read(t, filepath.Join(again, "file")) != "text" {
		t.Error("the clone differs")
	}
	w.ledger.await(t, "completed", "git-receive-pack '"+bare+"'")
	w.ledger.await(t, "completed", "git-upload-pack '"+bare+"'")
	refused := worldOf(t, w.host, reader)
	none := filepath.Join(w.dir, "none")
	if r := refused.run("", "git", "clone", "-q", "web:"+bare, none); r.code == 0 || !strings.Contains(r.err, "rec-refused") || exists(filepath.Join(none, "file")) {
		t.Errorf("without a policy: %s", r)
	}
}

// master is a connection that others share.
func (w *world) master(path string) {
	w.t.Helper()
	cmd := w.command("ssh", "-F", w.config(), "-o", "ControlPath="+path, "-M", "-N", "web")
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); !exists(path); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("the shared connection isn't there")
		}
	}
}

// A shared connection is one session; each command on it has a decision of its own.
func TestASharedConnectionDecidesEachCommand(t *testing.T) {
	w := newWorld(t, reader)
	// Short, since it is a Unix socket.
	dir, err := os.MkdirTemp("", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	control := "ControlPath=" + filepath.Join(dir, "c")
	w.master(filepath.Join(dir, "c"))
	for i := range 12 {
		if r := w.ssh("", "-o", control, "web", fmt.Sprintf("echo %d", i)); r.out != fmt.Sprintf("%d\n", i) {
			t.Errorf("%d: %s", i, r)
		}
	}
	if r := w.ssh("", "-o", control, "web", "touch x"); r.code != 126 || !strings.Contains(r.err, "rec-refused") {
		t.Errorf("a refused one: %s", r)
	}
	if n := len(w.ledger.sessions); n != 1 {
		t.Errorf("%d sessions", n)
	}
	if n := len(w.ledger.all("forwarded")); n != 12 {
		t.Errorf("%d commands left for the target", n)
	}
	w.must(w.ssh("", "-o", control, "-O", "exit", "web"))
	w.ledger.await(t, "closed", "client")
}

// The master ends with its session, and what comes next has to open one anew.
func TestASharedConnectionEndsWithItsSession(t *testing.T) {
	w := newWorld(t, ops)
	dir, err := os.MkdirTemp("", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "c")
	w.master(path)
	w.ledger.last().cancel(nil)
	for deadline := time.Now().Add(10 * time.Second); exists(path); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the shared connection lives on")
		}
	}
}
