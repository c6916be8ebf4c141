// Package mcpd is the engine for tool servers: the Model Context Protocol over streamable HTTP, with sessions (up to 2025-11-25) and
// without (2026-07-28).
//
// An agent connects with its SVID and gives its credential as the bearer token of each request. Each POST holds one JSON-RPC message, which
// is parsed strictly, decided by method, tool and arguments, resource or prompt, recorded, and sent on byte for byte under an account of the
// proxy's own. What the server answers is parsed, too: lists are cut to what may be used, and what the server asks of the agent is
// decided like any other action.
//
// Begin with [Engine.ServeHTTP]; methods.go says what is decided, answer.go what is done to answers. docs/targets/mcp.md is for people.
package mcpd
