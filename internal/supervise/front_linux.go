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
// except a terminal. An agent under another uid must not hold the user's terminal, not even for its output: who
// holds it can read what is typed. It gets a pseudo-terminal that is relayed.
type front struct {
	streams [3]*os.File // for the agent

	master, slave *os.File
	display       *os.File
	keyboard      *os.File // nil where stdin is no terminal
	before        *term.State
	resized       chan os.Signal
	drained       chan struct{}
}

func openFront(stdin, stdout, stderr *os.File) (*front, error) {
	f := &front{streams: [3]*os.File{stdin, stdout, stderr}}
	var own []int
	for i, s := range f.streams {
		if term.IsTerminal(int(s.Fd())) {
			own = append(own, i)
		}
	}
	if len(own) == 0 {
		return f, nil
	}
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("opening a pseudo-terminal: %w", err)
	}
	f.master, f.slave = master, slave
	_ = pty.InheritSize(f.streams[own[0]], master)
	for _, i := range own {
		if f.display == nil || f.display == stdin {
			f.display = f.streams[i]
		}
		f.streams[i] = slave
	}
	if own[0] == 0 {
		f.keyboard = stdin
	} else if _, err := term.MakeRaw(int(slave.Fd())); err != nil {
		// The user's own terminal goes on translating line ends, so this one must not.
		f.close()
		return nil, fmt.Errorf("switching the pseudo-terminal: %w", err)
	}
	return f, nil
}

// terminal says whether the agent's stdin is a terminal, which then is its controlling one.
func (f *front) terminal() bool { return f.keyboard != nil }

// relay begins once the agent holds its end.
func (f *front) relay() error {
	if f.master == nil {
		return nil
	}
	f.slave.Close()
	f.slave = nil
	if f.keyboard != nil {
		if err := f.listen(); err != nil {
			return err
		}
	}
	f.drained = make(chan struct{})
	go func() {
		defer close(f.drained)
		_, _ = io.Copy(f.display, f.master) // ends with an error when the agent's side is closed
	}()
	return nil
}

// listen passes on what is typed, and the size of the window.
func (f *front) listen() error {
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
