package mcpd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

// seen is what a server got.
type seen struct {
	mu      sync.Mutex
	bodies  []string
	headers []http.Header
	methods []string
}

func (s *seen) ServeWith(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.bodies, s.headers = append(s.bodies, string(body)), append(s.headers, r.Header.Clone())
		s.methods = append(s.methods, r.Method)
		s.mu.Unlock()
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		next.ServeHTTP(w, r)
	})
}

func (s *seen) got(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.bodies, func(b string) bool { return strings.Contains(b, text) })
}

type echoInput struct {
	Text string `json:"text"`
}

// toolServer is go-sdk's server, with two tools, two resources and two prompts.
func toolServer() *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "tools", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "says <it> again"}, func(_ context.Context, _ *mcp.CallToolRequest, in echoInput) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "echo: " + in.Text}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "wipe", Description: "wipes"}, func(context.Context, *mcp.CallToolRequest, echoInput) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "wiped"}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "ask", Description: "asks the user"}, func(ctx context.Context, q *mcp.CallToolRequest, _ echoInput) (*mcp.CallToolResult, any, error) {
		r, err := q.Session.Elicit(ctx, &mcp.ElicitParams{Message: "the secret plan?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{}}})
		text := fmt.Sprintf("asked: %v", err)
		if err == nil {
			text = "asked: " + r.Action
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil, nil
	})
	read := func(_ context.Context, q *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: q.Params.URI, Text: "text of " + q.Params.URI}}}, nil
	}
	for _, name := range []string{"public/a", "secret/b"} {
		s.AddResource(&mcp.Resource{Name: name, URI: "memo:///" + name}, read)
	}
	for _, name := range []string{"review", "attack"} {
		s.AddPrompt(&mcp.Prompt{Name: name}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{Text: name}}}}, nil
		})
	}
	return s
}

// era is a server of one era of the protocol, at /up.
func era(stateless, plain bool) http.Handler {
	s := toolServer()
	mux := http.NewServeMux()
	mux.Handle("/up", mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{
		Stateless: stateless, JSONResponse: plain, DisableLocalhostProtection: true,
	}))
	return mux
}

// some allows what agents of these tests may do: not the tool wipe, nothing secret, no attack.
func some(cmd proxy.Command) bool {
	return !slices.ContainsFunc(cmd.Ops, func(op proxy.Op) bool {
		a := op.Action.(actor.MCPAction)
		return a.Object == "wipe" || a.Object == "attack" || strings.HasPrefix(a.Object, "memo:///secret") || a.Verb == "sampling" || a.Verb == "elicitation"
	})
}

func (r *rig) connect(version string, options *mcp.ClientOptions) *mcp.ClientSession {
	r.t.Helper()
	c := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, options)
	s, err := c.Connect(r.t.Context(), &mcp.StreamableClientTransport{Endpoint: "https://" + r.address + mcpd.Path, HTTPClient: r.client}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

func textOf(r *mcp.CallToolResult) string { return r.Content[0].(*mcp.TextContent).Text }

// An unmodified client works through the engine in both eras, with JSON and with streams; it sees what it may use, and can't use the rest.
func TestClientsUseWhatTheyMay(t *testing.T) {
	for _, c := range []struct {
		name, version    string
		stateless, plain bool
	}{
		{"sessions", "2025-11-25", false, false}, {"sessions, JSON", "2025-06-18", false, true}, {"stateless", "2026-07-28", true, false}, {"stateless, JSON", "2026-07-28", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := &seen{}
			r := newRig(t, up.ServeWith(era(c.stateless, c.plain)))
			r.Set(func() { r.Allow = some })
			s := r.connect(c.version, nil)
			ctx := t.Context()
			if got := s.InitializeResult().ProtocolVersion; got != c.version {
				t.Fatalf("version %s", got)
			}
			tools, err := s.ListTools(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, tool := range tools.Tools {
				names = append(names, tool.Name)
			}
			if !slices.Equal(names, []string{"ask", "echo"}) || tools.Tools[1].Description != "says <it> again" {
				t.Errorf("tools %v", names)
			}
			if c.stateless && tools.CacheScope != "private" {
				t.Errorf("cacheScope %q", tools.CacheScope)
			}
			resources, err := s.ListResources(ctx, nil)
			if err != nil || len(resources.Resources) != 1 || resources.Resources[0].URI != "memo:///public/a" {
				t.Errorf("resources %v %v", resources, err)
			}
			prompts, err := s.ListPrompts(ctx, nil)
			if err != nil || len(prompts.Prompts) != 1 || prompts.Prompts[0].Name != "review" {
				t.Errorf("prompts %v %v", prompts, err)
			}
			call, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "hello"}})
			if err != nil || textOf(call) != "echo: hello" {
				t.Fatalf("%v %v", call, err)
			}
			decided := r.Await(t, "decided", "tools/call echo(text)")
			if op := decided.Cmd.Ops[0]; op.Action.Name() != "mcp:call" || op.Resource.Name != "echo" || op.Resource.Arguments != `{"text":"hello"}` || !strings.Contains(decided.Cmd.Text, "hello") {
				t.Errorf("decided %+v", decided.Cmd)
			}
			if out := r.Await(t, "completed", "tools/call echo").Out; out.Status != "ok" || out.Code != "200" || out.Bytes == 0 {
				t.Errorf("outcome %+v", out)
			}
			if got, err := s.ReadResource(ctx, &mcp.ReadResourceParams{URI: "memo:///public/a"}); err != nil || got.Contents[0].Text != "text of memo:///public/a" {
				t.Errorf("%v %v", got, err)
			}
			if _, err := s.GetPrompt(ctx, &mcp.GetPromptParams{Name: "review"}); err != nil {
				t.Error(err)
			}
			for name, err := range map[string]error{
				"wipe":             second(s.CallTool(ctx, &mcp.CallToolParams{Name: "wipe", Arguments: map[string]any{"text": "all"}})),
				"memo:///secret/b": second(s.ReadResource(ctx, &mcp.ReadResourceParams{URI: "memo:///secret/b"})),
				"attack":           second(s.GetPrompt(ctx, &mcp.GetPromptParams{Name: "attack"})),
			} {
				if err == nil || !strings.Contains(err.Error(), "rec-refused") || up.got(`"`+name+`"`) {
					t.Errorf("%s: %v", name, err)
				}
			}
			// The session outlives refusals.
			if call, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "again"}}); err != nil || textOf(call) != "echo: again" {
				t.Errorf("%v %v", call, err)
			}
			up.mu.Lock()
			defer up.mu.Unlock()
			for _, h := range up.headers {
				if h.Get("Authorization") != "Bearer the-services-own-secret" || h.Get("Deputy-Chain") == "" {
					t.Errorf("the server got %v", h)
				}
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// What a server asks of an agent is decided: refused, the agent hears nothing of it, and the server hears that it was refused.
func TestServersAskOnlyWhatTheyMay(t *testing.T) {
	asked := 0
	options := &mcp.ClientOptions{ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
		asked++
		return &mcp.ElicitResult{Action: "decline"}, nil
	}}
	r := newRig(t, era(false, false))
	r.Set(func() { r.Allow = some })
	s := r.connect("2025-11-25", options)
	call, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "ask", Arguments: map[string]any{"text": "x"}})
	if err != nil || !strings.Contains(textOf(call), "refused") || strings.Contains(textOf(call), "rec-") || asked != 0 {
		t.Errorf("asked %d times: %v %v", asked, call, err)
	}
	if e := r.Await(t, "refused", "elicitation/create"); e.Cmd.Ops[0].Action.Name() != "mcp:elicitation" {
		t.Errorf("%+v", e)
	}
	r.Set(func() { r.Allow = func(proxy.Command) bool { return true } })
	call, err = s.CallTool(t.Context(), &mcp.CallToolParams{Name: "ask", Arguments: map[string]any{"text": "x"}})
	if err != nil || textOf(call) != "asked: decline" || asked != 1 {
		t.Errorf("asked %d times: %v %v", asked, call, err)
	}
	r.Await(t, "completed", "answer to elicitation/create")
}

const begin = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}`

// A session's id is the proxy's own, and good for the chain that began it alone.
func TestASessionIsItsChainsOwn(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(era(false, true)))
	a, _ := r.post(begin)
	id := a.Header.Get("Mcp-Session-Id")
	if id == "" {
		t.Fatal("no session")
	}
	ping := `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`
	if a, body := r.post(ping, "Mcp-Session-Id", id); a.StatusCode != 200 || !strings.Contains(body, `"echo"`) {
		t.Fatalf("%d %s", a.StatusCode, body)
	}
	up.mu.Lock()
	theirs := up.headers[len(up.headers)-1].Get("Mcp-Session-Id")
	up.mu.Unlock()
	if theirs == "" || theirs == id {
		t.Errorf("the server's id is %q, the agent's %q", theirs, id)
	}
	before := len(up.bodies)
	for name, c := range map[string]*http.Client{id: r.clientOf(otherID), theirs: r.client, "made up": r.client} {
		for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
			body := ping
			if method != http.MethodPost {
				body = ""
			}
			if a, text := r.send(c, method, mcpd.Path, body, "Mcp-Session-Id", name); a.StatusCode != 404 || !strings.Contains(text, "rec-refused") {
				t.Errorf("%s with %q: %d %s", method, name, a.StatusCode, text)
			}
		}
	}
	if len(up.bodies) != before {
		t.Error("one reached the server")
	}
	// Another connection of the same agent is the same chain.
	if a, body := r.send(r.clientOf(agentID), http.MethodPost, mcpd.Path, ping, "Mcp-Session-Id", id); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, body)
	}
	if a, _ := r.send(r.client, http.MethodDelete, mcpd.Path, "", "Mcp-Session-Id", id); a.StatusCode >= 300 {
		t.Errorf("ending it: %d", a.StatusCode)
	}
	if a, _ := r.post(ping, "Mcp-Session-Id", id); a.StatusCode != 404 {
		t.Errorf("after its end: %d", a.StatusCode)
	}
}

// A session that is revoked ends its calls and streams.
func TestARevokedCallEnds(t *testing.T) {
	begun, gone := make(chan struct{}), make(chan struct{})
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-q.Context().Done()
		close(gone)
	}))
	ended := make(chan error, 1)
	go func() {
		q, _ := http.NewRequest(http.MethodPost, "https://"+r.address+mcpd.Path, strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}`))
		q.Header.Set("Content-Type", "application/json")
		a, err := r.client.Do(q)
		if err == nil {
			_, err = io.ReadAll(a.Body)
			_ = a.Body.Close()
			if a.StatusCode == http.StatusUnauthorized { // it came before the stream's beginning
				err = errors.New(a.Status)
			}
		}
		ended <- err
	}()
	<-begun
	r.Last().Revoke()
	for _, c := range []func() bool{
		func() bool {
			select {
			case <-gone:
				return true
			case <-time.After(10 * time.Second):
				return false
			}
		},
		func() bool {
			select {
			case err := <-ended:
				return err != nil
			case <-time.After(10 * time.Second):
				return false
			}
		},
	} {
		if !c() {
			t.Error("it goes on")
		}
	}
	if out := r.Await(t, "completed", "tools/call").Out; out.Status == "ok" {
		t.Errorf("%+v", out)
	}
}
