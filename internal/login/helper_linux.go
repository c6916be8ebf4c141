package login

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/supervise/kernel"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// SessionLife is how long after the sign-in the helper signs, at most. The broker has a limit of its own.
const SessionLife = 12 * time.Hour

const (
	maxMessageBytes = 1 << 20
	maxHeaderBytes  = 8 << 10
	maxTasks        = 10000
)

// Config is what a helper needs.
type Config struct {
	Provider    Provider
	Mesh        string
	TrustDomain spiffeid.TrustDomain
	// Issuer answers Locate.
	Issuer spawnv1.SpawnClient
	// Session is the login session: only its descendants are served, and the helper ends with it.
	Session kernel.Process
	// Socket is where the helper serves; its folder must be 0700.
	Socket string
	Now    func() time.Time
}

// Helper holds a signed-in user's key.
type Helper struct {
	sessionv1.UnimplementedSessionServer
	cfg      Config
	key      *ecdsa.PrivateKey
	signedIn *SignedIn
	ends     time.Time
	stop     chan struct{}
	stopOnce sync.Once

	mu    sync.Mutex
	tasks map[string]actor.UserGrant // guarded by mu; by txn
}

// New makes the key and signs the user in; show is called with the URL to open.
func New(ctx context.Context, cfg Config, show func(url string)) (*Helper, error) {
	if err := kernel.Guard(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the login key: %w", err)
	}
	s, err := SignIn(ctx, cfg.Provider, key, show)
	if err != nil {
		return nil, err
	}
	return &Helper{cfg: cfg, key: key, signedIn: s, ends: s.AuthTime.Add(SessionLife), stop: make(chan struct{}), tasks: make(map[string]actor.UserGrant)}, nil
}

// SignedIn is who signed in.
func (h *Helper) SignedIn() *SignedIn { return h.signedIn }

// Listen opens the helper's socket. A helper that serves there already is an error; one that was killed
// leaves a dead socket, which is replaced.
func (h *Helper) Listen(ctx context.Context) (*net.UnixListener, error) {
	if err := PrepareSocketDir(filepath.Dir(h.cfg.Socket)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if c, err := (&net.Dialer{}).DialContext(ctx, "unix", h.cfg.Socket); err == nil {
		c.Close()
		return nil, fmt.Errorf("somebody is signed in already (%s); run `deputy logout` first", h.cfg.Socket)
	}
	if err := os.Remove(h.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing a dead socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.cfg.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the session helper's socket: %w", err)
	}
	if err := os.Chmod(h.cfg.Socket, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("opening the session helper's socket: %w", err)
	}
	return l, nil
}

// PrepareSocketDir makes a folder of this uid's own that nobody else can enter or write to. A folder that
// is there already and lets others pass, like a launcher's, is taken only if it lets nobody write.
func PrepareSocketDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the session helper's folder: %w", err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("making the session helper's folder: %w", err)
	}
	if !st.IsDir() || int(st.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a folder of uid %d", dir, os.Geteuid())
	}
	if st.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("closing the session helper's folder: %w", err)
		}
	}
	return nil
}

// Serve serves until ctx is done, the user logs out, the session's time is over or the login session
// has ended.
func (h *Helper) Serve(ctx context.Context, l *net.UnixListener) error {
	srv := grpc.NewServer(grpc.Creds(kernel.Credentials()), grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxHeaderListSize(maxHeaderBytes), grpc.MaxConcurrentStreams(64),
		grpc.ConnectionTimeout(10*time.Second), grpc.UnaryInterceptor(h.guard))
	sessionv1.RegisterSessionServer(srv, h)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	defer srv.Stop()
	gone, stopWatching, err := watch(h.cfg.Session)
	if err != nil {
		return err
	}
	defer stopWatching()
	over := time.NewTimer(h.ends.Sub(h.cfg.Now()))
	defer over.Stop()
	select {
	case <-ctx.Done():
	case <-over.C:
	case <-gone:
	case <-h.stop:
		srv.GracefulStop()
	case err := <-failed:
		return fmt.Errorf("serving the session helper's socket: %w", err)
	}
	return nil
}

// watch says when a process has ended, by its pidfd.
func watch(p kernel.Process) (<-chan struct{}, func(), error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("watching the login session: %w", err)
	}
	if err := p.Check(); err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("the login session: %w", err)
	}
	gone, quit, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 500)
			if err != nil && err != unix.EINTR {
				close(gone) // can't watch any more: closed when in doubt
				return
			}
			if n > 0 {
				close(gone)
				return
			}
		}
	}()
	return gone, func() { close(quit); <-done; unix.Close(fd) }, nil
}

// guard lets in processes of this uid that descend from the login session and are outside every agent.
func (h *Helper) guard(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	caller, err := kernel.CallerOf(ctx)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if err := h.admit(ctx, caller); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (h *Helper) admit(ctx context.Context, caller kernel.Peer) error {
	if int(caller.UID) != os.Getuid() {
		return status.Errorf(codes.PermissionDenied, "process %d runs under uid %d; this sign-in is uid %d's", caller.PID, caller.UID, os.Getuid())
	}
	inside, err := caller.DescendsFrom(h.cfg.Session)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "process %d can't be placed: %v", caller.PID, err)
	}
	if !inside {
		return status.Errorf(codes.PermissionDenied, "process %d is not part of the session that ran `deputy login`; sign in in this one", caller.PID)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	where, err := h.cfg.Issuer.Locate(ctx, &spawnv1.LocateRequest{Pid: int32(caller.PID), StartTime: caller.StartTime})
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "the issuer can't say whether process %d is inside an agent: %s", caller.PID, status.Convert(err).Message())
	}
	if where.GetAgentId() != "" {
		return status.Errorf(codes.PermissionDenied, "process %d is inside the agent %s; agents can't use the user's sign-in", caller.PID, where.GetAgentId())
	}
	if err := h.unmarked(caller.Process); err != nil {
		return status.Errorf(codes.PermissionDenied, "process %d: %v", caller.PID, err)
	}
	if err := caller.Alive(); err != nil {
		return status.Errorf(codes.PermissionDenied, "process %d: %v", caller.PID, err)
	}
	return nil
}

// unmarked refuses what an agent started. The issuer places processes by their ancestors: where the login session adopts
// orphans, as the first process of a container does, those of a killed supervisor look like the user's own.
func (h *Helper) unmarked(caller kernel.Process) error {
	session, err := h.cfg.Session.Restraints()
	if err != nil {
		return fmt.Errorf("the login session: %w", err)
	}
	own, err := caller.Restraints()
	if err != nil {
		return err
	}
	if own.MoreThan(session) {
		return errors.New("an agent started it, or a sandbox that the login session isn't in; neither can use the user's sign-in")
	}
	return nil
}

// Describe says who is signed in.
func (h *Helper) Describe(context.Context, *sessionv1.DescribeRequest) (*sessionv1.DescribeResponse, error) {
	s := h.signedIn
	return &sessionv1.DescribeResponse{
		Issuer: s.Subject.Issuer, Subject: s.Subject.Subject, Display: s.Display, AuthTime: timestamppb.New(s.AuthTime),
		ExpiresAt: timestamppb.New(h.ends), IdTokenExpiresAt: timestamppb.New(s.Expires), Mesh: h.cfg.Mesh,
	}, nil
}

// End forgets the key.
func (h *Helper) End(context.Context, *sessionv1.EndRequest) (*sessionv1.EndResponse, error) {
	h.stopOnce.Do(func() { close(h.stop) })
	return &sessionv1.EndResponse{}, nil
}

// Who is the signed-in user, for people.
func (h *Helper) Who() Who {
	s := h.signedIn
	return Who{Issuer: s.Subject.Issuer, Subject: s.Subject.Subject, Display: s.Display, Ends: h.ends}
}
