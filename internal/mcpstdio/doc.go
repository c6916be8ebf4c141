// Package mcpstdio carries the Model Context Protocol between its two transports, for programs that know only standard input and output.
//
// [Client] is for a local client: what it writes goes to a tool server's endpoint (a run's listener) by streamable HTTP, and what comes back is written to
// it. [Server] is for a local server: each session that the proxy begins gets a process of its own, and so does each request of the stateless protocol.
//
// Neither decides anything, and neither holds a secret of the mesh: the client's side talks to the run's listener, which is for the run's processes only,
// and the server's side believes whoever shows its token, which only the proxy has. What is relayed is relayed whole: a message is one line at one
// side and one body or event at the other, its bytes unchanged but for white space between them.
//
// Specification: MCP 2025-11-25 and 2026-07-28, "Transports".
package mcpstdio
