package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
)

// SocketVariable names the agent's socket in the environment.
const SocketVariable = "DEPUTY_AGENT_SOCKET"

// ErrNoAgent is returned outside `deputy run`.
var ErrNoAgent = errors.New("not inside an agent: " + SocketVariable + " is not set; start the program with `deputy run`")

// Agent is an identity that this process acts under. Safe for concurrent use. Close it.
type Agent struct {
	backend
}

// backend is who holds the key: the supervisor, or this process for a sub-agent of its own.
type backend interface {
	Describe(ctx context.Context) (Description, error)
	// Source is the agent's rotating X.509-SVID and its trust bundle.
	Source(ctx context.Context) (Source, error)
	credential(ctx context.Context, target string, details actor.Details) (Credential, error)
	Delegate(ctx context.Context, delegate actor.AgentID, d Delegation) (Chain, error)
	Spawn(ctx context.Context, name string, d Delegation) (*Agent, error)
	DialPostgres(ctx context.Context, target string) (net.Conn, error)
	Close() error
}

// Description is who an agent is and what it can reach.
type Description struct {
	ID      actor.AgentID
	Grade   actor.Grade
	User    actor.SubjectID
	Purpose string
	// Task is the id of the task tree, the same for every agent of it.
	Task string
	// Cap is what this agent may do at most; Left is how often it may delegate further.
	Cap     actor.Details
	Left    int
	Mesh    Mesh
	Targets []Target
	// SVIDExpires and GrantsExpire move on as the supervisor renews.
	SVIDExpires, GrantsExpire time.Time
}

// FromEnvironment is the agent that this process runs in. It returns [ErrNoAgent] outside `deputy run`.
func FromEnvironment(ctx context.Context) (*Agent, error) {
	socket := os.Getenv(SocketVariable)
	if socket == "" {
		return nil, ErrNoAgent
	}
	return Dial(ctx, socket)
}

// Dial is the agent whose socket (unix:///path) is given.
func Dial(ctx context.Context, socket string) (*Agent, error) {
	path, ok := strings.CutPrefix(socket, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("agent socket %q: want unix:///absolute/path", socket)
	}
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a Unix socket: the kernel names both ends
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)))
	if err != nil {
		return nil, fmt.Errorf("connecting to the agent's socket: %w", err)
	}
	s := &supervised{conn: conn, rpc: agentv1.NewAgentClient(conn), socket: socket}
	if _, err := s.Describe(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return &Agent{s}, nil
}

// Credential returns a credential for a target with life left, a password or bearer token. It is bound
// to the agent's SVID: whoever presents it must present that too.
func (a *Agent) Credential(ctx context.Context, target string) (Credential, error) {
	return a.credential(ctx, target, nil)
}

// NarrowCredential returns a credential that allows less than the agent's grants do.
func (a *Agent) NarrowCredential(ctx context.Context, target string, details actor.Details) (Credential, error) {
	if details == nil {
		return Credential{}, errors.New("a narrower credential needs details; use Credential for all that the grants allow")
	}
	return a.credential(ctx, target, details)
}

// PostgresConfig is what a driver needs to reach a target under this agent's identity.
type PostgresConfig struct {
	// DSN is in libpq's keyword form. It holds no secret.
	DSN string
	// Dial replaces the driver's own dialling; network and address are ignored. With pgx:
	//
	//	cfg, err := pgx.ParseConfig(pc.DSN)
	//	cfg.DialFunc = pc.Dial
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// PostgresConfig returns a connection string and a dial function for a PostgreSQL target.
func (a *Agent) PostgresConfig(ctx context.Context, target string) (PostgresConfig, error) {
	d, err := a.Describe(ctx)
	if err != nil {
		return PostgresConfig{}, err
	}
	t, err := postgresTarget(d.Targets, target)
	if err != nil {
		return PostgresConfig{}, err
	}
	// The address is for the driver's eyes: Dial decides where the bytes go. Encryption and identity
	// are Dial's, so the driver must ask for none.
	user, database := t.User, t.Database
	if user == "" {
		user = placeholderUser
	}
	dsn := fmt.Sprintf("host=127.0.0.1 port=5432 sslmode=disable user=%s", quoteDSN(user))
	if database == "" {
		database = user
	}
	dsn += " dbname=" + quoteDSN(database)
	return PostgresConfig{DSN: dsn, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return a.DialPostgres(ctx, target)
	}}, nil
}

func quoteDSN(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

func postgresTarget(targets []Target, name string) (Target, error) {
	t, err := findTarget(targets, name)
	if err != nil {
		return Target{}, err
	}
	if t.Kind != "postgres" {
		return Target{}, fmt.Errorf("%s is a %s target, not a PostgreSQL database", name, t.Kind)
	}
	return t, nil
}

// rpcError takes the transport's wording off a supervisor's answer.
func rpcError(doing string, err error) error {
	if st, ok := status.FromError(err); ok {
		return &AgentError{doing: doing, status: st}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// AgentError is what the supervisor answered. Use google.golang.org/grpc/status.Code on it to branch.
type AgentError struct {
	doing  string
	status *status.Status
}

func (e *AgentError) Error() string              { return e.doing + ": " + printable(e.status.Message()) }
func (e *AgentError) GRPCStatus() *status.Status { return e.status }

func describeFromProto(r *agentv1.DescribeResponse) (Description, error) {
	id, err := actor.AgentIDFromString(r.GetSpiffeId())
	if err != nil {
		return Description{}, err
	}
	cap, err := actor.ParseDetails(r.GetCap())
	if err != nil {
		return Description{}, err
	}
	mesh, err := MeshFromProto(r.GetMesh())
	if err != nil {
		return Description{}, err
	}
	targets, err := TargetsFromProto(r.GetTargets())
	if err != nil {
		return Description{}, err
	}
	return Description{
		ID: id, Grade: actor.Grade(r.GetGrade()), User: actor.SubjectID{Issuer: r.GetUserIssuer(), Subject: r.GetUserSubject()},
		Purpose: r.GetPurpose(), Task: r.GetTask(), Cap: cap, Left: int(r.GetLeft()), Mesh: mesh, Targets: targets,
		SVIDExpires: when(r.GetSvidExpiresAt()), GrantsExpire: when(r.GetGrantsExpireAt()),
	}, nil
}

func when(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// MeshFromProto reads the wire form of a mesh.
func MeshFromProto(m *agentv1.Mesh) (Mesh, error) {
	broker, err := spiffeid.FromString(m.GetBrokerId())
	if err != nil {
		return Mesh{}, fmt.Errorf("the broker's SPIFFE ID: %w", err)
	}
	return Mesh{Name: m.GetMesh(), TokenURL: m.GetTokenUrl(), Broker: broker}, nil
}

// MeshToProto is the wire form of a mesh.
func MeshToProto(m Mesh) *agentv1.Mesh {
	return &agentv1.Mesh{Mesh: m.Name, TokenUrl: m.TokenURL, BrokerId: m.Broker.String()}
}

// TargetsFromProto reads the wire form of targets.
func TargetsFromProto(list []*agentv1.Target) ([]Target, error) {
	out := make([]Target, 0, len(list))
	for _, t := range list {
		proxy, err := spiffeid.FromString(t.GetProxyId())
		if err != nil {
			return nil, fmt.Errorf("the SPIFFE ID of the proxy of %s: %w", t.GetName(), err)
		}
		out = append(out, Target{Name: t.GetName(), Kind: t.GetKind(), Address: t.GetAddress(), Proxy: proxy,
			RenewalURL: t.GetRenewalUrl(), Database: t.GetDatabase(), User: t.GetUser(), SocketDir: t.GetSocketDir()})
	}
	return out, nil
}

// TargetsToProto is the wire form of targets.
func TargetsToProto(list []Target) []*agentv1.Target {
	out := make([]*agentv1.Target, 0, len(list))
	for _, t := range list {
		out = append(out, &agentv1.Target{Name: t.Name, Kind: t.Kind, Address: t.Address, ProxyId: t.Proxy.String(),
			RenewalUrl: t.RenewalURL, Database: t.Database, User: t.User, SocketDir: t.SocketDir})
	}
	return out
}

// DelegationToProto is the wire form of a delegation.
func DelegationToProto(d Delegation) (*agentv1.Delegation, error) {
	out := &agentv1.Delegation{Left: int32(d.Left), Purpose: d.Purpose, TtlSeconds: int64(d.TTL / time.Second)}
	if d.Cap != nil {
		raw, err := json.Marshal(d.Cap)
		if err != nil {
			return nil, err
		}
		out.Cap = raw
	}
	return out, nil
}

// DelegationFromProto reads the wire form of a delegation.
func DelegationFromProto(p *agentv1.Delegation) (Delegation, error) {
	d := Delegation{Left: int(p.GetLeft()), Purpose: p.GetPurpose(), TTL: time.Duration(p.GetTtlSeconds()) * time.Second}
	if d.Left < LeftInherited || d.Left > actor.MaxLeft || p.GetTtlSeconds() < 0 || p.GetTtlSeconds() > 366*24*3600 {
		return Delegation{}, fmt.Errorf("left is %d and the life %d s: out of range", d.Left, p.GetTtlSeconds())
	}
	if len(p.GetCap()) > 0 {
		cap, err := actor.ParseDetails(p.GetCap())
		if err != nil {
			return Delegation{}, err
		}
		d.Cap = cap
	}
	return d, nil
}

// Narrow signs the grant by which the SVID's agent lets delegate act, on top of its own chain. It
// refuses whatever would be wider than the chain, as a verifier would. now is the time of signing; the
// grant ends with the chain, the SVID or d.TTL, whichever is first.
func Narrow(source Source, chain Chain, delegate actor.AgentID, d Delegation, now time.Time) (Chain, time.Time, error) {
	if len(chain.Grants) == 0 {
		return Chain{}, time.Time{}, errors.New("delegating: this agent holds no grant")
	}
	svid, err := source.GetX509SVID()
	if err != nil {
		return Chain{}, time.Time{}, fmt.Errorf("delegating: this agent has no identity now: %w", err)
	}
	issuer, err := actor.ParseAgentID(svid.ID)
	if err != nil {
		return Chain{}, time.Time{}, fmt.Errorf("delegating: %w", err)
	}
	n := actor.Narrowing{
		Issuer: issuer, Delegate: delegate, Cap: d.Cap, Purpose: d.Purpose, IssuedAt: now,
		Expires: now.Add(7 * 24 * time.Hour), NotAfter: svid.Certificates[0].NotAfter,
	}
	if d.Left != LeftInherited {
		n.Left = &d.Left
	}
	if d.TTL > 0 {
		n.Expires = now.Add(d.TTL)
	}
	g, err := actor.Narrow(chain.Grants[0], n)
	if err != nil {
		return Chain{}, time.Time{}, fmt.Errorf("delegating to %s: %w", delegate, err)
	}
	signed, err := actor.SignGrant(svid.PrivateKey, svid.Certificates, g)
	if err != nil {
		return Chain{}, time.Time{}, fmt.Errorf("delegating to %s: %w", delegate, err)
	}
	return Chain{Grants: append([]string{signed}, chain.Grants...), IDToken: chain.IDToken}, g.Expires, nil
}
