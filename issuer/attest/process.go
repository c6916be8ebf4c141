package attest

import (
	"errors"
	"fmt"
	"os"
)

// ErrDead says that the process has ended; what was learned about it is void.
var ErrDead = errors.New("the process has ended")

// Process is one process, held by a pidfd. Its methods may be called from any goroutine, after Close too
// (they then report an error).
type Process struct {
	pid   int
	start uint64
	exact bool
	pidfd *os.File
}

// Open holds the process that has a pid now. It is for pids that a third party named: Exact is false.
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("pid %d: want a positive number", pid)
	}
	f, err := openPidfd(pid)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	return hold(pid, f, false)
}

// hold takes over the pidfd. The start time is read before and after looking at the pidfd: a pid that
// changed hands in between shows.
func hold(pid int, pidfd *os.File, exact bool) (*Process, error) {
	p := &Process{pid: pid, exact: exact, pidfd: pidfd}
	st, err := readStat(pid)
	if err == nil {
		p.start = st.start
		err = p.Alive()
	}
	if err == nil {
		var again stat
		if again, err = readStat(pid); err == nil && again.start != p.start {
			err = ErrDead
		}
	}
	if err != nil {
		pidfd.Close()
		return nil, fmt.Errorf("holding process %d: %w", pid, err)
	}
	return p, nil
}

// PID is the process's number, as this process sees it.
func (p *Process) PID() int { return p.pid }

// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot. Together with the pid it names one process.
func (p *Process) StartTime() uint64 { return p.start }

// Exact says that the kernel named this very process (SO_PEERPIDFD), with no gap in which its pid could have
// changed hands.
func (p *Process) Exact() bool { return p.exact }

// Alive returns nil while the process lives, ErrDead afterwards.
func (p *Process) Alive() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var gone bool
	var opErr error
	if err := raw.Control(func(fd uintptr) { gone, opErr = dead(fd) }); err != nil {
		return err
	}
	if opErr != nil {
		return opErr
	}
	if gone {
		return ErrDead
	}
	return nil
}

// Wait returns nil when the process has ended, and an error when p was closed before.
func (p *Process) Wait() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = raw.Read(func(fd uintptr) bool {
		var gone bool
		gone, opErr = dead(fd)
		return gone || opErr != nil
	})
	return errors.Join(err, opErr)
}

// Dup returns a second handle on the same process, to be closed on its own.
func (p *Process) Dup() (*Process, error) {
	f, err := dupFile(p.pidfd)
	if err != nil {
		return nil, fmt.Errorf("holding process %d: %w", p.pid, err)
	}
	return &Process{pid: p.pid, start: p.start, exact: p.exact, pidfd: f}, nil
}

// Same says whether both handles hold the same process.
func (p *Process) Same(q *Process) bool { return p.pid == q.pid && p.start == q.start }

// Close lets go of the process; Wait returns.
func (p *Process) Close() error { return p.pidfd.Close() }
