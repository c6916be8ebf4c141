package testmesh

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long the harness waits for something that should take well under a second.
const patience = 30 * time.Second

// Process is a server that the harness started. It ends with the test.
type Process struct {
	t    testing.TB
	name string
	uid  uint32
	args []string
	env  []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
}

// logBuffer keeps what a process writes, and tells who waits for a word in it.
type logBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	wake chan struct{}
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.wake)
	b.wake = make(chan struct{})
	return b.buf.Write(p)
}

func (b *logBuffer) read() (string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String(), b.wake
}

// Start runs a server under a uid (where the test is root) and waits until it says the word ready.
func Start(t testing.TB, name string, uid uint32, env []string, ready string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, name: name, uid: uid, args: args, env: env}
	p.start(ready)
	t.Cleanup(p.Stop)
	return p
}

func (p *Process) start(ready string) {
	p.t.Helper()
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	log := &logBuffer{wake: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.uid, Gid: p.uid}
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("starting %s: %v", p.name, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	p.mu.Lock()
	p.cmd, p.log, p.done = cmd, log, done
	p.mu.Unlock()
	p.Await(ready)
}

// Await waits until the process has written the word, and fails the test when it ends before.
func (p *Process) Await(word string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.mu.Lock()
	log, done := p.log, p.done
	p.mu.Unlock()
	for {
		text, wake := log.read()
		if strings.Contains(text, word) {
			return
		}
		select {
		case <-wake:
		case <-done:
			text, _ = log.read()
			p.t.Fatalf("%s ended before it said %q:\n%s", p.name, word, tail(text))
		case <-ctx.Done():
			p.t.Fatalf("%s did not say %q within %s:\n%s", p.name, word, patience, tail(text))
		}
	}
}

// Log is all that the process has written.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, _ := p.log.read()
	return text
}

// Pid of the process.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Kill ends the process with SIGKILL and waits for it.
func (p *Process) Kill() { p.signal(syscall.SIGKILL) }

// Stop ends the process with SIGTERM, after a while with SIGKILL, and waits for it.
func (p *Process) Stop() { p.signal(syscall.SIGTERM) }

// Freeze stops the process from running until Thaw, as a hung host would.
func (p *Process) Freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	_ = cmd.Process.Signal(s)
	select {
	case <-done:
		return
	case <-time.After(patience / 3):
	}
	_ = cmd.Process.Kill()
	<-done
	if s == syscall.SIGTERM {
		p.t.Errorf("%s (pid %d) did not end on SIGTERM:\n%s", p.name, cmd.Process.Pid, tail(p.Log()))
	}
}

// Restart kills the process and starts it again.
func (p *Process) Restart(ready string) {
	p.t.Helper()
	p.Kill()
	p.start(ready)
}

// Result of a command that ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// String shows the whole result, for a failing test.
func (r Result) String() string {
	return fmt.Sprintf("exit %d\nstdout:\n%s\nstderr:\n%s", r.Code, tail(r.Stdout), tail(r.Stderr))
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}
