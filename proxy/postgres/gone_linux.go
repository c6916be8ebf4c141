package postgres

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// States of TCP in which the other end has closed, see tcp_states.h.
const (
	tcpClose     = 7
	tcpCloseWait = 8
)

// isGone says that the other end of a connection is closed, also behind bytes that nobody has read yet.
func isGone(conn net.Conn) bool {
	if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secured.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		gone = err == nil && (info.State == tcpClose || info.State == tcpCloseWait)
	})
	return gone || err != nil
}
