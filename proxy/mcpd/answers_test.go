package mcpd_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

// What the agent answers of a server's questions in the stateless protocol is decided with the call: a question that it never got can't be answered.
func TestAnswersWithACallAreDecided(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(&says{result: `"result":{"content":[]}`}))
	const call = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","inputResponses":{"a":{"roots":[]},"b":@}}}`
	for answer, verb := range map[string]string{`{"action":"accept","content":{"sure":true}}`: "elicitation", `{"role":"assistant","model":"m","content":{"type":"text","text":"loot"}}`: "sampling"} {
		for _, may := range []bool{false, true} {
			r.Set(func() {
				r.Allow = func(cmd proxy.Command) bool {
					for _, op := range cmd.Ops {
						if a, _ := op.Action.(actor.MCPAction); a.Verb == verb {
							return may
						}
					}
					return true
				}
			})
			before := len(up.bodies)
			_, text := r.post(strings.Replace(call, "@", answer, 1))
			if got := len(up.bodies) - before; strings.Contains(text, "no policy permits") == may || (got == 1) != may {
				t.Errorf("%s, allowed: %t: %s", verb, may, text)
			}
			kind := "refused"
			if may {
				kind = "decided"
			}
			all := r.All(kind)
			var got []string
			for _, op := range all[len(all)-1].Cmd.Ops {
				got = append(got, op.Action.Name())
			}
			want := []string{"mcp:call", "mcp:roots", "mcp:" + verb}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("decided %v, want %v", got, want)
			}
		}
	}
}

// A question of a server's is answered once, by its own id, in its own session, and by the chain that it came to.
func TestAQuestionIsAnsweredOnce(t *testing.T) {
	answered := make(chan string, 10)
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		switch text := string(body); {
		case strings.Contains(text, "tools/call"):
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, `data: {"jsonrpc":"2.0","id":5,"method":"roots/list"}`+"\n\n")
			_ = http.NewResponseController(w).Flush()
			<-q.Context().Done()
		case strings.Contains(text, "initialize"):
			w.Header().Set("Mcp-Session-Id", "upstream")
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"a","version":"1"}}}`)
		default:
			answered <- text
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	begun := func() string {
		a, _ := r.post(begin)
		return a.Header.Get("Mcp-Session-Id")
	}
	session, another := begun(), begun()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.address+mcpd.Path, strings.NewReader(callTool))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Mcp-Session-Id", session)
	stream, err := r.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if _, err := io.ReadFull(stream.Body, make([]byte, len("event: message\ndata: {"))); err != nil {
		t.Fatal(err)
	}
	answer := func(id string) string { return `{"jsonrpc":"2.0","id":` + id + `,"result":{"roots":[]}}` }
	for _, c := range []struct {
		name, id, session string
		client            *http.Client
		want              int
	}{
		{"another id", "6", session, r.client, 400},
		{"the id as a text", `"5"`, session, r.client, 400},
		{"another session", "5", another, r.client, 400},
		{"no session", "5", "", r.client, 400},
		{"another agent", "5", session, r.clientOf(otherID), 404},
		{"the answer", "5", session, r.client, 202},
		{"the answer again", "5", session, r.client, 400},
	} {
		var headers []string
		if c.session != "" {
			headers = []string{"Mcp-Session-Id", c.session}
		}
		if a, text := r.send(c.client, http.MethodPost, mcpd.Path, answer(c.id), headers...); a.StatusCode != c.want {
			t.Errorf("%s: %d %s", c.name, a.StatusCode, text)
		}
	}
	if n := len(answered); n != 1 {
		t.Errorf("the server got %d answers", n)
	}
}
