package mcpstdio_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/deputymesh/deputy/internal/mcpstdio"
)

// A client over HTTP uses a server on standard input and output: calls, progress, questions, and a process for each session.
func TestLocalServersAreServedOverHTTP(t *testing.T) {
	s := newShim(t, 0)
	connect := func() *mcp.ClientSession {
		c := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, &mcp.ClientOptions{ElicitationHandler: accept})
		session, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: s.url, HTTPClient: proxyClient}, &mcp.ClientSessionOptions{ProtocolVersion: "2025-11-25"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = session.Close() })
		return session
	}
	one, two := connect(), connect()
	use(t, one)
	if a, b := who(t, one), who(t, two); a == b {
		t.Errorf("two sessions share the process %s", a)
	}
	if !strings.Contains(s.stderr.String(), "echoing hello") {
		t.Errorf("standard error has %q", s.stderr)
	}
	pid := who(t, two)
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	awaitGone(t, pid)
	use(t, one)
}

// Only who has the token gets anything.
func TestOnlyTheProxyIsServed(t *testing.T) {
	s := newShim(t, 0)
	id := s.begin()
	for name, change := range map[string]func(*http.Request){
		"no token":       func(q *http.Request) { q.Header.Del("Authorization") },
		"another token":  func(q *http.Request) { q.Header.Set("Authorization", "Bearer "+token+"x") },
		"an empty token": func(q *http.Request) { q.Header.Set("Authorization", "Bearer ") },
		"a page":         func(q *http.Request) { q.Header.Set("Origin", "http://127.0.0.1") },
		"another path":   func(q *http.Request) { q.URL.Path = "/" },
		"no session":     func(q *http.Request) { q.Header.Set("Mcp-Session-Id", "x") },
	} {
		q, err := http.NewRequest(http.MethodPost, s.url, strings.NewReader(call("echo", "loot")))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", "application/json")
		q.Header.Set("Mcp-Session-Id", id)
		q.Header.Set("Authorization", "Bearer "+token)
		change(q)
		a, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
		if a.StatusCode < 400 || a.StatusCode == 401 && !a.Close {
			t.Errorf("%s: %d, closed: %t", name, a.StatusCode, a.Close)
		}
	}
	if strings.Contains(s.stderr.String(), "loot") {
		t.Error("the server got one")
	}
}

// What ends a session ends the server and what it started.
func TestServersEndWithWhatTheyStarted(t *testing.T) {
	s := newShim(t, 1)
	for name, end := range map[string]func(id string){
		"the client": func(id string) {
			if a, text := s.do(http.MethodDelete, id, ""); a.StatusCode != 204 {
				t.Errorf("%d %s", a.StatusCode, text)
			}
		},
		"the server": func(id string) {
			if a, text := s.post(id, call("die", "")); a.StatusCode != 502 || !strings.Contains(text, "the server has ended") || !strings.Contains(text, `"id":7`) {
				t.Errorf("%d %s", a.StatusCode, text)
			}
		},
		"garbage": func(id string) {
			if a, text := s.post(id, call("garbage", "")); a.StatusCode != 502 || !strings.Contains(text, "no message of JSON-RPC") {
				t.Errorf("%d %s", a.StatusCode, text)
			}
		},
		"a message that is too long": func(id string) {
			if a, text := s.post(id, call("long", "")); a.StatusCode != 502 || !strings.Contains(text, "longer") {
				t.Errorf("%d %.300s", a.StatusCode, text)
			}
		},
		"the shim": func(string) { s.stop() },
	} {
		if name == "the shim" {
			s = newShim(t, 1)
		}
		id := s.begin()
		_, server := s.post(id, call("who", ""))
		_, child := s.post(id, call("child", ""))
		if a, text := s.post("", initialize); a.StatusCode != 503 {
			t.Errorf("a session too many: %d %s", a.StatusCode, text)
		}
		end(id)
		awaitGone(t, number(server))
		awaitGone(t, number(child))
		if name == "the shim" {
			break
		}
		if a, text := s.post(id, call("echo", "")); a.StatusCode != 404 {
			t.Errorf("%s: %d %s", name, a.StatusCode, text)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // its place is free again
			a, _ := s.post("", initialize)
			if next := a.Header.Get("Mcp-Session-Id"); a.StatusCode == 200 {
				s.do(http.MethodDelete, next, "")
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d", name, a.StatusCode)
			}
		}
		s.stop()
		s = newShim(t, 1)
	}
}

// A session that doesn't begin, since the client leaves or the server refuses, takes no place.
func TestWhatDoesNotBeginTakesNoPlace(t *testing.T) {
	s := newShim(t, 1, "sh", "-c", `read line
case $line in *wait*) echo waiting >&2 ;; *) echo '{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"not you"}}' ;; esac
while read line; do :; done`)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		q, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(strings.Replace(initialize, `"a"`, `"wait"`, 1)))
		if err != nil {
			left <- err
			return
		}
		q.Header.Set("Content-Type", "application/json")
		a, err := proxyClient.Do(q)
		if err == nil {
			_ = a.Body.Close()
		}
		left <- err
	}()
	await := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	await("no server", func() bool { return strings.Contains(s.stderr.String(), "waiting") })
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for range 3 {
		await("no place", func() bool {
			a, text := s.post("", initialize)
			return a.StatusCode == 200 && strings.Contains(text, "not you")
		})
	}
}

// What a local server says to nobody, or twice, reaches nobody; more than one message in one ends it.
func TestHostileLocalServersAreHeld(t *testing.T) {
	s := newShim(t, 0, "sh", "-c", `say() { printf '%s\r\n \n' "$1"; }
say '{"jsonrpc":"2.0","id":7,"result":{"a":"loot"}}'
while read -r line; do
	case $line in
	*initialized*) ;;
	*'"initialize"'*) say '{"jsonrpc":"2.0","id":1,"result":{}}' ;;
	*batch*) say '[{"jsonrpc":"2.0","id":9,"result":{"a":"loot"}}]' ;;
	*'"id":7'*) for id in 99 '"7"' 7.0 null; do say '{"jsonrpc":"2.0","id":'"$id"',"result":{"a":"loot"}}'; done
		say '{"jsonrpc":"2.0","id":7,"result":{"a":"first"}}'
		say '{"jsonrpc":"2.0","id":7,"result":{"a":"loot"}}' ;;
	*) say '{"jsonrpc":"2.0","id":8,"result":{"a":"second"}}' ;;
	esac
done`)
	id := s.begin()
	for want, ask := range map[string]string{"first": call("echo", "x"), "second": strings.Replace(call("echo", "x"), ":7", ":8", 1)} {
		if a, text := s.post(id, ask); a.StatusCode != 200 || !strings.Contains(text, want) || strings.Contains(text, "loot") {
			t.Errorf("%d %s", a.StatusCode, text)
		}
	}
	if a, text := s.post(id, strings.Replace(call("batch", "x"), ":7", ":9", 1)); a.StatusCode != 502 || strings.Contains(text, "loot") {
		t.Errorf("%d %s", a.StatusCode, text)
	}
}

// What is no message of the protocol is refused, and so is a session that no server can be started for.
func TestWhatIsNoMessageIsRefused(t *testing.T) {
	s := newShim(t, 0)
	for _, body := range []string{"", "x", "[]", `["a"]`, strings.Repeat(" ", 5<<20)} {
		if a, text := s.post("", body); a.StatusCode != 400 {
			t.Errorf("%.20q: %d %s", body, a.StatusCode, text)
		}
	}
	if a, _ := s.do(http.MethodPut, "", ""); a.StatusCode != 405 {
		t.Errorf("PUT: %d", a.StatusCode)
	}
	if a, text := newShim(t, 0, "/nonexistent/server").post("", initialize); a.StatusCode != 503 || !strings.Contains(text, "starting the server") {
		t.Errorf("%d %s", a.StatusCode, text)
	}
}

// number finds a process's number in a tool's answer.
func number(answer string) string {
	_, after, _ := strings.Cut(answer, `"text":"`)
	n, _, _ := strings.Cut(after, `"`)
	return n
}

// awaitGone waits until a process runs no more.
func awaitGone(t *testing.T, number string) {
	t.Helper()
	pid, err := strconv.Atoi(number)
	if err != nil || pid < 2 {
		t.Fatalf("no process: %q", number)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		if raw, err := os.ReadFile("/proc/" + number + "/stat"); err == nil && strings.Contains(string(raw), ") Z ") {
			return // nobody waits for it here
		}
		if time.Now().After(deadline) {
			t.Fatalf("the process %d still runs", pid)
		}
	}
}

// A client that opens the session's own stream again gets it, and what was said meanwhile.
func TestAStreamThatIsOpenedAgainTakesOver(t *testing.T) {
	s := newShim(t, 0)
	id := s.begin()
	open := func() *http.Response {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Mcp-Session-Id", id)
		a, err := proxyClient.Do(q)
		if err != nil || a.StatusCode != 200 {
			t.Fatalf("%v %v", a, err)
		}
		t.Cleanup(func() { _ = a.Body.Close() })
		return a
	}
	first := open()
	second := open()
	if text, err := io.ReadAll(first.Body); err != nil || len(text) > 0 {
		t.Errorf("the first stream: %q %v", text, err)
	}
	s.do(http.MethodDelete, id, "")
	if _, err := io.ReadAll(second.Body); err != nil {
		t.Errorf("the second stream: %v", err)
	}
}

// What waits for a session's own stream is bounded, in messages and in bytes, and makes room once it is taken.
func TestFewMessagesWait(t *testing.T) {
	const small, half = `{"jsonrpc":"2.0","method":"notifications/message"}`, 1 << 19
	large := `{"jsonrpc":"2.0","method":"notifications/message","params":"` + strings.Repeat("x", half-62) + `"}`
	for name, c := range map[string]struct {
		messages []string
		want     int
	}{
		"many":                 {slices.Repeat([]string{small}, 100), 64},
		"of a mebibyte":        {slices.Repeat([]string{large}, 3), 2},
		"a small one after it": {[]string{large, large, large, small}, 2},
		"one that is too long": {[]string{large + strings.Repeat(" ", half+1), small}, 1},
	} {
		for i, got := range mcpstdio.WaitingForTest(c.messages, 2) {
			if got != c.want {
				t.Errorf("%s: %d wait, want %d (time %d)", name, got, c.want, i)
			}
		}
	}
}
