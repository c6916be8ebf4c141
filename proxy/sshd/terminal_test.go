package sshd_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/internal/testssh"
)

// terminal runs OpenSSH's client on a terminal of its own.
type terminal struct {
	t    testing.TB
	file *os.File
	said chan string
	all  strings.Builder
}

func (w *world) terminal(args ...string) *terminal {
	w.t.Helper()
	cmd := w.command("ssh", append([]string{"-F", w.config()}, args...)...)
	cmd.Env = append(cmd.Env, "TERM=xterm-256color")
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = f.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	x := &terminal{t: w.t, file: f, said: make(chan string, 64)}
	go func() {
		defer close(x.said)
		b := make([]byte, 4096)
		for {
			n, err := f.Read(b)
			if n > 0 {
				x.said <- string(b[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return x
}

func (x *terminal) write(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.file, text); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) await(part string) {
	x.t.Helper()
	patience := time.After(20 * time.Second)
	for !strings.Contains(x.all.String(), part) {
		select {
		case text, more := <-x.said:
			if !more {
				x.t.Fatalf("the terminal ended without %q: %q", part, x.all.String())
			}
			x.all.WriteString(text)
		case <-patience:
			x.t.Fatalf("no %q on the terminal: %q", part, x.all.String())
		}
	}
}

// A terminal takes root on the server's side: elsewhere OpenSSH's server can't give one.
func TestAShellHasItsTerminal(t *testing.T) {
	w := newWorld(t, ops)
	x := w.terminal("web")
	x.write("stty -echo; PS1=; echo be''gun $TERM\n")
	x.await("begun xterm-256color")
	x.write("stty size\n")
	x.await("33 101")
	if err := pty.Setsize(x.file, &pty.Winsize{Rows: 44, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	x.write("while [ \"$(stty size)\" != \"44 77\" ]; do sleep 0.05; done; stty size\n")
	x.await("44 77")
	// ^C reaches the program in the foreground.
	x.write("sh -c 'trap \"echo interrupted\" INT; sleep 7021; :'\n")
	awaitAlive(t, "7021", true)
	x.write("\x03")
	x.await("interrupted")
	x.write("exit 7\n")
	e := w.ledger.await(t, "completed", "shell")
	if e.out.Code != "exit 7" || e.out.Bytes == 0 {
		t.Errorf("the outcome: %+v", e.out)
	}
}

func TestSignalsAndVariablesPassByAList(t *testing.T) {
	w := worldOf(t, testssh.Start(t), ops)
	c := w.client()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{"LANG": true, "LC_MESSAGES": true, "GIT_PROTOCOL": true, "LD_PRELOAD": false, "PATH": false, "BASH_ENV": false, "LC_": true, "LC_A\nB": false} {
		if err := s.Setenv(name, "C.UTF-8"); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, value := range []string{"../../tmp/x", "a b", "%n", "a\x00b", "a\nb", "() { :; }", strings.Repeat("a", 129)} {
		if err := s.Setenv("LANG", value); err == nil {
			t.Errorf("LANG=%q is taken", value)
		}
	}
	if err := s.Start(`trap 'echo caught; exit 5' USR1; env | grep -E '^(LANG|LC_M|GIT_P|LD_|BASH_E)' | sort; echo ready; while :; do sleep 0.05; done`); err != nil {
		t.Fatal(err)
	}
	read := func(until string) string {
		var b strings.Builder
		one := make([]byte, 1)
		for !strings.HasSuffix(b.String(), until) {
			if _, err := out.Read(one); err != nil {
				t.Fatalf("%v after %q", err, b.String())
			}
			b.Write(one)
		}
		return b.String()
	}
	if got := read("ready\n"); got != "GIT_PROTOCOL=C.UTF-8\nLANG=C.UTF-8\nLC_MESSAGES=C.UTF-8\nready\n" {
		t.Errorf("variables: %q", got)
	}
	if err := s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	read("caught\n")
	err = s.Wait()
	exit, ok := err.(*ssh.ExitError)
	if !ok || exit.ExitStatus() != 5 {
		t.Errorf("%v", err)
	}
}
