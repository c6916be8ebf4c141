package integration_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// graphqlRequest is one request of the client's.
type graphqlRequest struct {
	Method string `json:"method"`
	Query  string `json:"query"` // with its ?
	Type   string `json:"type"`
	Body   []byte `json:"body"`
}

// graphqlAnswer is what the client heard.
type graphqlAnswer struct {
	Status int    `json:"status"`
	Record string `json:"record"`
	Body   string `json:"body"`
}

func posted(body string) graphqlRequest {
	return graphqlRequest{"POST", "", "application/json", []byte(body)}
}

// asked is a document, the operation of it that is to run, and its variables.
func asked(document, name string, variables map[string]any) graphqlRequest {
	r := map[string]any{"query": document}
	if name != "" {
		r["operationName"] = name
	}
	if variables != nil {
		r["variables"] = variables
	}
	body, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return posted(string(body))
}

// graphqlAttacks reach for what is secret, or drop something, in ways that a reader could take for something else.
func graphqlAttacks() []graphqlRequest {
	all := []graphqlRequest{
		asked(`query A { orders { id } } query B { secret }`, "B", nil),
		asked(`query A { orders { id } } mutation B { drop }`, "B", nil),
		asked(`query ($x: Boolean!) { orders { id } secret @skip(if: $x) }`, "", map[string]any{"x": false}),
		asked(`query ($x: Boolean = true) { orders { id } secret @include(if: $x) }`, "", nil),
		posted(`{"query":"{ orders { id } }","query":"{ secret }"}`),
		posted(`{"query":"{ secret }","Query":"{ orders { id } }"}`),
		posted(`{"query":"{ orders { id } }","\u0071uery":"{ secret }"}`),
		posted(`{"query":"{ orders { id } } #\u000a { secret }"}`),
		posted(`{"query":"{ \u0073ecret }"}`),
		posted(`{"query":"{ orders { id } #\r secret }"}`),
		posted(`{"extensions":{},"operationName":null,"variables":null,"query":"{ secret }"}`),
		posted("\ufeff" + `{"query":"{ secret }"}`),
		posted(`[{"query":"{ secret }"}]`),
		posted(` {"query":"{ secret }"} `),
		{"POST", "", "application/json; charset=utf-8", []byte(`{"query":"{ secret }"}`)},
		{"POST", "", "application/json;charset=UTF-8", []byte(`{"query":"mutation { drop }"}`)},
		{"POST", "", "APPLICATION/JSON", []byte(`{"query":"{ secret }"}`)},
		{"POST", "", "application/ json", []byte(`{"query":"{ secret }"}`)},
		{"POST", "", "application/json;x=y", []byte(`{"query":"{ secret }"}`)},
		{"POST", "", "application/graphql", []byte(`{ secret }`)},
		{"POST", "", "text/plain", []byte(`{"query":"{ secret }"}`)},
		{"POST", "", "", []byte(`{"query":"{ secret }"}`)},
		{"POST", "?query=" + url.QueryEscape("{ orders { id } }"), "application/json", []byte(`{"query":"{ secret }"}`)},
		{"POST", "/", "application/json", []byte(`{"query":"{ secret }"}`)},
		{"POST", "/x", "application/json", []byte(`{"query":"{ secret }"}`)},
		{"POST", "x", "application/json", []byte(`{"query":"{ secret }"}`)},
		{"POST", "%2f", "application/json", []byte(`{"query":"{ secret }"}`)},
		{"POST", "?", "application/json", []byte(`{"query":"{ secret }"}`)},
	}
	for _, query := range []string{
		"query=%7Bsecret%7D", "query={secret}", "query=%7Bsecret%7D&query=%7Bme%7Bid%7D%7D", "query=%7Bme%7Bid%7D%7D&query=%7Bsecret%7D", "%71uery=%7Bsecret%7D", "query=%7Bsecret%7D&Query=%7Bme%7Bid%7D%7D",
		"query=%7Bsecret%7D?query=%7Bme%7Bid%7D%7D", "a=1&query=%7Bsecret%7D", "query=query+A%7Bme%7Bid%7D%7Dquery+B%7Bsecret%7D&operationName=B", "query=mutation%7Bdrop%7D",
		"query=query%28%24x%3ABoolean%21%29%7Bsecret%40include%28if%3A%24x%29%7D&variables=%7B%22x%22%3Atrue%7D", ";query=%7Bsecret%7D",
	} {
		all = append(all, graphqlRequest{"GET", "?" + query, "", nil})
	}
	for _, document := range []string{
		`{ secret }`, `{orders{id}secret}`, `{ orders: secret }`, `{ orders: secret me: orders { id } }`, `mutation { drop }`, `mutation { addOrder { id } drop }`, `mutation { addOrder: drop }`,
		`{ ... { secret } }`, `{ ... on Query { secret } }`, `{ ... on Orders { orders { id } } secret }`, `{ ...F } fragment F on Query { secret }`,
		`{ ...F } fragment F on Query { ...G } fragment G on Query { orders { id } ... @include(if: true) { secret } }`, `{ ...on } fragment on on Query { secret }`, `fragment secret on Query { secret } { ...secret }`,
		`{ orders { id } } { secret }`, `query secret { orders { id } secret }`, `{ secret @include(if: true) }`, `{ secret @skip(if: false) @include(if: true) }`,
		"{ orders { id } #}\n secret }", "{ orders { id } #\rsecret }", "{ orders { id } #\u2028\n secret }", "{ orders { id } #\u0085 } \n secret }", "\ufeff{ secret }", "{\ufeffsecret\ufeff}", ",,{,orders,{,id,},secret,},",
		`{ orders(filter: {text: "}"}) { id } secret }`, `{ orders(filter: {text: "\""}) { id } secret }`, `{ orders(filter: {text: "\\"}) { id } secret }`, `{ orders(filter: {text: "#"}) { id } secret }`,
		`{ orders(filter: {text: """ " """}) { id } secret }`, `{ orders(filter: {text: """ \""" } # """}) { id } secret }`, `{ orders(filter: {text: """\"""}) { id } secret """ }) { id } secret }`,
		`{ orders(filter: {text: """"""}) { id } secret }`, `{ orders(filter: {text: ""}) { id } secret }`, `{ orders(filter: {text: "" "" }) { id } secret }`, "{ orders(filter: {text: \"\"\"\r\r\n\"\"\"}) { id } secret }",
		`{ orders(filter: {text: "\u007D"}) { id } secret }`, `{ orders(filter: {text: "\u{7D}"}) { id } secret }`, `{ orders(filter: {text: "\uD83D\uDE00"}) { id } secret }`, `{ orders(filter: {text: "\uDEAD"}) { id } secret }`,
		`{ orders(n: 1) { id } secret(of: "x") }`, `{ orders(n: -1, filter: {any: ["a" "b"]}) { id } secret }`, `{ orders(n: 01) { id } secret }`, `{ orders(n: 1secret) { id } secret }`,
		`{ orders { id lines { ...F } } } fragment F on Order { id } fragment G on Query { secret }`, `query ($n: Int = 1 @deprecated) { orders(n: $n) { id } secret }`, `query Q @live { secret }`,
		`{ __typename secret }`, `{ __schema { queryType { name } } secret }`, `{ sеcret: secret }`, `{ secret } type X { y: Int }`, `extend type Query { x: Int } { secret }`, `"what it does" query { secret }`,
		`query { secret } fragment F on Query { secret }`, `{ a: orders { id } b: orders { id } c: secret }`, "{ orders { id } \v secret }", "{ orders { id } \u00a0 secret }", "{ orders { id } \x00 secret }", `subscription { secret }`,
	} {
		all = append(all, asked(document, "", nil))
	}
	return all
}

// graphqlWriter writes documents that are right, at random: with fragments, directives, aliases, arguments, and anything between two tokens.
type graphqlWriter struct {
	r      *rand.Rand
	secret bool // may be asked for
	tokens []string
	names  int
}

func (w *graphqlWriter) add(tokens ...string) { w.tokens = append(w.tokens, tokens...) }

func (w *graphqlWriter) one(of ...string) string { return of[w.r.IntN(len(of))] }

func (w *graphqlWriter) directive() {
	switch w.r.IntN(8) {
	case 0:
		w.add("@", "include", "(", "if", ":", w.one("true", "$yes"), ")")
	case 1:
		w.add("@", "skip", "(", "if", ":", w.one("false", "$no"), ")")
	case 2:
		w.add("@", w.one("include", "skip"), "(", "if", ":", w.one("true", "false", "$yes", "$no"), ")")
	}
}

func (w *graphqlWriter) arguments() {
	if w.r.IntN(2) == 0 {
		return
	}
	text := func() string {
		return w.one(`"}"`, `"\""`, `"\\"`, `"# secret"`, `""`, `"""`+"\n} secret {\r"+`"""`, `""" \""" } """`, `"""#"""`, `"\u007B secret"`, `"é 😀"`, `"secret"`)
	}
	w.add("(", "n", ":", w.one("0", "-1", "$n", "12"), "filter", ":", "{", "text", ":", text(), "any", ":", "[", text(), text(), "]", "of", ":", "{", "text", ":", text(), "}", "}", ")")
}

// field of a root, under a name of its own where several could collide.
func (w *graphqlWriter) field(mutation bool) {
	w.names++
	w.add(fmt.Sprintf("a%d", w.names), ":")
	switch name := w.one("orders", "orders", "me", "__typename", "secret"); {
	case name == "secret" && !w.secret, name == "__typename" || mutation && name == "orders":
		w.add("__typename")
		w.directive()
	case mutation && name == "secret":
		w.add("drop")
		w.directive()
	case mutation:
		w.add("addOrder", "(", "name", ":", `"secret"`, ")")
		w.directive()
		w.add("{", "id", w.one("secret", "__typename"), "}")
	case name == "secret":
		w.add(name)
		w.directive()
	default:
		w.add(name)
		if name == "orders" {
			w.arguments()
		}
		w.directive()
		w.add("{", "id", "secret", "drop", ":", "lines", "(", "n", ":", "1", ")", "{", "id", "}", "}")
	}
}

// selection of a root type; fragments with a higher number than from may be spread in it.
func (w *graphqlWriter) selection(root string, from, depth int) {
	w.add("{")
	for range 1 + w.r.IntN(3) {
		switch k := w.r.IntN(6); {
		case k == 0 && depth > 0:
			w.add("...")
			if w.r.IntN(2) == 0 {
				w.add("on", root)
			}
			w.directive()
			w.selection(root, from, depth-1)
		case k == 1 && from < 3 && root == "Query":
			w.add("...", fmt.Sprintf("F%d", from+1+w.r.IntN(3-from)))
			w.directive()
		default:
			w.field(root == "Mutation")
		}
	}
	w.add("}")
}

// request is a document of one to three operations, one of which is to run.
func (w *graphqlWriter) request() graphqlRequest {
	w.tokens = nil
	var parts [][]string
	part := func() {
		parts = append(parts, w.tokens)
		w.tokens = nil
	}
	for i := range 1 + w.r.IntN(3) {
		root := w.one("Query", "Query", "Query", "Mutation")
		w.add(strings.ToLower(root), fmt.Sprintf("O%d", i), "(", "$yes", ":", "Boolean", "!", "=", "true", "$no", ":", "Boolean", "!", "=", "false", "$n", ":", "Int", ")")
		w.selection(root, 0, 2)
		part()
	}
	run := fmt.Sprintf("O%d", w.r.IntN(len(parts)))
	for i := 1; i <= 3; i++ {
		w.add("fragment", fmt.Sprintf("F%d", i), "on", "Query")
		w.selection("Query", i, 1)
		part()
	}
	w.r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	var b strings.Builder
	for _, p := range parts {
		for _, t := range p {
			b.WriteString(t)
			b.WriteString(w.one(" ", " ", " ", "\n", "\r", "\r\n", "\t", ",", "#} secret\n", "# {\r", "\ufeff", " , "))
		}
	}
	return asked(b.String(), run, nil)
}

// What a real GraphQL server runs is what was decided, whatever the document looks like: no field of a root type runs that the record doesn't name, what isn't
// allowed never runs, nor does anything beside it, and what is allowed runs as it does without the proxy.
func TestGraphQLRunsOnlyWhatWasDecided(t *testing.T) {
	port := testmesh.FreePorts(t, 1)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	m := testmesh.Start(t, testmesh.GraphQL("http://"+address), testmesh.Policy(filepath.Join("testdata", "operations")))
	m.NodeModules(t)
	modules, log := filepath.Join(m.Root, "node_modules"), filepath.Join(t.TempDir(), "ran")
	node := filepath.Join(modules, "node", "bin", "node")
	program := func(name string) string {
		raw, err := os.ReadFile(filepath.Join("testdata", "clients", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(m.Root, name)
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	testmesh.ListensAt(t, testmesh.Begin(t, testmesh.Command{Args: []string{node, program("graphql_server.mjs"), m.Root, strconv.Itoa(port), log}}), address)

	requests := graphqlAttacks()
	attacks := len(requests)
	w := &graphqlWriter{r: rand.New(rand.NewPCG(1, 2))}
	for i := range 300 {
		w.secret = i%2 == 0
		requests = append(requests, w.request())
	}
	raw, err := json.Marshal(requests)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.Root, "requests.json")
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	client := []string{node, program("graphql_client.mjs")}
	direct := graphqlAnswers(t, len(requests), testmesh.Exec(t, testmesh.Command{Args: append(client, "http://"+address, file)}))
	alice := m.Login(t, "alice")
	through := graphqlAnswers(t, len(requests), alice.Run(t, []string{"planner --target billing", "researcher"}, "sh", "-c", strings.Join(client, " ")+` "$DEPUTY_URL_BILLING" `+file))

	ran := map[string][]string{} // fields by request
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		id, field, _ := strings.Cut(strings.TrimSpace(line), " ")
		ran[id] = append(ran[id], field)
	}
	decided := map[string]*audit.Decision{}
	for _, r := range m.Records(t, "proxy") {
		if d, ok := r.Event.(*audit.Decision); ok {
			decided[r.ID.String()] = d
		}
	}
	forbidden := func(fields []string) bool {
		return slices.ContainsFunc(fields, func(f string) bool { return !slices.Contains([]string{"orders", "me", "addOrder"}, f) })
	}
	reached, refused, same := 0, 0, 0
	for i, a := range through {
		alone, here := ran[fmt.Sprintf("direct-%d", i)], ran[a.Record]
		said := fmt.Sprintf("request %d: direct %d ran %v; through Deputy %d ran %v: %s %+q", i, direct[i].Status, alone, a.Status, here, a.Body, requests[i].Query+string(requests[i].Body))
		d := decided[a.Record]
		switch {
		case a.Record == "" && a.Status != 400 || a.Record != "" && d == nil:
			t.Errorf("no record: %s", said)
			continue
		case forbidden(here):
			t.Errorf("what isn't allowed ran: %s", said)
		}
		for _, f := range here {
			if d == nil || d.Effect != audit.Allow || d.Statement == nil || !slices.Contains(strings.Fields(d.Statement.Scrubbed), f) {
				t.Errorf("%s ran and isn't in the record %+v: %s", f, d, said)
			}
		}
		switch {
		case forbidden(alone):
			reached++
			if len(here) > 0 || a.Status != 403 && a.Status != 400 {
				t.Errorf("it ran in part: %s", said)
			}
		case a.Status == 403 || a.Status == 400:
			refused++
			// A document of the writer's that could ask for nothing secret is allowed.
			if i >= attacks && (i-attacks)%2 == 1 {
				t.Errorf("refused: %s", said)
			}
		case !slices.Equal(alone, here) || a.Status != direct[i].Status || a.Body != direct[i].Body:
			t.Errorf("something else ran: %s", said)
		default:
			same++
		}
		delete(ran, a.Record)
		delete(ran, fmt.Sprintf("direct-%d", i))
	}
	for id, fields := range ran {
		t.Errorf("%v ran for %s, which is no request", fields, id)
	}
	if reached < 120 || same < 150 {
		t.Errorf("%d requests reach for what is forbidden, %d run as without the proxy, %d are refused besides: this tries too little", reached, same, refused)
	}
	t.Logf("%d requests reach for what is forbidden, %d run as without the proxy, %d are refused besides", reached, same, refused)
	m.Verify(t)
}

// graphqlAnswers reads what the client printed, for so many requests.
func graphqlAnswers(t *testing.T, n int, r testmesh.Result) []graphqlAnswer {
	t.Helper()
	var all []graphqlAnswer
	lines := bufio.NewScanner(strings.NewReader(r.Stdout))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a graphqlAnswer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			t.Fatalf("%v: %s", err, r)
		}
		all = append(all, a)
	}
	if r.Code != 0 || len(all) != n {
		t.Fatalf("%d answers to %d requests: %s", len(all), n, r)
	}
	return all
}
