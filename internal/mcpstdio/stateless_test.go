package mcpstdio_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const inMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}`

// modern is a request of the stateless protocol.
func modern(id, method, params string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":{%s}%s}}`, id, method, inMeta, params)
}

func modernCall(tool, text string) string {
	return modern("7", "tools/call", fmt.Sprintf(`,"name":%q,"arguments":{"text":%q}`, tool, text))
}

// begins sends a request that may be left, and gives its stream or its answer.
func (s *shim) begins(ctx context.Context, body string) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Content-Type", "application/json")
	return proxyClient.Do(q)
}

// says waits until the servers have written something to standard error so often.
func (s *shim) says(text string, times int) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); strings.Count(s.stderr.String(), text) < times; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%q isn't there %d times: %s", text, times, s.stderr)
		}
	}
}

// pids are the servers that have said that they run.
func (s *shim) pids() (out []string) {
	for line := range strings.Lines(s.stderr.String()) {
		if pid, is := strings.CutPrefix(strings.TrimSpace(line), "runs "); is {
			out = append(out, pid)
		}
	}
	return out
}

// A client of the stateless protocol uses a real server on standard input and output, and each request has a process that ends with its answer.
func TestEachRequestWithoutASessionHasItsOwnProcess(t *testing.T) {
	s := newShim(t, 24)
	progress := make(chan string, 1)
	c := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, q *mcp.ProgressNotificationClientRequest) { progress <- q.Params.Message },
		ElicitationHandler:          accept,
	})
	one, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: s.url, HTTPClient: proxyClient}, &mcp.ClientSessionOptions{ProtocolVersion: "2026-07-28"})
	if err != nil {
		t.Fatal(err)
	}
	if got := one.InitializeResult().ProtocolVersion; got != "2026-07-28" {
		t.Errorf("it speaks %s", got)
	}
	a, b := who(t, one), who(t, one)
	if a == b {
		t.Errorf("two requests share the process %s", a)
	}
	awaitGone(t, a)
	awaitGone(t, b)
	if got := textOf(t, one, "consent", "hello"); got != "consent: decline, asked for hello" {
		t.Errorf("%q", got)
	}
	if tools, err := one.ListTools(t.Context(), nil); err != nil || len(tools.Tools) < 5 {
		t.Errorf("%+v %v", tools, err)
	}
	var at sync.WaitGroup
	for i := range 20 {
		at.Go(func() {
			want := fmt.Sprintf("%d%s", i, strings.Repeat("é\n", 1<<17))
			if r, err := one.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": want}}); err != nil || r.Content[0].(*mcp.TextContent).Text != "echo: "+want {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	at.Wait()
	p := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"text": "x"}}
	p.SetProgressToken("t")
	if r, err := one.CallTool(t.Context(), p); err != nil || r.IsError || <-progress != "halfway x" {
		t.Errorf("%v %v", r, err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
}

// What was written before the answer comes as it is written, and a large message comes whole.
func TestWithoutASessionMessagesComeAsTheyAreWritten(t *testing.T) {
	goOn := filepath.Join(t.TempDir(), "go")
	s := newShim(t, 1, "sh", "-c", `read -r line
echo '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1}}'
echo "has ${#line}" >&2
while [ ! -e "$0" ]; do sleep 0.05; done
echo '{"jsonrpc":"2.0","id":7,"result":{"a":"done"}}'`, goOn)
	a, err := s.begins(t.Context(), modernCall("echo", strings.Repeat("x", 3<<20)))
	if err != nil || a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v %v", a, err)
	}
	defer a.Body.Close()
	lines := bufio.NewReader(a.Body)
	for _, want := range []string{"event: message\n", "progressToken"} {
		if got, err := lines.ReadString('\n'); err != nil || !strings.Contains(got, want) {
			t.Fatalf("%q %v", got, err)
		}
	}
	s.says(fmt.Sprintf("has %d", len(modernCall("echo", ""))+3<<20), 1)
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(lines); err != nil || !strings.Contains(string(rest), `"result":{"a":"done"}`) {
		t.Errorf("%q %v", rest, err)
	}
}

// Whatever a server writes that isn't for its request ends it, and nothing of that is passed on. Its place is free again.
func TestHostileServersAreHeldWithoutASession(t *testing.T) {
	t.Parallel() // it waits for processes that don't end when they should
	say := func(s string) string { return "echo '" + s + "'; " }
	const note, good = `{"jsonrpc":"2.0","method":"notifications/message","params":{"a":"note"}}`, `{"jsonrpc":"2.0","id":7,"result":{"a":"loot"}}`
	for name, c := range map[string]struct {
		script, want string
		status       int
	}{
		"another id":              {say(`{"jsonrpc":"2.0","id":8,"result":{"a":"loot"}}`) + say(good), "another request", 502},
		"the id as a text":        {say(`{"jsonrpc":"2.0","id":"7","result":{"a":"loot"}}`), "another request", 502},
		"no id":                   {say(`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"loot"}}`), "another request", 502},
		"another id in a stream":  {say(note) + say(`{"jsonrpc":"2.0","id":8,"result":{"a":"loot"}}`), "another request", 200},
		"a request":               {say(`{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":{"a":"loot"}}`) + say(good), "by its result alone", 502},
		"two messages in one":     {say(`[{"jsonrpc":"2.0","id":7,"result":{"a":"loot"}}]`), "no message of JSON-RPC", 502},
		"garbage":                 {say("loot"), "no message of JSON-RPC", 502},
		"an end":                  {"exit 3; ", "no more before the answer", 502},
		"a message without end":   {"yes loot | tr -d '\\n'; ", "longer", 502},
		"a cancel that isn't":     {say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`), "cancelled", 502},
		"a server of sessions":    {say(`{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"Method not found"}}`), `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"Method not found"}}`, 404},
		"one that wants more":     {say(`{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"first initialize"}}`), "first initialize", 400},
		"a version that it lacks": {say(`{"jsonrpc":"2.0","id":7,"error":{"code":-32022,"message":"no","data":{"supported":["2099-01-01"]}}}`), "2099-01-01", 400},
		"a tool that failed":      {say(`{"jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"it broke"}}`), "it broke", 200},
		"the answer twice":        {say(`{"jsonrpc":"2.0","id":7,"result":{"a":"first"}}`) + say(good), "first", 200},
		"who reads nothing":       {"exec <&-; sleep 0.3; " + say(`{"jsonrpc":"2.0","id":7,"result":{"a":"unread"}}`), "unread", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShim(t, 1, "sh", "-c", `echo "runs $$" >&2; `+c.script+"while read -r line; do :; done")
			for range 2 {
				if a, text := s.post("", modernCall("echo", strings.Repeat("x", 1<<20))); a.StatusCode != c.status || !strings.Contains(text, c.want) || strings.Contains(text, "loot") {
					t.Errorf("%d %.300s", a.StatusCode, text)
				}
			}
			s.says("runs", 2)
			for _, pid := range s.pids() {
				awaitGone(t, pid)
			}
		})
	}
	s := newShim(t, 1, "sh", "-c", `read -r line; echo '{"jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"not begun"}}'`)
	if a, text := s.post("", modern("7", "server/discover", "")); a.StatusCode != 400 || !strings.Contains(text, "not begun") {
		t.Errorf("a server of sessions that is asked what it is: %d %s", a.StatusCode, text)
	}
}

// silent is a server that says when it has a request, when one is cancelled, and nothing else, and ends with its input.
const silent = `echo "runs $$" >&2
while read -r line; do
	case $line in *notifications/cancelled*'"requestId":7'*) echo cancelled >&2 ;; *) echo asked >&2 ;; esac
done`

// A request whose client leaves is cancelled at its process, which ends.
func TestARequestThatIsLeftEndsItsProcess(t *testing.T) {
	s := newShim(t, 1, "sh", "-c", silent)
	for i := range 3 {
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			a, err := s.begins(ctx, modernCall("wait", ""))
			if err == nil {
				_ = a.Body.Close()
			}
			left <- err
		}()
		s.says("asked", i+1)
		if a, text := s.post("", modernCall("echo", "")); a.StatusCode != 503 || !strings.Contains(text, "--max-sessions") || !strings.Contains(text, `"id":7`) {
			t.Errorf("a request too many: %d %s", a.StatusCode, text)
		}
		if a, text := s.post("", initialize); a.StatusCode != 503 || !strings.Contains(text, "--max-sessions") {
			t.Errorf("a session too many: %d %s", a.StatusCode, text)
		}
		leave()
		if err := <-left; err == nil {
			t.Error("it was answered")
		}
		s.says("cancelled", i+1)
		awaitGone(t, s.pids()[i])
	}
}

// A process has its place until it has ended, though it doesn't end when it is told to: who leaves and begins again gets no more of them.
func TestFloodsOfRequestsAreBounded(t *testing.T) {
	t.Parallel() // it waits for processes that don't end when they should
	s := newShim(t, 2, "sh", "-c", `trap "" TERM; echo "runs $$" >&2
while :; do if read -r line; then case $line in *notifications/cancelled*) echo cancelled >&2 ;; esac; else sleep 0.2; fi; done`)
	ctx, leave := context.WithCancel(t.Context())
	var at sync.WaitGroup
	ask := func(ctx context.Context, refused chan<- int) {
		at.Go(func() {
			if a, err := s.begins(ctx, modernCall("echo", "")); err == nil {
				_ = a.Body.Close()
				refused <- a.StatusCode
			}
		})
	}
	refused := make(chan int, 8)
	ask(ctx, refused)
	ask(ctx, refused)
	s.says("runs", 2)
	leave()
	s.says("cancelled", 2)
	// Two wait for the places of these, and the others for nothing.
	ctx, leave = context.WithCancel(t.Context())
	for range 6 {
		ask(ctx, refused)
	}
	for range 4 {
		if status := <-refused; status != 503 {
			t.Errorf("%d", status)
		}
	}
	first := s.pids()
	if len(first) != 2 {
		t.Errorf("%d processes were begun", len(first))
	}
	s.says("runs", 4)
	for _, pid := range first[:2] {
		awaitGone(t, pid)
	}
	leave()
	at.Wait()
	if n := len(s.pids()); n != 4 {
		t.Errorf("%d processes were begun", n)
	}
}

// A subscription keeps its process while its stream lasts, and ends as either side wants.
func TestASubscriptionKeepsItsProcess(t *testing.T) {
	t.Parallel() // it waits for processes that don't end when they should
	const event = `echo '{"jsonrpc":"2.0","method":"notifications/%s","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s"}}}'` + "\n"
	listen := modern(`"s"`, "subscriptions/listen", `,"notifications":{"toolsListChanged":true}`)
	begin := `echo "runs $$" >&2; read -r line` + "\n" + fmt.Sprintf(event, "subscriptions/acknowledged")
	for name, c := range map[string]struct{ script, want string }{
		"the client":            {`while read -r line; do case $line in *'"requestId":"s"'*) echo cancelled >&2 ;; esac; done`, ""},
		"the server":            {`echo '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"s"}}'; while read -r line; do :; done`, "list_changed"},
		"the server's result":   {`echo '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"s"}}'; echo '{"jsonrpc":"2.0","id":"s","result":{"resultType":"complete"}}'; while read -r line; do :; done`, `"result":{"resultType":"complete"}`},
		"the end of the server": {"exit 0", "the server has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShim(t, 1, "sh", "-c", begin+fmt.Sprintf(event, "tools/list_changed")+c.script)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			a, err := s.begins(ctx, listen)
			if err != nil || a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
				t.Fatalf("%v %v", a, err)
			}
			defer a.Body.Close()
			got, lines := "", bufio.NewReader(a.Body)
			for !strings.Contains(got, "list_changed") {
				line, err := lines.ReadString('\n')
				if got += line; err != nil {
					t.Fatalf("%q %v", got, err)
				}
			}
			if c.want == "" {
				leave()
				s.says("cancelled", 1)
			} else {
				rest, err := io.ReadAll(lines)
				if got += string(rest); err != nil || !strings.Contains(got, c.want) || strings.Contains(got, "requestId") || name == "the server" && strings.Contains(got, "error") {
					t.Errorf("%q %v", got, err)
				}
			}
			s.says("runs", 1)
			awaitGone(t, s.pids()[0])
		})
	}
}

// A shim that ends ends its requests, with their processes.
func TestAShimThatEndsEndsItsRequests(t *testing.T) {
	s := newShim(t, 2, "sh", "-c", silent)
	answered := make(chan struct{}, 2)
	for range 2 {
		go func() {
			if a, err := s.begins(context.Background(), modernCall("wait", "")); err == nil {
				if text, _ := io.ReadAll(a.Body); a.StatusCode == 200 {
					t.Errorf("%d %s", a.StatusCode, text)
				}
				_ = a.Body.Close()
			}
			answered <- struct{}{}
		}()
	}
	s.says("asked", 2)
	s.stop()
	<-answered
	<-answered
	for _, pid := range s.pids() {
		awaitGone(t, pid)
	}
}

// What is no request and belongs to no session starts no process: a cancel is taken, since the response is closed already, and nothing else is.
func TestWhatBelongsToNoSessionStartsNoProcess(t *testing.T) {
	s := newShim(t, 1, "sh", "-c", silent)
	for body, want := range map[string]int{
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`:                    202,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7,` + inMeta + `}}}`:    202,
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,` + inMeta + `}}}`: 400,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`:                                           400,
		`{"jsonrpc":"2.0","id":7,"result":{}}`:                                                             400,
	} {
		a, text := s.post("", body)
		if a.StatusCode != want || want == 202 && text != "" || want == 400 && (!strings.Contains(text, `"id":null`) || !strings.Contains(text, "belongs to no session")) {
			t.Errorf("%s: %d %s", body, a.StatusCode, text)
		}
	}
	if got := s.stderr.String(); got != "" {
		t.Errorf("a server heard of it: %s", got)
	}
}
