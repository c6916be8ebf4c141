package mcpd_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// says is a server that answers everything with the same, as JSON or as the last event of a stream.
type says struct {
	before, result string
	stream         bool
}

func (s *says) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	_, _ = io.Copy(io.Discard, q.Body)
	answer := `{"jsonrpc":"2.0","id":1,` + s.result + `}`
	if !s.stream {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for _, data := range append(strings.Fields(s.before), answer) {
		_, _ = io.WriteString(w, "data: "+data+"\n\n")
	}
}

func masks(t *testing.T, rules string) policy.Obligations {
	t.Helper()
	parsed, err := policy.ParseMasks(rules)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Obligations{Masks: parsed}
}

// answer is what the agent got of the response, from JSON or from the last event of a stream.
func answer(t *testing.T, body string) (result, fault string) {
	t.Helper()
	if i := strings.LastIndex(body, "data: "); i >= 0 {
		body = strings.TrimSpace(body[i+len("data: "):])
	}
	var got struct{ Result, Error json.RawMessage }
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return string(got.Result), string(got.Error)
}

const (
	callTool = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}`
	readIt   = `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"memo:///public/a"}}`
	getIt    = `{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"review"}}`
	withheld = `"withheld: the policy masks what is in it, and it is of a kind that can't be masked (record: rec-decided)"`
)

func quoted(s string) string {
	out, _ := json.Marshal(s)
	return string(out)
}

// Masks of a permit act on all that a result holds; what none can be put on is withheld.
func TestResultsAreMasked(t *testing.T) {
	server := &says{}
	r := newRig(t, server)
	const ada, masked = `{"email":"ada@example.com"}`, `{"email":"a***@example.com"}`
	text := func(s string) string { return `{"text":` + quoted(s) + `,"type":"text"}` }
	none := `{"text":` + withheld + `,"type":"text"}`
	for name, c := range map[string]struct {
		ask, in, out string
		values       int64 // by the rule
		withheld     int64
	}{
		"structured":       {callTool, `{"content":[],"structuredContent":` + ada + `}`, `{"content":[],"structuredContent":` + masked + `}`, 1, 0},
		"JSON in a text":   {callTool, `{"content":[` + text(ada) + `]}`, `{"content":[` + text(masked) + `]}`, 1, 0},
		"JSON in a string": {callTool, `{"structuredContent":{"result":` + quoted(ada) + `}}`, `{"structuredContent":{"result":` + quoted(masked) + `}}`, 1, 0},
		"an embedded resource": {callTool, `{"content":[{"type":"resource","resource":{"uri":"memo:///a","mimeType":"application/json; x=ada","_meta":` + ada + `,"text":` + quoted(ada) + `}}]}`,
			`{"content":[{"resource":{"mimeType":"application/json","text":` + quoted(masked) + `,"uri":"memo:///a"},"type":"resource"}]}`, 1, 0},
		"a plain text":        {callTool, `{"content":[` + text("mail ada@example.com") + `],"isError":true}`, `{"content":[` + none + `],"isError":true}`, 0, 1},
		"a string in quotes":  {callTool, `{"content":[` + text(`"ada@example.com"`) + `]}`, `{"content":[` + none + `]}`, 0, 1},
		"lines":               {callTool, `{"content":[` + text(ada+"\n"+ada) + `]}`, `{"content":[` + none + `]}`, 1, 1},
		"an image":            {callTool, `{"content":[{"type":"image","data":"YWRh","mimeType":"image/png"}]}`, `{"content":[` + none + `]}`, 0, 1},
		"audio":               {callTool, `{"content":[{"type":"audio","data":"YWRh","mimeType":"audio/wav"}]}`, `{"content":[` + none + `]}`, 0, 1},
		"a link":              {callTool, `{"content":[{"type":"resource_link","uri":"memo:///ada","name":"ada@example.com"}]}`, `{"content":[` + none + `]}`, 0, 1},
		"a blob":              {callTool, `{"content":[{"type":"resource","resource":{"uri":"memo:///a","blob":"YWRh"}}]}`, `{"content":[` + none + `]}`, 0, 1},
		"a kind of its own":   {callTool, `{"content":[{"type":"ada","text":` + quoted(ada) + `}]}`, `{"content":[` + none + `]}`, 0, 1},
		"what stands beside":  {callTool, `{"content":[{"type":"text","text":"{}","annotations":` + ada + `}],"_meta":` + ada + `,"more":"ada"}`, `{"content":[` + text("{}") + `]}`, 0, 2},
		"a structured text":   {callTool, `{"structuredContent":"ada@example.com"}`, `{}`, 0, 1},
		"a resource":          {readIt, `{"contents":[{"uri":"memo:///public/a","text":` + quoted(ada) + `}]}`, `{"contents":[{"text":` + quoted(masked) + `,"uri":"memo:///public/a"}]}`, 1, 0},
		"a resource of text":  {readIt, `{"contents":[{"uri":"memo:///public/a","text":"ada","mimeType":"text/plain"}]}`, `{"contents":[{"mimeType":"text/plain","text":` + withheld + `,"uri":"memo:///public/a"}]}`, 0, 1},
		"a resource of bytes": {readIt, `{"contents":[{"uri":"memo:///public/a","blob":"YWRh"}],"ttlMs":5,"cacheScope":"public"}`, `{"cacheScope":"private","contents":[{"text":` + withheld + `,"uri":"memo:///public/a"}],"ttlMs":5}`, 0, 1},
		"a prompt": {getIt, `{"description":"ada","messages":[{"role":"assistant","content":` + text(ada) + `},{"role":"ada","content":[]}]}`,
			`{"messages":[{"content":` + text(masked) + `,"role":"assistant"},{"content":` + none + `,"role":"user"}]}`, 1, 2},
	} {
		for _, server.stream = range []bool{false, true} {
			r.Set(func() { r.Ob = masks(t, "$.email=email") })
			server.result = `"result":` + c.in
			a, body := r.post(c.ask)
			if got, _ := answer(t, body); a.StatusCode != 200 || got != c.out {
				t.Errorf("%s: %d\n%s, want\n%s", name, a.StatusCode, body, c.out)
			}
			all := r.All("completed")
			out := all[len(all)-1].Out
			var values, kept int64
			for _, m := range out.Masked {
				if m.Rule == "withheld" {
					kept += m.Values
				} else {
					values += m.Values
				}
			}
			if out.Status != "ok" || values != c.values || kept != c.withheld || out.Bytes == 0 {
				t.Errorf("%s: the outcome %+v", name, out)
			}
		}
	}
}

// Detectors find values wherever they stand in what a server says: results of every method, errors, logs, questions.
func TestResultsAreMaskedByDetector(t *testing.T) {
	server := &says{}
	r := newRig(t, server)
	text := func(s string) string { return `{"text":` + quoted(s) + `,"type":"text"}` }
	none := `{"text":` + withheld + `,"type":"text"}`
	const log = `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"ada@example.com"}}`
	const ask = `{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"message":"ada@example.com?"}}`
	for name, c := range map[string]struct {
		ask, before, in, out string
		values               int64
	}{
		"a text":         {callTool, "", `{"content":[` + text("mail ada@example.com") + `]}`, `{"content":[` + text("mail a***@example.com") + `]}`, 1},
		"structured":     {callTool, log, `{"structuredContent":{"who":["ada@example.com"]},"_meta":{"x":"ada@example.com"}}`, `{"_meta":{"x":"a***@example.com"},"structuredContent":{"who":["a***@example.com"]}}`, 2},
		"escaped in it":  {callTool, "", `{"content":[` + text(`{"e":"ada@example.com"}`) + `]}`, `{"content":[` + text(`{"e":"a***@example.com"}`) + `]}`, 1},
		"after escapes":  {callTool, "", `{"content":[` + text(`{"e":"to:\nDE89 3704 0044 0532 0130 00"}`) + `]}`, `{"content":[` + text(`{"e":"to:\n****3000"}`) + `]}`, 1},
		"an image":       {callTool, "", `{"content":[{"type":"image","data":"YWRh","mimeType":"image/png"}]}`, `{"content":[` + none + `]}`, 1},
		"a blob in it":   {callTool, "", `{"content":[{"type":"resource","resource":{"uri":"memo:///a","blob":"YWRh"}}]}`, `{"content":[` + none + `]}`, 1},
		"a blob":         {readIt, "", `{"contents":[{"uri":"memo:///a","blob":"YWRh"}]}`, `{"contents":[{"text":` + withheld + `,"uri":"memo:///a"}]}`, 1},
		"a prompt":       {getIt, "", `{"messages":[{"role":"user","content":` + text("ada@example.com") + `},{"role":"user","content":{"type":"audio","data":"YWRh"}}]}`, `{"messages":[{"content":` + text("a***@example.com") + `,"role":"user"},{"content":` + none + `,"role":"user"}]}`, 2},
		"several parts":  {getIt, "", `{"messages":[{"role":"user","content":[` + text("ada@example.com") + `,{"type":"image","data":"YWRh"}]}]}`, `{"messages":[{"content":[` + text("a***@example.com") + `,` + none + `],"role":"user"}]}`, 2},
		"no part":        {getIt, "", `{"messages":[{"role":"user","content":[{"type":"image","data":"YWRh"},"ada@example.com"]}]}`, `{"messages":[{"content":` + none + `,"role":"user"}]}`, 1},
		"a blob by case": {callTool, "", `{"content":[{"type":"resource","resource":{"uri":"memo:///a","Blob":"YWRh"}}]}`, `{"content":[` + none + `]}`, 1},
		"a list":         {`{"jsonrpc":"2.0","id":1,"method":"prompts/list"}`, "", `{"prompts":[{"name":"a","title":"for ada@example.com"}]}`, `{"prompts":[{"name":"a","title":"for a***@example.com"}]}`, 1},
		"another asking": {callTool, ask, `{"content":[]}`, `{"content":[]}`, 0},
	} {
		for _, server.stream = range []bool{false, true} {
			r.Set(func() { r.Ob = masks(t, "detect:email=email, detect:iban=last4") })
			server.result, server.before = `"result":`+c.in, c.before
			_, body := r.post(c.ask)
			if got, _ := answer(t, body); got != c.out || strings.Contains(body, "ada@") {
				t.Errorf("%s:\n%s, want\n%s", name, body, c.out)
			}
			all := r.All("completed")
			var values int64
			for _, m := range all[len(all)-1].Out.Masked {
				values += m.Values
			}
			if want := c.values + int64(strings.Count(c.before, "message\",")); values < want && server.stream || values < c.values {
				t.Errorf("%s: %+v", name, all[len(all)-1].Out)
			}
		}
	}
	server.result = `"result":{"resultType":"input_required","inputRequests":{"k":{"method":"sampling/createMessage","params":{"messages":[{"role":"user","content":{"type":"tool_result","content":[{"type":"image","data":"YWRh"},` +
		text("for ada@example.com") + `]}}]}}}}`
	r.Set(func() {
		of := masks(t, "detect:email=email")
		r.Obliges = func(cmd proxy.Command) policy.Obligations {
			if cmd.Kind == "tools/call" {
				return of
			}
			return policy.Obligations{}
		}
	})
	if _, body := r.post(callTool); strings.Contains(body, "YWRh") || !strings.Contains(body, "for a***@example.com") || !strings.Contains(body, "withheld: ") {
		t.Errorf("%s", body)
	}
	server.result = `"result":{"content":[{"type":"image","Data":"YWRh"}]}`
	if _, body := r.post(callTool); !strings.Contains(body, "can't be read") {
		t.Errorf("%s", body)
	}
	server.result = `"error":{"code":-32602,"message":"no ada@example.com","data":{"x":"ada@example.com"}}`
	if _, body := r.post(callTool); !strings.Contains(body, `no a***@example.com`) || strings.Contains(body, "ada@") {
		t.Errorf("%s", body)
	}
}

// What could say on another way what is masked doesn't pass.
func TestMasksLeaveNoWayAround(t *testing.T) {
	server := &says{stream: true}
	r := newRig(t, server)
	for name, c := range map[string]struct{ before, result, want string }{
		"an error":          {"", `"error":{"code":-32000,"message":"no ada@example.com","data":{"x":"ada"}}`, `"code":-32000`},
		"a log":             {`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"ada"}}`, `"result":{"content":[]}`, `"content":[]`},
		"progress":          {`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":0.5,"message":"ada"}}`, `"result":{"content":[]}`, `"params":{"progress":0.5,"progressToken":1}`},
		"progress of texts": {`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"ada@example.com","progress":"ada","total":"ada"}}`, `"result":{"content":[]}`, `"params":{}`},
		"a changed list":    {`{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"x":"ada"}}}`, `"result":{"content":[]}`, `"notifications/tools/list_changed"`},
		"a resource":        {`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"memo:///ada"}}`, `"result":{"content":[]}`, `"content":[]`},
		"sampling":          {`{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{"x":"ada"}}`, `"result":{"content":[]}`, `"content":[]`},
		"what it asks":      {"", `"result":{"resultType":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"message":"ada"}}},"requestState":"ada"}`, "meanwhile has none"},
		"an error of signs": {"", `"error":{"code":-32042,"message":"ada","data":{"elicitations":[{"mode":"url","url":"https://ada.example"}]}}`, "meanwhile has none"},
	} {
		server.before, server.result = c.before, c.result
		r.Set(func() { r.Ob = masks(t, "$..email=email") })
		if _, body := r.post(callTool); strings.Contains(body, "ada") || !strings.Contains(body, c.want) {
			t.Errorf("%s: %s", name, body)
		}
	}
	server.before = `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p","progress":1,"message":"ada"}}`
	if _, body := r.post(strings.Replace(callTool, `"name"`, `"_meta":{"progressToken":"p"},"name"`, 1)); !strings.Contains(body, `"params":{"progress":1,"progressToken":"p"}`) {
		t.Errorf("progress by a text: %s", body)
	}
	if why := r.Await(t, "refused", "asked by the server: sampling/createMessage").Why; !strings.Contains(why, "meanwhile has none") {
		t.Error(why)
	}
}

// What a server says of a masked call on another stream of the session, meanwhile or later, says nothing of what is masked.
func TestOtherStreamsOfASessionAreMaskedToo(t *testing.T) {
	const log, ask = `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"for ada@example.com"}}`, `{"jsonrpc":"2.0","id":"q1","method":"elicitation/create","params":{"message":"ada@example.com?"}}`
	const changed = `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`
	for rules, want := range map[string]string{"$.email=email": "", "detect:email=email": "for a***@example.com"} {
		say, called, listening := make(chan string), make(chan struct{}), make(chan struct{})
		r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			body, _ := io.ReadAll(q.Body)
			switch {
			case q.Method == http.MethodGet:
				w.Header().Set("Content-Type", "text/event-stream")
				_ = http.NewResponseController(w).Flush()
				close(listening)
				for text := range say {
					_, _ = io.WriteString(w, "data: "+text+"\n\n")
					_ = http.NewResponseController(w).Flush()
				}
				return
			case q.Method == http.MethodPost && strings.Contains(string(body), "tools/call"):
				close(called)
				<-listening
				say <- ask
				say <- log
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Mcp-Session-Id", "upstream")
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"a","version":"1"}}}`)
		}))
		a, _ := r.post(begin)
		id := a.Header.Get("Mcp-Session-Id")
		got := make(chan string, 1)
		go func() {
			q, _ := http.NewRequest(http.MethodGet, "https://"+r.address+"/mcp", nil)
			q.Header.Set("Mcp-Session-Id", id)
			a, err := r.client.Do(q)
			if err != nil {
				got <- err.Error()
				return
			}
			defer a.Body.Close()
			text, _ := io.ReadAll(a.Body)
			got <- string(text)
		}()
		<-listening
		r.Set(func() { r.Ob = masks(t, rules) })
		r.post(callTool, "Mcp-Session-Id", id)
		<-called
		r.Set(func() { r.Ob = policy.Obligations{} })
		say <- log // late
		say <- strings.Replace(ask, "q1", "q2", 1)
		say <- changed
		close(say)
		text := <-got
		if strings.Contains(text, "ada@") || !strings.Contains(text, want) || !strings.Contains(text, "list_changed") {
			t.Errorf("%s: %s", rules, text)
		}
		if asked := strings.Contains(text, "elicitation"); asked != (want != "") {
			t.Errorf("%s: asked: %t: %s", rules, asked, text)
		}
		if out := r.Await(t, "completed", "GET").Out; len(out.Masked) != 1 || out.Masked[0].Values < 2 {
			t.Errorf("%s: %+v", rules, out)
		}
	}
}

// A masked answer waits for the record of what was masked in it, and isn't given without.
func TestAMaskedResultNeedsItsRecord(t *testing.T) {
	server := &says{result: `"result":{"structuredContent":{"email":"ada@example.com","name":"loot"}}`}
	r := newRig(t, server)
	r.Set(func() {
		r.Ob = masks(t, "$.email=email")
		r.Outcome = func(proxy.Outcome) error {
			return &proxy.Refusal{Class: "evidence", Reason: "the log can't be written"}
		}
	})
	for _, server.stream = range []bool{false, true} {
		if _, body := r.post(callTool); strings.Contains(body, "loot") || !strings.Contains(body, "the log can't be written") {
			t.Errorf("%s", body)
		}
	}
}

// Masks that nothing can be done with refuse the request before it has an effect.
func TestMasksThatCannotBePutOnRefuse(t *testing.T) {
	up := &seen{}
	r := newRig(t, up.ServeWith(&says{result: `"result":{}`}))
	for rules, asks := range map[string][]string{
		"customers.email=email": {callTool, readIt, getIt},
		"$.email=email": {begin, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`,
			`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"a"},"argument":{"name":"b","value":""}}}`},
	} {
		r.Set(func() { r.Ob = masks(t, rules) })
		for _, ask := range asks {
			if _, body := r.post(ask); !strings.Contains(body, "the policy masks") || !strings.Contains(body, "rec-refused") {
				t.Errorf("%s: %s", ask, body)
			}
		}
	}
	r.Set(func() { r.Ob = policy.Obligations{MaxRows: 10} })
	if _, body := r.post(callTool); !strings.Contains(body, "limit of rows") {
		t.Errorf("%s", body)
	}
	if len(up.bodies) > 0 {
		t.Errorf("the server got %q", up.bodies)
	}
}

// Large results are masked whole, and a tool with masks stays in the list.
func TestLargeResultsAreMasked(t *testing.T) {
	var items strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&items, `,{"n":%d,"email":"user%d@example.com"}`, i, i)
	}
	server := &says{result: `"result":{"structuredContent":{"items":[` + items.String()[1:] + `]}}`}
	r := newRig(t, server)
	r.Set(func() { r.Ob = masks(t, "$.items[*].email=hash") })
	for _, server.stream = range []bool{false, true} {
		_, body := r.post(callTool)
		if strings.Contains(body, "@example.com") || strings.Count(body, `"email":"`) != 10_000 {
			t.Errorf("%d bytes: %.200s", len(body), body)
		}
		all := r.All("completed")
		if out := all[len(all)-1].Out; len(out.Masked) != 1 || out.Masked[0].Values != 10_000 {
			t.Errorf("%+v", out)
		}
	}
	server.result, server.stream = `"result":{"tools":[{"name":"echo","inputSchema":{}}]}`, false
	r.Set(func() {
		r.Ob = policy.Obligations{}
		r.Allow = func(cmd proxy.Command) bool {
			a := cmd.Ops[0].Action.(actor.MCPAction)
			return a.Kind == "" || a.Verb == "call" && cmd.Check(masks(t, "$.a=email")) == nil
		}
	})
	if _, body := r.post(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); !strings.Contains(body, `"echo"`) {
		t.Errorf("%s", body)
	}
}
