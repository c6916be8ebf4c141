package spawn

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/issuer/attest"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// endedPage bounds how many ends are read at once.
const endedPage = 500

// Ended streams ended agents to the broker: what it missed, a message that says that it is up to date, and then each
// end as it is written.
func (s *Server) Ended(req *spawnv1.EndedRequest, stream spawnv1.Spawn_EndedServer) error {
	ctx := stream.Context()
	peer, err := peerOf(ctx)
	if err != nil {
		return err
	}
	if err := s.mayHear(ctx, peer, req); err != nil {
		return s.refused(ctx, "ended", attempt{uid: peer.UID}, err)
	}
	at, live := req.GetAfterRevision(), false
	for {
		// The channel first: an end that is written after the read wakes us.
		news := s.writer.news()
		ends, err := s.store.EndedAfter(ctx, at, endedPage)
		if err != nil {
			return s.refused(ctx, "ended", attempt{uid: peer.UID}, err)
		}
		for _, e := range ends {
			at = e.Revision
			if err := stream.Send(&spawnv1.EndedAgent{
				Revision: e.Revision, SpiffeId: e.ID.String(), Reason: e.Reason, EndedAt: timestamppb.New(e.At), Live: live,
			}); err != nil {
				return err
			}
		}
		if len(ends) == endedPage {
			continue
		}
		if !live {
			live = true
			if err := stream.Send(&spawnv1.EndedAgent{Revision: at, Live: true}); err != nil {
				return err
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stop:
			return errStopping
		}
	}
}

func (s *Server) mayHear(ctx context.Context, peer *attest.Peer, req *spawnv1.EndedRequest) error {
	if err := known(req); err != nil {
		return err
	}
	if err := s.isBroker(peer); err != nil {
		return err
	}
	newest, err := s.store.Revision(ctx)
	if err != nil {
		return err
	}
	if req.GetAfterRevision() > newest {
		return refuse(codes.FailedPrecondition, classRequest, "revision %d is ahead of this issuer's %d: its database was replaced by an older one", req.GetAfterRevision(), newest)
	}
	return nil
}

// isBroker refuses whoever isn't the broker, by the kernel's word.
func (s *Server) isBroker(peer *attest.Peer) error {
	at, err := s.place(peer.Process)
	if err != nil {
		return err
	}
	if !at.outside() {
		return refuse(codes.PermissionDenied, classNoEntry, "this is for the broker only; the caller is inside an agent")
	}
	attrs, err := s.attestor.Peer(peer)
	if err != nil {
		return noPlace(err)
	}
	for _, sel := range s.broker {
		if sel.Match(attrs) {
			return nil
		}
	}
	return refuse(codes.PermissionDenied, classNoEntry, "this is for the broker only; no entry of the broker matches the caller (uid %d)", peer.UID)
}
