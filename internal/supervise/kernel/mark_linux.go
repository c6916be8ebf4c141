package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Restraints are what a process can't take off again, nor anything that it starts, however often it forks and whoever
// adopts it.
type Restraints struct {
	NoNewPrivileges bool
	Filters         int // of system calls; 0 on kernels before 5.9, which don't count them
}

// OnThread runs f in a goroutine that is locked to a thread of its own; the thread ends with f. It is never the process's
// first: what the kernel says about a process it reads from that one, so a restraint there would be the whole process's. A
// supervisor whose first thread were behind its agent's wall would be open to the agent.
func OnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if !onFirstThread() {
			f()
			return
		}
		// This goroutine keeps the first thread until the next one has another.
		defer runtime.UnlockOSThread()
		away := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(away)
			f()
		}()
		<-away
	}()
}

func onFirstThread() bool { return unix.Gettid() == unix.Getpid() }

// errFirstThread is a restraint that would be the whole process's.
var errFirstThread = errors.New("restraining the agent's thread: it is the first of its process; this is a defect of deputy, please report it")

// Mark puts a restraint on the calling thread and on all that it starts from now on: no set-uid program gives it anything,
// and one system call filter, which allows everything, is on top of those that it has. It returns what the thread is
// restrained by then; a kernel that doesn't count filters leaves Filters at 0. The caller runs under
// OnThread.
func Mark() (Restraints, error) {
	if onFirstThread() {
		return Restraints{}, errFirstThread
	}
	if err := NeverGainPrivileges(); err != nil {
		return Restraints{}, err
	}
	before, err := restraintsIn("/proc/thread-self/status")
	if err != nil {
		return Restraints{}, err
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &allow}
	err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	runtime.KeepAlive(&allow)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel without filters; the other mark is there
		return Restraints{}, fmt.Errorf("marking the agent's processes: %w", err)
	}
	after, err := restraintsIn("/proc/thread-self/status")
	if err != nil {
		return Restraints{}, err
	}
	if after.Filters != before.Filters+1 {
		after.Filters = 0
	}
	return after, nil
}

// Wall puts the calling thread, and all that it starts from now on, into a Landlock domain of its own: from inside, no process
// outside can be traced or its memory, environment or descriptors read, whoever's uid it runs under, nor an abstract socket of
// theirs be used. Kernels before 6.12, or without Landlock, have no such wall. The caller runs under OnThread, and
// has given up what set-uid programs give.
func Wall() error {
	if onFirstThread() {
		return errFirstThread
	}
	const (
		createVersion = 1
		scopesSince   = 6
	)
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, createVersion)
	if errno != 0 || version < scopesSince {
		return nil
	}
	attr := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET}
	size := unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped)
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("walling the agent in: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("walling the agent in: %w", errno)
	}
	return nil
}

// Restraints are those of the process now.
func (p Process) Restraints() (Restraints, error) {
	r, err := restraintsIn("/proc/" + strconv.Itoa(p.PID) + "/status")
	if err != nil {
		return Restraints{}, err
	}
	return r, p.Check()
}

func restraintsIn(file string) (Restraints, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Restraints{}, ErrGone
	}
	if err != nil {
		return Restraints{}, fmt.Errorf("reading what a process is restrained by: %w", err)
	}
	var r Restraints
	known := false
	for line := range bytes.Lines(raw) {
		// The name in the first line is escaped by the kernel, so it can't forge a line.
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
		switch {
		case err != nil:
		case string(name) == "NoNewPrivs":
			r.NoNewPrivileges, known = n != 0, true
		case string(name) == "Seccomp_filters":
			r.Filters = n
		}
	}
	if !known {
		return Restraints{}, fmt.Errorf("%s: this kernel doesn't say what a process is restrained by", file)
	}
	return r, nil
}

// MoreThan says whether a process with r was started below one that put a restraint on it that another, with o, doesn't have.
func (r Restraints) MoreThan(o Restraints) bool {
	return r.NoNewPrivileges && !o.NoNewPrivileges || r.Filters > o.Filters
}
