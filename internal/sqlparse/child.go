package sqlparse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// child is one parsing process. One goroutine at a time asks it.
type child struct {
	process *os.Process
	in, out *os.File
	done    chan struct{} // closed when the process has ended
	uses    int
}

// start runs a new child and the goroutine that waits for it.
func (p *Pool) start() (*child, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting an SQL parser: %w", err)
	}
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting an SQL parser: %w", err), inW.Close())
	}
	defer outW.Close()
	cmd := exec.Command(p.cfg.Command[0], p.cfg.Command[1:]...) //nolint:noctx // the child outlives the caller; the pool ends it
	cmd.Stdin, cmd.Stdout = inR, outW
	// Nothing of our environment is the child's business; a crash leaves no text behind.
	cmd.Env = []string{"GOTRACEBACK=none"}
	// A Ctrl-C at our terminal is not for it: it ends when its input does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting an SQL parser: %w", err), inW.Close(), outR.Close())
	}
	c := &child{process: cmd.Process, in: inW, out: outR, done: make(chan struct{})}
	p.mu.Lock()
	closed := p.live == nil
	if !closed {
		p.live[c] = true
		p.waiters.Add(1)
	}
	p.mu.Unlock()
	wait := func() {
		_ = cmd.Wait() // how it ended is told by what it answered
		_ = c.in.Close()
		_ = c.out.Close()
		close(c.done)
	}
	if closed {
		c.kill()
		wait()
		return nil, ErrClosed
	}
	go func() {
		defer p.waiters.Done()
		wait()
	}()
	return c, nil
}

// end kills a child and forgets it.
func (p *Pool) end(c *child) {
	c.kill()
	<-c.done
	p.mu.Lock()
	delete(p.live, c)
	p.mu.Unlock()
}

func (c *child) kill() { _ = c.process.Kill() }

func (c *child) exited() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// ask sends one text and reads the answer, within ctx.
func (c *child) ask(ctx context.Context, sql string) ([]byte, error) {
	c.uses++
	stop := context.AfterFunc(ctx, func() {
		past := time.Unix(1, 0)
		_ = c.in.SetDeadline(past)
		_ = c.out.SetDeadline(past)
	})
	defer stop()
	if err := writeFrame(c.in, []byte(sql)); err != nil {
		return nil, err
	}
	body, err := readFrame(c.out, maxReply)
	if err != nil {
		return nil, err
	}
	if !stop() {
		// The deadlines may be set by now: this child can't be used again.
		return nil, context.Cause(ctx)
	}
	return body, nil
}
