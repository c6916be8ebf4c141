package spawn

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// renewalDomain keeps a renewal's signature from ever being one over something else.
const renewalDomain = "deputy-svid-renewal-v1"

// A supervisor renews at half-life; this leaves room for retries and none for load.
const (
	renewalsPerSecond = 1
	renewalBurst      = 10
)

// RenewalDigest is what the current key signs to renew or resume: SHA-256 of the domain and the new request.
func RenewalDigest(csr []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(renewalDomain), csr...))
}

// Attach serves the stream that an agent lives by.
func (s *Server) Attach(stream spawnv1.Spawn_AttachServer) error {
	ctx := stream.Context()
	peer, err := peerOf(ctx)
	if err != nil {
		return err
	}
	messages, failed := receive(stream)

	// 1. Which agent, within a bounded time.
	var first *spawnv1.AttachRequest
	deadline := time.NewTimer(firstMessageWithin)
	defer deadline.Stop()
	select {
	case first = <-messages:
	case err := <-failed:
		return status.Errorf(codes.Canceled, "attach: the stream ended before its first message: %v", err)
	case <-deadline.C:
		return status.Error(codes.DeadlineExceeded, "attach: the first message, with ticket or resume, didn't come")
	case <-s.stop:
		return errStopping
	}
	what := attempt{uid: peer.UID}
	a, resp, err := s.begin(ctx, peer, first, &what)
	if err != nil {
		return s.refused(ctx, "attach", what, err)
	}
	clean := false
	defer func() { s.streamGone(a, clean) }()

	// 2. Its SVID now, and a new one for each renewal, for as long as it lives.
	for {
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case m := <-messages:
			if resp, err = s.renew(ctx, a, peer, m); err != nil {
				return s.refused(ctx, "renew", what, err)
			}
		case err := <-failed:
			clean = errors.Is(err, io.EOF)
			return nil
		case <-a.done:
			return status.Errorf(codes.Aborted, "the agent %s has ended: %s", a.id, s.reasonOf(a))
		case <-s.stop:
			return errStopping
		}
	}
}

var errStopping = status.Error(codes.Unavailable, "the issuer is stopping; resume when it is back")

// receive reads the stream into a channel. Its goroutine ends with the stream, that is when Attach returns.
func receive(stream spawnv1.Spawn_AttachServer) (<-chan *spawnv1.AttachRequest, <-chan error) {
	messages, failed := make(chan *spawnv1.AttachRequest), make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-stream.Context().Done():
				failed <- stream.Context().Err()
				return
			}
		}
	}()
	return messages, failed
}

func (s *Server) reasonOf(a *agent) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.reason
}

// streamGone ends an agent whose supervisor said that it is done, and gives any other the grace to come back.
func (s *Server) streamGone(a *agent, clean bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.state != live || s.closing {
		return
	}
	if clean {
		s.endLocked(a, ReasonExited)
		return
	}
	a.state = broken
	s.endAfter(a, s.grace, ReasonLost)
}

// begin handles the first message of a stream. When it returns an agent, that agent is live.
func (s *Server) begin(ctx context.Context, peer *attest.Peer, m *spawnv1.AttachRequest, what *attempt) (*agent, *spawnv1.AttachResponse, error) {
	if err := known(m); err != nil {
		return nil, nil, err
	}
	if (len(m.GetTicket()) > 0) == (m.GetResume() != "") {
		return nil, nil, refuse(codes.InvalidArgument, classRequest, "the first message has exactly one of ticket and resume")
	}
	if m.GetResume() != "" {
		return s.resume(ctx, peer, m, what)
	}

	// 1. The ticket is used up, whatever comes of it: one that was stolen is of no use twice, nor is the agent that it was for.
	s.mu.Lock()
	a := s.tickets[sha256.Sum256(m.GetTicket())]
	if a == nil || s.closing || !s.now().Before(a.expires) {
		s.mu.Unlock()
		return nil, nil, refuse(codes.PermissionDenied, classTicket, "the ticket is unknown, used or has expired; register the agent again")
	}
	delete(s.tickets, a.hash)
	a.stopTimer()
	a.state = attaching
	s.mu.Unlock()
	what.name, what.agent = a.id.Name(), a.id.String()
	if a.parent != nil {
		what.parent = a.parent.id.String()
	}
	resp, err := s.beginNew(ctx, a, peer, m)
	if err != nil {
		s.end(a, ReasonExpired)
		return nil, nil, err
	}
	return a, resp, nil
}

func (s *Server) beginNew(ctx context.Context, a *agent, peer *attest.Peer, m *spawnv1.AttachRequest) (*spawnv1.AttachResponse, error) {
	if len(m.GetProof()) > 0 {
		return nil, refuse(codes.InvalidArgument, classRequest, "a proof belongs to a renewal, not to a ticket")
	}
	key, err := ca.ParseRequest(m.GetCsr())
	if err != nil {
		return nil, refuse(codes.InvalidArgument, classRequest, "%v", err)
	}

	// 2. Who it is, by the kernel, and how much that is worth.
	at, attrs, err := s.look(peer)
	if err != nil {
		return nil, err
	}
	if err := s.take(a, m.GetRelayed(), at, attrs, peer.Process, key); err != nil {
		return nil, err
	}

	// 3. Recorded, kept, signed: in this order.
	cert, err := s.sign(ctx, a, key, a.grade, attrs, "")
	if err != nil {
		return nil, err
	}
	if err := peer.Process.Alive(); err != nil {
		return nil, noPlace(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := a.still(attaching); err != nil {
		return nil, err
	}
	a.state, a.notAfter = live, cert.NotAfter
	return s.response(a, cert), nil
}

// look reads everything about a peer that a grade hangs on.
func (s *Server) look(peer *attest.Peer) (place, attest.Attributes, error) {
	attrs, err := s.attestor.Peer(peer)
	if err != nil {
		return place{}, attest.Attributes{}, noPlace(err)
	}
	at, err := s.place(peer.Process)
	return at, attrs, err
}

// take makes a process an agent's supervisor, if it may be. From here on its descendants are inside the agent.
func (s *Server) take(a *agent, relayed bool, at place, attrs attest.Attributes, p *attest.Process, key *ecdsa.PublicKey) error {
	digest, err := ca.KeyDigest(key)
	if err != nil {
		return err
	}
	process, err := p.Dup()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	mark := attest.Ancestor{PID: p.PID(), Start: p.StartTime()}
	grade, err := s.judgeNew(a, relayed, at, attrs)
	if err == nil {
		err = a.still(attaching)
	}
	switch {
	case err != nil:
	case s.closing:
		err = refuse(codes.Unavailable, classInternal, "the issuer is stopping")
	case !relayed && s.held[mark] != nil:
		err = refuse(codes.PermissionDenied, classLineage, "the caller is the supervisor of another agent")
	case s.keys[digest] != nil:
		err = refuse(codes.PermissionDenied, classLineage, "the key is another live agent's; each agent has its own")
	}
	if err != nil {
		process.Close()
		return err
	}
	a.relayed, a.procUID, a.grade, a.key, a.digest = relayed, attrs.UID, grade, key, digest
	s.keys[digest] = a
	if relayed {
		process.Close()
		a.process = a.parent.process // and it ends with its parent
		return nil
	}
	if a.cgroup = s.ownCgroup(a, attrs); a.cgroup != "" {
		s.cgroups[a.cgroup] = a
	}
	s.hold(a, process)
	return nil
}

// sign records what is going to be signed, keeps it, and signs it. why is empty for the first SVID.
func (s *Server) sign(ctx context.Context, a *agent, key *ecdsa.PublicKey, grade actor.Grade, attrs attest.Attributes, why string) (*x509.Certificate, error) {
	request := ca.Agent{ID: a.id, Key: key, Grade: grade, Evidence: evidence(attrs)}
	return s.ca.SignAgent(ctx, request, func(ctx context.Context, i ca.Intent) error {
		event := &audit.Spawn{
			Result: audit.Accepted, Agent: a.id.String(), Name: a.id.Name(), Grade: string(grade), Serial: i.Serial,
			NotAfter: &i.NotAfter, Reason: why, Attested: selectors(request.Evidence, attrs.Exact),
		}
		if a.parent != nil {
			event.Parent = a.parent.id.String()
		}
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return err
		}
		// Log and store wait for the disk at the same time. Nothing is signed before both are durable.
		recorded := make(chan error, 1)
		go func() {
			_, err := s.audit.Append(ctx, audit.Record{Event: event})
			recorded <- err
		}()
		s.mu.Lock()
		rec := a.record(s.bootID)
		s.mu.Unlock()
		rec.Key, rec.Grade = spki, grade
		err = s.store.Save(ctx, rec)
		return errors.Join(<-recorded, err)
	})
}

// response is what a supervisor gets. The caller holds s.mu.
func (s *Server) response(a *agent, cert *x509.Certificate) *spawnv1.AttachResponse {
	out := &spawnv1.AttachResponse{
		SpiffeId: a.id.String(), Svid: [][]byte{cert.Raw}, Grade: string(a.grade), ExpiresAt: timestamppb.New(cert.NotAfter),
	}
	roots, _ := s.bundle.Current()
	for _, r := range roots {
		out.Bundle = append(out.Bundle, r.Raw)
	}
	return out
}
