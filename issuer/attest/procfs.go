package attest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// maxProcFile bounds one file of /proc; all that is read here is far smaller.
const maxProcFile = 64 << 10

// stat is what /proc/PID/stat says about a process's place and age.
type stat struct {
	ppid  int
	start uint64
}

func readProc(pid int, name string) ([]byte, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrDead
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile+1))
	if err != nil {
		// ESRCH: the process went away between open and read.
		return nil, fmt.Errorf("reading /proc/%d/%s: %w", pid, name, errors.Join(ErrDead, err))
	}
	if len(b) > maxProcFile {
		return nil, fmt.Errorf("/proc/%d/%s is larger than %d bytes", pid, name, maxProcFile)
	}
	return b, nil
}

func readStat(pid int) (stat, error) {
	b, err := readProc(pid, "stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat reads proc(5) stat. The command's name stands in parentheses, is chosen by the process, and may hold
// parentheses, spaces and newlines itself: the last closing one counts.
func parseStat(b []byte) (stat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, errors.New("process status without a command name")
	}
	f := strings.Fields(string(b[i+1:])) // f[0] is field 3, the state
	if len(f) < 20 {
		return stat{}, errors.New("process status is cut short")
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil || ppid < 0 {
		return stat{}, fmt.Errorf("parent pid %q in the process status", f[1])
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time %q in the process status", f[19])
	}
	return stat{ppid: ppid, start: start}, nil
}

// parseCgroup returns the path in the unified hierarchy, or "" where there is none.
func parseCgroup(b []byte) string {
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return p
		}
	}
	return ""
}

// parseIDs returns the real, effective, saved and file-system ids of a line of /proc/PID/status.
func parseIDs(status []byte, key string) (ids [4]uint32, err error) {
	// The Name line comes first and is escaped by the kernel, so it can't forge a line.
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, key+":")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) != 4 {
			break
		}
		for i, s := range f {
			n, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return ids, fmt.Errorf("%s %q in the process status", key, s)
			}
			ids[i] = uint32(n)
		}
		return ids, nil
	}
	return ids, fmt.Errorf("no %s in the process status", key)
}

// restraints are what a process and all that it starts can't take off again.
type restraints struct {
	noNewPrivileges bool
	filters         int // of system calls
	counted         bool
}

// parseRestraints leaves out what a kernel doesn't say.
func parseRestraints(status []byte) (r restraints) {
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "NoNewPrivs":
			r.noNewPrivileges = value == "1"
		case "Seccomp_filters": // since Linux 5.9
			n, err := strconv.Atoi(value)
			r.filters, r.counted = n, err == nil
		}
	}
	return r
}

func (r restraints) marked(base restraints) bool {
	if !r.counted {
		return r.noNewPrivileges && !base.noNewPrivileges
	}
	return r.noNewPrivileges && r.filters > base.filters
}

func readSelf(name string) (string, error) {
	b, err := readProc(os.Getpid(), name)
	return string(b), err
}

// UIDsInUse returns every uid that a process runs under or could change back to.
func UIDsInUse() (map[uint32]bool, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	used := map[uint32]bool{}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		status, err := readProc(pid, "status")
		if errors.Is(err, ErrDead) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing processes: %w", err)
		}
		ids, err := parseIDs(status, "Uid")
		if err != nil {
			return nil, fmt.Errorf("listing processes: process %d: %w", pid, err)
		}
		for _, id := range ids {
			used[id] = true
		}
	}
	return used, nil
}

// OwnCgroup is the cgroup of this process in the unified hierarchy, "" when there is none.
func OwnCgroup() (string, error) {
	s, err := readSelf("cgroup")
	if err != nil {
		return "", fmt.Errorf("reading the own cgroup: %w", err)
	}
	return parseCgroup([]byte(s)), nil
}
