package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// process is a container's own one: what attach and logs mean.
type process struct {
	sessions            *sessions
	dir                 string
	env                 []string
	tty                 bool
	log, stdout, stderr output
	stdin               io.WriteCloser
	terminal            *os.File // with a TTY

	started time.Time
	done    chan struct{} // closed at the end; the fields below are read after that
	ended   time.Time
	code    int
	reason  string
	cmd     *exec.Cmd
}

func command(argv []string, dir string, env []string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir, c.Env = dir, env
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	return c
}

// sessions are all that were started, so that nothing outlives the program.
type sessions struct {
	mu   sync.Mutex
	pids []int
}

func (s *sessions) add(c *exec.Cmd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Process != nil {
		s.pids = append(s.pids, c.Process.Pid)
	}
}

func (s *sessions) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pid := range s.pids {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

func startContainer(s *sessions, argv []string, dir string, env []string, stdin, tty bool, ended func()) *process {
	p := &process{sessions: s, dir: dir, env: env, tty: tty, started: time.Now(), done: make(chan struct{}), cmd: command(argv, dir, env)}
	out, errs := io.MultiWriter(&p.log, &p.stdout), io.MultiWriter(&p.log, &p.stderr)
	var err error
	if tty {
		p.terminal, err = pty.Start(p.cmd)
		p.stdin = p.terminal
	} else {
		p.cmd.Stdout, p.cmd.Stderr = out, errs
		if stdin {
			p.stdin, err = p.cmd.StdinPipe()
		}
		if err == nil {
			err = p.cmd.Start()
		}
	}
	s.add(p.cmd)
	go func() {
		if err == nil {
			if tty {
				_, _ = io.Copy(out, p.terminal) // ends with EIO when the last process has gone
			}
			err = exitError(p.cmd.Wait())
			p.kill() // what it left behind
			p.reason = "Completed"
		}
		if err != nil {
			p.code, p.reason = 128, "StartError"
			if exit := utilexec.ExitError(nil); errors.As(err, &exit) {
				p.code, p.reason = exit.ExitStatus(), "Error"
			}
		}
		p.ended = time.Now()
		close(p.done)
		for _, o := range []*output{&p.log, &p.stdout, &p.stderr} {
			o.finish()
		}
		ended()
	}()
	return p
}

func (p *process) kill() {
	if p.cmd.Process != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // a session of its own
	}
}

func (p *process) status(name, image string) corev1.ContainerStatus {
	s := corev1.ContainerStatus{Name: name, Image: image, ImageID: "none", ContainerID: "process://" + name}
	select {
	case <-p.done:
		s.State.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: int32(p.code), Reason: p.reason, StartedAt: metav1.NewTime(p.started), FinishedAt: metav1.NewTime(p.ended), ContainerID: s.ContainerID,
		}
	default:
		s.Ready = true
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(p.started)}
	}
	return s
}

// runIn runs another command in the container, until it ends.
func (p *process) runIn(argv []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c := command(argv, p.dir, p.env)
	if tty {
		c.Env = append(c.Env, "TERM=xterm")
		terminal, err := pty.Start(c)
		if err != nil {
			return err
		}
		p.sessions.add(c)
		defer func() { _ = terminal.Close() }()
		go sizes(terminal, resize)
		go feed(terminal, in, true)
		_, _ = io.Copy(out, terminal)
		return exitError(c.Wait())
	}
	if out != nil {
		c.Stdout = out
	}
	if errs != nil {
		c.Stderr = errs
	}
	if in != nil {
		stdin, err := c.StdinPipe()
		if err != nil {
			return err
		}
		go feed(stdin, in, false)
	}
	if err := c.Start(); err != nil {
		return err
	}
	p.sessions.add(c)
	return exitError(c.Wait())
}

// attach gives a client what the container says from now on, and the container what the client says.
func (p *process) attach(in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) {
	if p.terminal != nil {
		go sizes(p.terminal, resize)
	}
	if in != nil && p.stdin != nil {
		go func() { _, _ = io.Copy(p.stdin, in) }()
	}
	var copying sync.WaitGroup
	for to, from := range map[io.WriteCloser]*output{out: &p.stdout, errs: &p.stderr} {
		if to != nil {
			at := from.len()
			copying.Go(func() { _ = from.copyTo(to, at, nil) })
		}
	}
	copying.Wait()
}

// feed passes input on to its end; a terminal is told of it as by a person.
func feed(to io.WriteCloser, from io.Reader, tty bool) {
	if from == nil {
		return
	}
	_, _ = io.Copy(to, from)
	if tty {
		_, _ = to.Write([]byte{4})
		return
	}
	_ = to.Close()
}

func sizes(terminal *os.File, from <-chan remotecommand.TerminalSize) {
	for s := range from {
		_ = pty.Setsize(terminal, &pty.Winsize{Rows: s.Height, Cols: s.Width})
	}
}

func exitError(err error) error {
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) {
		return err
	}
	code := exit.ExitCode()
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		code = 128 + int(s.Signal())
	}
	return utilexec.CodeExitError{Err: err, Code: code}
}
