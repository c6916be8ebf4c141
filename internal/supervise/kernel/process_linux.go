package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Process names one process for as long as the machine runs.
type Process struct {
	PID int
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64
}

// ErrGone is returned for a process that ended, or whose id belongs to another process by now.
var ErrGone = errors.New("the process is gone")

// maxAncestors bounds a walk towards init.
const maxAncestors = 1024

// Find names the process that has an id now.
func Find(pid int) (Process, error) {
	_, start, err := stat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, StartTime: start}, nil
}

// Self names the calling process.
func Self() (Process, error) { return Find(os.Getpid()) }

// Check returns [ErrGone] unless the very process is still there.
func (p Process) Check() error {
	_, start, err := stat(p.PID)
	if err != nil {
		return err
	}
	if start != p.StartTime {
		return ErrGone
	}
	return nil
}

// Parent is the process's parent now: the nearest subreaper above it where its own parent ended.
func (p Process) Parent() (Process, error) {
	ppid, start, err := stat(p.PID)
	if err != nil {
		return Process{}, err
	}
	if start != p.StartTime {
		return Process{}, ErrGone
	}
	if ppid == 0 {
		return Process{}, fmt.Errorf("process %d has no parent that can be seen from here", p.PID)
	}
	parent, err := Find(ppid)
	if err != nil {
		return Process{}, err
	}
	// The parent may have ended between both reads and its id may have been given away. A parent is
	// never younger than its child, and it is still the parent only if the child says so again.
	again, start, err := stat(p.PID)
	if err != nil {
		return Process{}, err
	}
	if start != p.StartTime || again != ppid || parent.StartTime > p.StartTime {
		return Process{}, ErrGone
	}
	return parent, nil
}

// DescendsFrom says whether ancestor is the process itself or one of its ancestors.
func (p Process) DescendsFrom(ancestor Process) (bool, error) {
	at := p
	for range maxAncestors {
		if at == ancestor {
			return true, p.Check()
		}
		if at.PID <= 1 {
			return false, nil
		}
		parent, err := at.Parent()
		if err != nil {
			return false, err
		}
		at = parent
	}
	return false, fmt.Errorf("process %d has more than %d ancestors", p.PID, maxAncestors)
}

// stat reads parent and start time. The name in field 2 is chosen by the process and may hold anything,
// so fields are counted from the last closing parenthesis.
func stat(pid int) (ppid int, start uint64, err error) {
	if pid <= 0 {
		return 0, 0, ErrGone
	}
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, 0, ErrGone
	}
	if err != nil {
		return 0, 0, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("reading the state of process %d: no name in it", pid)
	}
	f := bytes.Fields(raw[end+1:]) // f[0] is field 3
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("reading the state of process %d: %d fields", pid, len(f))
	}
	if len(f[0]) == 1 && (f[0][0] == 'X' || f[0][0] == 'x') {
		return 0, 0, ErrGone
	}
	if ppid, err = strconv.Atoi(string(f[1])); err != nil {
		return 0, 0, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	if start, err = strconv.ParseUint(string(f[19]), 10, 64); err != nil {
		return 0, 0, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	return ppid, start, nil
}

// Descendants are the live processes below p.
func (p Process) Descendants() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	below := map[int][]Process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ppid, start, err := stat(pid); err == nil {
			below[ppid] = append(below[ppid], Process{PID: pid, StartTime: start})
		}
	}
	var out []Process
	for next := []int{p.PID}; len(next) > 0; next = next[1:] {
		for _, c := range below[next[0]] {
			out, next = append(out, c), append(next, c.PID)
		}
		delete(below, next[0]) // ids that changed hands meanwhile make no circle
	}
	return out, nil
}

// Guard keeps the process's memory to itself: not dumpable means that other processes of the same uid
// can't attach to it or read /proc/PID/mem, and no core is written.
func Guard() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching off core dumps: %w", err)
	}
	return nil
}

// AdoptOrphans makes the process the parent of all descendants whose own parents end.
func AdoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the reaper of orphans: %w", err)
	}
	return nil
}

// NeverGainPrivileges takes from the calling thread, and from all that it starts from now on and for good, what
// set-uid and set-gid programs and file capabilities give. The caller must have locked itself to its thread.
func NeverGainPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up what set-uid programs give: %w", err)
	}
	return nil
}
