package supervise

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a control group of an agent's own: none of its processes can leave it, so it can be ended
// whole.
type cgroup struct {
	path string
	dir  *os.File
}

// newCgroup makes one below the launcher's own, where version 2 is mounted and writable.
func newCgroup(name string) (*cgroup, error) {
	root, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(root, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	if _, err := os.Stat(filepath.Join(path, "cgroup.kill")); err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("this kernel can't end a control group whole: %w", err)
	}
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("opening the control group: %w", err)
	}
	return &cgroup{path: path, dir: dir}, nil
}

// cgroupPrefix begins the name of every agent's control group.
const cgroupPrefix = "deputy-"

// endStaleCgroup ends the group that a killed launcher noted in its agent's lock file. The group's name must be that agent's:
// the file is this uid's own, but what it says is only followed that far.
func endStaleCgroup(lock *os.File, name string) {
	noted, err := io.ReadAll(io.LimitReader(lock, unix.PathMax))
	path := string(noted)
	if err != nil || path == "" || filepath.Clean(path) != path || filepath.Base(path) != name {
		return
	}
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return
	}
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = (&cgroup{path: path, dir: dir}).end() // the next one tries again
}

func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	var mount string
	for line := range strings.Lines(string(mounts)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if ok && len(f) >= 5 && strings.HasPrefix(after, "cgroup2 ") && f[3] == "/" {
			mount = f[4]
		}
	}
	if mount == "" {
		return "", errors.New("control groups of version 2 are not mounted")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(own)) {
		if p, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "0::"); ok {
			return filepath.Join(mount, p), nil
		}
	}
	return "", errors.New("this process is in no control group of version 2")
}

// end kills every process in the group and removes it.
func (c *cgroup) end() error {
	defer c.dir.Close()
	if err := os.WriteFile(filepath.Join(c.path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("ending the control group: %w", err)
	}
	for range 500 {
		events, err := os.ReadFile(filepath.Join(c.path, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("ending the control group: %w", err)
		}
		if bytes.Contains(events, []byte("populated 0")) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.Remove(c.path); err != nil {
		return fmt.Errorf("removing the control group: %w", err)
	}
	return nil
}

// endUID kills every process of a host uid that belongs to one agent alone.
func endUID(uid uint32) error {
	for range 200 {
		found, err := processesOf(uid)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		for _, pid := range found {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("processes of uid %d don't end although they were killed", uid)
}

// processesOf lists the live processes whose real, effective or saved uid is uid.
func processesOf(uid uint32) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		f, err := os.Open("/proc/" + e.Name() + "/status")
		if err != nil {
			continue
		}
		zombie, match := false, false
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if v, ok := strings.CutPrefix(lines.Text(), "State:"); ok {
				zombie = strings.HasPrefix(strings.TrimSpace(v), "Z")
			}
			if v, ok := strings.CutPrefix(lines.Text(), "Uid:"); ok {
				for _, u := range strings.Fields(v) {
					n, err := strconv.ParseUint(u, 10, 32)
					match = match || err == nil && uint32(n) == uid
				}
				break
			}
		}
		f.Close()
		if match && !zombie {
			out = append(out, pid)
		}
	}
	return out, nil
}
