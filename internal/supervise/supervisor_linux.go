package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// Mesh is what every agent of a run must know; it comes from the configuration of whoever started the
// outermost run. It travels from launcher to supervisor.
type Mesh struct {
	TrustDomain  spiffeid.TrustDomain
	IssuerSocket string
	Broker       client.Mesh
	// Targets of this run.
	Targets []client.Target
}

// Upstream hands each new chain of grants to set, until ctx is done. When it returns, the parent is
// gone, and the agent ends.
type Upstream func(ctx context.Context, set func(client.Chain)) error

// Config is what a supervisor needs.
type Config struct {
	Mesh   Mesh
	Ticket []byte
	// Chain returns the agent's first grants, once its name is known to be the one they were made for.
	Chain    client.Chain
	Upstream Upstream
	// Dir is a folder of this uid's own (0700) for sockets and files.
	Dir string
	// launcher starts isolated children; nil where there is none.
	launcher *launcherLink
	Log      *slog.Logger
}

// Supervisor holds one agent. Close it.
type Supervisor struct {
	cfg    Config
	log    *slog.Logger
	issuer *grpc.ClientConn
	spawn  spawnv1.SpawnClient
	id     *Identity
	chain  *chainBox
	ex     *client.Exchanger
	mesh   Mesh
	jwt    *jwtRelay

	server     *grpc.Server
	streams    *streamDesk
	listeners  []*pgListener
	web        []*httpListener
	raw        []*tcpListener
	knownHosts knownHosts
	sshConfig  string // of the run; "" without SSH targets
	kubeFile   string // the run's kubeconfig; "" without clusters

	// marks are what the agent's program, and all that it starts, is restrained by; nil before it starts.
	marks   atomic.Pointer[kernel.Restraints]
	program atomic.Int64 // its process id
	sweep   sync.Mutex

	stop  context.CancelFunc
	tasks sync.WaitGroup
	lost  chan error // buffered; why the agent must end
}

// maxSocketPath is sun_path on Linux, less the terminating zero.
const maxSocketPath = 107

// DialIssuer opens the issuer's socket. It connects when it is first used.
func DialIssuer(socket string) (*grpc.ClientConn, error) {
	if !filepath.IsAbs(socket) {
		return nil, fmt.Errorf("the issuer's socket %q: want an absolute path", socket)
	}
	return dialUnix(socket)
}

// Start attaches the agent and opens its sockets. Ticket and chain must be for this process.
func Start(ctx context.Context, cfg Config) (*Supervisor, error) {
	if err := kernel.Guard(); err != nil {
		return nil, err
	}
	if err := kernel.AdoptOrphans(); err != nil {
		return nil, err
	}
	issuer, err := DialIssuer(cfg.Mesh.IssuerSocket)
	if err != nil {
		return nil, err
	}
	jwt, err := newJWTRelay(cfg.Mesh.IssuerSocket)
	if err != nil {
		return nil, errors.Join(err, issuer.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	s := &Supervisor{
		cfg: cfg, jwt: jwt, log: logger(cfg.Log), issuer: issuer, spawn: spawnv1.NewSpawnClient(issuer),
		chain: newChainBox(cfg.Chain), mesh: cfg.Mesh, stop: stop, lost: make(chan error, 4),
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Supervisor) start(ctx context.Context) error {
	var err error
	if s.id, err = Attach(ctx, s.spawn, s.cfg.Ticket, s.log); err != nil {
		return err
	}
	if td := s.id.ID().TrustDomain(); td != s.mesh.TrustDomain {
		return fmt.Errorf("the issuer is of the trust domain %s, the configuration says %s", td, s.mesh.TrustDomain)
	}
	if err := checkChain(s.cfg.Chain, s.id.ID()); err != nil {
		return err
	}
	s.ex, err = client.NewExchanger(client.ExchangerConfig{Mesh: s.mesh.Broker, Source: s.id, Chain: func() client.Chain {
		c, _ := s.chain.get()
		return c
	}})
	if err != nil {
		return err
	}
	if err := s.openSSH(); err != nil {
		return err
	}
	if err := s.openListeners(ctx); err != nil {
		return err
	}
	if err := s.openHTTP(ctx); err != nil {
		return err
	}
	if err := s.openKube(); err != nil {
		return err
	}
	if err := s.openTCP(ctx); err != nil {
		return err
	}
	if err := s.openSocket(ctx); err != nil {
		return err
	}
	s.tasks.Go(func() {
		err := s.cfg.Upstream(ctx, func(c client.Chain) {
			if err := checkChain(c, s.id.ID()); err != nil {
				s.log.WarnContext(ctx, "new grants were not taken", "error", err)
				return
			}
			s.chain.set(c)
		})
		if ctx.Err() == nil {
			s.end(fmt.Errorf("the parent agent has ended: %w", plain(err)))
		}
	})
	s.tasks.Go(func() {
		<-s.id.Done()
		if ctx.Err() == nil {
			s.end(s.id.Err())
		}
	})
	return nil
}

// end asks whoever runs the command to end the agent.
func (s *Supervisor) end(err error) {
	select {
	case s.lost <- err:
	default:
	}
}

// Lost delivers why the agent must end while its program still runs.
func (s *Supervisor) Lost() <-chan error { return s.lost }

// ID is the agent's name.
func (s *Supervisor) ID() actor.AgentID { return s.id.ID() }

// Grade is the issuer's word on how it knows the agent.
func (s *Supervisor) Grade() actor.Grade { return s.id.Grade() }

// SocketPath is the agent socket.
func (s *Supervisor) SocketPath() string { return filepath.Join(s.cfg.Dir, "agent.sock") }

func (s *Supervisor) openSocket(ctx context.Context) error {
	l, err := listenUnix(s.SocketPath())
	if err != nil {
		return err
	}
	s.streams = newStreamDesk(s)
	if s.cfg.launcher != nil {
		if err := s.streams.open(filepath.Join(s.cfg.Dir, "streams.sock")); err != nil {
			l.Close()
			return err
		}
		s.tasks.Go(func() { s.streams.serve(ctx) })
	}
	s.server = grpc.NewServer(
		grpc.Creds(kernel.Credentials()),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(256),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.guardUnary),
		grpc.ChainStreamInterceptor(s.guardStream),
	)
	agentv1.RegisterAgentServer(s.server, &agentServer{s: s, ctx: ctx})
	workload.RegisterSpiffeWorkloadAPIServer(s.server, &workloadServer{s: s, ctx: ctx, jwt: s.jwt})
	s.tasks.Go(func() {
		if err := s.server.Serve(l); err != nil && ctx.Err() == nil {
			s.end(fmt.Errorf("serving the agent's socket: %w", err))
		}
	})
	return nil
}

// listenUnix listens in a folder that only this uid can enter.
func listenUnix(path string) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s: %d bytes, the kernel takes at most %d; choose a shorter runtime_dir", path, len(path), maxSocketPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("opening the socket %s: %w", path, err)
	}
	return l, nil
}

// Close ends the agent at the issuer and closes its sockets. The program and what it started must have
// ended before; see Run. The folder is whoever made it's to remove.
func (s *Supervisor) Close() error {
	s.stop()
	if s.server != nil {
		s.server.Stop()
	}
	if s.streams != nil {
		s.streams.close()
	}
	for _, l := range s.listeners {
		l.close()
	}
	for _, l := range s.web {
		l.close()
	}
	for _, l := range s.raw {
		_ = l.tcp.Close()
	}
	s.tasks.Wait()
	if s.id != nil {
		s.id.Close()
	}
	return errors.Join(s.jwt.close(), s.issuer.Close())
}
