package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

// Exit codes of `deputy run` itself; everything else is the program's.
const (
	exitFailed      = 125 // deputy could not do its part
	exitNotRunnable = 126
	exitNotFound    = 127
	exitSignalled   = 128 // plus the signal's number
)

// Command is the agent's program.
type Command struct {
	Argv   []string
	Env    []string // complete
	Dir    string
	Stdin  *os.File
	Stdout *os.File
	Stderr *os.File
	// Terminal makes Stdin the controlling terminal of a session of the program's own.
	Terminal bool
}

// program is the running command. One thread starts it, reaps every descendant that ends under this
// subreaper, and stays: the kernel kills the program when the thread that started it is gone.
type program struct {
	pid    int
	exited chan int      // buffered: the program's exit code
	empty  chan struct{} // closed when no descendant is left
}

// startProgram calls marked with what the program is restrained by, before there is a program.
func startProgram(c Command, marked func(kernel.Restraints)) (*program, error) {
	path, err := lookPath(c)
	if err != nil {
		return nil, err
	}
	p := &program{exited: make(chan int, 1), empty: make(chan struct{})}
	started := make(chan error)
	kernel.OnThread(func() {
		// The program and all below it stay known as an agent's, even as orphans that somebody outside adopted.
		restraints, err := kernel.Mark()
		if err == nil {
			err = kernel.Wall()
		}
		if err != nil {
			started <- err
			return
		}
		marked(restraints)
		pid, err := syscall.ForkExec(path, c.Argv, &syscall.ProcAttr{
			Dir: c.Dir, Env: c.Env, Files: []uintptr{c.Stdin.Fd(), c.Stdout.Fd(), c.Stderr.Fd()},
			Sys: &syscall.SysProcAttr{Setsid: c.Terminal, Setctty: c.Terminal, Ctty: 0, Pdeathsig: syscall.SIGKILL},
		})
		p.pid = pid
		started <- err
		if err == nil {
			p.reap()
		}
	})
	if err := <-started; err != nil {
		return nil, &startError{name: c.Argv[0], err: err}
	}
	return p, nil
}

// startError is a program that could not be started.
type startError struct {
	name string
	err  error
}

func (e *startError) Error() string { return fmt.Sprintf("starting %s: %v", e.name, e.err) }
func (e *startError) Unwrap() error { return e.err }

// StartExitCode is the exit status for an error before the program ran, as shells give it.
func StartExitCode(err error) int {
	var se *startError
	switch {
	case !errors.As(err, &se):
		return exitFailed
	case errors.Is(err, os.ErrNotExist):
		return exitNotFound
	default:
		return exitNotRunnable
	}
}

func (p *program) reap() {
	defer close(p.empty)
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return // ECHILD
		case pid == p.pid && ws.Exited():
			p.exited <- ws.ExitStatus()
		case pid == p.pid && ws.Signaled():
			p.exited <- exitSignalled + int(ws.Signal())
		}
	}
}

// end kills everything below this process until nothing is left. Orphans come to this subreaper, so none
// gets away by forking or by a session of its own.
func (p *program) end(self kernel.Process) error {
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.empty:
			return nil
		default:
		}
		_ = killBelow(self)
		select {
		case <-p.empty:
			return nil
		case <-deadline.C:
			return errors.New("some of the agent's processes don't end although they were killed")
		case <-tick.C:
		}
	}
}

// killBelow kills what is below a process now. What comes to it or is started meanwhile the next round sees.
func killBelow(p kernel.Process) error {
	below, err := p.Descendants()
	for _, c := range below {
		_ = unix.Kill(c.PID, unix.SIGKILL)
	}
	return err
}

// Run starts the program, passes signals on, and returns its exit code when it and everything it left
// behind have ended. An error means that the agent was ended for a reason of its own.
func (s *Supervisor) Run(_ context.Context, c Command, signals <-chan os.Signal) (int, error) {
	self, err := kernel.Self()
	if err != nil {
		return exitFailed, err
	}
	p, err := startProgram(c, s.mark)
	if err != nil {
		return StartExitCode(err), err
	}
	s.program.Store(int64(p.pid))
	code := exitFailed
	var why error
wait:
	for {
		select {
		case code = <-p.exited:
			break wait
		case why = <-s.lost:
			why = fmt.Errorf("%s has been ended: %w", s.ID(), why)
			break wait
		case sig := <-signals:
			if n, ok := sig.(syscall.Signal); ok && !fromTerminal(c, n) {
				// Before p.exited is read the id is still the program's, a zombie at worst.
				_ = unix.Kill(p.pid, n)
			}
		}
	}
	return code, errors.Join(why, p.end(self))
}

// fromTerminal guesses that a signal came from the keyboard, which the kernel sends to the whole
// foreground process group, the program included.
func fromTerminal(c Command, sig syscall.Signal) bool {
	if c.Terminal || (sig != syscall.SIGINT && sig != syscall.SIGQUIT) {
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	return foreground(tty)
}

// lookPath finds the program by the PATH of its own environment.
func lookPath(c Command) (string, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return "", errors.New("no command")
	}
	name := c.Argv[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(c.Dir, name)
		}
		return name, nil
	}
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, e := range c.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue // never a program from wherever the agent happens to be
		}
		full := filepath.Join(dir, name)
		st, err := os.Stat(full)
		if err != nil || st.IsDir() {
			continue
		}
		if err := unix.Access(full, unix.X_OK); err != nil {
			denied = err
			continue
		}
		return full, nil
	}
	if denied != nil {
		return "", &startError{name: name, err: denied}
	}
	return "", &startError{name: name, err: fmt.Errorf("not found in PATH: %w", os.ErrNotExist)}
}
