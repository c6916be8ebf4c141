package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// Isolation says whether an agent gets a host uid of its own.
type Isolation int

const (
	// IsolateWhereRoot is the default.
	IsolateWhereRoot Isolation = iota
	// IsolateAlways refuses to start otherwise.
	IsolateAlways
	// IsolateNever leaves the agent under the caller's uid: its grade is asserted.
	IsolateNever
)

// Request is one `deputy run`.
type Request struct {
	Name       string
	Delegation client.Delegation
	// Targets are names; empty is all there are.
	Targets   []string
	Isolation Isolation

	Argv, Env             []string
	Cwd                   string
	Stdin, Stdout, Stderr *os.File
	Log                   *slog.Logger
}

// Outside is what a run outside every agent needs.
type Outside struct {
	Mesh       Mesh
	RuntimeDir string
	// Session is the session helper.
	Session sessionv1.SessionClient
}

// Run starts a first-level agent on behalf of the signed-in user and returns its program's exit code.
func (o Outside) Run(ctx context.Context, r Request) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)

	isolate := r.Isolation == IsolateAlways || (r.Isolation == IsolateWhereRoot && os.Geteuid() == 0)
	if isolate && os.Geteuid() != 0 {
		return exitFailed, errors.New("--isolate needs root: only root can give the agent a uid of its own; without it the agent is graded asserted")
	}
	mesh, err := o.Mesh.restrict(r.Targets)
	if err != nil {
		return exitFailed, err
	}
	if r.Delegation.Cap == nil {
		if r.Delegation.Cap, err = mesh.everything(); err != nil {
			return exitFailed, err
		}
	}
	issuer, err := DialIssuer(mesh.IssuerSocket)
	if err != nil {
		return exitFailed, err
	}
	defer issuer.Close()
	rpc := spawnv1.NewSpawnClient(issuer)
	reg, err := rpc.Register(ctx, &spawnv1.RegisterRequest{Name: r.Name, Isolate: isolate})
	if err != nil {
		return exitFailed, registerError(r.Name, mesh.IssuerSocket, err)
	}
	id, err := actor.AgentIDFromString(reg.GetSpiffeId())
	if err != nil {
		return exitFailed, fmt.Errorf("the issuer's answer: %w", err)
	}
	user := &userGrants{session: o.Session, id: id, what: r.Delegation, log: logger(r.Log)}
	chain, err := user.sign(ctx)
	if err != nil {
		return exitFailed, err
	}
	if isolate {
		return o.runIsolated(ctx, r, mesh, rpc, reg.GetTicket(), user, chain, signals)
	}
	if err := PrepareRuntimeDir(o.RuntimeDir, false); err != nil {
		return exitFailed, err
	}
	return runHere(ctx, r, o.RuntimeDir, id, Config{Mesh: mesh, Ticket: reg.GetTicket(), Chain: chain, Upstream: user.upstream, Log: r.Log}, signals)
}

func registerError(name, socket string, err error) error {
	switch status.Code(err) {
	case codes.Unavailable:
		return fmt.Errorf("the issuer can't be reached at %s; is `deputy issuer` running? (%w)", socket, plain(err))
	case codes.PermissionDenied, codes.FailedPrecondition:
		return fmt.Errorf("the issuer refused the agent %q: %w. Inside an agent, %s must name that agent's socket; outside, a registration entry must allow the name for this user",
			name, plain(err), client.SocketVariable)
	}
	return fmt.Errorf("the issuer refused the agent %q: %w", name, plain(err))
}

// runHere makes this process the supervisor.
func runHere(ctx context.Context, r Request, runtimeDir string, id actor.AgentID, cfg Config, signals <-chan os.Signal) (int, error) {
	dir, err := newRunDir(runtimeDir, id)
	if err != nil {
		return exitFailed, err
	}
	defer func() {
		if err := dir.remove(); err != nil {
			logger(r.Log).WarnContext(ctx, "the agent's folder is left", "error", err)
		}
	}()
	cfg.Dir = dir.path
	s, err := Start(ctx, cfg)
	if err != nil {
		return exitFailed, err
	}
	code, err := s.Run(ctx, Command{
		Argv: r.Argv, Env: s.Environment(r.Env), Dir: r.Cwd, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
	}, signals)
	return code, errors.Join(err, s.Close())
}

// runIsolated makes this process the launcher of the whole tree.
func (o Outside) runIsolated(ctx context.Context, r Request, mesh Mesh, rpc spawnv1.SpawnClient, ticket []byte, user *userGrants, chain client.Chain, signals <-chan os.Signal) (int, error) {
	l, err := newLauncher(mesh, o.RuntimeDir, rpc, logger(r.Log))
	if err != nil {
		return exitFailed, err
	}
	f, err := openFront(r.Stdin, r.Stdout, r.Stderr)
	if err != nil {
		return exitFailed, err
	}
	defer f.close()
	near, far, err := socketPair()
	if err != nil {
		return exitFailed, err
	}
	link := newWire(near)
	defer link.Close()
	c, err := l.start(ctx, startRequest{Ticket: ticket, Argv: r.Argv, Env: r.Env, Cwd: r.Cwd, Terminal: f.terminal()},
		[]*os.File{f.streams[0], f.streams[1], f.streams[2], far}, uint32(os.Getuid()))
	far.Close()
	if err != nil {
		return exitFailed, err
	}
	defer c.kill()
	if err := link.write(chain); err != nil {
		return exitFailed, fmt.Errorf("the supervisor is gone: %w", err)
	}
	if err := f.relay(); err != nil {
		return exitFailed, err
	}
	go func() {
		// Until ctx is done. A link that broke is a supervisor that ended, which c.done tells.
		_ = user.upstream(ctx, func(chain client.Chain) { _ = link.write(chain) })
	}()
	for {
		select {
		case end := <-c.done:
			if end.Error != "" {
				return end.Code, errors.New(end.Error)
			}
			return end.Code, nil
		case sig := <-signals:
			if n, ok := sig.(syscall.Signal); ok {
				c.signal(n)
			}
		}
	}
}

// restrict keeps the named targets; none named is all.
func (m Mesh) restrict(names []string) (Mesh, error) {
	if len(names) == 0 {
		return m, nil
	}
	out := m
	out.Targets = nil
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			continue // one listener is enough
		}
		found := false
		for _, t := range m.Targets {
			if t.Name == n {
				out.Targets, found = append(out.Targets, t), true
			}
		}
		if !found {
			return Mesh{}, fmt.Errorf("the configuration has no target %q", n)
		}
	}
	return out, nil
}

// everything is the widest capability on a run's targets: what a user grants who says nothing narrower.
// Policy at the targets decides what of it the user has.
func (m Mesh) everything() (actor.Details, error) {
	var out actor.Details
	for _, t := range m.Targets {
		id, err := actor.TargetID(m.TrustDomain, t.Name)
		if err != nil {
			return nil, err
		}
		switch t.Kind {
		case "postgres":
			out = append(out, actor.PostgresDetail{Locations: []spiffeid.ID{id}, Actions: actor.PostgresVerbs()})
		case "ssh":
			out = append(out, actor.SSHDetail{Locations: []spiffeid.ID{id}, Actions: actor.SSHVerbs()})
		case "http":
			out = append(out, actor.HTTPDetail{Locations: []spiffeid.ID{id}, Actions: actor.HTTPVerbs()})
		case "mcp":
			out = append(out, actor.MCPDetail{Locations: []spiffeid.ID{id}, Actions: actor.MCPVerbs()})
		case "kube":
			out = append(out, actor.KubeDetail{Locations: []spiffeid.ID{id}, Actions: actor.KubeVerbs()})
		case "tcp":
			out = append(out, actor.TCPDetail{Locations: []spiffeid.ID{id}, Actions: actor.TCPVerbs()})
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no target to grant anything on: name one in the configuration, or say what is allowed with --cap")
	}
	return out, nil
}

// userGrants are the grants that the session helper signs for a first-level agent.
type userGrants struct {
	session sessionv1.SessionClient
	id      actor.AgentID
	what    client.Delegation
	log     *slog.Logger
	task    string
	expires time.Time
}

func (u *userGrants) sign(ctx context.Context) (client.Chain, error) {
	cap, err := json.Marshal(u.what.Cap)
	if err != nil {
		return client.Chain{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := u.session.SignUserGrant(ctx, &sessionv1.SignUserGrantRequest{
		Delegate: u.id.String(), Cap: cap, Left: int32(u.what.Left), Purpose: u.what.Purpose, TtlSeconds: int64(u.what.TTL / time.Second), Task: u.task,
	})
	if err != nil {
		if status.Code(err) == codes.Unavailable {
			return client.Chain{}, fmt.Errorf("nobody is signed in here; run `deputy login` (%w)", plain(err))
		}
		return client.Chain{}, fmt.Errorf("the session helper: %w", plain(err))
	}
	u.task, u.expires = r.GetTask(), r.GetExpiresAt().AsTime()
	return client.Chain{Grants: []string{r.GetGrant()}, IDToken: r.GetIdToken()}, nil
}

// upstream signs again at half-life. When the helper is gone the user signed out: the grant that is
// there runs out, and nothing new is signed.
func (u *userGrants) upstream(ctx context.Context, set func(client.Chain)) error {
	retry := 5 * time.Second
	for {
		t := time.NewTimer(max(time.Until(u.expires)/2, retry))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		chain, err := u.sign(ctx)
		if err != nil {
			u.log.WarnContext(ctx, "the user's grant can't be renewed", "ends", u.expires, "error", err)
			retry = min(retry*2, time.Minute)
			continue
		}
		retry = 5 * time.Second
		set(chain)
	}
}
