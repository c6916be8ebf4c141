package sock

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// States of TCP, see tcp_states.h.
const (
	tcpClose     = 7
	tcpCloseWait = 8
)

// HasEnded says that the other end of a connection is closed, also behind bytes that nobody has read yet.
func HasEnded(conn net.Conn) bool {
	s, ok := state(conn)
	return ok && (s == tcpClose || s == tcpCloseWait)
}

// IsDead says that a connection is over in both directions: where nobody ended it on this side, it was reset.
func IsDead(conn net.Conn) bool {
	s, ok := state(conn)
	return ok && s == tcpClose
}

// state is that of the connection, below TLS; false of what is none. One that is closed here is over.
func state(conn net.Conn) (uint8, bool) {
	if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secured.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return tcpClose, true
	}
	var s uint8
	known := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if known = err == nil; known {
			s = info.State
		}
	})
	if err != nil {
		return tcpClose, true
	}
	return s, known
}
