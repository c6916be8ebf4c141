package mcpstdio_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/deputymesh/deputy/internal/mcpstdio"
)

func accept(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
	return &mcp.ElicitResult{Action: "decline"}, nil
}

func textOf(t *testing.T, s *mcp.ClientSession, tool, text string) string {
	t.Helper()
	r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: map[string]any{"text": text}})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	return r.Content[0].(*mcp.TextContent).Text
}

func who(t *testing.T, s *mcp.ClientSession) string { t.Helper(); return textOf(t, s, "who", "") }

// use does what clients do.
func use(t *testing.T, s *mcp.ClientSession) {
	t.Helper()
	tools, err := s.ListTools(t.Context(), nil)
	if err != nil || len(tools.Tools) < 5 {
		t.Fatalf("%+v %v", tools, err)
	}
	for tool, want := range map[string]string{"echo": "echo: hello", "ask": "asked: decline"} {
		if got := textOf(t, s, tool, "hello"); got != want {
			t.Errorf("%s: %q", tool, got)
		}
	}
	if got := textOf(t, s, "echo", strings.Repeat("é\n", 1<<17)); len(got) != len("echo: ")+3<<17 {
		t.Errorf("a long text came back with %d bytes", len(got))
	}
	var at sync.WaitGroup
	for range 20 {
		at.Go(func() {
			if r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "x"}}); err != nil || r.IsError {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	at.Wait()
}

// shimmed is a client of standard input and output through a Client.
func shimmed(t *testing.T, endpoint, version string, options *mcp.ClientOptions) *mcp.ClientSession {
	t.Helper()
	toShim, fromClient := io.Pipe()
	fromShim, toClient := io.Pipe()
	served := make(chan error, 1)
	relay := &mcpstdio.Client{Endpoint: endpoint, HTTP: proxyClient}
	go func() {
		err := relay.Serve(context.Background(), toShim, toClient)
		_ = toClient.Close()
		served <- err
	}()
	c := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, options)
	s, err := c.Connect(t.Context(), &mcp.IOTransport{Reader: fromShim, Writer: fromClient, MaxLineLength: 16 << 20}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the relay doesn't end")
		}
	})
	return s
}

// A client on standard input and output uses a server on standard input and output, with HTTP in between.
func TestLocalClientsUseServersOverHTTP(t *testing.T) {
	s := newShim(t, 0)
	progress := make(chan string, 10)
	session := shimmed(t, s.url, "2025-11-25", &mcp.ClientOptions{ElicitationHandler: accept, ProgressNotificationHandler: func(_ context.Context, q *mcp.ProgressNotificationClientRequest) {
		progress <- q.Params.Message
	}})
	use(t, session)
	q := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"text": "there"}}
	q.SetProgressToken("p1")
	if _, err := session.CallTool(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-progress:
		if got != "halfway there" {
			t.Errorf("%q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("no progress")
	}
}

// In the stateless protocol the headers say what the message does.
func TestStatelessClientsUseServersOverHTTP(t *testing.T) {
	server := mcp.NewServer(&mcp.Implementation{Name: "s", Version: "1"}, nil)
	server.AddTool(&mcp.Tool{Name: "echo", InputSchema: json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer","x-mcp-header":"N"}}}`)},
		func(_ context.Context, q *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(q.Params.Arguments)}}}, nil
		})
	var mu sync.Mutex
	var last http.Header
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{Stateless: true})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		last = q.Header.Clone()
		mu.Unlock()
		handler.ServeHTTP(w, q)
	}))
	defer web.Close()
	s := shimmed(t, web.URL+"/mcp", "2026-07-28", nil)
	if _, err := s.ListTools(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"region": "eu west\n", "n": 7}}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if last.Get("Mcp-Protocol-Version") != "2026-07-28" || last.Get("Mcp-Method") != "tools/call" || last.Get("Mcp-Name") != "echo" || last.Get("Mcp-Param-Region") != "=?base64?ZXUgd2VzdAo=?=" || last.Get("Mcp-Param-N") != "7" {
		t.Errorf("%v", last)
	}
}

// A list of tools makes the client keep no more than it needs: few arguments of each tool, and no long names.
func TestAListOfToolsIsKeptInPart(t *testing.T) {
	properties, arguments := map[string]any{}, map[string]string{}
	for i := range 1000 {
		name := fmt.Sprintf("a%03d", i)
		if i == 0 {
			name += strings.Repeat("x", 1<<10)
		}
		properties[name], arguments[name] = map[string]string{"x-mcp-header": name[:4]}, "v"
	}
	list, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "result": map[string]any{"tools": []any{map[string]any{"name": "t", "inputSchema": map[string]any{"properties": properties}}}}})
	if err != nil {
		t.Fatal(err)
	}
	call, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": map[string]any{"name": "t", "arguments": arguments, "_meta": map[string]string{"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}})
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan http.Header, 2)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		sent <- q.Header.Clone()
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(list)
	}))
	defer web.Close()
	in, client := io.Pipe()
	out, toClient := io.Pipe()
	served := make(chan error, 1)
	go func() { served <- (&mcpstdio.Client{Endpoint: web.URL}).Serve(t.Context(), in, toClient) }()
	lines := bufio.NewReader(out)
	for _, ask := range []string{`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, string(call)} {
		if _, err := io.WriteString(client, ask+"\n"); err != nil {
			t.Fatal(err)
		}
		if l, err := lines.ReadString('\n'); err != nil {
			t.Fatal(l, err)
		}
	}
	_ = client.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-sent
	n := 0
	for name := range <-sent {
		if strings.HasPrefix(name, "Mcp-Param-") {
			n++
		}
		if name == "Mcp-Param-A000" {
			t.Error("an argument with a long name is kept")
		}
	}
	if n != 64 {
		t.Errorf("%d arguments are kept", n)
	}
}

// relay runs a Client over a text, to its end.
func relay(t *testing.T, endpoint, in string) ([]string, error) {
	t.Helper()
	var out safeBuffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := (&mcpstdio.Client{Endpoint: endpoint, HTTP: proxyClient}).Serve(ctx, strings.NewReader(in), &out)
	if ctx.Err() != nil {
		t.Error("it doesn't end")
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), err
}

// What was asked before the input ended is answered.
func TestWhatWasAskedIsAnsweredAfterTheEnd(t *testing.T) {
	s := newShim(t, 0)
	lines, err := relay(t, s.url, initialize+"\n\n  "+initialize)
	if err != nil || len(lines) != 2 {
		t.Fatalf("%q %v", lines, err)
	}
	for _, l := range lines {
		if !strings.Contains(l, `"serverInfo"`) {
			t.Errorf("%s", l)
		}
	}
}

// Every request gets one answer with its id, whatever the other side does.
func TestEveryRequestGetsAnAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		kind, body string
		status     int
		want       string
	}{
		"a refusal":          {"application/json", `{"jsonrpc":"2.0","id":null,"error":{"code":-32003,"message":"refused (record: r1)","data":{"record":"r1"}}}`, 403, `"data":{"record":"r1"}`},
		"a problem":          {"application/problem+json", `{"title":"Bad Gateway","status":502,"detail":"no credential"}`, 502, "no credential"},
		"text":               {"text/plain", "deputy: not yours\n", 403, "deputy: not yours"},
		"nothing":            {"", "", 500, "no text"},
		"too much":           {"application/json", `"` + strings.Repeat("x", 9<<20) + `"`, 200, "longer"},
		"a broken stream":    {"text/event-stream", "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\ndata: {", 200, "broke off"},
		"an endless event":   {"text/event-stream", "data: " + strings.Repeat("x", 9<<20), 200, "longer"},
		"events of no JSON":  {"text/event-stream", "data: x\n\n", 200, "broke off"},
		"several lines":      {"application/json", "{\"jsonrpc\":\"2.0\",\n\"id\":1,\n\"result\":{}}", 200, `"result":{}`},
		"events over lines":  {"text/event-stream", "id: 1\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\ndata: \"id\":1,\"result\":{}}\n\n", 200, `"result":{}`},
		"a lone return":      {"text/event-stream", "data: {\"jsonrpc\":\"2.0\",\r\"id\":1,\"result\":{}}\n\n", 200, "carriage return"},
		"an empty event too": {"text/event-stream", "id: 1\ndata:\n\n: x\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\r\n\r\n", 200, `"result":{}`},
	} {
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body)
			w.Header().Set("Content-Type", c.kind)
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		}))
		lines, err := relay(t, web.URL, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		web.Close()
		answered := 0
		for _, l := range lines {
			var m struct {
				ID     int
				Method string
			}
			if json.Unmarshal([]byte(l), &m) == nil && m.ID == 1 && m.Method == "" {
				answered++
			}
		}
		if err != nil || answered != 1 || !strings.Contains(lines[len(lines)-1], c.want) {
			t.Errorf("%s: %.300q %v", name, lines, err)
		}
	}
	lines, err := relay(t, "http://127.0.0.1:1/", `{"jsonrpc":"2.0","id":"a","method":"tools/list"}`+"\nnonsense\n")
	if err != nil || len(lines) != 2 || !strings.Contains(strings.Join(lines, ""), "can't be reached") || !strings.Contains(strings.Join(lines, ""), "-32600") {
		t.Errorf("%q %v", lines, err)
	}
	if _, err := relay(t, "http://127.0.0.1:1/", `{"a":"`+strings.Repeat("x", 5<<20)); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("%v", err)
	}
}

// A client that is gone ends the relay, and a cancelled request of the stateless protocol ends its exchange.
func TestGoneClientsAndCancelledRequestsEnd(t *testing.T) {
	gone := make(chan struct{}, 2)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done()
		gone <- struct{}{}
	}))
	defer web.Close()
	in, client := io.Pipe()
	out, toClient := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- (&mcpstdio.Client{Endpoint: web.URL}).Serve(context.Background(), in, toClient)
	}()
	lines := bufio.NewReader(out)
	const modern = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`
	send := func(s string) {
		if _, err := io.WriteString(client, s+"\n"); err != nil {
			t.Error(err)
		}
	}
	send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x",` + modern + `}}`)
	if l, err := lines.ReadString('\n'); err != nil {
		t.Fatal(l, err)
	}
	send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,` + modern + `}}`)
	<-gone
	_ = out.Close()
	send(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x",` + modern + `}}`)
	select {
	case err := <-served:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it doesn't end")
	}
	<-gone
}
