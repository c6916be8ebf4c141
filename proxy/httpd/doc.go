// Package httpd is the engine for web services: HTTP/1.1 and HTTP/2, gRPC, WebSockets, event streams.
//
// An agent connects with its SVID and gives its credential as the bearer token of each request (RFC 6750). Each request is brought into one
// canonical form, decided by method, path and the keys of its query, recorded, and sent on in that form under an account of the
// proxy's own. A target is one origin: neither host nor scheme is the agent's choice.
//
// Begin with [Engine.ServeHTTP]; request.go says what is decided. Connections, sessions, refusals and the headers that are taken away are in
// proxy/internal/hop.
package httpd
