//go:build !linux

package sock

import "net"

// HasEnded says that the other end of a connection is closed.
func HasEnded(net.Conn) bool { return false }

// IsDead says that a connection is over in both directions.
func IsDead(net.Conn) bool { return false }
