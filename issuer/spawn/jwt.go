package spawn

import (
	"context"
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
)

// Each JWT-SVID is a record. One agent asks for one a second in the long run, a whole tree for ten.
const (
	jwtsPerSecond     = 1
	jwtBurst          = 32
	treeJWTsPerSecond = 10
	treeJWTBurst      = 256
)

// SignJWT signs a JWT-SVID of the agent whose supervisor the peer is, and of no other: hint is "" or that agent's name. What
// is refused is recorded.
func (s *Server) SignJWT(ctx context.Context, peer *attest.Peer, hint string, audience []string) (spiffeid.ID, string, error) {
	var subject string
	id, token, err := s.signJWT(ctx, peer, hint, audience, &subject)
	if err != nil {
		return spiffeid.ID{}, "", s.answer(ctx, "jwt", peer.UID, err, func(r *refusal) audit.Event {
			return &audit.JWTSVID{Result: audit.Refusal, Subject: subject, Attested: uidOf(peer), Class: r.class, Reason: r.text}
		})
	}
	return id, token, nil
}

func uidOf(p *attest.Peer) []audit.Selector {
	return []audit.Selector{{Name: "uid", Value: strconv.FormatUint(uint64(p.UID), 10)}}
}

func (s *Server) signJWT(ctx context.Context, peer *attest.Peer, hint string, audience []string, subject *string) (spiffeid.ID, string, error) {
	fail := func(err error) (spiffeid.ID, string, error) { return spiffeid.ID{}, "", err }

	// 1. Who it is, by the kernel: still what was attested, with its stream up.
	at, attrs, err := s.look(peer)
	if err != nil {
		return fail(err)
	}
	if at.outside() {
		return fail(refuse(codes.PermissionDenied, classNotSuper, "the caller is outside every agent"))
	}
	if !at.supervisor {
		return fail(refuse(codes.PermissionDenied, classNotSuper, "the caller is inside the agent %s and isn't its supervisor; ask that one (SPIFFE_ENDPOINT_SOCKET)", at.agent.id))
	}
	a := at.agent
	*subject = a.id.String()
	if hint != "" && hint != a.id.String() {
		return fail(refuse(codes.PermissionDenied, classNotSuper, "the caller is %s, and nobody gets a JWT-SVID of another", a.id))
	}
	if err := s.jwt.CheckAudience(audience); err != nil {
		return fail(refuse(codes.InvalidArgument, classRequest, "%v", err))
	}
	s.mu.Lock()
	if _, err = s.judgeAgain(a, at, attrs); err == nil {
		err = a.notRevoked()
	}
	until := a.notAfter
	switch {
	case err != nil:
	case a.state != live || s.closing:
		err = refuse(codes.FailedPrecondition, classLineage, "the agent %s isn't attached", a.id)
	case !until.After(s.now()):
		err = refuse(codes.FailedPrecondition, classLineage, "the X.509-SVID of %s has ended; it is renewed first", a.id)
	case !a.mayHaveJWT():
		err = refuse(codes.ResourceExhausted, classLimit, "JWT-SVIDs are asked for too fast (an agent gets %d a second, a tree of agents %d); use one until shortly before it ends", jwtsPerSecond, treeJWTsPerSecond)
	}
	s.mu.Unlock()
	if err != nil {
		return fail(err)
	}

	// 2. Recorded, signed: in this order.
	request := ca.JWT{ID: a.id.ID(), Audience: audience, NotAfter: until, Attested: uidOf(peer)}
	token, err := s.jwt.Sign(ctx, request, func(ctx context.Context, r audit.Record) error {
		_, err := s.audit.Append(ctx, r)
		return err
	})
	if err != nil {
		return fail(err)
	}

	// 3. It leaves for a living agent alone.
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := a.still(live); err != nil {
		return fail(err)
	}
	return a.id.ID(), token, nil
}

// mayHaveJWT counts one JWT-SVID against an agent and its tree. The caller holds Server.mu.
func (a *agent) mayHaveJWT() bool {
	if a.jwts == nil {
		a.jwts = rate.NewLimiter(jwtsPerSecond, jwtBurst)
	}
	if a.root.treeJWTs == nil {
		a.root.treeJWTs = rate.NewLimiter(treeJWTsPerSecond, treeJWTBurst)
	}
	return a.jwts.Allow() && a.root.treeJWTs.Allow()
}

// Lives says whether an agent has neither ended nor been revoked.
func (s *Server) Lives(id actor.AgentID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[id]
	return a != nil && (a.state == live || a.state == broken) && a.notRevoked() == nil
}
