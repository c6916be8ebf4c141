// Package tokenapi is the broker's HTTP service for agents, on the mesh listener: token exchange (RFC
// 8693), revocation (RFC 7009) and the key set.
//
//   - Who calls is who the TLS connection says, never a parameter. Only identities under /agent/ exchange.
//   - A token leaves after the session is durable in the store and the exchange in the log, and only if
//     nothing of its chain was revoked meanwhile.
//   - The broker adds no hop: the actors are those of the grants and the peer, or there is no token.
//
// Parameters that RFC 6749 says to ignore are ignored; the known ones may not come twice.
package tokenapi
