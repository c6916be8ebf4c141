// Package streams carries what leaves HTTP between an agent and a Kubernetes API server: exec, attach and port-forward.
//
// Both ends speak the same protocol, one of three: channels in messages of a WebSocket (v4.channel.k8s.io, v5.channel.k8s.io), streams of
// SPDY/3.1 (v1 to v4 of channel.k8s.io, portforward.k8s.io), and SPDY inside a WebSocket (SPDY/3.1+portforward.k8s.io). No byte passes
// unread: each message and frame is parsed within limits, judged, and written anew, so that neither end reads anything but what was judged.
//
// Invariants: nothing of a recorded command passes before it is kept; no connection is forwarded to a port before it is allowed; only the
// agent opens streams, and only those of its command; what a peer may not say ends the stream, at both ends. The specification is
// Kubernetes' own client and server (k8s.io/streaming, k8s.io/client-go/tools/remotecommand and portforward), and SPDY's draft 3.1.
package streams
