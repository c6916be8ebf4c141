// Package issuerfeed listens to the issuer for agents that have ended, and tells it which are revoked, over the
// issuer's Unix socket, where the kernel says who we are.
//
// While the issuer can't be heard, nobody knows which agents live, and exchanges are refused: see
// Follower.Ready.
package issuerfeed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const (
	maxMessage = 64 << 10
	maxReason  = 200
	// Patience is how long exchanges go on without the issuer: proxies have the same with the broker.
	Patience   = 10 * time.Second
	firstPause = 100 * time.Millisecond
	mostPause  = 2 * time.Second
)

// State is where ended agents go. Each is durable before the next is read; an error breaks the stream off and it
// comes again.
type State interface {
	IssuerRevision() uint64
	EndAgent(ctx context.Context, e state.EndedAgent) error
	ForgetIssuerRevision(ctx context.Context) error
	// Subscribe gives all revocations that stand, and each that comes.
	Subscribe() (feed.Update, *state.Subscription, error)
	// RevokedAgents are the agents that have no authority left by a revocation.
	RevokedAgents(m feed.Match) ([]string, error)
}

// Follower follows one issuer.
type Follower struct {
	socket string
	state  State
	now    func() time.Time
	logger *slog.Logger

	mu    sync.Mutex
	live  bool      // the past was replayed and the stream stands
	heard time.Time // last time that it did
}

// New makes a follower; Run does the work.
func New(socket string, s State, now func() time.Time, logger *slog.Logger) *Follower {
	return &Follower{socket: socket, state: s, now: now, logger: logger}
}

// Ready returns why it isn't known at the moment which agents have ended.
func (f *Follower) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.live || !f.heard.IsZero() && f.now().Sub(f.heard) < Patience {
		return nil
	}
	return errors.New("the issuer's list of ended agents is not being received")
}

// Run follows the issuer until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	conn, err := grpc.NewClient("unix:"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("connecting to the issuer at %s: %w", f.socket, err)
	}
	defer conn.Close()
	pause := firstPause
	for ctx.Err() == nil {
		was := f.now()
		err := f.follow(ctx, spawnv1.NewSpawnClient(conn))
		f.set(false)
		if ctx.Err() != nil {
			return nil
		}
		if status.Code(err) == codes.FailedPrecondition {
			// The issuer's database was replaced by an older one. What it says now would be missed if we
			// went on from where we were.
			f.logger.ErrorContext(ctx, "the issuer went back; reading all its ended agents again", "error", err)
			err = f.state.ForgetIssuerRevision(ctx)
		}
		f.logger.WarnContext(ctx, "the issuer's list of ended agents broke off; trying again", "socket", f.socket, "error", err)
		if f.now().Sub(was) > mostPause {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, mostPause)
	}
	return nil
}

func (f *Follower) set(live bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if live || f.live {
		f.heard = f.now()
	}
	f.live = live
}

// follow tells and listens until one of both fails; both begin again then. Nobody is ready before the issuer was told all.
func (f *Follower) follow(ctx context.Context, c spawnv1.SpawnClient) error {
	all, sub, err := f.state.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := f.tell(ctx, c, all.Revocations); err != nil {
		return err
	}
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return f.listen(ctx, c) })
	both.Go(func() error { return f.tellNews(ctx, c, sub) })
	return both.Wait()
}

func (f *Follower) listen(ctx context.Context, c spawnv1.SpawnClient) error {
	stream, err := c.Ended(ctx, &spawnv1.EndedRequest{AfterRevision: f.state.IssuerRevision()})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			return errors.New("the issuer sent fields that this version doesn't know")
		}
		if m.GetSpiffeId() != "" {
			if err := f.end(ctx, m); err != nil {
				return err
			}
		}
		if m.GetLive() {
			f.set(true)
		}
	}
}

func (f *Follower) end(ctx context.Context, m *spawnv1.EndedAgent) error {
	id, err := actor.AgentIDFromString(m.GetSpiffeId())
	if err != nil || id.String() != m.GetSpiffeId() {
		return fmt.Errorf("the issuer says that %.200q ended, which is no agent", m.GetSpiffeId())
	}
	if err := m.GetEndedAt().CheckValid(); err != nil {
		return fmt.Errorf("the issuer's time for the end of %s: %w", id, err)
	}
	if f.now().Sub(m.GetEndedAt().AsTime()) > state.KeepEnded {
		return nil // history: its SVID is long dead
	}
	reason := m.GetReason()
	if len(reason) > maxReason {
		reason = reason[:maxReason]
	}
	return f.state.EndAgent(ctx, state.EndedAgent{
		EndedAgent: feed.EndedAgent{ID: id.String(), EndedAt: m.GetEndedAt().AsTime().Truncate(time.Microsecond)},
		Reason:     reason, IssuerRevision: m.GetRevision(),
	})
}
