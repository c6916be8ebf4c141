package spawn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer/attest"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// ticketSize is the number of random bytes of a ticket.
const ticketSize = 32

// Locate says where a process stands.
func (s *Server) Locate(ctx context.Context, req *spawnv1.LocateRequest) (*spawnv1.LocateResponse, error) {
	if _, err := peerOf(ctx); err != nil {
		return nil, err
	}
	at, err := s.locate(req)
	if err != nil {
		// A question isn't an attempt on anything: no record.
		return nil, s.unrecorded(ctx, "locate", err)
	}
	if at.outside() {
		return &spawnv1.LocateResponse{}, nil
	}
	return &spawnv1.LocateResponse{AgentId: at.agent.id.String(), Supervisor: at.supervisor}, nil
}

func (s *Server) locate(req *spawnv1.LocateRequest) (place, error) {
	if err := known(req); err != nil {
		return place{}, err
	}
	if req.GetPid() <= 0 || req.GetStartTime() == 0 {
		return place{}, refuse(codes.InvalidArgument, classRequest, "pid and start_time are needed")
	}
	p, err := attest.Open(int(req.GetPid()))
	if err != nil {
		return place{}, noPlace(err)
	}
	defer p.Close()
	if p.StartTime() != req.GetStartTime() {
		return place{}, noPlace(attest.ErrDead)
	}
	return s.place(p)
}

// Register makes an agent, before it starts.
func (s *Server) Register(ctx context.Context, req *spawnv1.RegisterRequest) (*spawnv1.RegisterResponse, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	at := attempt{uid: peer.UID, name: clip(req.GetName())}
	resp, err := s.register(ctx, peer, req, &at)
	if err != nil {
		return nil, s.refused(ctx, "register", at, err)
	}
	return resp, nil
}

func (s *Server) register(ctx context.Context, peer *attest.Peer, req *spawnv1.RegisterRequest, what *attempt) (*spawnv1.RegisterResponse, error) {
	// 1. The request by itself.
	if err := known(req); err != nil {
		return nil, err
	}
	if err := CheckName(req.GetName()); err != nil {
		return nil, refuse(codes.InvalidArgument, className, "%v", err)
	}
	if req.GetIsolate() && s.uidRange.IsZero() {
		return nil, refuse(codes.FailedPrecondition, classIsolation, "this issuer has no range of uids for isolated agents (agent_uids); start the agent without isolation")
	}

	// 2. Who asks, by the kernel.
	at, err := s.place(peer.Process)
	if err != nil {
		return nil, err
	}
	if at.outside() {
		err = s.entryFor(peer, req.GetName())
	} else if what.parent = at.agent.id.String(); !at.supervisor {
		err = refuse(codes.PermissionDenied, classNotSuper, "the caller is inside the agent %s and isn't its supervisor; ask that one (DEPUTY_AGENT_SOCKET)", at.agent.id)
	}
	if err != nil {
		return nil, err
	}

	// 3. Into the tree, within the limits.
	instance, err := newInstance()
	if err != nil {
		return nil, err
	}
	var id actor.AgentID
	if at.outside() {
		id, err = actor.NewAgentID(s.ca.TrustDomain(), req.GetName(), instance)
	} else {
		id, err = at.agent.id.Child(req.GetName(), instance)
	}
	if err != nil {
		return nil, refuse(codes.InvalidArgument, className, "%v", err)
	}
	a := &agent{
		id: id, parent: at.agent, isolate: req.GetIsolate(), registrant: peer.UID, registered: s.now(),
		done: make(chan struct{}), children: map[*agent]struct{}{},
		renewals: rate.NewLimiter(renewalsPerSecond, renewalBurst),
	}
	if a.parent != nil {
		a.root = a.parent.root
	}
	s.mu.Lock()
	switch {
	case s.closing:
		err = refuse(codes.Unavailable, classInternal, "the issuer is stopping")
	case a.parent != nil && a.parent.state != live:
		err = refuse(codes.FailedPrecondition, classNotSuper, "the agent %s isn't attached", a.parent.id)
	default:
		if err = a.notRevoked(); err == nil {
			err = s.admit(a)
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}

	// 4. Kept, so that the instance is never used again, and only then named.
	if err := s.store.Create(ctx, a.record(s.bootID)); err != nil {
		s.end(a, ReasonExpired)
		return nil, err
	}
	ticket := make([]byte, ticketSize)
	if _, err := io.ReadFull(rand.Reader, ticket); err != nil {
		s.end(a, ReasonExpired)
		return nil, fmt.Errorf("making a ticket: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.state == ended {
		s.writer.end([]actor.AgentID{a.id}, ReasonAncestor, s.now()) // the first time it may not have been in the store yet
		return nil, refuse(codes.FailedPrecondition, classNotSuper, "the agent above it has ended")
	}
	a.hash, a.expires = sha256.Sum256(ticket), s.now().Add(s.ticket)
	s.tickets[a.hash] = a
	s.endAfter(a, s.ticket, ReasonExpired)
	return &spawnv1.RegisterResponse{SpiffeId: id.String(), Ticket: ticket, ExpiresAt: timestamppb.New(a.expires)}, nil
}

// entryFor finds a registration entry for a caller outside every agent.
func (s *Server) entryFor(peer *attest.Peer, name string) error {
	attrs, err := s.attestor.Peer(peer)
	if err != nil {
		return noPlace(err)
	}
	if attrs.Marked {
		return refuse(codes.PermissionDenied, classNoPlace, "an agent started the caller, and its supervisor is gone; or it runs in a sandbox (no_new_privs and a system call filter), which looks the same. Start first-level agents from outside")
	}
	named := false
	for _, e := range s.entries {
		if e.Name != name {
			continue
		}
		named = true
		if e.Selectors.Match(attrs) {
			return nil
		}
	}
	if !named {
		return refuse(codes.PermissionDenied, classNoEntry, "no first-level agent %q is registered; an operator adds it under `agents:` in the issuer's configuration", name)
	}
	return refuse(codes.PermissionDenied, classNoEntry, "the registration of the first-level agent %q isn't for this caller (uid %d): its selectors don't match", name, peer.UID)
}

// Claim chooses the host uid of an isolated agent.
func (s *Server) Claim(ctx context.Context, req *spawnv1.ClaimRequest) (*spawnv1.ClaimResponse, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	at := attempt{uid: peer.UID}
	resp, err := s.claim(ctx, peer, req, &at)
	if err != nil {
		return nil, s.refused(ctx, "claim", at, err)
	}
	return resp, nil
}

func (s *Server) claim(ctx context.Context, peer *attest.Peer, req *spawnv1.ClaimRequest, what *attempt) (*spawnv1.ClaimResponse, error) {
	if err := known(req); err != nil {
		return nil, err
	}
	// 1. Only root outside every agent could put a process under another uid; nobody else learns anything here.
	at, err := s.place(peer.Process)
	if err != nil {
		return nil, err
	}
	attrs, err := s.attestor.Peer(peer)
	if err != nil {
		return nil, noPlace(err)
	}
	if peer.UID != 0 || attrs.UID != 0 || !attrs.SharedUserNamespace {
		return nil, refuse(codes.PermissionDenied, classIsolation, "only a launcher that runs as root may claim a uid; the caller is uid %d", peer.UID)
	}
	if !at.outside() {
		return nil, refuse(codes.PermissionDenied, classIsolation, "the caller is inside the agent %s; only a launcher outside every agent may claim a uid", at.agent.id)
	}

	// 2. The agent that the ticket is for.
	s.mu.Lock()
	a := s.tickets[sha256.Sum256(req.GetTicket())]
	s.mu.Unlock()
	if a == nil {
		return nil, refuse(codes.PermissionDenied, classTicket, "the ticket is unknown, used or has expired")
	}
	what.name, what.agent = a.id.Name(), a.id.String()
	if !a.isolate {
		return nil, refuse(codes.FailedPrecondition, classIsolation, "the agent was registered without isolation, so no uid is kept for it")
	}

	// 3. A uid of its own, kept before it is named.
	if err := s.claimUID(a); err != nil {
		return nil, err
	}
	s.mu.Lock()
	a.launcherCgroup = attrs.Cgroup
	rec := a.record(s.bootID)
	s.mu.Unlock()
	if err := s.store.Save(ctx, rec); err != nil {
		s.end(a, ReasonExpired)
		return nil, err
	}
	return &spawnv1.ClaimResponse{SpiffeId: a.id.String(), Uid: rec.UID, Gid: rec.UID}, nil
}
