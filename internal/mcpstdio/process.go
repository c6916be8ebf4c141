package mcpstdio

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// How long a server may take to read a message, and to end once its input is closed, and once it is told to.
const (
	writeTime = 30 * time.Second
	quitTime  = 3 * time.Second
)

// process is a local server with its standard input and output.
type process struct {
	cmd    *exec.Cmd
	in     *os.File
	out    *bufio.Reader
	read   *os.File
	exited chan struct{}
	err    error // of its end; readable once exited is closed

	inMu sync.Mutex // one line at a time
	once sync.Once
}

// begin starts the server in a process group of its own, with the shim's environment and standard error.
func begin(command []string, stderr io.Writer) (*process, error) {
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		_, _ = inRead.Close(), inWrite.Close()
		return nil, err
	}
	p := &process{in: inWrite, read: outRead, out: bufio.NewReaderSize(outRead, 32<<10), exited: make(chan struct{})}
	p.cmd = exec.Command(command[0], command[1:]...) //nolint:noctx // it outlives the request that begins it; end ends it
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inRead, outWrite, stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = quitTime // for what its children keep of standard error
	err = p.cmd.Start()
	_, _ = inRead.Close(), outWrite.Close()
	if err != nil {
		_, _ = inWrite.Close(), outRead.Close()
		return nil, fmt.Errorf("starting the server: %w", err)
	}
	go func() {
		p.err = p.cmd.Wait()
		p.signal(syscall.SIGKILL) // what it left behind
		close(p.exited)
	}()
	return p, nil
}

// send writes one message, if the server takes it within that time.
func (p *process) send(data []byte, within time.Duration) error {
	text, err := line(data)
	if err != nil {
		return err
	}
	p.inMu.Lock()
	defer p.inMu.Unlock()
	if err := p.in.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := p.in.Write(text); err != nil {
		return fmt.Errorf("the server doesn't read: %w", err)
	}
	return nil
}

// next is the server's next message.
func (p *process) next() ([]byte, error) { return readLine(p.out, maxToClient) }

// end ends the server and what it started, as the protocol says: its input first, then a signal, then one that can't be caught. It returns when it
// has ended.
func (p *process) end() {
	p.once.Do(func() {
		_ = p.in.SetWriteDeadline(time.Now()) // whoever writes stops
		p.inMu.Lock()
		_ = p.in.Close()
		p.inMu.Unlock()
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			select {
			case <-p.exited:
			case <-time.After(quitTime):
				p.signal(s)
			}
		}
		<-p.exited
		_ = p.read.Close()
	})
	<-p.exited
}

// signal is for the whole group.
func (p *process) signal(s syscall.Signal) {
	if err := syscall.Kill(-p.cmd.Process.Pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		_ = p.cmd.Process.Signal(s)
	}
}
