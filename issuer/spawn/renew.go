package spawn

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"

	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// maxProof bounds an ASN.1 ECDSA P-256 signature, which takes 72 bytes at most.
const maxProof = 128

// renew signs the next SVID of an agent whose stream m came on.
func (s *Server) renew(ctx context.Context, a *agent, peer *attest.Peer, m *spawnv1.AttachRequest) (*spawnv1.AttachResponse, error) {
	if err := known(m); err != nil {
		return nil, err
	}
	if len(m.GetTicket()) > 0 || m.GetResume() != "" || m.GetRelayed() {
		return nil, refuse(codes.InvalidArgument, classRequest, "a renewal has a request and a proof, and nothing else")
	}
	return s.next(ctx, a, peer, m, live, "renewed")
}

// resume takes up an agent whose stream broke: the same process, with the current key.
func (s *Server) resume(ctx context.Context, peer *attest.Peer, m *spawnv1.AttachRequest, what *attempt) (*agent, *spawnv1.AttachResponse, error) {
	id, err := actor.AgentIDFromString(m.GetResume())
	if err != nil {
		return nil, nil, refuse(codes.InvalidArgument, classRequest, "resume: not the SPIFFE ID of an agent")
	}
	if m.GetRelayed() {
		return nil, nil, refuse(codes.InvalidArgument, classRequest, "relayed belongs to a ticket; the issuer remembers it")
	}
	what.name, what.agent = id.Name(), id.String()
	s.mu.Lock()
	a := s.agents[id]
	var holder *attest.Process
	if a != nil {
		holder = a.process
	}
	switch {
	case a == nil:
		err = refuse(codes.NotFound, classLineage, "no such agent lives; register a new one")
	case holder == nil || !holder.Same(peer.Process):
		err = refuse(codes.PermissionDenied, classLineage, "only the process that attached the agent may resume it")
	case a.state != broken:
		err = refuse(codes.AlreadyExists, classLineage, "the agent is attached, or about to be")
	default:
		a.stopTimer()
		a.state = attaching
	}
	s.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	resp, err := s.next(ctx, a, peer, m, attaching, "resumed")
	if err != nil {
		// Back to waiting for the right one, but not for longer by it: what failed was the supervisor's own process.
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.state == attaching {
			a.state = broken
			s.endAfter(a, s.grace, ReasonLost)
		}
		return nil, nil, err
	}
	return a, resp, nil
}

// next moves an agent's lineage to a new key: proven by the current one, by a process that is still what was attested.
func (s *Server) next(ctx context.Context, a *agent, peer *attest.Peer, m *spawnv1.AttachRequest, from state, why string) (*spawnv1.AttachResponse, error) {
	// 1. The request, by itself and by the current key.
	if !a.renewals.Allow() {
		return nil, refuse(codes.ResourceExhausted, classLimit, "the agent renews too fast; half of the SVID's life is soon enough")
	}
	key, err := ca.ParseRequest(m.GetCsr())
	if err != nil {
		return nil, refuse(codes.InvalidArgument, classRequest, "%v", err)
	}
	s.mu.Lock()
	current := a.key
	s.mu.Unlock()
	digest := RenewalDigest(m.GetCsr())
	if len(m.GetProof()) > maxProof || !ecdsa.VerifyASN1(current, digest[:], m.GetProof()) {
		return nil, refuse(codes.PermissionDenied, classProof, "the proof isn't the current key's signature over this request")
	}
	newDigest, err := ca.KeyDigest(key)
	if err != nil {
		return nil, err
	}

	// 2. The process, again.
	at, attrs, err := s.look(peer)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	grade, err := s.judgeAgain(a, at, attrs)
	if err != nil {
		s.endLocked(a, ReasonRevoked)
	} else {
		err = s.reserve(a, from, newDigest)
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}

	// 3. Recorded, kept, signed.
	cert, err := s.sign(ctx, a, key, grade, attrs, why)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = a.still(from)
	}
	if err != nil {
		if newDigest != a.digest && s.keys[newDigest] == a {
			delete(s.keys, newDigest)
		}
		return nil, err
	}
	if newDigest != a.digest {
		delete(s.keys, a.digest)
	}
	a.key, a.digest, a.grade, a.state, a.notAfter = key, newDigest, grade, live, cert.NotAfter
	return s.response(a, cert), nil
}

// reserve keeps a key for an agent while it is signed. The caller holds s.mu.
func (s *Server) reserve(a *agent, from state, key [sha256.Size]byte) error {
	if err := a.still(from); err != nil {
		return err
	}
	if other := s.keys[key]; other != nil && other != a {
		return refuse(codes.PermissionDenied, classLineage, "the key is another live agent's; each agent has its own")
	}
	s.keys[key] = a
	return nil
}

// still refuses an agent that ended meanwhile, or was revoked. The caller holds Server.mu.
func (a *agent) still(in state) error {
	if a.state != in {
		return refuse(codes.Aborted, classLineage, "the agent ended meanwhile: %s", a.reason)
	}
	return a.notRevoked()
}
