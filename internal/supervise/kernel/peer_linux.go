package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Held is a process that can't be mistaken for a later one with the same id, however fast that came: start times have
// hundredths of a second, a pidfd is that very process. Close it.
type Held struct {
	Process
	pidfd *os.File
}

// Hold holds the process that has an id now.
func Hold(pid int) (*Held, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("holding process %d: %w", pid, err)
	}
	return hold(pid, fd)
}

// hold takes the pidfd over.
func hold(pid, fd int) (*Held, error) {
	h := &Held{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	err := h.find(pid)
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Held) find(pid int) (err error) {
	if h.Process, err = Find(pid); err != nil {
		return err
	}
	// The descriptor still shows the id only while that very process lives, so the start time read
	// above is its own.
	shown, err := pidOf(int(h.pidfd.Fd()))
	if err != nil {
		return err
	}
	if shown != pid {
		return ErrGone
	}
	return h.Alive()
}

// Alive returns [ErrGone] once the process has ended.
func (h *Held) Alive() error {
	fds := []unix.PollFd{{Fd: int32(h.pidfd.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("looking after process %d: %w", h.PID, err)
		case n > 0:
			return ErrGone
		default:
			return nil
		}
	}
}

// Close lets go of the process.
func (h *Held) Close() { _ = h.pidfd.Close() }

// Peer is the process that opened a connection, as the kernel saw it then. Close it with the connection.
type Peer struct {
	*Held
	UID, GID uint32
}

// PeerOf asks the kernel who opened a Unix socket connection. With SO_PEERPIDFD (Linux 6.5) the answer
// can't be about a process that took over the id in the meantime; before, the start time is read twice.
func PeerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("asking who the caller is: %w", err)
	}
	var p Peer
	var inner error
	if err := raw.Control(func(fd uintptr) { p, inner = peerOf(int(fd)) }); err != nil {
		return Peer{}, fmt.Errorf("asking who the caller is: %w", err)
	}
	if inner != nil {
		return Peer{}, fmt.Errorf("asking who the caller is: %w", inner)
	}
	return p, nil
}

func peerOf(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EINVAL) {
		if pidfd, err = unix.PidfdOpen(int(cred.Pid), 0); err != nil {
			return Peer{}, ErrGone
		}
	}
	if err != nil {
		return Peer{}, err
	}
	unix.CloseOnExec(pidfd)
	held, err := hold(int(cred.Pid), pidfd)
	if err != nil {
		return Peer{}, err
	}
	return Peer{Held: held, UID: cred.Uid, GID: cred.Gid}, nil
}

func pidOf(pidfd int) (int, error) {
	raw, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(raw) {
		if v, ok := bytes.CutPrefix(line, []byte("Pid:")); ok {
			pid, err := strconv.Atoi(string(bytes.TrimSpace(v)))
			if err != nil {
				return 0, err
			}
			if pid <= 0 {
				return 0, ErrGone
			}
			return pid, nil
		}
	}
	return 0, errors.New("no process in the descriptor's information")
}

// Credentials are gRPC server credentials for Unix sockets: a connection whose caller the kernel can't
// name is closed. Handlers ask [CallerOf].
func Credentials() credentials.TransportCredentials { return transport{} }

type callerInfo struct {
	credentials.CommonAuthInfo
	peer Peer
}

func (callerInfo) AuthType() string { return "kernel" }

// CallerOf is the process that opened the connection of a gRPC call.
func CallerOf(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, errors.New("the call has no peer")
	}
	info, ok := p.AuthInfo.(callerInfo)
	if !ok {
		return Peer{}, errors.New("the call did not arrive on a Unix socket that the kernel vouches for")
	}
	return info.peer, nil
}

type transport struct{}

func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers")
}

func (transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("a %s connection has no kernel-vouched caller", c.LocalAddr().Network())
	}
	p, err := PeerOf(uc)
	if err != nil {
		return nil, nil, err
	}
	return &heldConn{Conn: c, peer: p}, callerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p}, nil
}

// heldConn lets go of its peer when it is closed.
type heldConn struct {
	net.Conn
	peer Peer
	once sync.Once
}

func (h *heldConn) Close() error {
	defer h.once.Do(h.peer.Close)
	return h.Conn.Close()
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "kernel"}
}
func (t transport) Clone() credentials.TransportCredentials { return t }
func (transport) OverrideServerName(string) error           { return nil }
