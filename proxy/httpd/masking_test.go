package httpd_test

import (
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

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
)

// answers is a service that says what the test wants.
type answers struct {
	kind, text string
	headers    map[string]string
	status     int
	zip        bool
}

func (a *answers) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Type", a.kind)
	for name, value := range a.headers {
		w.Header().Set(name, value)
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
		"zipped":           {kind: "application/json", text: `{"email":"` + secret + `"}`, zip: true, headers: map[string]string{"Content-Encoding": "gzip"}},
		"UTF-16":           {kind: "application/json; charset=utf-16", text: `{"email":"` + secret + `"}`},
		"events":           {kind: "text/event-stream", text: "data: {\"email\":\"" + secret + "\"}\n\n"},
		"lines":            {kind: "application/x-ndjson", text: `{"email":"` + secret + `"}`},
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
		"a name without a colon": `{"email" "` + secret + `"}`,
	} {
		*service = answers{kind: "application/json", text: text}
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
