package attest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// DefaultConnectionsPerUID bounds how many connections the processes of one uid may hold at once, so that none can
// use up the role's file descriptors.
const DefaultConnectionsPerUID = 512

// DefaultConnections bounds all connections together, root's too: each takes two descriptors, and a role without any left can't
// write its log. A process that may open fewer gets a share of those.
const DefaultConnections = 4096

// Peer is the process that opened a connection, and the effective ids it had then.
type Peer struct {
	Process  *Process
	UID, GID uint32
}

// AuthInfo is what a connection carries, see [PeerFrom].
type AuthInfo struct {
	credentials.CommonAuthInfo
	Peer *Peer
}

// AuthType names the kind of authentication.
func (AuthInfo) AuthType() string { return "unix-peer" }

// PeerFrom returns the peer of a gRPC call that came in through [Credentials]. It is valid until the connection ends.
func PeerFrom(ctx context.Context) (*Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the call carries no peer")
	}
	info, ok := p.AuthInfo.(AuthInfo)
	if !ok || info.Peer == nil {
		return nil, errors.New("the peer wasn't identified by the kernel")
	}
	return info.Peer, nil
}

// Credentials are gRPC transport credentials for the server's side of a Unix socket: nothing is exchanged,
// the kernel says who is there.
type Credentials struct {
	// IgnorePeerPidfd behaves as on a kernel before 6.5: no peer is Exact.
	IgnorePeerPidfd bool
	// ConnectionsPerUID is DefaultConnectionsPerUID when zero. Root isn't limited by itself.
	ConnectionsPerUID int
	// Agents says whether a uid is one of isolated agents: each of them has its own, so all of them together hold at most
	// three quarters of the connections, and the rest stays for roles, users and root.
	Agents func(uid uint32) bool

	counts *counts
}

// NewCredentials makes credentials for one server.
func NewCredentials() *Credentials {
	most := DefaultConnections
	if limit := descriptors(); limit > 0 {
		most = int(min(uint64(most), limit/3))
	}
	return &Credentials{counts: &counts{n: map[uint32]int{}, most: most}}
}

type counts struct {
	most int // of all together

	mu     sync.Mutex
	n      map[uint32]int // guarded by mu
	total  int            // guarded by mu
	agents int            // of agents; guarded by mu
}

func (c *counts) take(uid uint32, limit int, agent bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= c.most || uid != 0 && c.n[uid] >= limit || agent && c.agents >= c.most*3/4 {
		return false
	}
	c.n[uid]++
	c.total++
	if agent {
		c.agents++
	}
	return true
}

func (c *counts) give(uid uint32, agent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if agent {
		c.agents--
	}
	if c.n[uid]--; c.n[uid] <= 0 {
		delete(c.n, uid)
	}
}

// ServerHandshake identifies the peer, or refuses the connection.
func (c *Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("identifying the peer: %T is no Unix socket", conn)
	}
	p, err := identify(uc, c.IgnorePeerPidfd)
	if err != nil {
		return nil, nil, err
	}
	limit := c.ConnectionsPerUID
	if limit == 0 {
		limit = DefaultConnectionsPerUID
	}
	agent := c.Agents != nil && c.Agents(p.UID)
	if !c.counts.take(p.UID, limit, agent) {
		p.Process.Close()
		return nil, nil, fmt.Errorf("uid %d holds %d connections already, all together %d, or all agents three quarters of that", p.UID, limit, c.counts.most)
	}
	held := &heldConn{Conn: conn, release: sync.OnceFunc(func() {
		p.Process.Close()
		c.counts.give(p.UID, agent)
	})}
	return held, AuthInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p}, nil
}

func identify(uc *net.UnixConn, ignorePeerPidfd bool) (*Peer, error) {
	cred, pidfd, exact, err := peerOf(uc, ignorePeerPidfd)
	if err != nil {
		return nil, fmt.Errorf("identifying the peer: %w", err)
	}
	proc, err := hold(int(cred.Pid), pidfd, exact)
	if err != nil {
		return nil, fmt.Errorf("identifying the peer: %w", err)
	}
	return &Peer{Process: proc, UID: cred.Uid, GID: cred.Gid}, nil
}

// heldConn lets go of the peer's process when the connection ends.
type heldConn struct {
	net.Conn
	release func()
}

func (h *heldConn) Close() error {
	defer h.release()
	return h.Conn.Close()
}

// ClientHandshake is refused: these credentials are a server's.
func (c *Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for the server's side of a Unix socket")
}

// Info describes the credentials.
func (c *Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

// Clone returns credentials that count connections together with c.
func (c *Credentials) Clone() credentials.TransportCredentials {
	d := *c
	return &d
}

// OverrideServerName does nothing: there is no name.
func (c *Credentials) OverrideServerName(string) error { return nil }
