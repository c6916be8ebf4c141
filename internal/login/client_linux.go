package login

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
)

// ErrNotSignedIn is returned where no helper serves the caller's session.
var ErrNotSignedIn = errors.New("nobody is signed in in this session; run `deputy login`")

// SocketFor is where the helper of a login session serves, below a runtime folder.
func SocketFor(runtimeDir string, session kernel.Process) string {
	return filepath.Join(runtimeDir, "session", fmt.Sprintf("%d-%d.sock", session.PID, session.StartTime))
}

// Dial finds the helper of the nearest login session that this process descends from.
func Dial(ctx context.Context, runtimeDir string) (*grpc.ClientConn, sessionv1.SessionClient, error) {
	if err := ownFolder(runtimeDir); err != nil {
		return nil, nil, err
	}
	at, err := kernel.Self()
	if err != nil {
		return nil, nil, err
	}
	for range 1024 {
		socket := SocketFor(runtimeDir, at)
		if _, err := os.Lstat(socket); err == nil {
			conn, rpc, err := dial(ctx, socket)
			if err == nil || !errors.Is(err, ErrNotSignedIn) {
				return conn, rpc, err
			}
		}
		if at.PID <= 1 {
			break
		}
		if at, err = at.Parent(); err != nil {
			break
		}
	}
	return nil, nil, ErrNotSignedIn
}

// ownFolder refuses a runtime folder that somebody else made, or can write to: what serves there could be
// anybody. One that isn't there has no helper.
func ownFolder(dir string) error {
	st, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return ErrNotSignedIn
	}
	if err != nil {
		return fmt.Errorf("looking at the runtime folder: %w", err)
	}
	if !st.IsDir() || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("runtime folder %s: it must be a folder that nobody else can write to", dir)
	}
	if owner := st.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return fmt.Errorf("%w: the runtime folder %s is uid %d's", ErrNotSignedIn, dir, owner)
	}
	return nil
}

func dial(ctx context.Context, socket string) (*grpc.ClientConn, sessionv1.SessionClient, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		return nil, nil, err
	}
	rpc := sessionv1.NewSessionClient(conn)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := rpc.Describe(ctx, &sessionv1.DescribeRequest{}); err != nil {
		conn.Close()
		if status.Code(err) == codes.Unavailable {
			return nil, nil, ErrNotSignedIn
		}
		return nil, nil, fmt.Errorf("the session helper: %s", status.Convert(err).Message())
	}
	return conn, rpc, nil
}

// Report is what a helper tells the process that started it, one JSON object a line.
type Report struct {
	// URL is to be opened by the user.
	URL string `json:"url,omitempty"`
	// SignedIn is said once the helper serves.
	SignedIn *Who   `json:"signed_in,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Who is a signed-in user, for people.
type Who struct {
	Issuer  string    `json:"issuer"`
	Subject string    `json:"subject"`
	Display string    `json:"display"`
	Ends    time.Time `json:"ends"`
}

func (w Who) String() string {
	name := w.Display
	if name == "" {
		name = w.Subject
	}
	return fmt.Sprintf("%s (%s at %s)", clean(name), clean(w.Subject), clean(w.Issuer))
}

func clean(s string) string { return strings.TrimSpace(short(s)) }
