package testweb

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// ToolToken is what the tool servers demand as bearer token. Only the proxy has it.
const ToolToken = "the-tool-servers-own-token"

// Tools is a tool server (MCP) without TLS at URL/mcp. It has the tools read, which answers with the path that it got, and wipe, which counts, and customers, which answers with
// JSON; the resources memo:///public/a and memo:///secret/b; and the tool ask, which asks the agent's user.
type Tools struct {
	URL string
	// Describe changes what the tool read says of itself.
	Describe func(description string)

	mu    sync.Mutex
	wiped int      // guarded by mu, as is what follows
	seen  []string // Authorization and Mcp-Session-Id of each request
}

// Wiped is how often the tool wipe ran.
func (s *Tools) Wiped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wiped
}

// Seen is the Authorization and Mcp-Session-Id of each request.
func (s *Tools) Seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

type pathInput struct {
	Path string `json:"path"`
}

type customer struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

type found struct {
	Customers []customer `json:"customers"`
}

// StartTools starts the tool server; with sessions, or of the stateless protocol. The test's end stops it.
func StartTools(t testing.TB, stateless bool) *Tools {
	t.Helper()
	s := &Tools{}
	server := mcp.NewServer(&mcp.Implementation{Name: "tools", Version: "1"}, nil)
	say := func(text string) *mcp.CallToolResult {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}
	}
	s.Describe = func(description string) {
		mcp.AddTool(server, &mcp.Tool{Name: "read", Description: description}, func(_ context.Context, _ *mcp.CallToolRequest, in pathInput) (*mcp.CallToolResult, any, error) {
			return say("read " + in.Path), nil, nil
		})
	}
	s.Describe("reads a file")
	mcp.AddTool(server, &mcp.Tool{Name: "wipe", Description: "wipes a file"}, func(context.Context, *mcp.CallToolRequest, pathInput) (*mcp.CallToolResult, any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wiped++
		return say("wiped"), nil, nil
	})
	mcp.AddTool(server, &mcp.Tool{Name: "customers", Description: "finds customers"}, func(context.Context, *mcp.CallToolRequest, pathInput) (*mcp.CallToolResult, found, error) {
		return nil, found{[]customer{{"Ada", "ada@example.com"}}}, nil
	})
	mcp.AddTool(server, &mcp.Tool{Name: "ask", Description: "asks the user"}, func(ctx context.Context, q *mcp.CallToolRequest, _ pathInput) (*mcp.CallToolResult, any, error) {
		r, err := q.Session.Elicit(ctx, &mcp.ElicitParams{Message: "your password?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{}}})
		if err != nil {
			return say(fmt.Sprintf("asked: %v", err)), nil, nil
		}
		return say("asked: " + r.Action), nil, nil
	})
	for _, name := range []string{"public/a", "secret/b"} {
		server.AddResource(&mcp.Resource{Name: name, URI: "memo:///" + name}, func(_ context.Context, q *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
			return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: q.Params.URI, Text: "memo"}}}, nil
		})
	}
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{Stateless: stateless})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Header.Get("Authorization")+" "+r.Header.Get("Mcp-Session-Id"))
		s.mu.Unlock()
		if r.URL.Path != "/mcp" || !strings.HasSuffix(r.Header.Get("Authorization"), ToolToken) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})}
	go func() { _ = web.Serve(l) }()
	t.Cleanup(func() { _ = web.Close() })
	s.URL = "http://" + l.Addr().String()
	return s
}
