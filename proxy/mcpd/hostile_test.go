package mcpd_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

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
