package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/actor"
)

// runDir is one agent's folder under <runtime_dir>/a, locked while the agent lives, so that what a killed
// run left behind can be told and removed.
type runDir struct {
	path string
	lock *os.File
}

// PrepareRuntimeDir makes the folder that holds agents' folders. It must belong to this uid and be
// writable by nobody else; with shared, other uids may pass through to their own.
func PrepareRuntimeDir(path string, shared bool) error {
	mode := fs.FileMode(0o700)
	if shared {
		mode = 0o711
	}
	// What leads to the folder is like any other folder; the folder itself is what is guarded.
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the way to the runtime folder: %w", err)
	}
	for _, p := range []string{path, filepath.Join(path, "a")} {
		if err := os.MkdirAll(p, mode); err != nil {
			return fmt.Errorf("making the runtime folder: %w", err)
		}
		st, err := os.Lstat(p)
		if err != nil {
			return fmt.Errorf("looking at the runtime folder: %w", err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		if !st.IsDir() || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("runtime folder %s: it must be a folder of uid %d that nobody else can write to; remove it or set runtime_dir", p, os.Geteuid())
		}
		if shared && st.Mode().Perm()&0o011 != 0o011 {
			if err := os.Chmod(p, st.Mode().Perm()|0o011); err != nil {
				return fmt.Errorf("opening the runtime folder to agents: %w", err)
			}
		}
	}
	return nil
}

func newRunDir(runtimeDir string, id actor.AgentID) (_ *runDir, err error) {
	parent := filepath.Join(runtimeDir, "a")
	// One at a time: a run that looks for what others left behind must not find a folder whose lock isn't taken yet.
	turn, err := os.OpenFile(parent, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the agent's folder: %w", err)
	}
	defer func() { err = errors.Join(err, turn.Close()) }()
	if err := unix.Flock(int(turn.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("waiting to make the agent's folder: %w", err)
	}
	removeStale(parent)
	segments := id.Segments()
	// Sixteen digits of a random name: short, because socket paths are.
	path := filepath.Join(parent, segments[len(segments)-1].Instance[:16])
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the agent's folder: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("locking the agent's folder: %w", err)
	}
	return &runDir{path: path, lock: lock}, nil
}

// note keeps where the agent's control group is, for whoever cleans up after a launcher that was killed.
func (d *runDir) note(cgroup string) error {
	if _, err := d.lock.WriteAt([]byte(cgroup), 0); err != nil {
		return fmt.Errorf("noting the agent's control group: %w", err)
	}
	return nil
}

func (d *runDir) remove() error {
	err := os.RemoveAll(d.path)
	err = errors.Join(err, os.Remove(d.path+".lock"))
	return errors.Join(err, d.lock.Close())
}

// removeStale removes the folders and control groups of runs that were killed, with what still runs in the groups: their locks
// are free.
func removeStale(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, "*.lock"))
	for _, l := range locks {
		f, err := os.OpenFile(l, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			dir := strings.TrimSuffix(l, ".lock")
			endStaleCgroup(f, cgroupPrefix+filepath.Base(dir))
			os.RemoveAll(dir)
			os.Remove(l)
		}
		f.Close()
	}
}
