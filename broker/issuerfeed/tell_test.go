package issuerfeed_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/broker/storetest"
	"github.com/deputymesh/deputy/internal/feed"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// told is an issuer that is always up to date and keeps what it is told.
type told struct {
	spawnv1.UnimplementedSpawnServer
	mu     sync.Mutex
	agents []string
	most   int
	refuse bool
}

func (s *told) Ended(_ *spawnv1.EndedRequest, g grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
	if err := g.Send(&spawnv1.EndedAgent{Live: true}); err != nil {
		return err
	}
	<-g.Context().Done()
	return nil
}

func (s *told) Revoke(_ context.Context, r *spawnv1.RevokeRequest) (*spawnv1.RevokeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse {
		s.refuse = false
		return nil, status.Error(codes.Unavailable, "not now")
	}
	s.agents = append(s.agents, r.GetSpiffeId()...)
	s.most = max(s.most, len(r.GetSpiffeId()))
	return &spawnv1.RevokeResponse{}, nil
}

// heard says whether the issuer was told of exactly these since it was last asked about, in any order.
func (s *told) heard(want ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := slices.Clone(s.agents)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return false
	}
	s.agents = nil
	return true
}

func revoke(t *testing.T, s *state.State, of feed.Match) {
	t.Helper()
	now := time.Now().Truncate(time.Microsecond).UTC()
	r := state.Revocation{Revocation: feed.Revocation{ID: actor.NewHexID(), Of: of, IssuedAt: now, ExpiresAt: now.Add(time.Hour)}}
	if _, err := s.Revoke(t.Context(), r, func(state.Revocation, []state.Session) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

func session(t *testing.T, s *state.State) state.Session {
	t.Helper()
	sess := storetest.Session(t, time.Now())
	if _, _, err := s.OpenSession(t.Context(), sess, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	return sess
}

// The issuer hears of all revocations at each connection, and of each that comes; what it doesn't take is said again.
func TestTheIssuerIsToldOfRevokedAgents(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	m := &memory{State: newState(t)}
	var first []string
	for i := range 45 {
		id := fmt.Sprintf("spiffe://corp.example/agent/planner/%032x", i)
		revoke(t, m.State, feed.Match{Kind: feed.Agent, Value: id})
		first = append(first, id)
	}
	listen := func() (*told, *grpc.Server) {
		issuer := &told{}
		return issuer, serveOn(t, socket, issuer)
	}
	issuer, g := listen()
	f := follow(t, socket, m, time.Now)
	eventually(t, "the past is told", func() bool { return issuer.heard(first...) })
	eventually(t, "ready", func() bool { return f.Ready() == nil })
	if issuer.most > 20 {
		t.Errorf("%d agents in one call, more than the issuer takes", issuer.most)
	}
	doomed := session(t, m.State)
	issuer.mu.Lock()
	issuer.refuse = true
	issuer.mu.Unlock()
	revoke(t, m.State, feed.Match{Kind: feed.Task, Value: doomed.Txn})
	all := append(first, doomed.FirstAgent.String())
	eventually(t, "a refusal is made good by saying all again", func() bool { return issuer.heard(all...) })
	g.Stop()
	issuer, _ = listen()
	eventually(t, "a new issuer is told all", func() bool { return issuer.heard(all...) })
	edge := feed.Match{Kind: feed.Edge, Value: agent, Delegate: agent + "/helper/0123456789abcdef0123456789abcdef"}
	revoke(t, m.State, edge)
	eventually(t, "one more", func() bool { return issuer.heard(edge.Delegate) })
}

// An issuer that takes no revocation isn't one to hand out tokens by.
func TestNotReadyBeforeTheIssuerTookEveryRevocation(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	m := &memory{State: newState(t)}
	revoke(t, m.State, feed.Match{Kind: feed.Agent, Value: agent})
	tried := make(chan struct{}, 100)
	serveOn(t, socket, deaf{told: &told{}, tried: tried})
	f := follow(t, socket, m, time.Now)
	<-tried
	<-tried
	if f.Ready() == nil {
		t.Error("ready")
	}
}

type deaf struct {
	*told
	tried chan struct{}
}

func (d deaf) Revoke(context.Context, *spawnv1.RevokeRequest) (*spawnv1.RevokeResponse, error) {
	d.tried <- struct{}{}
	return nil, status.Error(codes.Internal, "broken")
}
