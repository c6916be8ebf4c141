package supervise

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// front is the caller's end of an isolated agent: the standard streams are handed over as they are,
// except a terminal. An agent under another uid must not hold the user's terminal (it could type into it),
// so it gets a pseudo-terminal that is relayed.
type front struct {
	streams [3]*os.File // for the agent

	master, slave *os.File
	display       *os.File
	keyboard      *os.File
	before        *term.State
	resized       chan os.Signal
	drained       chan struct{}
}

func openFront(stdin, stdout, stderr *os.File) (*front, error) {
	f := &front{streams: [3]*os.File{stdin, stdout, stderr}}
	if !term.IsTerminal(int(stdin.Fd())) {
		return f, nil
	}
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("opening a pseudo-terminal: %w", err)
	}
	f.master, f.slave, f.keyboard, f.display = master, slave, stdin, stdin
	f.streams[0] = slave
	for i, own := range []*os.File{stdout, stderr} {
		if term.IsTerminal(int(own.Fd())) {
			f.streams[i+1] = slave
			if f.display == stdin {
				f.display = own
			}
		}
	}
	_ = pty.InheritSize(stdin, master)
	return f, nil
}

func (f *front) terminal() bool { return f.master != nil }

// relay begins once the agent holds its end.
func (f *front) relay() error {
	if f.master == nil {
		return nil
	}
	f.slave.Close()
	f.slave = nil
	var err error
	if f.before, err = term.MakeRaw(int(f.keyboard.Fd())); err != nil {
		return fmt.Errorf("switching the terminal: %w", err)
	}
	f.resized = make(chan os.Signal, 1)
	signal.Notify(f.resized, syscall.SIGWINCH)
	go func() {
		for range f.resized {
			_ = pty.InheritSize(f.keyboard, f.master)
		}
	}()
	go func() { _, _ = io.Copy(f.master, f.keyboard) }() // ends with the process: a read of a terminal can't be called off
	f.drained = make(chan struct{})
	go func() {
		defer close(f.drained)
		_, _ = io.Copy(f.display, f.master) // ends with an error when the agent's side is closed
	}()
	return nil
}

// close waits for the last output and gives the terminal back as it was.
func (f *front) close() {
	if f.slave != nil {
		f.slave.Close()
	}
	if f.drained != nil {
		select {
		case <-f.drained:
		case <-time.After(time.Second):
		}
	}
	if f.resized != nil {
		signal.Stop(f.resized)
		close(f.resized)
	}
	if f.before != nil {
		_ = term.Restore(int(f.keyboard.Fd()), f.before)
	}
	if f.master != nil {
		f.master.Close()
	}
}

// foreground says whether a file is the terminal whose foreground this process's group is.
func foreground(tty *os.File) bool {
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
