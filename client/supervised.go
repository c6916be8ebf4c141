package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"

	"github.com/deputymesh/deputy/actor"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
)

// supervised is an agent whose key and grants its supervisor holds.
type supervised struct {
	conn   *grpc.ClientConn
	rpc    agentv1.AgentClient
	socket string

	mu     sync.Mutex
	source *workloadapi.X509Source // guarded by mu; opened when first asked for
	closed bool
}

func (s *supervised) Describe(ctx context.Context) (Description, error) {
	r, err := s.rpc.Describe(ctx, &agentv1.DescribeRequest{})
	if err != nil {
		return Description{}, rpcError("asking the supervisor who this agent is", err)
	}
	d, err := describeFromProto(r)
	if err != nil {
		return Description{}, fmt.Errorf("asking the supervisor who this agent is: %w", err)
	}
	return d, nil
}

func (s *supervised) Source(ctx context.Context) (Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	if s.source != nil {
		return s.source, nil
	}
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.socket)))
	if err != nil {
		return nil, fmt.Errorf("asking the supervisor for this agent's SVID: %w", err)
	}
	s.source = src
	return src, nil
}

func (s *supervised) credential(ctx context.Context, target string, details actor.Details) (Credential, error) {
	req := &agentv1.CredentialRequest{Target: target}
	if details != nil {
		raw, err := json.Marshal(details)
		if err != nil {
			return Credential{}, fmt.Errorf("asking for a credential for %s: %w", target, err)
		}
		req.AuthorizationDetails = raw
	}
	r, err := s.rpc.Credential(ctx, req)
	if err != nil {
		return Credential{}, rpcError("asking for a credential for "+target, err)
	}
	return Credential{value: r.GetCredential(), ExpiresAt: when(r.GetExpiresAt())}, nil
}

func (s *supervised) Delegate(ctx context.Context, delegate actor.AgentID, d Delegation) (Chain, error) {
	p, err := DelegationToProto(d)
	if err != nil {
		return Chain{}, fmt.Errorf("delegating to %s: %w", delegate, err)
	}
	r, err := s.rpc.Delegate(ctx, &agentv1.DelegateRequest{Delegate: delegate.String(), Delegation: p})
	if err != nil {
		return Chain{}, rpcError("delegating to "+delegate.String(), err)
	}
	return Chain{Grants: r.GetGrants().GetGrants(), IDToken: r.GetGrants().GetIdToken()}, nil
}

// DialPostgres connects through the run's listener: the supervisor presents SVID and credential.
func (s *supervised) DialPostgres(ctx context.Context, target string) (net.Conn, error) {
	d, err := s.Describe(ctx)
	if err != nil {
		return nil, err
	}
	t, err := postgresTarget(d.Targets, target)
	if err != nil {
		return nil, err
	}
	if t.SocketDir == "" {
		return nil, fmt.Errorf("%s has no listener in this run", target)
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(t.SocketDir, ".s.PGSQL.5432"))
}

// Spawn starts a sub-agent in this process: an identity and grants of its own, one hop further down. Its
// grade is asserted. It ends when it is closed, when this process ends, or when its parent does.
func (s *supervised) Spawn(ctx context.Context, name string, d Delegation) (*Agent, error) {
	return join(ctx, s.rpc, name, d)
}

func (s *supervised) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.source != nil {
		s.source.Close()
	}
	return s.conn.Close()
}
