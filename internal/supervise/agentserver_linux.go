package supervise

import (
	"context"
	"encoding/json"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
)

// agentServer answers the agent's own processes. Its callers were admitted before.
type agentServer struct {
	agentv1.UnimplementedAgentServer
	s   *Supervisor
	ctx context.Context // ends with the supervisor
}

func (a *agentServer) Describe(context.Context, *agentv1.DescribeRequest) (*agentv1.DescribeResponse, error) {
	s := a.s
	chain, _ := s.chain.get()
	d, err := client.DescribeChain(chain)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	svid, err := s.id.GetX509SVID()
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	cap, err := json.Marshal(d.Cap)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.DescribeResponse{
		SpiffeId: s.id.ID().String(), Grade: string(s.id.Grade()),
		SvidExpiresAt: timestamppb.New(svid.Certificates[0].NotAfter), GrantsExpireAt: timestamppb.New(d.GrantsExpire),
		UserIssuer: d.User.Issuer, UserSubject: d.User.Subject, Purpose: d.Purpose, Task: d.Task,
		Left: int32(d.Left), Cap: cap, Mesh: s.mesh.toProto(), Targets: client.TargetsToProto(s.mesh.Targets),
	}, nil
}

func (a *agentServer) Credential(ctx context.Context, req *agentv1.CredentialRequest) (*agentv1.CredentialResponse, error) {
	if !a.s.hasTarget(req.GetTarget()) {
		return nil, status.Errorf(codes.NotFound, "this run names no target %q", req.GetTarget())
	}
	var details actor.Details
	if raw := req.GetAuthorizationDetails(); len(raw) > 0 {
		d, err := actor.ParseDetails(raw)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "authorization_details: %v", err)
		}
		details = d
	}
	cred, err := a.s.ex.Credential(ctx, req.GetTarget(), details)
	if err != nil {
		code := codes.Unavailable
		var refused *client.ExchangeError
		if errors.As(err, &refused) {
			code = codes.FailedPrecondition
		}
		return nil, status.Error(code, err.Error())
	}
	return &agentv1.CredentialResponse{Credential: cred.Reveal(), ExpiresAt: timestamppb.New(cred.ExpiresAt)}, nil
}

func (s *Supervisor) hasTarget(name string) bool {
	for _, t := range s.mesh.Targets {
		if t.Name == name {
			return true
		}
	}
	return false
}

func (a *agentServer) Delegate(_ context.Context, req *agentv1.DelegateRequest) (*agentv1.DelegateResponse, error) {
	delegate, err := actor.AgentIDFromString(req.GetDelegate())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "delegate: %v", err)
	}
	what, err := client.DelegationFromProto(req.GetDelegation())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "delegation: %v", err)
	}
	chain, end, err := a.s.sign(newDelegation(delegate, what))
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &agentv1.DelegateResponse{Grants: grantsToProto(chain), ExpiresAt: timestamppb.New(end)}, nil
}

func grantsToProto(c client.Chain) *agentv1.Grants {
	return &agentv1.Grants{Grants: c.Grants, IdToken: c.IDToken}
}

// ChainFromProto reads the wire form of grants.
func ChainFromProto(g *agentv1.Grants) client.Chain {
	return client.Chain{Grants: g.GetGrants(), IDToken: g.GetIdToken()}
}

func (m Mesh) toProto() *agentv1.Mesh {
	p := client.MeshToProto(m.Broker)
	p.IssuerSocket = m.IssuerSocket
	return p
}

// meshOf is the run's mesh as the parent's supervisor tells it to a nested one.
func meshOf(id actor.AgentID, about *agentv1.DescribeResponse, targets []client.Target) (Mesh, error) {
	broker, err := client.MeshFromProto(about.GetMesh())
	if err != nil {
		return Mesh{}, err
	}
	return Mesh{TrustDomain: id.TrustDomain(), IssuerSocket: about.GetMesh().GetIssuerSocket(), Broker: broker, Targets: targets}, nil
}
