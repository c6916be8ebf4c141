package spawn

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/actor"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// maxRevoked bounds the agents of one Revoke: as many of the longest names as a message of 16 KiB carries.
const maxRevoked = 20

// Revoke takes the broker's word that agents are revoked. They get nothing from here on, and end after the grace: by then
// their programs were told by whatever they used.
func (s *Server) Revoke(ctx context.Context, req *spawnv1.RevokeRequest) (*spawnv1.RevokeResponse, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := revoked(req)
	if err == nil {
		err = s.isBroker(peer)
	}
	if err != nil {
		return nil, s.refused(ctx, "revoke", attempt{uid: peer.UID}, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, errStopping
	}
	for _, id := range ids {
		a := s.agents[id]
		if a == nil || a.revoked {
			continue
		}
		a.revoked = true
		s.log.InfoContext(ctx, "agent revoked", "agent", id, "ends_in", s.grace)
		if a.state == pending || a.state == attaching {
			s.endLocked(a, ReasonRevoked) // nothing of it runs that could be told
			continue
		}
		a.ending = time.AfterFunc(s.grace, func() { s.end(a, ReasonRevoked) })
	}
	return &spawnv1.RevokeResponse{}, nil
}

func revoked(req *spawnv1.RevokeRequest) ([]actor.AgentID, error) {
	if err := known(req); err != nil {
		return nil, err
	}
	if n := len(req.GetSpiffeId()); n > maxRevoked {
		return nil, refuse(codes.InvalidArgument, classRequest, "%d agents in one call; %d are the most", n, maxRevoked)
	}
	var out []actor.AgentID
	for _, s := range req.GetSpiffeId() {
		id, err := actor.AgentIDFromString(s)
		if err != nil || id.String() != s {
			return nil, refuse(codes.InvalidArgument, classRequest, "%q isn't the SPIFFE ID of an agent", clip(s))
		}
		out = append(out, id)
	}
	return out, nil
}

// notRevoked refuses what a revoked agent, or one below it, asks for. The caller holds Server.mu.
func (a *agent) notRevoked() error {
	for up := a; up != nil; up = up.parent {
		if up.revoked {
			return refuse(codes.PermissionDenied, classRevoked, "the agent %s is revoked and ends now; start a new one", up.id)
		}
	}
	return nil
}
