//go:build !linux

package postgres

import "net"

// isGone is known on Linux only; elsewhere the end shows at the next read.
func isGone(net.Conn) bool { return false }
