package supervise

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// Join registers an in-process sub-agent and relays its certificate requests. The sub-agent's key is the
// caller's; the issuer grades it asserted, because nothing tells it from its parent.
func (a *agentServer) Join(stream agentv1.Agent_JoinServer) error {
	s := a.s
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(a.ctx, cancel)
	defer stop()

	first, err := stream.Recv()
	if err != nil {
		return err
	}
	what, err := client.DelegationFromProto(first.GetDelegation())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "delegation: %v", err)
	}
	reg, err := s.spawn.Register(ctx, &spawnv1.RegisterRequest{Name: first.GetName()})
	if err != nil {
		return err
	}
	child, err := actor.AgentIDFromString(reg.GetSpiffeId())
	if err != nil {
		return status.Errorf(codes.Internal, "the issuer's answer: %v", err)
	}
	d := newDelegation(child, what)
	chain, expires, err := s.sign(d)
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	up, err := s.spawn.Attach(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	r := &relayedAgent{up: up, down: stream}
	defer r.end()
	if err := up.Send(&spawnv1.AttachRequest{Ticket: reg.GetTicket(), Csr: first.GetCsr(), Relayed: true}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	identity, err := up.Recv()
	if err != nil {
		return err
	}
	if err := r.send(&agentv1.JoinResponse{
		Identity: joinedIdentity(identity), Grants: grantsToProto(chain),
		Mesh: client.MeshToProto(s.mesh.Broker), Targets: client.TargetsToProto(s.mesh.Targets),
	}); err != nil {
		return err
	}
	failed := make(chan error, 3)
	go func() { failed <- r.requests() }()
	go func() { failed <- r.answers() }()
	go func() {
		failed <- s.feed(ctx, d, expires, func(c client.Chain) error {
			return r.send(&agentv1.JoinResponse{Grants: grantsToProto(c)})
		})
	}()
	select {
	case err := <-failed:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	case <-ctx.Done():
		return status.Error(codes.Unavailable, "the parent agent has ended")
	}
}

// relayedAgent is the two streams of an in-process sub-agent.
type relayedAgent struct {
	up   spawnv1.Spawn_AttachClient
	down agentv1.Agent_JoinServer
	mu   sync.Mutex // one sender at a time on down
}

func (r *relayedAgent) send(m *agentv1.JoinResponse) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down.Send(m)
}

func (r *relayedAgent) requests() error {
	for {
		m, err := r.down.Recv()
		if err != nil {
			return err
		}
		if err := r.up.Send(&spawnv1.AttachRequest{Csr: m.GetCsr(), Proof: m.GetProof()}); err != nil {
			return err
		}
	}
}

func (r *relayedAgent) answers() error {
	for {
		m, err := r.up.Recv()
		if err != nil {
			return status.Errorf(codes.Unavailable, "the issuer ended this sub-agent: %v", plain(err))
		}
		if err := r.send(&agentv1.JoinResponse{Identity: joinedIdentity(m)}); err != nil {
			return err
		}
	}
}

// end tells the issuer that the sub-agent is done.
func (r *relayedAgent) end() { _ = r.up.CloseSend() }

func joinedIdentity(m *spawnv1.AttachResponse) *agentv1.JoinedIdentity {
	return &agentv1.JoinedIdentity{SpiffeId: m.GetSpiffeId(), Svid: m.GetSvid(), Bundle: m.GetBundle(), Grade: m.GetGrade(), ExpiresAt: m.GetExpiresAt()}
}
