package soak_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// remains is what grows when something is left behind.
type remains struct {
	files     map[string]int // by folder of the mesh, without the logs
	fds       map[string]int // by role, and of all processes of the agents
	processes int            // of the mesh's binaries
	target    int            // connections at the target
}

// remains counts what is there now. The mesh serves while it counts.
func (e *era) remains() remains {
	r := remains{files: map[string]int{}, fds: map[string]int{}}
	err := filepath.WalkDir(e.m.Root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away
		}
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(e.m.Root, path); !d.IsDir() && !strings.HasSuffix(path, ".segment") {
			parts := strings.Split(rel, string(filepath.Separator))
			r.files[filepath.Join(parts[:min(2, len(parts)-1)]...)]++
		}
		return nil
	})
	if err != nil {
		e.t.Fatal(err)
	}
	for name, role := range e.roles {
		r.fds[name] = openFiles(role.Pid())
	}
	for _, pid := range e.crew.processes() {
		r.processes++
		r.fds["agents"] += openFiles(pid)
	}
	if _, err := fmt.Sscan(e.m.PG.Value("select count(*) from pg_stat_activity where backend_type = 'client backend'"), &r.target); err != nil {
		e.t.Fatal(err)
	}
	return r
}

// compare demands that nothing grew by more than what restarts may account for.
func (r remains) compare(e *era, now remains) {
	for dir, n := range now.files {
		if n > r.files[dir]+6 {
			names, _ := filepath.Glob(filepath.Join(e.m.Root, dir, "*"))
			e.ledger.violation("%s holds %d files, at the start %d: %v", dir, n, r.files[dir], names)
		}
	}
	for name, n := range now.fds {
		if n > r.fds[name]+40 {
			e.ledger.violation("%s: %d open files, at the start %d", name, n, r.fds[name])
		}
	}
	if now.processes > r.processes+6 {
		e.ledger.violation("%d processes of agents, at the start %d", now.processes, r.processes)
	}
	if now.target > r.target+8 {
		e.ledger.violation("%d connections at the target, at the start %d", now.target, r.target)
	}
}

// processes are the pids of everything that runs below the crew's commands, with those that belong to their sessions.
func (c *crew) processes() []int {
	var out []int
	for _, p := range c.posts {
		if p.live != nil {
			out = append(append(out, p.live.Pid()), childrenOf(p.live.Pid())...)
		}
	}
	return out
}

func openFiles(pid int) int {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(names)
}

// childrenOf are all processes below one.
func childrenOf(pid int) []int {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// "pid (name) state parent": the name may hold anything.
		rest := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		if len(rest) < 2 || rest[0] == "Z" {
			continue
		}
		child, err1 := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, err2 := strconv.Atoi(rest[1])
		if err1 == nil && err2 == nil {
			parents[child] = parent
		}
	}
	var out []int
	for child := range parents {
		for p := parents[child]; p > 1; p = parents[p] {
			if p == pid {
				out = append(out, child)
				break
			}
		}
	}
	return out
}

// awaitGone waits until processes that belonged to one that was killed have ended.
func awaitGone(e *era, name string, pids []int) {
	for limit := time.Now().Add(patience / 6); ; time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, pid := range pids {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(raw), ") Z ") {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(limit) {
			e.ledger.violation("%d processes of the killed %s live on", left, name)
			return
		}
	}
}
