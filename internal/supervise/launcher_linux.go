package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// SupervisorArgument is the hidden subcommand that a launcher starts itself with again.
const SupervisorArgument = "supervise-agent"

// maxChildren bounds the live agents of one launcher; the issuer has finer limits.
const maxChildren = 256

// launcher is the root process of an isolated run. It starts supervisors under the uids that the issuer
// chose, and ends what they leave behind. Its supervisors are under the agents' uids, so what they say is
// believed no further than their tickets go.
type launcher struct {
	mesh       Mesh
	runtimeDir string
	rpc        spawnv1.SpawnClient
	log        *slog.Logger
	forks      chan func()

	mu   sync.Mutex
	live int // guarded by mu
}

func newLauncher(mesh Mesh, runtimeDir string, rpc spawnv1.SpawnClient, log *slog.Logger) (*launcher, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("isolated agents need root")
	}
	if err := kernel.Guard(); err != nil {
		return nil, err
	}
	if err := PrepareRuntimeDir(runtimeDir, true); err != nil {
		return nil, err
	}
	l := &launcher{mesh: mesh, runtimeDir: runtimeDir, rpc: rpc, log: log, forks: make(chan func())}
	ready := make(chan error)
	go func() {
		// The kernel kills a supervisor when the thread that started it is gone, so this one stays.
		runtime.LockOSThread()
		// A set-uid file that an ended agent left behind must not make anybody its successor under that uid.
		err := kernel.NeverGainPrivileges()
		ready <- err
		if err != nil {
			return
		}
		for f := range l.forks {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return l, nil
}

// launched is a supervisor that this launcher started.
type launched struct {
	proc  *os.Process
	group *cgroup
	uid   uint32
	done  chan childEnd // buffered
	mu    sync.Mutex
	ended bool // guarded by mu: no signals any more
}

func (c *launched) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	_ = c.proc.Signal(s)
	if s != syscall.SIGKILL && s != syscall.SIGSTOP {
		_ = c.proc.Signal(syscall.SIGCONT) // its own program may have stopped it
	}
}

func (c *launched) kill() { c.signal(syscall.SIGKILL) }

// start claims the uid of a ticket and starts a supervisor under it. files are the child's standard
// streams and its end of the grant link. owner is the uid of who asks.
func (l *launcher) start(ctx context.Context, req startRequest, files []*os.File, owner uint32) (*launched, error) {
	if len(files) != 4 {
		return nil, fmt.Errorf("want three streams and a link, got %d descriptors", len(files))
	}
	mesh, err := l.meshFor(req.Targets)
	if err != nil {
		return nil, err
	}
	claimCtx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	claim, err := l.rpc.Claim(claimCtx, &spawnv1.ClaimRequest{Ticket: req.Ticket})
	if err != nil {
		return nil, fmt.Errorf("claiming the agent's uid: %w", plain(err))
	}
	id, err := actor.AgentIDFromString(claim.GetSpiffeId())
	if err != nil {
		return nil, fmt.Errorf("claiming the agent's uid: %w", err)
	}
	if claim.GetUid() == 0 || claim.GetGid() == 0 {
		return nil, fmt.Errorf("the issuer chose uid %d and gid %d for %s; isolation needs others than root's", claim.GetUid(), claim.GetGid(), id)
	}
	l.mu.Lock()
	full := l.live >= maxChildren
	if !full {
		l.live++
	}
	l.mu.Unlock()
	if full {
		return nil, fmt.Errorf("this run has %d live agents already", maxChildren)
	}
	c, err := l.run(ctx, id, claim.GetUid(), claim.GetGid(), req, mesh, files, owner)
	if err != nil {
		l.release()
	}
	return c, err
}

func (l *launcher) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live--
}

func (l *launcher) meshFor(names []string) (Mesh, error) {
	mesh := l.mesh
	if names == nil {
		return mesh, nil
	}
	mesh.Targets = []client.Target{}
	for _, t := range l.mesh.Targets {
		if slices.Contains(names, t.Name) {
			mesh.Targets = append(mesh.Targets, t)
		}
	}
	if len(mesh.Targets) != len(names) {
		return Mesh{}, fmt.Errorf("not all of the targets %q are configured", names)
	}
	return mesh, nil
}

func (l *launcher) run(ctx context.Context, id actor.AgentID, uid, gid uint32, req startRequest, mesh Mesh, files []*os.File, owner uint32) (_ *launched, err error) {
	dir, err := newRunDir(l.runtimeDir, id)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = dir.remove()
		}
	}()
	if err := os.Chown(dir.path, int(uid), int(gid)); err != nil {
		return nil, fmt.Errorf("handing the agent its folder: %w", err)
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	control := newWire(near)
	defer far.Close()
	attr := &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{}},
		Setsid:     true, Pdeathsig: syscall.SIGKILL,
	}
	group, err := newCgroup(cgroupPrefix + filepath.Base(dir.path))
	if err != nil {
		l.log.DebugContext(ctx, "no control group for the agent; its uid is ended instead", "agent", id.String(), "error", err)
	} else {
		if err := dir.note(group.path); err != nil {
			return nil, errors.Join(err, group.end())
		}
		attr.UseCgroupFD, attr.CgroupFD = true, int(group.dir.Fd())
	}
	if req.Terminal {
		giveTerminal(files[0], owner, uid)
	}
	cmd := &exec.Cmd{
		// Not the path: the agent's uid may not be able to walk there.
		Path: "/proc/self/exe", Args: []string{"deputy", SupervisorArgument}, Dir: "/", Env: supervisorEnvironment(),
		Stdin: files[0], Stdout: files[1], Stderr: files[2], ExtraFiles: []*os.File{far, files[3]}, SysProcAttr: attr,
	}
	started := make(chan error)
	l.forks <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		control.Close()
		if group != nil {
			_ = group.end()
		}
		return nil, fmt.Errorf("starting the supervisor under uid %d: %w", uid, err)
	}
	c := &launched{proc: cmd.Process, group: group, uid: uid, done: make(chan childEnd, 1)}
	go l.wait(ctx, c, cmd, control, dir, id)
	_ = near.SetWriteDeadline(time.Now().Add(answerTimeout))
	if err := control.write(supervisorStart{
		Ticket: req.Ticket, Argv: req.Argv, Env: req.Env, Cwd: req.Cwd, Terminal: req.Terminal, Dir: dir.path, Mesh: mesh,
	}); err != nil {
		c.kill() // wait cleans up
	}
	_ = near.SetWriteDeadline(time.Time{})
	return c, nil
}

// wait serves a supervisor's requests until it ends, and then ends whatever it left behind.
func (l *launcher) wait(ctx context.Context, c *launched, cmd *exec.Cmd, control *wire, dir *runDir, id actor.AgentID) {
	defer l.release()
	serving := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(serving)
		l.serve(ctx, control, c.uid)
	}()
	// It stays a zombie until everything of its uid is dead: the issuer gives no uid away that a process runs under, so the
	// kills below can't hit the next owner.
	awaitExit(cmd.Process.Pid)
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	cancel()
	control.Close()
	<-serving
	if c.group != nil {
		if err := c.group.end(); err != nil {
			l.log.WarnContext(ctx, "the agent's control group is left", "agent", id.String(), "error", err)
		}
	}
	if err := endUID(c.uid); err != nil {
		l.log.WarnContext(ctx, "the agent's processes are left", "agent", id.String(), "error", err)
	}
	err := cmd.Wait()
	end := supervisorEnd(id, cmd.ProcessState, err)
	if err := dir.remove(); err != nil {
		l.log.WarnContext(ctx, "the agent's folder is left", "agent", id.String(), "error", err)
	}
	c.done <- end
}

// awaitExit returns when a child has ended, and leaves it a zombie.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return // or it can't be waited for, which cmd.Wait says
		}
	}
}

// supervisorEnd tells the program's exit code, which its supervisor ends with, from the supervisor's own
// violent end.
func supervisorEnd(id actor.AgentID, st *os.ProcessState, err error) childEnd {
	if st == nil {
		return childEnd{Code: exitFailed, Error: fmt.Sprintf("waiting for the supervisor of %s: %v", id, err)}
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return childEnd{Code: exitSignalled + int(ws.Signal()), Error: fmt.Sprintf("the supervisor of %s was ended by the signal %q, and the agent with it", id, ws.Signal())}
	}
	return childEnd{Code: st.ExitCode()}
}

// serve answers one supervisor: it may start children with tickets of its own, and signal and end them.
func (l *launcher) serve(ctx context.Context, control *wire, uid uint32) {
	children := make(map[uint64]*launched)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer func() {
		for _, c := range children {
			c.kill()
		}
	}()
	for {
		var m toLauncher
		files, err := control.read(&m, 4)
		if err != nil {
			return
		}
		c := children[m.ID]
		switch {
		case m.Start != nil && c == nil:
			c, err := l.start(ctx, *m.Start, files, uid)
			if err != nil {
				_ = control.write(fromLauncher{ID: m.ID, Exited: childEnd{Code: exitFailed, Error: err.Error()}})
				break
			}
			children[m.ID] = c
			waiting.Go(func() {
				end := <-c.done
				_ = control.write(fromLauncher{ID: m.ID, Exited: end})
			})
		case c == nil:
		case m.Kill:
			c.kill()
		case m.Signal > 0 && m.Signal < 65:
			c.signal(syscall.Signal(m.Signal))
		}
		closeAll(files)
	}
}

// giveTerminal makes the child's uid the owner of its terminal, so that it can open it by name. Only a
// pseudo-terminal of the asker's own is given away: any other descriptor could be a file of root's.
func giveTerminal(f *os.File, owner, uid uint32) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Uid != owner {
		return
	}
	if major := unix.Major(st.Rdev); major < 136 || major > 143 {
		return
	}
	_ = unix.Fchown(int(f.Fd()), int(uid), -1)
}
