package httpd_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
)

// answers is a service that says what the test wants.
type answers struct {
	kind, text string
	second     string // type of the content
	headers    map[string]string
	status     int
	zip        bool
}

func (a *answers) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Type", a.kind)
	for name, value := range a.headers {
		w.Header().Set(name, value)
	}
	if a.second != "" {
		w.Header().Add("Content-Type", a.second)
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	if a.zip || q.Header.Get("Accept-Encoding") != "identity" {
		if a.zip {
			to := gzip.NewWriter(w)
			_, _ = io.WriteString(to, a.text)
			_ = to.Close()
			return
		}
	}
	for _, part := range strings.SplitAfter(a.text, ",") {
		_, _ = io.WriteString(w, part)
		w.(http.Flusher).Flush()
	}
}

func masks(t *testing.T, text string) policy.Obligations {
	t.Helper()
	o, err := policy.ParseMasks(text)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Obligations{Masks: o}
}

func TestMembersOfJSONAreMasked(t *testing.T) {
	service := &answers{kind: "application/json", headers: map[string]string{"ETag": `"abc"`}}
	r := newRig(t, service)
	for _, c := range []struct{ rule, in, out string }{
		{"$.email=email", `{"email":"ada@example.com","x":"ada@example.com"}`, `{"email":"a***@example.com","x":"ada@example.com"}`},
		{"$.email=email", `{"Email":"ada@example.com","EMAIL":"bob@example.com"}`, `{"Email":"a***@example.com","EMAIL":"b***@example.com"}`},
		{"$.email=email", `{"email":"ada@example.com","email":"bob@example.com"}`, `{"email":"a***@example.com","email":"b***@example.com"}`},
		{"$.email=email", `{"em\u0061il":"ada@example.com"}`, `{"email":"a***@example.com"}`},
		{"$.email=email", `{"inner":{"email":"ada@example.com"}}`, `{"inner":{"email":"ada@example.com"}}`},
		{"$..email=email", `{"inner":[{"email":"ada@example.com"}]}`, `{"inner":[{"email":"a***@example.com"}]}`},
		{"$.items[*].iban=last4", `{"items":[{"iban":"DE0012345678"},{"iban":"DE0087654321"}],"iban":"DE0012345678"}`, `{"items":[{"iban":"****5678"},{"iban":"****4321"}],"iban":"DE0012345678"}`},
		{"$[*].n=redact", `[{"n":42},{"n":true},{"n":null},{"n":"x"}]`, `[{"n":"****"},{"n":"****"},{"n":null},{"n":"****"}]`},
		{"$.secret=null", `{"secret":{"a":["b",{"c":1}]},"open":[1,2.50,1e400]}`, `{"secret":null,"open":[1,2.50,1e400]}`},
		{"$.secret=redact", `{"secret":[{"a":1}],"b":"<&>"}`, `{"secret":"****","b":"<&>"}`},
		{"$..a=redact, $..a.b=email", `{"a":{"b":"ada@example.com"}}`, `{"a":"****"}`},
		{"$..x=email, $.x=null", `{"x":"ada@example.com"}`, `{"x":null}`},
		{"$.*.k=redact", `{"p":{"k":1},"q":{"k":2},"k":3}`, `{"p":{"k":"****"},"q":{"k":"****"},"k":3}`},
		{"$.e=email", `"a text alone"`, `"a text alone"`},
		{"$.e=email", ` { "e" : [ ] , "f" : { } } `, `{"e":"****","f":{}}`},
	} {
		service.text = c.in
		r.Set(func() { r.Ob = masks(t, c.rule) })
		a, text := r.do("GET", "/x", nil, "Range", "bytes=0-3", "If-None-Match", `"abc"`, "Accept-Encoding", "gzip")
		if a.StatusCode != 200 || text != c.out {
			t.Errorf("%s of %s: %d %s, want %s", c.rule, c.in, a.StatusCode, text, c.out)
		}
		if !json.Valid([]byte(text)) || a.Header.Get("ETag") != "" || a.ContentLength > 0 && a.ContentLength != int64(len(text)) {
			t.Errorf("%s: %v, %d bytes", c.rule, a.Header, a.ContentLength)
		}
	}
	out := r.All("completed")[6].Out
	if len(out.Masked) != 1 || out.Masked[0].Column != "$.items[*].iban" || out.Masked[0].Values != 2 || out.Masked[0].Rule != "last4" || out.Status != "ok" {
		t.Errorf("the outcome: %+v", out)
	}
}

func TestWhatCannotBeMaskedIsWithheld(t *testing.T) {
	const secret = "ada@example.com"
	service := &answers{}
	r := newRig(t, service)
	r.Set(func() { r.Ob = masks(t, "$..email=email") })
	for name, c := range map[string]answers{
		"text":             {kind: "text/plain", text: secret},
		"no type":          {kind: "", text: secret},
		"HTML":             {kind: "text/html", text: secret},
		"an error in text": {kind: "text/plain", text: secret, status: 500},
		"Brotli":           {kind: "application/json", text: `{"email":"` + secret + `"}`, headers: map[string]string{"Content-Encoding": "br"}},
		"UTF-16":           {kind: "application/json; charset=utf-16", text: `{"email":"` + secret + `"}`},
		"a picture":        {kind: "image/png", text: secret},
		"two types":        {kind: "application/json", second: "text/plain", text: `{"a":"` + secret + `"}`},
		"a difference":     {kind: "application/json", text: `{"a":"` + secret + `"}`, status: 226, headers: map[string]string{"IM": "patch"}},
		"a sequence":       {kind: "application/json-seq", text: "\x1e" + `{"email":"` + secret + `"}`},
	} {
		*service = c
		a, text := r.do("GET", "/x", nil)
		if a.StatusCode != 502 || strings.Contains(text, secret) || !strings.Contains(text, "withheld") || !strings.Contains(text, "record: rec-decided") {
			t.Errorf("%s: %d %s", name, a.StatusCode, text)
		}
	}
	// What turns out not to be JSON, or too much of it, is cut in the middle.
	for name, text := range map[string]string{
		"not closed": `{"a":1,`, "two texts": `{"a":1} {"email":"` + secret + `"}`, "garbage": `{"a":1,,"email":"` + secret + `"}`, "deep": strings.Repeat("[", 300) + `"` + secret + `"` + strings.Repeat("]", 300),
		"a name without a colon": `{"email" "` + secret + `"}`, "events no JSON": "data: " + secret + "\n\n", "events too large": "data: " + strings.Repeat("x", 2<<20) + secret + "\n\n",
		"lines no JSON": `{"a":1}` + "\n" + secret + "\n", "no gzip": secret,
	} {
		*service = answers{kind: "application/json", text: text}
		switch word, _, _ := strings.Cut(name, " "); word {
		case "events":
			service.kind = "text/event-stream"
		case "lines":
			service.kind = "application/x-ndjson"
		}
		if name == "no gzip" {
			service.headers = map[string]string{"Content-Encoding": "gzip"}
		}
		a, err := r.client.Do(r.request("GET", "/x", nil))
		if err != nil {
			continue
		}
		got, err := io.ReadAll(a.Body)
		_ = a.Body.Close()
		if err == nil || strings.Contains(string(got), secret) {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for _, out := range r.All("completed") {
		if out.Out.Status == "ok" {
			t.Errorf("an outcome says ok: %+v", out)
		}
	}
	// Errors in JSON are masked as everything else.
	*service = answers{kind: "application/problem+json", text: `{"email":"` + secret + `"}`, status: 422}
	if a, text := r.do("POST", "/x", nil); a.StatusCode != 422 || text != `{"email":"a***@example.com"}` {
		t.Errorf("%d %s", a.StatusCode, text)
	}
	if a, text := r.do("HEAD", "/x", nil); a.StatusCode != 422 || text != "" || a.ContentLength > 0 {
		t.Errorf("HEAD: %d %q %d", a.StatusCode, text, a.ContentLength)
	}
}

func TestWhatDetectorsFindIsMaskedInEveryText(t *testing.T) {
	const rules = "detect:email=email, detect:card=last4, $..note=redact"
	service := &answers{}
	r := newRig(t, service)
	for name, c := range map[string]struct {
		answers
		rules, out string
	}{
		"JSON": {answers{kind: "application/json", text: `{"a":"by ada@example.com","ada@example.com":4111111111111111,"n":4111111111111112,"note":"x","e":"\u0061da\u0040example.com"}`}, rules,
			`{"a":"by a***@example.com","a***@example.com":"****1111","n":4111111111111112,"note":"****","e":"a***@example.com"}`},
		"text":   {answers{kind: "text/plain; charset=utf-8", text: "ada@example.com, 4111 1111 1111 1111\nada@exam,ple.com"}, "detect:email=redact, detect:card=redact", "****, ****\nada@exam,ple.com"},
		"HTML":   {answers{kind: "text/html", text: `<a href="mailto:ada@example.com">ada&#64;example.com</a>`}, "detect:email=redact", `<a href="mailto:****">****</a>`},
		"zipped": {answers{kind: "text/csv", text: "1,ada@example.com\n", zip: true, headers: map[string]string{"Content-Encoding": "gzip"}}, "detect:email=redact", "1,****\n"},
		"lines":  {answers{kind: "application/x-ndjson", text: `{"a":"ada@example.com"}` + "\n" + `{"note":1}` + "\n"}, rules, `{"a":"a***@example.com"}` + "\n" + `{"note":"****"}` + "\n"},
		"events": {answers{kind: "text/event-stream", text: ": hello ada@example.com\r\nid: 7\nevent: x\ndata: {\"note\":1,\ndata: \"a\":\"ada@example.com\"}\n\nretry: 5\ndata: [DONE]\n\ndata: lost"}, rules,
			":\nevent: x\nid: 7\ndata: {\"note\":\"****\",\"a\":\"a***@example.com\"}\n\nretry: 5\ndata: [DONE]\n\n"},
		"events of text": {answers{kind: "text/event-stream", text: "data: ada@example.com\ndata: and more\n\n"}, "detect:email=redact", "data: ****\ndata: and more\n\n"},
	} {
		c.headers = map[string]string{"Link": "<mailto:ada@example.com>", "ETag": `"abc"`, "Content-Encoding": c.headers["Content-Encoding"]}
		*service = c.answers
		r.Set(func() { r.Ob = masks(t, c.rules) })
		a, text := r.do("GET", "/"+strings.ReplaceAll(name, " ", "-"), nil, "Range", "bytes=0-3")
		if a.StatusCode != 200 || text != c.out || a.Header.Get("ETag") != "" || a.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %d %q, want %q (%v)", name, a.StatusCode, text, c.out, a.Header)
		}
		if link := a.Header.Get("Link"); strings.Contains(link, "ada@") {
			t.Errorf("%s: a header says %s", name, link)
		}
	}
	out := r.Await(t, "completed", "GET /JSON").Out
	if len(out.Masked) != 3 || out.Masked[0] != (audit.MaskedCount{Rule: "redact", Column: "$..note", Values: 1}) || out.Masked[1] != (audit.MaskedCount{Rule: "last4", Column: "detect:card", Values: 1}) || out.Masked[2].Values != 4 {
		t.Errorf("the outcome: %+v", out)
	}
	// What is no text is withheld, and so is a text where a path can't be followed.
	for _, c := range []struct{ kind, rules string }{{"image/png", "detect:email=redact"}, {"application/octet-stream", "detect:email=redact"}, {"", "detect:email=redact"}, {"text/plain; charset=utf-16", "detect:email=redact"}, {"text/plain", rules}} {
		*service = answers{kind: c.kind, text: "ada@example.com"}
		r.Set(func() { r.Ob = masks(t, c.rules) })
		if a, text := r.do("GET", "/x", nil); a.StatusCode != 502 || strings.Contains(text, "ada@") || !strings.Contains(text, "withheld") {
			t.Errorf("%s: %d %s", c.kind, a.StatusCode, text)
		}
	}
	// A HEAD has a header alone.
	*service = answers{kind: "image/png", headers: map[string]string{"X-Owner": "ada@example.com"}}
	if a, _ := r.do("HEAD", "/head", nil); a.StatusCode != 200 || a.Header.Get("X-Owner") != "a***@example.com" {
		t.Errorf("HEAD: %d %v", a.StatusCode, a.Header)
	}
}

// A masked event goes on when it is whole, not when the stream ends.
func TestMaskedEventsAreNotHeldBack(t *testing.T) {
	next, ended := make(chan struct{}), make(chan struct{})
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, ": still here\n\ndata: {\"n\":%d,\"to\":\"ada@example.com\"}\n\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
		close(ended)
	}))
	r.Set(func() { r.Ob = masks(t, "detect:email=redact") })
	a, err := r.client.Do(r.request("GET", "/events", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	lines := bufio.NewScanner(a.Body)
	for i := range 3 {
		for lines.Scan() && !strings.HasPrefix(lines.Text(), "data:") {
		}
		if want := fmt.Sprintf(`data: {"n":%d,"to":"****"}`, i); lines.Text() != want {
			t.Errorf("%q, want %q", lines.Text(), want)
		}
		next <- struct{}{}
	}
	<-ended
}

// However a service nests what it answers, a path with many steps at any depth takes no longer.
func TestDeepAnswersAreMaskedAtOnce(t *testing.T) {
	const depth = 200
	r := newRig(t, &answers{kind: "application/json", text: strings.Repeat(`{"a":`, depth) + `{"b":1}` + strings.Repeat("}", depth)})
	r.Set(func() { r.Ob = masks(t, "$..a..a..a..a..a..a..b=redact, $..a..a..a..a..a..a..c=redact") })
	if a, text := r.do("GET", "/x", nil); a.StatusCode != 200 || !strings.Contains(text, `{"b":"****"}`) {
		t.Errorf("%d %s", a.StatusCode, text)
	}
}

func TestMaskedAnswersOfAnySizeAreStreamed(t *testing.T) {
	const items = 60_000
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "[")
		for i := range items {
			if i > 0 {
				_, _ = io.WriteString(w, ",")
			}
			fmt.Fprintf(w, `{"id":%d,"email":"user%d@example.com"}`, i, i)
		}
		_, _ = io.WriteString(w, "]")
	}))
	r.Set(func() { r.Ob = masks(t, "$[*].email=email") })
	a, err := r.client.Do(r.request("GET", "/all", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	var got []struct{ Email string }
	if err := json.NewDecoder(a.Body).Decode(&got); err != nil || len(got) != items || got[items-1].Email != "u***@example.com" {
		t.Errorf("%d %v", len(got), err)
	}
	if out := r.Await(t, "completed", "GET /all").Out; out.Masked[0].Values != items {
		t.Errorf("%+v", out)
	}
}

// The end of a masked answer waits for the record of what was masked; without it the answer never ends well.
// A large value beside a masked one comes whole, time after time: what it took of the engine's memory is given back.
func TestLargeValuesOfMaskedAnswersPass(t *testing.T) {
	text := strings.Repeat("x", 10<<20)
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"email":"ada@example.com","text":"`+text+`"}`)
	}))
	r.Set(func() { r.Ob = masks(t, "$.email=email") })
	for range 10 {
		a, err := r.client.Do(r.request("GET", "/large", nil))
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Email, Text string }
		err = json.NewDecoder(a.Body).Decode(&got)
		_ = a.Body.Close()
		if err != nil || got.Email != "a***@example.com" || got.Text != text {
			t.Fatalf("%q and %d bytes: %v", got.Email, len(got.Text), err)
		}
	}
}

func TestMaskedAnswersEndWithTheirRecord(t *testing.T) {
	r := newRig(t, &answers{kind: "application/json", text: `{"email":"ada@example.com"}`})
	r.Set(func() {
		r.Ob = masks(t, "$.email=email")
		r.Outcome = func(o proxy.Outcome) error {
			if len(o.Masked) > 0 {
				return errors.New("the log can't be written")
			}
			return nil
		}
	})
	a, err := r.client.Do(r.request("GET", "/x", nil))
	if err == nil {
		_, err = io.ReadAll(a.Body)
		_ = a.Body.Close()
	}
	if err == nil {
		t.Error("the answer ended as if it were recorded")
	}
}

func TestAnAgentThatLeavesAMaskedAnswerHoldsNothingUp(t *testing.T) {
	gone := make(chan struct{})
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "[0")
		for q.Context().Err() == nil {
			_, _ = io.WriteString(w, `,"x"`)
			w.(http.Flusher).Flush()
		}
		close(gone)
	}), func(*httpd.Config) {})
	r.Set(func() { r.Ob = masks(t, "$.email=email") })
	ctx, cancel := context.WithCancel(context.Background())
	a, err := r.client.Do(r.request("GET", "/endless", nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(a.Body, make([]byte, 64<<10))
	cancel()
	_ = a.Body.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the service still sends")
	}
	if out := r.Await(t, "completed", "GET /endless").Out; out.Status != "cut" {
		t.Errorf("%+v", out)
	}
}
