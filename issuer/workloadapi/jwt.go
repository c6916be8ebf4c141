package workloadapi

import (
	"context"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/issuer/attest"
	"github.com/deputymesh/deputy/issuer/ca"
)

// What one identity that isn't an agent's may ask for: each JWT-SVID is a record.
const (
	jwtsPerSecond = 10
	jwtBurst      = 64
)

// rolesPath is where Deputy's own roles are. They speak mTLS alone, so none needs a JWT-SVID.
const rolesPath = "/deputy/"

var (
	errNoJWT   = status.Error(codes.Unimplemented, "this issuer has no key for JWT-SVIDs (jwt, in its configuration); use X.509-SVIDs")
	errNoRoles = status.Error(codes.PermissionDenied, "Deputy's own roles have no JWT-SVIDs; they speak mTLS")
)

// jwtCaller is caller, for an issuer that has JWT-SVIDs.
func (s *Server) jwtCaller(ctx context.Context) (*attest.Peer, error) {
	peer, err := caller(ctx)
	if err == nil && s.cfg.JWT == nil {
		err = errNoJWT
	}
	return peer, err
}

// FetchJWTSVID gives an agent's supervisor a JWT-SVID of that agent, and whoever has entries one for each, or for the one it names.
func (s *Server) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	peer, err := s.jwtCaller(ctx)
	if err != nil {
		return nil, err
	}
	entries, inside, err := s.entries(ctx, peer)
	if err != nil {
		return nil, err
	}
	if inside {
		id, token, err := s.cfg.Agents.SignJWT(ctx, peer, req.GetSpiffeId(), req.GetAudience())
		if err != nil {
			return nil, err
		}
		return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: id.String(), Svid: token}}}, nil
	}
	ids, err := s.named(entries, req.GetSpiffeId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.JWT.CheckAudience(req.GetAudience()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	out := &workload.JWTSVIDResponse{}
	for _, id := range ids {
		if !s.pace(id).Allow() {
			s.cfg.Log.Count("workload_jwt_limit")
			return nil, status.Errorf(codes.ResourceExhausted, "JWT-SVIDs of %s are asked for too fast (%d a second); use one until shortly before it ends", id, jwtsPerSecond)
		}
		token, err := s.cfg.JWT.Sign(ctx, ca.JWT{
			ID: id, Audience: req.GetAudience(), NotAfter: s.cfg.CA.End(),
			Attested: []audit.Selector{{Name: "uid", Value: strconv.FormatUint(uint64(peer.UID), 10)}},
		}, func(ctx context.Context, r audit.Record) error {
			_, err := s.cfg.Log.Append(ctx, r)
			return err
		})
		if err != nil {
			s.cfg.Logger.ErrorContext(ctx, "workload API: issuing a JWT-SVID failed", "id", id, "error", err)
			return nil, status.Error(codes.Unavailable, "the issuer failed; its log says why")
		}
		out.Svids = append(out.Svids, &workload.JWTSVID{SpiffeId: id.String(), Svid: token})
	}
	return out, nil
}

// named are the identities of entries that may have a JWT-SVID: all, or the one that is asked for.
func (s *Server) named(entries []Entry, hint string) (ids []spiffeid.ID, err error) {
	for _, e := range entries {
		if !strings.HasPrefix(e.ID.Path()+"/", rolesPath) && (hint == "" || hint == e.ID.String()) {
			ids = append(ids, e.ID)
		}
	}
	switch {
	case len(ids) > 0:
		return ids, nil
	case len(entries) == 0 || hint != "":
		s.cfg.Log.Count("workload_no_entry")
		return nil, errNone
	}
	return nil, errNoRoles
}

func (s *Server) pace(id spiffeid.ID) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paces[id] == nil {
		s.paces[id] = rate.NewLimiter(jwtsPerSecond, jwtBurst)
	}
	return s.paces[id]
}

// known lets through who has an entry or is inside a live agent.
func (s *Server) known(ctx context.Context) error {
	peer, err := s.jwtCaller(ctx)
	if err != nil {
		return err
	}
	entries, inside, err := s.entries(ctx, peer)
	if err == nil && len(entries) == 0 && !inside {
		s.cfg.Log.Count("workload_no_entry")
		err = errNone
	}
	return err
}

// FetchJWTBundles streams the trust domain's JWT bundle, to whoever has an entry or is inside a live agent.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	ctx := stream.Context()
	if err := s.known(ctx); err != nil {
		return err
	}
	return s.push(ctx, nil, s.cfg.JWTBundle.Current, func(jwks []byte) error {
		return stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{s.cfg.JWTBundle.TrustDomain().IDString(): jwks}})
	})
}

// ValidateJWTSVID verifies a JWT-SVID, and that its agent hasn't ended: that is more than its signature says.
func (s *Server) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := s.known(ctx); err != nil {
		return nil, err
	}
	v, err := s.cfg.JWTBundle.Verify(req.GetSvid(), req.GetAudience(), s.cfg.Now())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if strings.HasPrefix(v.ID.Path(), "/agent/") {
		if id, err := actor.ParseAgentID(v.ID); err != nil || !s.cfg.Agents.Lives(id) {
			return nil, status.Errorf(codes.InvalidArgument, "JWT-SVID: the agent %s has ended", v.ID)
		}
	}
	audience := make([]any, len(v.Audience))
	for i, a := range v.Audience {
		audience[i] = a
	}
	said, err := structpb.NewStruct(map[string]any{
		"sub": v.ID.String(), "aud": audience, "iat": float64(v.IssuedAt.Unix()), "exp": float64(v.Expires.Unix()), "jti": v.TokenID,
	})
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "JWT-SVID: %v", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: v.ID.String(), Claims: said}, nil
}
