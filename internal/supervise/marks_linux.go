package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
)

// A child under the same uid differs from its parent by its ancestors alone, and those go: a program can kill its own
// supervisor, and its orphans then stand right below the parent's. What it can't shed is the restraint that each supervisor
// puts on its program, one on top of those around it. So an agent's processes are told by how many they carry.

func (s *Supervisor) mark(r kernel.Restraints) { s.marks.Store(&r) }

// startedHere refuses whoever carries another number of restraints than this agent's program: more is what a child, or a
// sandbox of the program's own, started; less came from outside.
func (s *Supervisor) startedHere(p *kernel.Held) error {
	own := s.marks.Load()
	if own == nil {
		return errors.New("this agent's program hasn't started yet")
	}
	theirs, err := p.Restraints()
	if err != nil {
		return err
	}
	switch {
	case theirs == *own:
		return nil
	case theirs.MoreThan(*own):
		return errors.New("a sub-agent of this one started it, or it is in a sandbox (a system call filter) that the agent's program isn't in; neither is served here")
	default:
		return errors.New("this agent's program didn't start it: it carries less restraints")
	}
}

// mayAdopt refuses a child under the same uid where its processes couldn't be told from this agent's own.
func (s *Supervisor) mayAdopt() error {
	if own := s.marks.Load(); own == nil || own.Filters == 0 {
		return status.Error(codes.FailedPrecondition, "this kernel doesn't count system call filters (Linux 5.9 with CONFIG_SECCOMP_FILTER does), so a sub-agent under the same uid could pass for its parent; start the outermost `deputy run` as root, for agents with uids of their own")
	}
	return nil
}

// leftoverPatience bounds the wait for a child's supervisor to be dead, and for what it left behind to be.
const leftoverPatience = 15 * time.Second

// endLeftovers ends what a child under the same uid left behind when its supervisor was killed, before anybody above it takes
// notice. Nothing else that this supervisor adopts carries more restraints than its program, save a daemon in a sandbox of its
// own, which can't be told from it.
func (s *Supervisor) endLeftovers(ctx context.Context, child *kernel.Held) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverPatience)
	defer cancel()
	self, err := kernel.Self()
	if err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	// Its children are adopted before it is seen to be dead, so that none is overlooked afterwards. One that lives on has its
	// program still.
	for child.Alive() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	s.sweep.Lock() // one at a time looks through all processes
	defer s.sweep.Unlock()
	for {
		found, err := s.killLeftovers(self)
		if err != nil || !found {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not all that a sub-agent left behind could be ended: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *Supervisor) killLeftovers(self kernel.Process) (found bool, err error) {
	below, err := self.Descendants()
	if err != nil {
		return false, err
	}
	for _, p := range below {
		parent, err := p.Parent()
		if err != nil || parent != self || p.PID == int(s.program.Load()) {
			continue
		}
		r, err := p.Restraints()
		if err != nil || !r.MoreThan(*s.marks.Load()) {
			continue
		}
		found = true
		_ = killBelow(p)
		_ = unix.Kill(p.PID, unix.SIGKILL)
	}
	return found, nil
}
