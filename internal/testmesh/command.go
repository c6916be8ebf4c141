package testmesh

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Command is a program that a test runs.
type Command struct {
	Args  []string
	Stdin string
	// Env is added to the test's own environment.
	Env []string
	// Dir is where it starts; the test's own folder if empty.
	Dir string
	// Output gets what it writes to standard output, which is kept nowhere else then.
	Output io.Writer
	// TTY gives it a terminal of its own for input, output and errors; all that it writes is Stdout then.
	TTY bool
	// Within is how long it may take.
	Within time.Duration
}

// Result of a command that ended.
type Result struct {
	Stdout, Stderr string
	Code           int
	Took           time.Duration
}

// String shows the whole result, for a failing test.
func (r Result) String() string {
	return fmt.Sprintf("exit %d after %s\nstdout:\n%s\nstderr:\n%s", r.Code, r.Took.Round(time.Millisecond), tail(r.Stdout), tail(r.Stderr))
}

// Live is a command that runs.
type Live struct {
	t              testing.TB
	args           []string
	cmd            *exec.Cmd
	stdout, stderr *logBuffer
	input          io.WriteCloser
	began          time.Time
	done           chan struct{}
	once           sync.Once
	result         Result
}

// Exec runs a command to its end.
func Exec(t testing.TB, c Command) Result {
	t.Helper()
	l := Begin(t, c)
	within := c.Within
	if within == 0 {
		within = patience
	}
	return l.Wait(within)
}

// Begin starts a command. It is killed at the end of the test if it still runs. Without Stdin its input
// stays open for Type.
func Begin(t testing.TB, c Command) *Live {
	t.Helper()
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(append(os.Environ(), raceOptions), c.Env...)
	l := &Live{t: t, args: c.Args, cmd: cmd, done: make(chan struct{}), began: time.Now(),
		stdout: &logBuffer{wake: make(chan struct{})}, stderr: &logBuffer{wake: make(chan struct{})}}
	var copied sync.WaitGroup
	if c.TTY {
		term, err := pty.Start(cmd)
		if err != nil {
			t.Fatalf("starting %q: %v", c.Args, err)
		}
		l.input = term
		copied.Go(func() { _, _ = io.Copy(l.stdout, term) })
		if c.Stdin != "" {
			if _, err := io.WriteString(term, c.Stdin); err != nil {
				t.Fatalf("typing into %q: %v", c.Args, err)
			}
		}
	} else {
		cmd.Stdout, cmd.Stderr = l.stdout, l.stderr
		if c.Output != nil {
			cmd.Stdout = c.Output
		}
		cmd.WaitDelay = 5 * time.Second
		if c.Stdin != "" {
			cmd.Stdin = strings.NewReader(c.Stdin)
		} else {
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			l.input = in
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		if err := cmd.Start(); err != nil {
			t.Fatalf("starting %q: %v", c.Args, err)
		}
	}
	go func() {
		defer close(l.done)
		_ = cmd.Wait()
		l.result.Took = time.Since(l.began)
		copied.Wait() // a terminal ends with its last process
	}()
	t.Cleanup(func() {
		l.end()
		for _, text := range []string{l.Output(), l.Errors()} {
			if strings.Contains(text, "WARNING: DATA RACE") {
				t.Errorf("a data race in %q:\n%s", c.Args, tail(text))
			}
		}
	})
	return l
}

// Ended says whether it has ended.
func (l *Live) Ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// Output is what it has written so far.
func (l *Live) Output() string { s, _ := l.stdout.read(); return s }

// Errors is what it has written to standard error so far.
func (l *Live) Errors() string { s, _ := l.stderr.read(); return s }

// Type writes to its input.
func (l *Live) Type(text string) {
	l.t.Helper()
	if _, err := io.WriteString(l.input, text); err != nil {
		l.t.Fatalf("writing to %q: %v\n%s%s", l.args, err, tail(l.Output()), tail(l.Errors()))
	}
}

// Await waits until its output holds a word n times.
func (l *Live) Await(word string, n int) { l.t.Helper(); l.await(l.stdout, word, n) }

// AwaitError waits until its error output holds a word n times.
func (l *Live) AwaitError(word string, n int) { l.t.Helper(); l.await(l.stderr, word, n) }

func (l *Live) await(in *logBuffer, word string, n int) {
	l.t.Helper()
	limit := time.After(patience)
	for {
		text, wake := in.read()
		if strings.Count(text, word) >= n {
			return
		}
		select {
		case <-wake:
			continue
		case <-l.done:
			if text, _ = in.read(); strings.Count(text, word) >= n {
				return
			}
			l.t.Fatalf("%q ended before it wrote %q %d times:\n%s\n%s", l.args, word, n, tail(l.Output()), tail(l.Errors()))
		case <-limit:
			l.t.Fatalf("%q did not write %q %d times within %s:\n%s\n%s", l.args, word, n, patience, tail(l.Output()), tail(l.Errors()))
		}
	}
}

// Signal sends it a signal.
func (l *Live) Signal(s os.Signal) { _ = l.cmd.Process.Signal(s) }

// Pid of the process.
func (l *Live) Pid() int { return l.cmd.Process.Pid }

// Wait closes its input and waits for its end; a command that takes longer fails the test.
func (l *Live) Wait(within time.Duration) Result {
	l.t.Helper()
	if l.input != nil && !isTerminal(l.input) {
		l.once.Do(func() { l.input.Close() })
	}
	select {
	case <-l.done:
	case <-time.After(within):
		l.end()
		l.t.Fatalf("%q did not end within %s:\n%s\n%s", l.args, within, tail(l.Output()), tail(l.Errors()))
	}
	r := l.result
	r.Stdout, r.Stderr, r.Code = l.Output(), l.Errors(), l.cmd.ProcessState.ExitCode()
	return r
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && strings.HasPrefix(f.Name(), "/dev/ptmx")
}

// end ends it, kindly first: `deputy run` takes its agents down with it.
func (l *Live) end() {
	if l.input != nil && !isTerminal(l.input) {
		l.once.Do(func() { l.input.Close() })
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-l.done:
			l.closeTerminal()
			return
		default:
		}
		_ = l.cmd.Process.Signal(s)
		select {
		case <-l.done:
		case <-time.After(5 * time.Second):
		}
		l.closeTerminal()
	}
	<-l.done
}

func (l *Live) closeTerminal() {
	if l.input != nil && isTerminal(l.input) {
		l.once.Do(func() { l.input.Close() })
	}
}

// Lines are the lines of a text, without empty ones.
func Lines(s string) []string {
	var out []string
	for line := range bytes.Lines([]byte(strings.ReplaceAll(s, "\r\n", "\n"))) {
		if line := strings.TrimRight(string(line), "\n"); line != "" {
			out = append(out, line)
		}
	}
	return out
}
