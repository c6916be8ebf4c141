package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
)

// Inside runs a nested agent: the supervisor behind socket registers it and signs its grants.
func Inside(ctx context.Context, socket string, r Request) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	path, ok := strings.CutPrefix(socket, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return exitFailed, fmt.Errorf("%s is %q, want unix:///absolute/path", client.SocketVariable, socket)
	}
	conn, err := dialUnix(path)
	if err != nil {
		return exitFailed, err
	}
	defer conn.Close()
	d, err := client.DelegationToProto(r.Delegation)
	if err != nil {
		return exitFailed, err
	}
	f, err := openFront(r.Stdin, r.Stdout, r.Stderr)
	if err != nil {
		return exitFailed, err
	}
	defer f.close()
	rpc := agentv1.NewAgentClient(conn)
	about, err := rpc.Describe(ctx, &agentv1.DescribeRequest{})
	if err != nil {
		return exitFailed, fmt.Errorf("the parent's supervisor: %w", plain(err))
	}
	streamCtx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	stream, err := rpc.Spawn(streamCtx)
	if err != nil {
		return exitFailed, fmt.Errorf("the parent's supervisor: %w", plain(err))
	}
	isolation := map[Isolation]agentv1.Isolation{
		IsolateWhereRoot: agentv1.Isolation_ISOLATION_UNSPECIFIED, IsolateAlways: agentv1.Isolation_ISOLATION_REQUIRED, IsolateNever: agentv1.Isolation_ISOLATION_NONE,
	}[r.Isolation]
	if err := stream.Send(&agentv1.SpawnRequest{Message: &agentv1.SpawnRequest_Start{Start: &agentv1.SpawnStart{
		Name: r.Name, Delegation: d, Targets: r.Targets, Isolation: isolation, Argv: r.Argv, Env: r.Env, Cwd: r.Cwd, Terminal: f.terminal(),
	}}}); err != nil {
		_, err = stream.Recv()
		return exitFailed, fmt.Errorf("the parent's supervisor: %w", plain(err))
	}
	m, err := stream.Recv()
	if err != nil {
		return exitFailed, fmt.Errorf("the parent's supervisor: %w", plain(err))
	}
	if a := m.GetAdopted(); a != nil {
		f.close()
		return runAdopted(ctx, r, path, about, stream, hangUp, a, signals)
	}
	iso := m.GetIsolated()
	if iso == nil {
		return exitFailed, errors.New("the parent's supervisor answered something unknown; is it of the same version?")
	}
	if err := sendStreams(iso.GetStreamsSocket(), iso.GetStreamsToken(), f.streams); err != nil {
		return exitFailed, err
	}
	if err := f.relay(); err != nil {
		return exitFailed, err
	}
	return waitIsolated(stream, signals)
}

func waitIsolated(stream agentv1.Agent_SpawnClient, signals <-chan os.Signal) (int, error) {
	type answer struct {
		m   *agentv1.SpawnResponse
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		m, err := stream.Recv()
		answers <- answer{m, err}
	}()
	for {
		select {
		case a := <-answers:
			if a.err != nil {
				return exitFailed, fmt.Errorf("the parent's supervisor: %w", plain(a.err))
			}
			end := a.m.GetExited()
			if end == nil {
				return exitFailed, errors.New("the parent's supervisor answered something unknown")
			}
			if end.GetError() != "" {
				return int(end.GetCode()), errors.New(end.GetError())
			}
			return int(end.GetCode()), nil
		case sig := <-signals:
			if n, ok := sig.(syscall.Signal); ok {
				_ = stream.Send(&agentv1.SpawnRequest{Message: &agentv1.SpawnRequest_Signal{Signal: int32(n)}})
			}
		}
	}
}

// runAdopted makes this process, inside its parent's reach, the child's supervisor.
func runAdopted(ctx context.Context, r Request, parentSocket string, about *agentv1.DescribeResponse, stream agentv1.Agent_SpawnClient, hangUp func(), a *agentv1.Adopted, signals <-chan os.Signal) (int, error) {
	id, err := actor.AgentIDFromString(a.GetSpiffeId())
	if err != nil {
		return exitFailed, fmt.Errorf("the supervisor's answer: %w", err)
	}
	targets, err := client.TargetsFromProto(a.GetTargets())
	if err != nil {
		return exitFailed, fmt.Errorf("the supervisor's answer: %w", err)
	}
	mesh, err := meshOf(id, about, targets)
	if err != nil {
		return exitFailed, fmt.Errorf("the supervisor's answer: %w", err)
	}
	dir := nestedRuntimeDir(parentSocket)
	if err := PrepareRuntimeDir(dir, false); err != nil {
		return exitFailed, err
	}
	return runHere(ctx, r, dir, id, Config{
		Mesh: mesh, Ticket: a.GetTicket(), Chain: ChainFromProto(a.GetGrants()), Log: r.Log,
		Upstream: func(ctx context.Context, set func(client.Chain)) error {
			// It is over when everything below has ended, and says so; silence is a supervisor that was killed.
			stop := context.AfterFunc(ctx, func() {
				if stream.CloseSend() != nil {
					hangUp()
				}
				time.AfterFunc(goodbyeWithin, hangUp)
			})
			defer stop()
			for {
				m, err := stream.Recv()
				if err != nil {
					return err
				}
				if g := m.GetGrants(); g != nil {
					set(ChainFromProto(g))
				}
			}
		},
	}, signals)
}

// goodbyeWithin is how long the parent's supervisor has to take note of a child's end.
const goodbyeWithin = 2 * time.Second

// nestedRuntimeDir is the parent's runtime folder where it belongs to this uid, so that paths stay short
// however deep the tree is; else a folder inside the parent's own.
func nestedRuntimeDir(parentSocket string) string {
	agentDir := filepath.Dir(parentSocket)
	shared := filepath.Dir(filepath.Dir(agentDir))
	if st, err := os.Lstat(shared); err == nil && int(st.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() {
		return shared
	}
	return filepath.Join(agentDir, "r")
}
