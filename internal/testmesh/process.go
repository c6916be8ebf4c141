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
const patience = 60 * time.Second

// raceOptions keep the race detector from sleeping for a second when a program ends.
const raceOptions = "GORACE=atexit_sleep_ms=10"

// readyWord is what every role says when it serves.
const readyWord = "ready"

// Process is a server that the harness started. It ends with the test.
type Process struct {
	t    testing.TB
	name string
	uid  uint32
	caps []uintptr // ambient capabilities, where the test is root
	args []string

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

// launch starts p and waits until it says the word ready. It ends with the test.
func (p *Process) launch() *Process {
	p.t.Helper()
	p.t.Cleanup(p.Stop)
	p.start()
	p.AwaitReady()
	return p
}

// Isolated says whether roles and agents run under uids of their own: the test is root.
func Isolated() bool { return os.Geteuid() == 0 }

func (p *Process) start() {
	p.t.Helper()
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Env = append(os.Environ(), raceOptions)
	log := &logBuffer{wake: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = log, log
	// A killed test leaves no server behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if Isolated() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.uid, Gid: p.uid}
		cmd.SysProcAttr.AmbientCaps = p.caps
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
}

// AwaitReady waits until the process has said that it is ready.
func (p *Process) AwaitReady() {
	p.t.Helper()
	p.Await(readyWord)
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

// Ended says whether the process has ended, by itself or not.
func (p *Process) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return true
	default:
		return false
	}
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
	if cmd == nil {
		return
	}
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

// checkRaces fails the test when the race detector spoke.
func (p *Process) checkRaces() {
	if text := p.Log(); strings.Contains(text, "WARNING: DATA RACE") {
		p.t.Errorf("a data race in %s:\n%s", p.name, tail(text))
	}
}

// Begin starts a process that was killed or stopped again, and waits until it is ready.
func (p *Process) Begin() {
	p.t.Helper()
	p.start()
	p.AwaitReady()
}

// Command runs the same program to its end, under the same uid, for a start that is refused.
func (p *Process) Command() Command {
	c := Command{Args: p.args}
	if Isolated() {
		uid := fmt.Sprint(p.uid)
		c.Args = append([]string{"setpriv", "--reuid=" + uid, "--regid=" + uid, "--clear-groups"}, p.args...)
	}
	return c
}

// Resume is Begin without the wait.
func (p *Process) Resume() {
	p.t.Helper()
	p.start()
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}
