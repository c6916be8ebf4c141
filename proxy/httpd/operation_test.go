package httpd_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
)

// operations is a GraphQL service that keeps what it was asked.
type operations struct {
	mu     sync.Mutex
	asked  []string // method, path and query, body
	answer string
}

func (o *operations) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, r.Method+" "+r.RequestURI+" "+r.Header.Get("Content-Type")+" "+string(body))
	w.Header().Set("Content-Type", "application/graphql-response+json")
	_, _ = io.WriteString(w, o.answer)
}

// last is the latest request, and how many there were.
func (o *operations) last() (string, int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.asked) == 0 {
		return "", 0
	}
	return o.asked[len(o.asked)-1], len(o.asked)
}

func graphQL(c *httpd.Config) { c.GraphQL = []string{"/graphql"} }

// ops spells what a command does.
func ops(c proxy.Command) string {
	var out []string
	for _, op := range c.Ops {
		a := op.Action.(actor.HTTPAction)
		if op.Resource != policy.Endpoint("billing", a.Path, a.Query) {
			return "another resource than the action's"
		}
		s := a.Verb + " " + a.Path
		if a.Query != "" {
			s += "?" + a.Query
		}
		if op.Write {
			s += " (writes)"
		}
		if op.Exact {
			s += " (by name)"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func hexHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestGraphQLIsDecidedByRootFields(t *testing.T) {
	service := &operations{answer: `{"data":{}}`}
	r := newRig(t, service, graphQL)
	hash := hexHash("{ a }")
	for _, c := range []struct{ method, path, body, ops, kind, scrubbed, sent string }{
		{"POST", "/graphql", `{"query":"query Q($n:Int){a:orders(n:$n){id} me{x}}","variables":{"n":1}}`, "query /graphql/me, query /graphql/orders", "query", "POST /graphql query Q { me orders }",
			`POST /graphql application/json {"query":"query Q ( $ n : Int ) { a : orders ( n : $ n ) { id } me { x } }","variables":{"n":1}}`},
		{"POST", "/graphql?trace=1", `{"query":"mutation{pay{ok}}"}`, "mutation /graphql/pay?trace (writes)", "mutation", "POST /graphql mutation { pay }", `POST /graphql?trace=1 application/json {"query":"mutation { pay { ok } }"}`},
		{"POST", "/graphql", `{"query":"query A{a} mutation B{b}","operationName":"B"}`, "query /graphql/a, mutation /graphql/b (writes)", "mutation", "POST /graphql query A { a }, mutation B { b }",
			`POST /graphql application/json {"query":"query A { a } mutation B { b }","operationName":"B"}`},
		{"GET", "/graphql?x=1&query=" + url.QueryEscape("{a #c\n}"), "", "query /graphql/a?x", "query", "GET /graphql query { a }", "GET /graphql?x=1&query=%7B+a+%7D  "},
		{"POST", "/graphql", `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"` + hash + `"}}}`, "persisted /graphql/" + hash + " (writes) (by name)", "persisted", "POST /graphql persisted " + hash,
			`POST /graphql application/json {"extensions":{"persistedQuery":{"version":1,"sha256Hash":"` + hash + `"}}}`},
		{"GET", "/graphql", "", "get /graphql", "get", "GET /graphql", "GET /graphql  "},
		{"POST", "/other", `[1]`, "post /other (writes)", "post", "POST /other", "POST /other application/json [1]"},
	} {
		a, text := r.do(c.method, c.path, strings.NewReader(c.body), "Content-Type", "application/json")
		d := r.Await(t, "decided", c.scrubbed)
		sent, _ := service.last()
		if c.method == "GET" {
			sent = strings.Replace(sent, "application/json", "", 1)
		}
		if a.StatusCode != 200 || ops(d.Cmd) != c.ops || d.Cmd.Kind != c.kind || sent != c.sent {
			t.Errorf("%s %s: %d %s\n%s %s\n%q, want %q", c.method, c.body, a.StatusCode, text, d.Cmd.Kind, ops(d.Cmd), sent, c.sent)
		}
		if strings.Contains(d.Cmd.Scrubbed, "id") && c.kind != "persisted" || c.body != "" && c.kind == "query" && !strings.Contains(d.Cmd.Text, `"query"`) {
			t.Errorf("what is recorded: %q, %q", d.Cmd.Scrubbed, d.Cmd.Text)
		}
	}
}

func TestGraphQLThatCanBeReadInTwoWaysIsRefused(t *testing.T) {
	service := &operations{}
	r := newRig(t, service, graphQL)
	json := []string{"Content-Type", "application/json"}
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
	}{
		"a batch":                       {"POST", "/graphql", `[{"query":"{a}"}]`, json, 400},
		"members twice":                 {"POST", "/graphql", `{"query":"{a}","query":"{b}"}`, json, 400},
		"a form":                        {"POST", "/graphql", `query=%7Ba%7D`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 400},
		"several parts":                 {"POST", "/graphql", `x`, []string{"Content-Type", "multipart/form-data; boundary=x"}, 400},
		"its own type":                  {"POST", "/graphql", `{a}`, []string{"Content-Type", "application/graphql"}, 400},
		"gRPC":                          {"POST", "/graphql", `{a}`, []string{"Content-Type", "application/grpc"}, 400},
		"no type":                       {"POST", "/graphql", `{"query":"{a}"}`, nil, 400},
		"UTF-16":                        {"POST", "/graphql", `{"query":"{a}"}`, []string{"Content-Type", "application/json; charset=utf-16"}, 400},
		"zipped":                        {"POST", "/graphql", `{"query":"{a}"}`, append([]string{"Content-Encoding", "gzip"}, json...), 400},
		"also in the URL":               {"POST", "/graphql?query=%7Bb%7D", `{"query":"{a}"}`, json, 400},
		"variables in the URL":          {"POST", "/graphql?Variables=1", `{"query":"{a}"}`, json, 400},
		"an operation of GET by its id": {"GET", "/graphql?operationId=app%2F7", "", nil, 400},
		"another spelling of an id":     {"GET", "/graphql?document_id=7", "", nil, 400},
		"an id in the URL":              {"POST", "/graphql?documentId=1", `{"query":"{a}"}`, json, 400},
		"a mutation by GET":             {"GET", "/graphql?query=mutation%7Bb%7D", "", nil, 400},
		"a mutation by HEAD":            {"HEAD", "/graphql?query=mutation%7Bb%7D", "", nil, 400},
		"an operation by OPTIONS":       {"OPTIONS", "/graphql?query=%7Bb%7D", "", nil, 400},
		"a body of GET":                 {"GET", "/graphql", `{"query":"{a}"}`, json, 400},
		"below":                         {"POST", "/graphql/x", `{"query":"{a}"}`, json, 400},
		"a slash more":                  {"POST", "/graphql/", `{"query":"{a}"}`, json, 400},
		"a format":                      {"POST", "/graphql.json", `{"query":"{a}"}`, json, 400},
		"another case":                  {"POST", "/GraphQL", `{"query":"{a}"}`, json, 400},
		"another method":                {"PUT", "/graphql", `{"query":"{a}"}`, json, 403},
		"a WebSocket":                   {"GET", "/graphql", "", []string{"Upgrade", "websocket", "Connection", "Upgrade"}, 403},
		"too large":                     {"POST", "/graphql", `{"variables":{"x":"` + strings.Repeat("x", 1<<20) + `"},"query":"{a}"}`, json, 400},
	} {
		var body io.Reader
		if c.body != "" {
			body = strings.NewReader(c.body)
		}
		a, text := r.do(c.method, c.path, body, c.headers...)
		if name == "gRPC" {
			if a.Header.Get("Grpc-Status") != "3" {
				t.Errorf("%s: %d %v %s", name, a.StatusCode, a.Header, text)
			}
			continue
		}
		if a.StatusCode != c.status || c.method != "HEAD" && (!strings.Contains(text, `"errors":[{`) || !strings.Contains(text, "record: rec-refused")) {
			t.Errorf("%s: %d %s", name, a.StatusCode, text)
		}
	}
	if last, n := service.last(); n != 0 {
		t.Errorf("the service heard of %q", last)
	}
}

// A refusal speaks GraphQL, and nothing of the operation reaches the service.
func TestRefusedOperationsAreAnsweredInGraphQL(t *testing.T) {
	service := &operations{}
	r := newRig(t, service, graphQL)
	r.Set(func() { r.Allow = func(c proxy.Command) bool { return !strings.Contains(ops(c), "mutation") } })
	a, text := r.do("POST", "/graphql", strings.NewReader(`{"query":"{a} mutation B{b}"}`), "Content-Type", "application/json")
	if a.StatusCode != 400 {
		t.Errorf("no name: %d %s", a.StatusCode, text)
	}
	a, text = r.do("POST", "/graphql", strings.NewReader(`{"query":"mutation{b}"}`), "Content-Type", "application/json")
	if a.StatusCode != 403 || a.Header.Get("Content-Type") != "application/graphql-response+json; charset=utf-8" || !strings.Contains(text, `"code":"FORBIDDEN"`) || a.Header.Get("Deputy-Record") == "" ||
		!strings.Contains(a.Header.Get("WWW-Authenticate"), "insufficient_scope") {
		t.Errorf("%d %v %s", a.StatusCode, a.Header, text)
	}
	if _, n := service.last(); n != 0 {
		t.Error("the service heard of it")
	}
}

// A mask by name can't be led around by an alias, or by a part that is sent later and begins somewhere below.
func TestMaskedOperationsMoveNothing(t *testing.T) {
	service := &operations{answer: `{"data":{"me":{"email":"ada@example.com"}}}`}
	r := newRig(t, service, graphQL)
	r.Set(func() { r.Ob = masks(t, "$.data..email=email") })
	post := func(body string) (*http.Response, string) {
		return r.do("POST", "/graphql", strings.NewReader(body), "Content-Type", "application/json")
	}
	if a, text := post(`{"query":"{me{email}}"}`); a.StatusCode != 200 || text != `{"data":{"me":{"email":"a***@example.com"}}}` {
		t.Errorf("%d %s", a.StatusCode, text)
	}
	for _, body := range []string{`{"query":"{me{name:email}}"}`, `{"query":"{me{...F}} fragment F on U{name:email}"}`, `{"query":"{me{...@defer{email}}}"}`, `{"extensions":{"persistedQuery":{"sha256Hash":"` + hexHash("x") + `"}}}`} {
		if a, text := post(body); a.StatusCode != 403 || !strings.Contains(text, "aliases") {
			t.Errorf("%s: %d %s", body, a.StatusCode, text)
		}
	}
	r.Set(func() { r.Ob = masks(t, "detect:email=redact") })
	if a, text := post(`{"query":"{me{name:email}}"}`); a.StatusCode != 200 || strings.Contains(text, "ada") {
		t.Errorf("a detector: %d %s", a.StatusCode, text)
	}
}

// A letter beyond ASCII may be another case of one within it.
func TestGraphQLEndpointsHaveNoOtherCase(t *testing.T) {
	service := &operations{}
	r := newRig(t, service, func(c *httpd.Config) { c.GraphQL = []string{"/api/ask"} })
	for _, path := range []string{"/API/ask", "/ap%C4%B1/ask", "/ap%C4%B0/ask", "/api/a%C5%BFk", "/api/as%E2%84%AA", "/api/a%C5%BFk/x", "/api/ask.json"} {
		if a, text := r.do("POST", path, strings.NewReader(`{"query":"{a}"}`), "Content-Type", "application/json"); a.StatusCode != 400 || !strings.Contains(text, "GraphQL endpoint") {
			t.Errorf("%s: %d %s", path, a.StatusCode, text)
		}
	}
	if last, n := service.last(); n != 0 {
		t.Errorf("the service heard of %q", last)
	}
	if a, text := r.do("POST", "/api/asking", strings.NewReader(`{}`)); a.StatusCode != 200 {
		t.Errorf("another path: %d %s", a.StatusCode, text)
	}
}

func TestGraphQLEndpointsAreCanonicalPaths(t *testing.T) {
	for _, path := range []string{"graphql", "/", "/graphql/", "/a//b", "/a%2fb", ""} {
		if _, err := httpd.New(httpd.Config{GraphQL: []string{path}}); err == nil || !strings.Contains(err.Error(), "GraphQL endpoint") {
			t.Errorf("%q: %v", path, err)
		}
	}
}
