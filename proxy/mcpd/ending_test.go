package mcpd_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy/mcpd"
)

// ended waits until a server was told that a session is over, and gives the request's header.
func (s *seen) ended(t *testing.T) http.Header {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		for i, h := range s.headers {
			if s.methods[i] == http.MethodDelete {
				s.mu.Unlock()
				return h
			}
		}
		s.mu.Unlock()
	}
	t.Fatal("the server wasn't told that its session is over")
	return nil
}

// A session at the server ends with its chain, though the agent says nothing any more; the end of a connection alone doesn't end it.
func TestASessionEndsAtTheServerWithItsChain(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(era(false, true)))
	a, _ := r.post(begin)
	id := a.Header.Get("Mcp-Session-Id")
	const list = `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`
	r.client.CloseIdleConnections()
	again := r.clientOf(agentID)
	if a, body := r.send(again, http.MethodPost, "/mcp", list, "Mcp-Session-Id", id); a.StatusCode != 200 {
		t.Fatalf("after another connection's end: %d %s", a.StatusCode, body)
	}
	up.mu.Lock()
	theirs := up.headers[len(up.headers)-1].Get("Mcp-Session-Id")
	up.mu.Unlock()
	r.Last().Revoke()
	h := up.ended(t)
	if h.Get("Mcp-Session-Id") != theirs || h.Get("Authorization") != "Bearer the-services-own-secret" || h.Get("Deputy-Chain") != "" {
		t.Errorf("the end: %v", h)
	}
	if a, body := r.send(r.clientOf(agentID), http.MethodPost, "/mcp", list, "Mcp-Session-Id", id); a.StatusCode != 404 {
		t.Errorf("after its end: %d %s", a.StatusCode, body)
	}
}

// A proxy that stops leaves no session behind.
func TestAStoppedProxyLeavesNoSession(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(era(false, true)))
	if a, body := r.post(begin); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, body)
	}
	r.stop()
	up.ended(t)
}

// A session that doesn't begin, since the answer breaks off or can't be read, is left neither here nor at the server.
func TestABrokenBeginningLeavesNoSession(t *testing.T) {
	for name, event := range map[string]string{"nothing": "", "an unknown version": `data: {"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2099-01-01"}}` + "\n\n", "no message": "data: x\n\n"} {
		up := &seen{}
		r := newRig(t, up.ServeWith(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Mcp-Session-Id", "upstream")
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, event)
		})))
		a, text := r.post(begin)
		id := a.Header.Get("Mcp-Session-Id")
		if id == "" || !strings.Contains(text, `"error"`) || strings.Contains(text, "2099") {
			t.Errorf("%s: %v %s", name, a.Header, text)
		}
		up.ended(t)
		if a, text := r.post(listTools, "Mcp-Session-Id", id); a.StatusCode != 404 {
			t.Errorf("%s: %d %s", name, a.StatusCode, text)
		}
	}
}

// The same of one that would begin with JSON, of which the agent never hears.
func TestABrokenBeginningInJSONLeavesNoSession(t *testing.T) {
	for name, answer := range map[string]string{"nothing": "", "an unknown version": `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2099-01-01"}}`, "an error": `{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}`} {
		t.Run(name, func(t *testing.T) {
			up := &seen{}
			r := newRig(t, up.ServeWith(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("Mcp-Session-Id", "upstream")
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, answer)
			})))
			if a, text := r.post(begin); a.Header.Get("Mcp-Session-Id") != "" || !strings.Contains(text, `"error"`) {
				t.Errorf("%v %s", a.Header, text)
			}
			if h := up.ended(t); h.Get("Mcp-Session-Id") != "upstream" {
				t.Errorf("the end: %v", h)
			}
		})
	}
}

// A server that has forgotten a session says so in its own words, with the id null, and the agent begins anew.
func TestAForgottenSessionIsOver(t *testing.T) {
	var forgotten atomic.Bool
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		w.Header().Set("Mcp-Session-Id", "upstream")
		w.Header().Set("Content-Type", "application/json")
		if forgotten.Load() {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}`)
			return
		}
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"a","version":"1"}}}`)
	}))
	a, _ := r.post(begin)
	forgotten.Store(true)
	for _, want := range []string{"Session not found", "there is no such session"} {
		if a, text := r.post(listTools, "Mcp-Session-Id", a.Header.Get("Mcp-Session-Id")); a.StatusCode != 404 || !strings.Contains(text, want) {
			t.Errorf("%d %s", a.StatusCode, text)
		}
	}
}

// One entry of a list that can be read in two ways withholds itself alone, and a tool among them is held.
func TestOneUnclearEntryWithholdsItselfAlone(t *testing.T) {
	deep := `{"name":"deep","inputSchema":` + strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20) + `}`
	for name, evil := range map[string]string{"deep": deep, "twice": `{"name":"twice","description":"a","description":"b"}`, "case": `{"name":"case","inputSchema":{"a":1,"A":2}}`} {
		for _, stream := range []bool{false, true} {
			server := &says{stream: stream, result: `"result":{"tools":[` + reviewed + "," + evil + "," + other + `],"nextCursor":"c"}`}
			r := newRig(t, server)
			_, body := r.post(listTools)
			got, _ := answer(t, body)
			if !strings.Contains(got, `"add"`) || !strings.Contains(got, `"sub"`) || strings.Contains(got, name) || !strings.Contains(got, `"nextCursor":"c"`) {
				t.Errorf("%s: %s", name, body)
			}
			if _, body := r.post(strings.Replace(callTool, "echo", name, 1)); !strings.Contains(body, "held") {
				t.Errorf("%s: %s", name, body)
			}
		}
	}
	for name, result := range map[string]string{
		"a member twice around it": `"result":{"tools":[` + other + `],"a":1,"a":2}`,
		"two lists":                `"result":{"tools":[` + other + `],"Tools":[` + deep + `]}`,
		"no list":                  `"result":{"tools":` + deep + `}`,
	} {
		r := newRig(t, &says{result: result})
		if _, body := r.post(listTools); !strings.Contains(body, "can't be read") {
			t.Errorf("%s: %s", name, body)
		}
	}
}

// A session that nobody uses ends at the server, too; one whose stream is open is used.
func TestAnUnusedSessionEnds(t *testing.T) {
	for _, open := range []bool{false, true} {
		now := time.Now()
		s := mcpd.NewSessionsForTest(func() time.Time { return now })
		id := s.Begin()
		if open {
			s.Find(id)
		}
		now = now.Add(2 * time.Hour)
		if got := s.Over(); got != !open || s.Find(id) != open {
			t.Errorf("open: %t, over: %t", open, got)
		}
	}
}
