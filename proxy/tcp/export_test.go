package tcp

import (
	"net"

	"github.com/deputymesh/deputy/proxy"
)

// Relay carries bytes, and cuts both sides where one breaks.
func Relay(agent, service net.Conn) proxy.Outcome {
	return relay(&side{agent, func() bool { return false }}, whole(service), func() { cut(agent, service) })
}
