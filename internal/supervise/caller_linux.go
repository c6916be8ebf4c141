package supervise

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const (
	// maxMessageBytes bounds a message on the agent's socket: an argument list and environment at most.
	maxMessageBytes = 4 << 20
	maxHeaderBytes  = 8 << 10
	locateTimeout   = 5 * time.Second
)

func dialUnix(path string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a Unix socket: the kernel names both ends
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	return conn, nil
}

// admit asks the issuer where a process is. Only processes whose innermost supervisor is this one are
// served: not the ones outside, not the ones of a parent, sibling or child. And only what this agent's program
// started: when the supervisor of a child under the same uid is killed, this one adopts what it leaves, and then
// ancestors and uid are this agent's own.
func (s *Supervisor) admit(ctx context.Context, p *kernel.Held) error {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	where, err := s.spawn.Locate(ctx, &spawnv1.LocateRequest{Pid: int32(p.PID), StartTime: p.StartTime})
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "the issuer can't say where process %d is: %v", p.PID, plain(err))
	}
	own := s.id.ID().String()
	switch where.GetAgentId() {
	case own:
	case "":
		return status.Errorf(codes.PermissionDenied, "this socket belongs to %s; process %d is outside every agent", own, p.PID)
	default:
		return status.Errorf(codes.PermissionDenied, "this socket belongs to %s; process %d is inside %s and must use that agent's own", own, p.PID, where.GetAgentId())
	}
	if err := s.startedHere(p); err != nil {
		return status.Errorf(codes.PermissionDenied, "process %d: %v", p.PID, err)
	}
	// The answers were about this very process only if it is still there.
	if err := p.Alive(); err != nil {
		return status.Errorf(codes.PermissionDenied, "process %d: %v", p.PID, err)
	}
	return nil
}

func (s *Supervisor) admitCaller(ctx context.Context) error {
	caller, err := kernel.CallerOf(ctx)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return s.admit(ctx, caller.Held)
}

func (s *Supervisor) guardUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if err := s.admitCaller(ctx); err != nil {
		return nil, err
	}
	return h(ctx, req)
}

func (s *Supervisor) guardStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if err := s.admitCaller(ss.Context()); err != nil {
		return err
	}
	return h(srv, ss)
}
