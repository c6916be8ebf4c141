package mcpd_test

import (
	"context"
	"encoding/json"
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

// What could be read in two ways, or isn't known, never reaches the server.
func TestMessagesThatCanBeReadTwoWaysAreRefused(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(era(true, true)))
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}`
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"a","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}`
	modern := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + meta + `,"name":"echo","arguments":{"text":"x"}}}`
	now := []string{"Mcp-Protocol-Version", "2026-07-28"}
	deep := strings.Repeat("[", 500) + strings.Repeat("]", 500)
	for name, c := range map[string]struct {
		body    string
		headers []string
		want    string
	}{
		"a batch":                 {"[" + call + "]", nil, "-32600"},
		"two messages":            {call + call, nil, "-32700"},
		"two lines":               {call + "\n" + call, nil, "-32700"},
		"nothing":                 {" ", nil, "-32700"},
		"method twice":            {strings.Replace(call, `"id"`, `"method":"ping","id"`, 1), nil, "-32600"},
		"method in another case":  {strings.Replace(call, `"id"`, `"Method":"ping","id"`, 1), nil, "-32600"},
		"Method alone":            {strings.Replace(call, `"method"`, `"Method"`, 1), nil, "-32600"},
		"name twice":              {strings.Replace(call, `"name":"echo"`, `"name":"echo","name":"wipe"`, 1), nil, "-32600"},
		"name by an escape":       {strings.Replace(call, `"name":"echo"`, `"name":"echo","n\u0061me":"wipe"`, 1), nil, "-32600"},
		"an argument twice":       {strings.Replace(call, `"text":"x"`, `"text":"x","text":"y"`, 1), nil, "-32600"},
		"no such member":          {strings.Replace(call, `"id"`, `"more":1,"id"`, 1), nil, "-32600"},
		"params in a list":        {`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["echo"]}`, nil, "-32600"},
		"version 1":               {strings.Replace(call, "2.0", "1.0", 1), nil, "-32600"},
		"no id":                   {strings.Replace(call, `"id":1,`, "", 1), nil, "-32601"},
		"a null id":               {strings.Replace(call, `"id":1`, `"id":null`, 1), nil, "-32600"},
		"both":                    {strings.Replace(call, `"id"`, `"result":{},"id"`, 1), nil, "-32600"},
		"deep":                    {strings.Replace(call, `"x"`, deep, 1), nil, "-32600"},
		"an unknown method":       {`{"jsonrpc":"2.0","id":1,"method":"tasks/list"}`, nil, "-32601"},
		"a server's method":       {`{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}`, nil, "-32601"},
		"an answer to nobody":     {`{"jsonrpc":"2.0","id":1,"result":{}}`, nil, "-32600"},
		"a path around":           {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"memo:///public/../secret/b"}}`, nil, "-32602"},
		"an escaped path":         {`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"memo:///%73ecret/b"}}`, nil, "-32602"},
		"another header":          {call, []string{"Mcp-Method", "ping"}, "-32020"},
		"another name":            {call, []string{"Mcp-Name", "wipe"}, "-32020"},
		"another name, encoded":   {call, []string{"Mcp-Name", "=?base64?d2lwZQ==?="}, "-32020"},
		"no method header":        {modern, append([]string{"Mcp-Name", "echo"}, now...), "-32020"},
		"no name header":          {modern, append([]string{"Mcp-Method", "tools/call"}, now...), "-32020"},
		"only the header is new":  {call, append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo"}, now...), "-32602"},
		"a method that is gone":   {strings.Replace(strings.Replace(modern, "tools/call", "initialize", 1), `"name":"echo",`, "", 1), append([]string{"Mcp-Method", "initialize"}, now...), "-32601"},
		"only the message is new": {modern, []string{"Mcp-Method", "tools/call", "Mcp-Name", "echo"}, "-32020"},
		"another version":         {modern, []string{"Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Protocol-Version", "2025-11-25"}, "-32020"},
		"a parameter of no one":   {modern, append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Param-Text", "y"}, now...), "-32020"},
		"a header twice":          {call, []string{"Mcp-Name", "echo", "Mcp-Name", "wipe"}, "-32600"},
		"an unknown version":      {call, []string{"Mcp-Protocol-Version", "2031-01-01"}, "-32022"},
		"a page in a browser":     {call, []string{"Origin", "https://evil.example"}, "-32600"},
		"the page null":           {call, []string{"Origin", "null"}, "-32600"},
		"arguments by case":       {strings.Replace(call, "arguments", "Arguments", 1), nil, "-32602"},
		"arguments by a sign":     {strings.Replace(call, "arguments", "argument\u017f", 1), nil, "-32602"},
		"a name by case":          {strings.Replace(call, `"name"`, `"NAME"`, 1), nil, "-32602"},
		"subscriptions by case":   {`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"Notifications":{"resourceSubscriptions":["memo:///secret/b"]}}}`, nil, "-32602"},
		"_meta by case":           {strings.Replace(modern, "_meta", "_Meta", 1), append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo"}, now...), "-32602"},
		"a task":                  {strings.Replace(call, `"name"`, `"task":{"ttl":60000},"name"`, 1), nil, "-32602"},
		"an answer of no kind":    {strings.Replace(call, `"name"`, `"inputResponses":{"k":{"loot":1}},"name"`, 1), nil, "-32602"},
		"an answer by case":       {strings.Replace(call, `"name"`, `"inputResponses":{"k":{"roots":[],"Action":"accept"}},"name"`, 1), nil, "-32602"},
		"answers by case":         {strings.Replace(call, `"name"`, `"InputResponses":{},"name"`, 1), nil, "-32602"},
		"a byte order mark":       {"\ufeff" + call, nil, "-32700"},
		"a zero byte after it":    {call + "\x00", nil, "-32700"},
		"UTF-16":                  {"{\x00\"\x00j\x00", nil, "-32700"},
		"half a character":        {strings.Replace(call, `"x"`, `"\ud83d"`, 1), nil, "-32600"},
		"bytes of no character":   {strings.Replace(call, `"x"`, "\"\xff\"", 1), nil, "-32600"},
		"a zero in a name":        {strings.Replace(call, `"echo"`, `"echo\u0000wipe"`, 1), nil, "-32602"},
		"a comment":               {strings.Replace(call, `"x"`, `"x"/*y*/`, 1), nil, "-32700"},
		"an id with a fraction":   {strings.Replace(call, `"id":1`, `"id":1.0`, 1), nil, "-32600"},
		"a very large id":         {strings.Replace(call, `"id":1`, `"id":92233720368547758080`, 1), nil, "-32600"},
		"a long id":               {strings.Replace(call, `"id":1`, `"id":"`+strings.Repeat("1", 200)+`"`, 1), nil, "-32600"},
		"one level too many":      {strings.Replace(call, `"x"`, strings.Repeat("[", 14)+strings.Repeat("]", 14), 1), nil, "-32600"},
		"a number of no end":      {strings.Replace(call, `"x"`, "1e", 1), nil, "-32700"},
		"too long":                {strings.Replace(call, `"x"`, `"`+strings.Repeat("x", 4<<20)+`"`, 1), nil, "-32600"},
		"encoded":                 {call, []string{"Content-Encoding", "gzip"}, "-32600"},
	} {
		a, body := r.post(c.body, c.headers...)
		var e struct {
			Error struct {
				Code int
				Data struct{ Reason, Record string }
			}
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil || fmt.Sprint(e.Error.Code) != c.want || e.Error.Data.Record != "rec-refused" || e.Error.Data.Reason == "" {
			t.Errorf("%s: %d %.300s", name, a.StatusCode, body)
		}
	}
	for name, path := range map[string]string{"another path": "/", "a query": mcpd.Path + "?a=1", "the server's own": "/up", "two slashes": "/" + mcpd.Path} {
		if a, body := r.send(r.client, http.MethodPost, path, call); a.StatusCode != 404 {
			t.Errorf("%s: %d %s", name, a.StatusCode, body)
		}
	}
	if up.mu.Lock(); len(up.bodies) > 0 {
		t.Errorf("the server got %q", up.bodies)
	}
	up.mu.Unlock()
	good := append([]string{"Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Param-Text", "x"}, now...)
	if a, body := r.post(modern, good...); a.StatusCode != 200 || !strings.Contains(body, "echo: x") {
		t.Errorf("what is in order: %d %s", a.StatusCode, body)
	}
	if !up.got(modern) {
		t.Error("the message changed on its way")
	}
}

// A server that smuggles gets nothing through: answers to others, unknown requests, answers that can be read two ways.
func TestHostileAnswersAreHeld(t *testing.T) {
	event := func(data string) string { return "event: x\nid: 7\ndata: " + data + "\n\n" }
	good := `{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`
	for name, c := range map[string]struct {
		kind, body string
		want, not  string
	}{
		"another's answer":         {"application/json", `{"jsonrpc":"2.0","id":2,"result":{"content":["loot"]}}`, "can't be read", "loot"},
		"an answer twice":          {"application/json", good + good, "can't be read", "content"},
		"duplicate members":        {"application/json", `{"jsonrpc":"2.0","id":1,"result":{},"result":{"a":"loot"}}`, "can't be read", "loot"},
		"HTML":                     {"text/html", "<b>loot</b>", "can't be read", "loot"},
		"too long":                 {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"a":"` + strings.Repeat("x", 8<<20) + `"}}`, "can't be read", "xxx"},
		"a stream":                 {"text/event-stream", event(`{"jsonrpc":"2.0","id":5,"method":"exec/run","params":{"a":"loot"}}`) + event(`{"jsonrpc":"2.0","method":"notifications/loot"}`) + event(`{"jsonrpc":"2.0","id":2,"result":{"a":"loot"}}`) + event(good), "content", "loot"},
		"sampling":                 {"text/event-stream", event(`{"jsonrpc":"2.0","id":5,"method":"sampling/createMessage","params":{"a":"loot"}}`) + event(good), "content", "loot"},
		"no lines of its own":      {"text/event-stream", "data: {\"jsonrpc\":\"2.0\",\rdata: loot\n\n" + event(good), "can't be read", "loot"},
		"an event without end":     {"text/event-stream", "data: " + strings.Repeat("x", 9<<20), "can't be read", "xxx"},
		"after the answer":         {"text/event-stream", event(good) + event(`{"jsonrpc":"2.0","method":"notifications/message","params":{"a":"loot"}}`), "content", "loot"},
		"what it asks in a result": {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"k":{"method":"sampling/createMessage","params":{"a":"loot"}}}}}`, "rec-refused", "loot"},
		"what nobody knows in one": {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"k":{"method":"exec/run","params":{"a":"loot"}}}}}`, "rec-refused", "loot"},
		"an error that asks":       {"application/json", `{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"message":"sign in","data":{"elicitations":[{"mode":"url","url":"https://loot.example"}]}}}`, "rec-refused", "loot"},
		"one in other digits":      {"text/event-stream", event(`{"jsonrpc":"2.0","id":1,"error":{"code":-3.2042e4,"message":"sign in","data":{"elicitations":[{"mode":"url","url":"https://loot.example"}]}}}`), "rec-refused", "loot"},
		"an error of its own":      {"application/json", `{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no such content"}}`, "no such content", "loot"},
		"what it asks, by case":    {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"InputRequests":{"k":{"method":"sampling/createMessage","params":{"a":"loot"}}}}}`, "can't be read", "loot"},
		"a task":                   {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"resultType":"task","task":{"taskId":"loot"}}}`, "can't be read", "loot"},
		"a kind that is no text":   {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"resultType":["loot"]}}`, "can't be read", "loot"},
		"a byte order mark":        {"application/json", "\ufeff" + strings.Replace(good, "[]", `["loot"]`, 1), "can't be read", "loot"},
		"no answer to an id":       {"application/json", `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"loot"}}`, "can't be read", "loot"},
		"a mark before an event":   {"text/event-stream", "\ufeffdata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"a\":\"loot\"}}\n\n" + event(good), "content", "loot"},
		"ends of lines of Macs":    {"text/event-stream", strings.ReplaceAll(event(good), "\n", "\r"), "broke off", "content"},
		"a field in another case":  {"text/event-stream", "Data: {\"loot\":1}\n\nDATA: loot\n\n" + event(good), "content", "loot"},
		"a zero byte in an event":  {"text/event-stream", "data: {\"loot\":\x001}\n\n" + event(good), "can't be read", "loot"},
		"an answer in two events":  {"text/event-stream", "data: {\"jsonrpc\":\"2.0\",\"id\":1,\n\ndata: \"result\":{\"a\":\"loot\"}}\n\n", "can't be read", "loot"},
		"a batch of answers":       {"application/json", "[" + strings.Replace(good, "[]", `["loot"]`, 1) + "]", "can't be read", "loot"},
		"notifications in JSON":    {"application/json", `{"jsonrpc":"2.0","method":"notifications/message","params":{"a":"loot"}}`, "can't be read", "loot"},
		"another character set":    {"application/json; charset=utf-16", "{\x00\"\x00l\x00o\x00o\x00t", "can't be read", "loot"},
		"its own headers":          {"application/json", good, "content", "loot"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				_, _ = io.Copy(io.Discard, q.Body)
				w.Header().Set("Content-Type", c.kind)
				w.Header().Set("Set-Cookie", "loot=1")
				w.Header().Set("Deputy-Record", "loot")
				_, _ = io.WriteString(w, c.body)
			}))
			r.Set(func() { r.Allow = some })
			a, body := r.post(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}`)
			if !strings.Contains(body, c.want) || strings.Contains(body, c.not) || strings.Contains(fmt.Sprint(a.Header), "loot") {
				t.Errorf("%d %.400s", a.StatusCode, body)
			}
		})
	}
}

// What a server asks is recorded, so it may not ask without end; what nobody could answer is recorded as refused.
func TestServersDoNotAskWithoutEnd(t *testing.T) {
	many := strings.Repeat(`data: {"jsonrpc":"2.0","id":5,"method":"roots/list"}`+"\n\n", 200)
	var questions []string
	for i := range 200 {
		questions = append(questions, fmt.Sprintf(`"%d":{"method":"roots/list"}`, i))
	}
	for name, c := range map[string]struct {
		kind, body string
		refused    int
	}{
		"on a stream":  {"text/event-stream", many, 65},
		"in an answer": {"application/json", `{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{` + strings.Join(questions, ",") + `}}}`, 0},
	} {
		r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body)
			w.Header().Set("Content-Type", c.kind)
			_, _ = io.WriteString(w, c.body)
		}))
		if _, text := r.post(callTool); !strings.Contains(text, "can't be read") {
			t.Errorf("%s: %s", name, text)
		}
		if got := len(r.All("refused")); got != c.refused {
			t.Errorf("%s: %d are refused", name, got)
		}
		if got := r.All("decided"); len(got) != 1 {
			t.Errorf("%s: decided %+v", name, got)
		}
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
