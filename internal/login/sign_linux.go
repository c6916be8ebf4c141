package login

import (
	"context"
	"crypto/sha256"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
)

// maxTTL is the longest life that a caller can name; the session's end cuts it anyway.
const maxTTL = 366 * 24 * time.Hour

// SignUserGrant begins a task, or signs the grant of one that it began again.
func (h *Helper) SignUserGrant(_ context.Context, req *sessionv1.SignUserGrantRequest) (*sessionv1.SignUserGrantResponse, error) {
	now := h.cfg.Now()
	if !now.Before(h.ends) {
		return nil, status.Error(codes.FailedPrecondition, "the sign-in is too old; run `deputy login` again")
	}
	g, err := h.task(req, now)
	if err != nil {
		return nil, err
	}
	g.IssuedAt, g.ID = now, actor.NewHexID()
	signed, err := actor.SignUserGrant(h.key, g)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the grant: %v", err)
	}
	h.mu.Lock()
	h.tasks[g.Txn] = g
	h.mu.Unlock()
	return &sessionv1.SignUserGrantResponse{Grant: signed, IdToken: h.signedIn.IDToken, Task: g.Txn, ExpiresAt: timestamppb.New(g.Expires)}, nil
}

// task is the grant to sign. Of a running task nothing changes, its end least of all.
func (h *Helper) task(req *sessionv1.SignUserGrantRequest, now time.Time) (actor.UserGrant, error) {
	delegate, err := actor.AgentIDFromString(req.GetDelegate())
	if err != nil {
		return actor.UserGrant{}, status.Errorf(codes.InvalidArgument, "delegate: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if req.GetTask() != "" {
		g, ok := h.tasks[req.GetTask()]
		if !ok || g.Delegate != delegate {
			return actor.UserGrant{}, status.Error(codes.NotFound, "no such task of this agent was begun in this sign-in")
		}
		if !now.Before(g.Expires) {
			return actor.UserGrant{}, status.Error(codes.FailedPrecondition, "the time that the task was given is over")
		}
		return g, nil
	}
	for txn, g := range h.tasks {
		if !now.Before(g.Expires) {
			delete(h.tasks, txn)
		}
	}
	if len(h.tasks) >= maxTasks {
		return actor.UserGrant{}, status.Errorf(codes.ResourceExhausted, "%d tasks are under way in this sign-in", maxTasks)
	}
	if delegate.Depth() != 1 || delegate.TrustDomain() != h.cfg.TrustDomain {
		return actor.UserGrant{}, status.Errorf(codes.InvalidArgument, "delegate: a first-level agent of %s is expected", h.cfg.TrustDomain)
	}
	cap, err := actor.ParseDetails(req.GetCap())
	if err != nil {
		return actor.UserGrant{}, status.Errorf(codes.InvalidArgument, "cap: %v", err)
	}
	expires := h.ends
	if s := req.GetTtlSeconds(); s < 0 || s > int64(maxTTL/time.Second) {
		return actor.UserGrant{}, status.Errorf(codes.InvalidArgument, "a life of %d s", s)
	} else if end := now.Add(time.Duration(s) * time.Second); s > 0 && end.Before(expires) {
		expires = end
	}
	s := h.signedIn
	return actor.UserGrant{
		Issuer: s.Subject.Issuer, Root: actor.Root{Issuer: s.Subject.Issuer, Hash: actor.Hash(s.IDToken), SID: s.SID},
		Delegate: delegate, Mesh: h.cfg.Mesh, Subject: s.Subject, Txn: actor.NewHexID(), Cap: cap, Left: int(req.GetLeft()),
		Purpose: req.GetPurpose(), Expires: expires,
	}, nil
}

// SignOperatorRequest proves that an operator's call comes from this sign-in.
func (h *Helper) SignOperatorRequest(_ context.Context, req *sessionv1.SignOperatorRequestRequest) (*sessionv1.SignOperatorRequestResponse, error) {
	if len(req.GetBodySha256()) != sha256.Size {
		return nil, status.Error(codes.InvalidArgument, "body_sha256 must have 32 bytes")
	}
	now := h.cfg.Now()
	proof, err := actor.SignOperatorRequest(h.key, actor.OperatorRequest{
		Issuer: h.signedIn.Subject.Issuer, Mesh: h.cfg.Mesh, Act: req.GetAct(), Body: [32]byte(req.GetBodySha256()),
		IssuedAt: now, Expires: now.Add(actor.OperatorLife), ID: actor.NewHexID(),
	})
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the request: %v", err)
	}
	return &sessionv1.SignOperatorRequestResponse{Proof: proof, IdToken: h.signedIn.IDToken}, nil
}
