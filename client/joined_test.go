package client_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/testca"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
)

// supervisor is a scripted one; the real one is tested with real processes elsewhere.
type supervisor struct {
	agentv1.UnimplementedAgentServer
	ca      *testca.CA
	parent  *source
	chain   client.Chain
	mesh    client.Mesh
	targets []client.Target
	life    time.Duration

	mu       sync.Mutex
	key      *ecdsa.PublicKey
	child    actor.AgentID
	renewals int
	badProof bool
	push     chan client.Chain
	hangUp   chan struct{}
	ended    chan error
}

func (s *supervisor) Describe(context.Context, *agentv1.DescribeRequest) (*agentv1.DescribeResponse, error) {
	return &agentv1.DescribeResponse{
		SpiffeId: s.parent.at.ID.String(), Grade: "asserted", UserIssuer: "https://idp.test", UserSubject: "alice", Left: 3,
		Cap:  []byte(`[{"type":"deputy_postgres","locations":["spiffe://corp.test/target/orders-db"],"actions":["select"]}]`),
		Mesh: client.MeshToProto(s.mesh), Targets: client.TargetsToProto(s.targets),
	}, nil
}

func (s *supervisor) Credential(_ context.Context, r *agentv1.CredentialRequest) (*agentv1.CredentialResponse, error) {
	return nil, status.Errorf(codes.NotFound, "this run names no target %q\x1b[2J", r.GetTarget())
}

type pub struct{ k *ecdsa.PublicKey }

func (p pub) Public() crypto.PublicKey { return p.k }
func (pub) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("no private key")
}

func (s *supervisor) identity(csr []byte) (*agentv1.JoinedIdentity, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	s.key = req.PublicKey.(*ecdsa.PublicKey)
	svid := s.ca.SVIDFor(s.child.ID(), pub{s.key}, testca.Validity(time.Now().Add(-time.Second), time.Now().Add(s.life)))
	return &agentv1.JoinedIdentity{SpiffeId: s.child.String(), Svid: [][]byte{svid.Certificates[0].Raw}, Bundle: [][]byte{s.ca.Certificate().Raw}, Grade: "asserted"}, nil
}

func (s *supervisor) Join(stream agentv1.Agent_JoinServer) error {
	err := s.join(stream)
	s.ended <- err
	return err
}

func (s *supervisor) join(stream agentv1.Agent_JoinServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	d, err := client.DelegationFromProto(first.GetDelegation())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	parent, _ := actor.ParseAgentID(s.parent.at.ID)
	s.mu.Lock()
	if s.child, err = parent.Child(first.GetName(), actor.NewHexID()); err != nil {
		s.mu.Unlock()
		return status.Error(codes.InvalidArgument, err.Error())
	}
	chain, _, err := client.Narrow(s.parent, s.chain, s.child, d, time.Now())
	if err != nil {
		s.mu.Unlock()
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	id, err := s.identity(first.GetCsr())
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := stream.Send(&agentv1.JoinResponse{Identity: id, Grants: &agentv1.Grants{Grants: chain.Grants, IdToken: chain.IDToken},
		Mesh: client.MeshToProto(s.mesh), Targets: client.TargetsToProto(s.targets)}); err != nil {
		return err
	}
	requests, failed := make(chan *agentv1.JoinRequest), make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			requests <- m
		}
	}()
	for {
		select {
		case m := <-requests:
			s.mu.Lock()
			sum := sha256.Sum256(append([]byte("deputy-svid-renewal-v1"), m.GetCsr()...))
			s.badProof = s.badProof || !ecdsa.VerifyASN1(s.key, sum[:], m.GetProof())
			id, err := s.identity(m.GetCsr())
			s.renewals++
			s.mu.Unlock()
			if err != nil {
				return err
			}
			if err := stream.Send(&agentv1.JoinResponse{Identity: id}); err != nil {
				return err
			}
		case c := <-s.push:
			if err := stream.Send(&agentv1.JoinResponse{Grants: &agentv1.Grants{Grants: c.Grants, IdToken: c.IDToken}}); err != nil {
				return err
			}
		case <-s.hangUp:
			return status.Error(codes.Unavailable, "the parent agent has ended")
		case err := <-failed:
			return err
		}
	}
}

func startSupervisor(t *testing.T, s *supervisor) *client.Agent {
	t.Helper()
	s.ca = testca.New(t, "corp.test")
	s.parent = newSource(s.ca, agentPath("planner"))
	s.chain = chainFor(t, s.ca, s.parent.at.ID)
	s.push, s.hangUp, s.ended = make(chan client.Chain), make(chan struct{}), make(chan error, 4)
	s.mesh = broker(t, s.ca, "/deputy/broker", func(w http.ResponseWriter, _ *http.Request) { token(w, "t", 300) })
	path := filepath.Join(t.TempDir(), "a")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	agentv1.RegisterAgentServer(srv, s)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	t.Setenv(client.SocketVariable, "unix://"+path)
	a, err := client.FromEnvironment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestSubAgentHasAnIdentityAndAConnectionOfItsOwn(t *testing.T) {
	s := &supervisor{life: time.Hour}
	parent := startSupervisor(t, s)
	p := startPGProxy(t, s.ca, "/deputy/proxy/db", &pgProxy{})
	s.targets = []client.Target{
		{Name: "orders-db", Kind: "postgres", Address: p.addr, Proxy: s.ca.ID("/deputy/proxy/db"), Database: "shop"},
		{Name: "web", Kind: "http", Address: p.addr, Proxy: s.ca.ID("/deputy/proxy/db")},
	}
	sub, err := parent.Spawn(t.Context(), "researcher", client.Delegation{Left: 0, Purpose: "look", TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	d, err := sub.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, _ := actor.ParseAgentID(s.parent.at.ID)
	if !d.ID.IsDirectChildOf(own) || d.ID.Name() != "researcher" || d.Grade != actor.Asserted || d.Left != 0 || d.Purpose != "refunds" || // the user's, not the hop's
		d.User.Subject != "alice" {
		t.Errorf("%+v", d)
	}
	pc, err := sub.PostgresConfig(t.Context(), "orders-db")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(pc.DSN, "password") || !strings.Contains(pc.DSN, "dbname='shop'") {
		t.Errorf("DSN %q", pc.DSN)
	}
	conn, err := pc.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go conn.Write(startup("user", "deputy", "database", "shop"))
	read(t, conn, len(p.welcome))
	if _, password := p.got(t); strings.Count(password, "~") != 3 { // token, two grants, ID token
		t.Errorf("the credential has %d parts", strings.Count(password, "~")+1)
	}
	if _, err := sub.DialPostgres(t.Context(), "web"); err == nil {
		t.Error("a web service was dialled as a database")
	}
	if _, err := sub.Credential(t.Context(), "payroll"); !errors.Is(err, client.ErrNoTarget) {
		t.Errorf("a target that the run doesn't name: %v", err)
	}
	if _, err := sub.Spawn(t.Context(), "deeper", client.Delegation{}); !errors.Is(err, client.ErrNoSpawn) {
		t.Errorf("spawning below: %v", err)
	}
	sub.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a closed sub-agent's connection lives on")
	}
	if _, err := sub.Credential(t.Context(), "orders-db"); err == nil {
		t.Error("a closed sub-agent got a credential")
	}
	select {
	case <-s.ended:
	case <-time.After(5 * time.Second):
		t.Error("the supervisor was not told")
	}
}

func TestSubAgentRenewsTakesNewGrantsAndEndsWithItsParent(t *testing.T) {
	s := &supervisor{life: 2 * time.Second}
	parent := startSupervisor(t, s)
	sub, err := parent.Spawn(t.Context(), "researcher", client.Delegation{Left: 0})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	src, err := sub.Source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a renewal", func() bool {
		now, err := src.GetX509SVID()
		return err == nil && !now.Certificates[0].Equal(first.Certificates[0]) && now.ID == first.ID
	})
	s.mu.Lock()
	if s.badProof {
		t.Error("a renewal was not proven with the current key")
	}
	narrower, _, err := client.Narrow(s.parent, s.chain, s.child, client.Delegation{Left: 1}, time.Now())
	s.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	s.push <- narrower
	eventually(t, "the new grants", func() bool {
		d, err := sub.Describe(t.Context())
		return err == nil && d.Left == 1
	})
	close(s.hangUp)
	eventually(t, "the end", func() bool {
		_, err := src.GetX509SVID()
		return err != nil && strings.Contains(err.Error(), "the parent agent has ended")
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("%s did not come", what)
}

func TestSpawnThatWouldWidenIsRefused(t *testing.T) {
	s := &supervisor{life: time.Hour}
	parent := startSupervisor(t, s)
	wider := actor.Details{actor.PostgresDetail{Locations: []spiffeid.ID{targetID(t, s.ca, "orders-db")}, Actions: []string{"ddl"}}}
	for name, d := range map[string]client.Delegation{"cap": {Cap: wider}, "left": {Left: 9}} {
		if sub, err := parent.Spawn(t.Context(), "researcher", d); err == nil {
			sub.Close()
			t.Errorf("a wider %s was granted", name)
		}
	}
	if _, err := parent.Spawn(t.Context(), "Not A Name", client.Delegation{}); err == nil {
		t.Error("a bad name was taken")
	}
	_, err := parent.Credential(t.Context(), "payroll")
	if status.Code(err) != codes.NotFound || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("the supervisor's answer: %q", err)
	}
}

func TestOutsideAnAgent(t *testing.T) {
	t.Setenv(client.SocketVariable, "")
	if _, err := client.FromEnvironment(t.Context()); !errors.Is(err, client.ErrNoAgent) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"/no/scheme", "unix://relative", "tcp://127.0.0.1:1"} {
		t.Setenv(client.SocketVariable, bad)
		if _, err := client.FromEnvironment(t.Context()); err == nil || !strings.Contains(err.Error(), "want unix:///absolute/path") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
