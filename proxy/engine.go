package proxy

import (
	"context"
	"crypto/x509"
	"net"
)

// Engine speaks the protocol of one kind of target. It is made for one target with the core, and gets
// nothing else from the proxy.
type Engine interface {
	// Serve accepts agents on l until ctx is done, then ends every connection, waits for all it started
	// and returns nil. An error means that the listener is broken. Serve closes l.
	Serve(ctx context.Context, l net.Listener) error
}

// Peer is who is at the other end of a TLS connection.
type Peer struct {
	// Certificates as the TLS handshake presented them, leaf first. The core verifies them itself.
	Certificates []*x509.Certificate
	// Address is where the connection came from, for the record.
	Address string
	// TLS is version and cipher suite, for the record.
	TLS string
}

// Connection describes what is opened, for the record and the session.
type Connection struct {
	// Protocol is such as "postgres".
	Protocol string
	// Database is the one database of the session; every command must run in it.
	Database string
	// Account and Upstream are as whom and where to the session goes, where the engine knows already.
	Account, Upstream string
}
