package mcpstdio_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/deputymesh/deputy/internal/mcpstdio"
)

const (
	token  = "the-token-that-only-the-proxy-has"
	asTool = "DEPUTY_TEST_TOOL_SERVER" // makes this program the local tool server
)

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		toolServer()
		return
	}
	os.Exit(m.Run())
}

type textInput struct {
	Text string `json:"text"`
}

// toolServer is go-sdk's on standard input and output.
func toolServer() {
	s := mcp.NewServer(&mcp.Implementation{Name: "local", Version: "1"}, nil)
	tool := func(name string, f func(ctx context.Context, q *mcp.CallToolRequest, text string) string) {
		mcp.AddTool(s, &mcp.Tool{Name: name}, func(ctx context.Context, q *mcp.CallToolRequest, in textInput) (*mcp.CallToolResult, any, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: f(ctx, q, in.Text)}}}, nil, nil
		})
	}
	tool("echo", func(_ context.Context, _ *mcp.CallToolRequest, text string) string {
		fmt.Fprintln(os.Stderr, "echoing "+text[:min(len(text), 32)])
		return "echo: " + text
	})
	tool("who", func(context.Context, *mcp.CallToolRequest, string) string { return fmt.Sprint(os.Getpid()) })
	tool("long", func(context.Context, *mcp.CallToolRequest, string) string { return strings.Repeat("x", 9<<20) })
	tool("die", func(context.Context, *mcp.CallToolRequest, string) string { os.Exit(3); return "" })
	tool("garbage", func(context.Context, *mcp.CallToolRequest, string) string { fmt.Println("not JSON"); return "" })
	tool("wait", func(ctx context.Context, _ *mcp.CallToolRequest, _ string) string { <-ctx.Done(); return "" })
	tool("child", func(context.Context, *mcp.CallToolRequest, string) string {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			return err.Error()
		}
		return fmt.Sprint(c.Process.Pid)
	})
	tool("progress", func(ctx context.Context, q *mcp.CallToolRequest, text string) string {
		_ = q.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: q.Params.GetProgressToken(), Progress: 1, Message: "halfway " + text})
		return "done"
	})
	tool("ask", func(ctx context.Context, q *mcp.CallToolRequest, _ string) string {
		r, err := q.Session.Elicit(ctx, &mcp.ElicitParams{Message: "who are you?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{}}})
		if err != nil {
			return err.Error()
		}
		return "asked: " + r.Action
	})
	// It asks by its result, and keeps nothing: what it needs to go on comes with the answer.
	s.AddTool(&mcp.Tool{Name: "consent", InputSchema: map[string]any{"type": "object"}}, func(_ context.Context, q *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if answer, ok := q.Params.InputResponses["who"].(*mcp.ElicitResult); ok {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "consent: " + answer.Action + ", " + q.Params.RequestState}}}, nil
		}
		var in textInput
		if err := json.Unmarshal(q.Params.Arguments, &in); err != nil {
			return nil, err
		}
		return &mcp.CallToolResult{
			RequestState:  "asked for " + in.Text,
			InputRequests: mcp.InputRequestMap{"who": &mcp.ElicitParams{Message: "who are you?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{}}}},
		}, nil
	})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		os.Exit(1)
	}
}

// shim is a Server for that tool server.
type shim struct {
	t      testing.TB
	url    string
	stderr *safeBuffer
	stop   func()
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newShim(t testing.TB, most int, command ...string) *shim {
	t.Helper()
	out := &shim{t: t, stderr: &safeBuffer{}}
	if len(command) == 0 {
		command = []string{"env", asTool + "=1", os.Args[0]}
	}
	s, err := mcpstdio.NewServer(mcpstdio.ServerConfig{Command: command, Token: token, MaxSessions: most, Stderr: out.stderr})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out.url = "http://" + l.Addr().String() + mcpstdio.Path
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	out.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the shim doesn't end")
		}
	})
	t.Cleanup(out.stop)
	return out
}

// withToken shows the proxy's token.
type withToken struct{ next http.RoundTripper }

func (w withToken) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	q.Header.Set("Authorization", "Bearer "+token)
	return w.next.RoundTrip(q)
}

var proxyClient = &http.Client{Transport: withToken{http.DefaultTransport}}

// post sends one message and gives the answer.
func (s *shim) post(session, body string) (*http.Response, string) {
	s.t.Helper()
	return s.do(http.MethodPost, session, body)
}

func (s *shim) do(method, session, body string) (*http.Response, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, s.url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	if session != "" {
		q.Header.Set("Mcp-Session-Id", session)
	}
	a, err := proxyClient.Do(q)
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return a, string(text)
}

const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}`

// begin begins a session.
func (s *shim) begin() string {
	s.t.Helper()
	a, text := s.post("", initialize)
	id := a.Header.Get("Mcp-Session-Id")
	if a.StatusCode != 200 || id == "" {
		s.t.Fatalf("%d %s", a.StatusCode, text)
	}
	if a, text := s.post(id, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); a.StatusCode != 202 {
		s.t.Fatalf("%d %s", a.StatusCode, text)
	}
	return id
}

func call(tool, text string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":%q,"arguments":{"text":%q}}}`, tool, text)
}
