package mcpd_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

// byID is a server that finds the stream of an answer by the request's id alone, as many do: the newest request with an id gets every answer to it.
type byID struct {
	slow, quick chan struct{} // a call has arrived
	answer      chan string   // to the slow one, for whoever has its id
}

func (s *byID) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Mcp-Session-Id", "upstream")
	switch text := string(body); {
	case strings.Contains(text, "slow"):
		s.slow <- struct{}{}
		<-q.Context().Done()
	case strings.Contains(text, "quick"):
		s.quick <- struct{}{}
		_, _ = io.WriteString(w, <-s.answer)
	default:
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"a","version":"1"}}}`)
	}
}

// The id of a request that has no answer can't be used again: what is masked in its answer would come as another's.
func TestAnIDIsForOneRequest(t *testing.T) {
	server := &byID{slow: make(chan struct{}, 1), quick: make(chan struct{}, 1), answer: make(chan string, 1)}
	r := newRig(t, server)
	a, _ := r.post(begin)
	session := a.Header.Get("Mcp-Session-Id")
	of := masks(t, "$..email=redact")
	r.Set(func() {
		r.Obliges = func(cmd proxy.Command) policy.Obligations {
			if a, _ := cmd.Ops[0].Action.(actor.MCPAction); a.Object == "slow" {
				return of
			}
			return policy.Obligations{}
		}
	})
	call := func(id, tool string) string {
		return `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"` + tool + `"}}`
	}
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		q, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+r.address+"/mcp", strings.NewReader(call("7", "slow")))
		q.Header.Set("Content-Type", "application/json")
		q.Header.Set("Mcp-Session-Id", session)
		if a, err := r.client.Do(q); err == nil {
			_ = a.Body.Close()
			t.Error("it is answered")
		}
	}()
	<-server.slow
	server.answer <- `{"jsonrpc":"2.0","id":7,"result":{"structuredContent":{"email":"ada@example.com"}}}`
	refused := func(when, id string) {
		t.Helper()
		if a, text := r.post(call(id, "quick"), "Mcp-Session-Id", session); a.StatusCode != 400 || !strings.Contains(text, "an id of its own") || !strings.Contains(text, "rec-refused") {
			t.Errorf("%s: %d %s", when, a.StatusCode, text)
		}
	}
	refused("meanwhile", "7")
	refused("meanwhile, as a text", `"7"`)
	leave()
	<-gone
	r.Await(t, "completed", "tools/call slow")
	refused("after it was given up", "7")
	if len(server.quick) > 0 {
		t.Error("one has reached the server")
	}
	<-server.answer
	// What is answered, or refused, gives its id back.
	for range 2 {
		server.answer <- `{"jsonrpc":"2.0","id":8,"result":{"content":[]}}`
		if a, text := r.post(call("8", "quick"), "Mcp-Session-Id", session); a.StatusCode != 200 || !strings.Contains(text, "content") {
			t.Errorf("%d %s", a.StatusCode, text)
		}
		<-server.quick
		allow := false
		r.Set(func() { r.Allow = func(proxy.Command) bool { return allow } })
		if _, text := r.post(call("9", "quick"), "Mcp-Session-Id", session); !strings.Contains(text, "no policy permits") {
			t.Error(text)
		}
		r.Set(func() { allow = true })
	}
}

// A session keeps few requests that got no answer.
func TestFewRequestsGoUnanswered(t *testing.T) {
	if got := mcpd.UnansweredForTest(2000); got != 1024 {
		t.Errorf("%d are kept", got)
	}
}
