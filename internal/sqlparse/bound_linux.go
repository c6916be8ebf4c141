//go:build cgo

package sqlparse

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of the parsing process. The parser recurses on the C stack, which glibc sizes from
// RLIMIT_STACK at start, and to 2 MB if that is unlimited. A short text can make the tree
// exponential: SET (a, b) = (…) repeats its source for each column.
const (
	minStack  = 8 << 20
	wantStack = 16 << 20
	moreData  = 1 << 30
)

// boundProcess bounds this process, starting it anew if its stack must change.
func boundProcess() error {
	var stack unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_STACK, &stack); err != nil {
		return err
	}
	if stack.Cur < minStack || stack.Cur == unix.RLIM_INFINITY {
		if stack.Max < minStack {
			return fmt.Errorf("the stack limit is %d bytes; it must be %d or more (ulimit -Hs)", stack.Max, minStack)
		}
		stack.Cur = min(stack.Max, wantStack)
		if err := unix.Setrlimit(unix.RLIMIT_STACK, &stack); err != nil {
			return err
		}
		return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	data, err := dataSize()
	if err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: data + moreData, Max: data + moreData})
}

// dataSize gives what the process has mapped by now, which the race detector makes huge.
func dataSize() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "VmData:"); ok {
			kb, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/self/status shows no VmData")
}
