package issuerfeed_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/broker/issuerfeed"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/broker/state"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const agent = "spiffe://corp.example/agent/planner/0123456789abcdef0123456789abcdef"

// memory is the broker's state as far as the follower sees it.
type memory struct {
	mu           sync.Mutex
	revision     uint64
	ended        []string
	*state.State // whatever else it is asked
}

func (m *memory) IssuerRevision() uint64 { m.mu.Lock(); defer m.mu.Unlock(); return m.revision }
func (m *memory) EndAgent(_ context.Context, e state.EndedAgent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision = e.IssuerRevision
	m.ended = append(m.ended, e.ID)
	return nil
}
func (m *memory) ForgetIssuerRevision(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision = 0
	return nil
}
func (m *memory) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.ended...)
}

type server struct {
	spawnv1.UnimplementedSpawnServer
	ended func(*spawnv1.EndedRequest, grpc.ServerStreamingServer[spawnv1.EndedAgent]) error
}

func (s server) Ended(r *spawnv1.EndedRequest, g grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
	return s.ended(r, g)
}

func serve(t *testing.T, socket string, ended func(*spawnv1.EndedRequest, grpc.ServerStreamingServer[spawnv1.EndedAgent]) error) *grpc.Server {
	t.Helper()
	return serveOn(t, socket, server{ended: ended})
}

func serveOn(t *testing.T, socket string, s spawnv1.SpawnServer) *grpc.Server {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	spawnv1.RegisterSpawnServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return g
}

func follow(t *testing.T, socket string, m *memory, now func() time.Time) *issuerfeed.Follower {
	t.Helper()
	if m.State == nil {
		m.State = newState(t)
	}
	f := issuerfeed.New(socket, m, now, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func newState(t *testing.T) *state.State {
	t.Helper()
	store, err := sqlite.Open(filepath.Join(t.TempDir(), "b.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s, err := state.Open(t.Context(), store, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it never happened: %s", what)
}

func TestAnIssuerThatWentBackIsReadFromTheBeginning(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, func(r *spawnv1.EndedRequest, g grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
		if r.GetAfterRevision() > 1 {
			return status.Error(codes.FailedPrecondition, "ahead")
		}
		if err := g.Send(&spawnv1.EndedAgent{Revision: 1, SpiffeId: agent, EndedAt: timestamppb.Now()}); err != nil {
			return err
		}
		if err := g.Send(&spawnv1.EndedAgent{Revision: 1, Live: true}); err != nil {
			return err
		}
		<-g.Context().Done()
		return nil
	})
	m := &memory{revision: 900}
	f := follow(t, socket, m, time.Now)
	eventually(t, "the end is heard", func() bool { return len(m.list()) == 1 && f.Ready() == nil })
}

func TestReadyOnlyWhileTheIssuerIsHeard(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	var mu sync.Mutex
	var passed time.Duration
	now := func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(passed) }
	m := &memory{}
	f := follow(t, socket, m, now)
	if f.Ready() == nil {
		t.Error("ready without an issuer")
	}
	replayed := make(chan struct{})
	g := serve(t, socket, func(_ *spawnv1.EndedRequest, g grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
		if err := g.Send(&spawnv1.EndedAgent{Revision: 1, SpiffeId: agent, EndedAt: timestamppb.Now()}); err != nil {
			return err
		}
		<-replayed
		if err := g.Send(&spawnv1.EndedAgent{Revision: 1, Live: true}); err != nil {
			return err
		}
		<-g.Context().Done()
		return nil
	})
	eventually(t, "the past is being replayed", func() bool { return len(m.list()) > 0 })
	if f.Ready() == nil {
		t.Error("ready before the past was replayed")
	}
	close(replayed)
	eventually(t, "ready", func() bool { return f.Ready() == nil })
	g.Stop()
	time.Sleep(100 * time.Millisecond)
	if err := f.Ready(); err != nil {
		t.Errorf("a short break is patience's: %v", err)
	}
	mu.Lock()
	passed = issuerfeed.Patience + time.Second
	mu.Unlock()
	if f.Ready() == nil {
		t.Error("ready long after the issuer was last heard")
	}
}

func TestNonsenseOfAnIssuerIsNotBelieved(t *testing.T) {
	for name, bad := range map[string]*spawnv1.EndedAgent{
		"a role":  {Revision: 1, SpiffeId: "spiffe://corp.example/deputy/proxy/orders", EndedAt: timestamppb.Now()},
		"no time": {Revision: 1, SpiffeId: agent},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			again := make(chan struct{}, 100)
			serve(t, socket, func(_ *spawnv1.EndedRequest, g grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
				again <- struct{}{}
				if err := g.Send(bad); err != nil {
					return err
				}
				if err := g.Send(&spawnv1.EndedAgent{Live: true}); err != nil {
					return err
				}
				<-g.Context().Done()
				return nil
			})
			m := &memory{}
			f := follow(t, socket, m, time.Now)
			<-again
			<-again // it broke the stream off and tried again
			if len(m.list()) != 0 || f.Ready() == nil {
				t.Errorf("it took %v", m.list())
			}
		})
	}
}
