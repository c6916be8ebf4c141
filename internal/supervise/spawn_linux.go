package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

func newDelegation(child actor.AgentID, what client.Delegation) delegation {
	d := delegation{child: child, what: what}
	if what.TTL > 0 {
		d.until = time.Now().Add(what.TTL)
	}
	return d
}

// Spawn registers a child, signs its grants, and either has the launcher start its supervisor or makes
// the caller the supervisor. The child lives no longer than the stream.
func (a *agentServer) Spawn(stream agentv1.Agent_SpawnServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(a.ctx, cancel)
	defer stop()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	start := m.GetStart()
	if start == nil {
		return status.Error(codes.InvalidArgument, "the first message must be start")
	}
	c, err := a.s.prepare(ctx, start)
	if err != nil {
		return err
	}
	out := &spawnStream{stream: stream}
	if c.isolated {
		return a.s.spawnIsolated(ctx, c, out)
	}
	return a.s.spawnAdopted(ctx, c, out)
}

// spawnStream lets several goroutines send.
type spawnStream struct {
	stream agentv1.Agent_SpawnServer
	mu     sync.Mutex
}

func (o *spawnStream) send(m *agentv1.SpawnResponse) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stream.Send(m)
}

// newChild is a registered child that nothing was started for yet.
type newChild struct {
	start    *agentv1.SpawnStart
	d        delegation
	ticket   []byte
	chain    client.Chain
	expires  time.Time
	targets  []client.Target
	isolated bool
}

func (s *Supervisor) prepare(ctx context.Context, start *agentv1.SpawnStart) (*newChild, error) {
	what, err := client.DelegationFromProto(start.GetDelegation())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "delegation: %v", err)
	}
	c := &newChild{start: start, targets: s.mesh.Targets}
	chain, _ := s.chain.get()
	own, err := client.DescribeChain(chain)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if own.Left == 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "%s may not delegate any further (left is 0); whoever started it can allow more with --left", s.id.ID())
	}
	if names := start.GetTargets(); len(names) > 0 {
		if c.targets, err = s.chooseTargets(names); err != nil {
			return nil, err
		}
		if what.Cap == nil {
			if what.Cap, err = s.restrict(own.Cap, c.targets); err != nil {
				return nil, status.Error(codes.Internal, err.Error())
			}
			if len(what.Cap) == 0 {
				return nil, status.Errorf(codes.FailedPrecondition, "this agent has no capability on %v to pass on", names)
			}
		}
	}
	switch start.GetIsolation() {
	case agentv1.Isolation_ISOLATION_UNSPECIFIED:
		c.isolated = s.cfg.launcher != nil
	case agentv1.Isolation_ISOLATION_REQUIRED:
		if s.cfg.launcher == nil {
			return nil, status.Error(codes.FailedPrecondition, "isolation needs a launcher with root, and this run has none; start the outermost `deputy run` as root, or use --no-isolate")
		}
		c.isolated = true
	}
	if !c.isolated {
		if err := s.mayAdopt(); err != nil {
			return nil, err
		}
	}
	if c.isolated && len(start.GetArgv()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no command")
	}
	reg, err := s.spawn.Register(ctx, &spawnv1.RegisterRequest{Name: start.GetName(), Isolate: c.isolated})
	if err != nil {
		return nil, err
	}
	child, err := actor.AgentIDFromString(reg.GetSpiffeId())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the issuer's answer: %v", err)
	}
	c.ticket, c.d = reg.GetTicket(), newDelegation(child, what)
	if c.chain, c.expires, err = s.sign(c.d); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return c, nil
}

func (s *Supervisor) chooseTargets(names []string) ([]client.Target, error) {
	var out []client.Target
	for _, t := range s.mesh.Targets {
		if slices.Contains(names, t.Name) {
			out = append(out, t)
		}
	}
	for _, n := range names {
		if !s.hasTarget(n) {
			return nil, status.Errorf(codes.NotFound, "this run names no target %q, so it can't pass it on", n)
		}
	}
	return out, nil
}

// spawnAdopted makes the caller the child's supervisor and keeps its grants fresh.
func (s *Supervisor) spawnAdopted(ctx context.Context, c *newChild, out *spawnStream) error {
	caller, err := kernel.CallerOf(ctx)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	// For longer than the connection, which ends with the process at the latest.
	child, err := kernel.Hold(caller.PID)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	defer child.Close()
	clean, err := s.serveAdopted(ctx, c, out)
	if !clean {
		if err := s.endLeftovers(context.WithoutCancel(ctx), child); err != nil {
			s.log.WarnContext(ctx, "ending what a sub-agent left behind", "child", c.d.child.String(), "error", err)
		}
	}
	return err
}

// serveAdopted serves a child's supervisor. clean says that it went when nothing was left below it.
func (s *Supervisor) serveAdopted(ctx context.Context, c *newChild, out *spawnStream) (clean bool, err error) {
	if err := out.send(&agentv1.SpawnResponse{Message: &agentv1.SpawnResponse_Adopted{Adopted: &agentv1.Adopted{
		SpiffeId: c.d.child.String(), Ticket: c.ticket, Grants: grantsToProto(c.chain), Targets: client.TargetsToProto(c.targets),
	}}}); err != nil {
		return false, err
	}
	failed := make(chan error, 2)
	go func() {
		_, err := out.stream.Recv() // nothing more is expected; this notices the end
		if err == nil {
			err = status.Error(codes.InvalidArgument, "an adopted child has nothing more to say")
		}
		failed <- err
	}()
	go func() {
		failed <- s.feed(ctx, c.d, c.expires, func(chain client.Chain) error {
			return out.send(&agentv1.SpawnResponse{Message: &agentv1.SpawnResponse_Grants{Grants: grantsToProto(chain)}})
		})
	}()
	select {
	case err := <-failed:
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		return false, err
	case <-ctx.Done():
		return false, status.Error(codes.Unavailable, "the parent agent has ended")
	}
}

// spawnIsolated takes the caller's streams and has the launcher start the child's supervisor.
func (s *Supervisor) spawnIsolated(ctx context.Context, c *newChild, out *spawnStream) error {
	token, streams := s.streams.expect()
	defer s.streams.forget(token)
	if err := out.send(&agentv1.SpawnResponse{Message: &agentv1.SpawnResponse_Isolated{Isolated: &agentv1.Isolated{
		SpiffeId: c.d.child.String(), StreamsToken: token[:], StreamsSocket: s.streams.path,
	}}}); err != nil {
		return err
	}
	var files []*os.File
	select {
	case files = <-streams:
	case <-time.After(10 * time.Second):
		return status.Error(codes.DeadlineExceeded, "the standard streams did not arrive in time")
	case <-ctx.Done():
		return ctx.Err()
	}
	defer closeAll(files)
	near, far, err := socketPair()
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	link := newWire(near)
	defer link.Close()
	names := make([]string, len(c.targets))
	for i, t := range c.targets {
		names[i] = t.Name
	}
	child, err := s.cfg.launcher.start(startRequest{
		Ticket: c.ticket, Argv: c.start.GetArgv(), Env: c.start.GetEnv(), Cwd: c.start.GetCwd(),
		Terminal: c.start.GetTerminal(), Targets: names,
	}, append(slices.Clone(files), far))
	far.Close()
	if err != nil {
		return status.Errorf(codes.Unavailable, "the launcher is gone: %v", err)
	}
	defer child.kill()
	if err := link.write(c.chain); err != nil {
		return status.Errorf(codes.Unavailable, "the child's supervisor is gone: %v", err)
	}
	failed := make(chan error, 2)
	go func() {
		for {
			m, err := out.stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			if n := m.GetSignal(); n > 0 && n < 65 {
				_ = child.signal(unix.Signal(n))
			}
		}
	}()
	go func() {
		if err := s.feed(ctx, c.d, c.expires, func(chain client.Chain) error { return link.write(chain) }); err != nil && ctx.Err() == nil {
			s.log.DebugContext(ctx, "the link to a child's supervisor closed", "child", c.d.child.String(), "error", err)
		}
	}()
	select {
	case end := <-child.done:
		return out.send(&agentv1.SpawnResponse{Message: &agentv1.SpawnResponse_Exited{Exited: &agentv1.Exited{Code: int32(end.Code), Error: end.Error}}})
	case err := <-failed:
		return fmt.Errorf("the caller went away: %w", err)
	case <-ctx.Done():
		return status.Error(codes.Unavailable, "the parent agent has ended")
	}
}

// restrict is the part of a capability that concerns some targets.
func (s *Supervisor) restrict(cap actor.Details, targets []client.Target) (actor.Details, error) {
	var out actor.Details
	for _, t := range targets {
		id, err := actor.TargetID(s.mesh.TrustDomain, t.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, cap.ForTarget(id)...)
	}
	return out, nil
}
