package graphql_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy/httpd/graphql"
)

// body is a request with a document.
func body(query string, more ...string) []byte {
	raw, _ := json.Marshal(query)
	return []byte(`{"query":` + string(raw) + strings.Join(more, "") + `}`)
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestWhatOperationsAskFor(t *testing.T) {
	for _, c := range []struct{ in, summary, text string }{
		{`{orders{id}}`, "query { orders }", `{ orders { id } }`},
		{`query Q($n:Int=3){a:orders(first:$n){id} me{name}}`, "query Q { me orders }", `query Q ( $ n : Int = 3 ) { a : orders ( first : $ n ) { id } me { name } }`},
		{"mutation{pay(id:\"\\u0041\\n\"){ok}}", "mutation { pay }", `mutation { pay ( id : "A\n" ) { ok } }`},
		{"subscription S { events }", "subscription S { events }", "subscription S { events }"},
		{"{a,b # c\r d\n e}", "query { a b d e }", "{ a b d e }"},
		{"\ufeff{a\u0020...F ...on Query{c} ...{d @skip(if:true)}} fragment F on Query{b ...F}", "query { a b c d }", "{ a ... F ... on Query { c } ... { d @ skip ( if : true ) } } fragment F on Query { b ... F }"},
		{`{a(x:"""one "two" \"""three\""" """)}`, "query { a }", `{ a ( x : "one \"two\" \"\"\"three\"\"\" " ) }`},
		{`{__schema{types{name}} __typename}`, "query { __schema __typename }", "{ __schema { types { name } } __typename }"},
		{`{a(x:{k:[1,-2.5e3,true,null,E]},y:"")}`, "query { a }", `{ a ( x : { k : [ 1 -2.5e3 true null E ] } y : "" ) }`},
	} {
		r, err := graphql.FromBody(body(c.in))
		if err != nil || r.Summary() != c.summary || r.Text != c.text {
			t.Errorf("%s: %q %q %v", c.in, r.Summary(), r.Text, err)
			continue
		}
		// What is sent on is read as the same, and is in its one form already.
		again, err := graphql.FromBody(r.Body())
		if err != nil || again.Text != r.Text || again.Summary() != r.Summary() {
			t.Errorf("%s: again %+v %v", c.in, again, err)
		}
		byURL, rest, err := graphql.FromQuery(r.Query())
		if err != nil || byURL.Text != r.Text || rest != "" {
			t.Errorf("%s: by URL %+v %q %v", c.in, byURL, rest, err)
		}
	}
}

func TestEveryOperationOfADocumentCounts(t *testing.T) {
	const doc = `query A{a} mutation B{b} query C{c:a ...F} fragment F on Query{d}`
	r, err := graphql.FromBody(body(doc, `,"operationName":"A","variables":{"x":[1, {"y":null}]},"extensions":null`))
	if err != nil || r.Summary() != "query A { a }, mutation B { b }, query C { a d }" || !r.Reshaped || r.Name != "A" {
		t.Fatalf("%+v %v", r, err)
	}
	var sent map[string]any
	if err := json.Unmarshal(r.Body(), &sent); err != nil || len(sent) != 3 || sent["operationName"] != "A" || fmt.Sprint(sent["variables"]) != "map[x:[1 map[y:<nil>]]]" {
		t.Errorf("%v %v", sent, err)
	}
}

func TestWhatMovesValuesIsSeenEverywhere(t *testing.T) {
	for doc, want := range map[string]bool{
		"{a{b{c}}}": false, "{a{b{x:c}}}": true, "{a{...{x:c}}}": true, "{a{...F}} fragment F on T{b{x:c}}": true, "{x:x}": false, "query A{a} query B{a{x:b}}": true,
		"{a @skip(if:true) {b @include(if:false)}}": false, `{a(x:"@ defer")}`: false, "{...@defer{a}}": true, "{a @ #c\n stream(initialCount:0)}": true, "query @x {a}": true, "{...F} fragment F on Q @x {a}": true,
		"query ($v:Int @x) {a}": true, "{...F @defer} fragment F on Q {a}": true, "{skip @Skip(if:true)}": true, "{a{b @rename(to:\"c\")}}": true,
	} {
		more := ""
		if strings.HasPrefix(doc, "query A") {
			more = `,"operationName":"A"`
		}
		if r, err := graphql.FromBody(body(doc, more)); err != nil || r.Reshaped != want {
			t.Errorf("%s: %t %v", doc, r.Reshaped, err)
		}
	}
}

func TestPersistedDocuments(t *testing.T) {
	const doc = "{ orders { id } }"
	ext := func(h, more string) string {
		return `"extensions":{"persistedQuery":{"version":1,"sha256Hash":"` + h + `"}` + more + `}`
	}
	r, err := graphql.FromBody([]byte(`{` + ext(hash(doc), "") + `,"variables":{"n":1}}`))
	if err != nil || r.Hash != hash(doc) || r.Text != "" || !strings.Contains(string(r.Body()), hash(doc)) {
		t.Errorf("by hash: %+v %v", r, err)
	}
	// With its text the hash isn't needed, and what else is in extensions stays.
	r, err = graphql.FromBody(body(doc, ","+ext(hash(doc), `,"trace":true`)))
	if err != nil || r.Hash != "" || r.Summary() != "query { orders }" || strings.Contains(string(r.Body()), "persisted") || !strings.Contains(string(r.Body()), `"extensions":{"trace":true}`) {
		t.Errorf("with its text: %s %v", r.Body(), err)
	}
	if r, err = graphql.FromBody(body(doc, ","+ext(hash(doc), ""))); err != nil || strings.Contains(string(r.Body()), "extensions") {
		t.Errorf("with its text alone: %s %v", r.Body(), err)
	}
	for name, in := range map[string][]byte{
		"another document": body("{x}", ","+ext(hash(doc), "")), "short": []byte(`{` + ext("ab", "") + `}`), "upper case": []byte(`{` + ext(strings.ToUpper(hash(doc)), "") + `}`),
		"more": []byte(`{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"` + hash(doc) + `","id":"x"}}}`), "null": []byte(`{"extensions":{"persistedQuery":null}}`),
		"in two cases": []byte(`{"extensions":{"persistedQuery":{"sha256Hash":"` + hash(doc) + `"},"PersistedQuery":{"sha256Hash":"` + hash("x") + `"}}}`),
	} {
		if r, err := graphql.FromBody(in); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestWhatCanBeReadInTwoWaysIsRefused(t *testing.T) {
	for name, in := range map[string]string{
		"nothing": ``, "no object": `"{a}"`, "a batch": ` [{"query":"{a}"}]`, "no query": `{}`, "an empty query": `{"query":""}`, "null": `{"query":null}`,
		"twice": `{"query":"{a}","query":"mutation{b}"}`, "in another case": `{"query":"{a}","Query":"mutation{b}"}`, "unknown member": `{"query":"{a}","documentId":"x"}`,
		"an id": `{"query":"{a}","id":"x"}`, "a number": `{"query":1}`, "a name that is none": `{"query":"{a}","operationName":7}`, "a document's id among the extensions": `{"query":"{a}","extensions":{"operationId":"app/7"}}`, "a document among the extensions": `{"query":"{a}","extensions":{"Query":"{b}"}}`,
		"an id beside a hash": `{"extensions":{"persistedQuery":{"sha256Hash":"` + hash("x") + `"},"doc_id":"7"}}`, "variables in text": `{"query":"{a}","variables":"{}"}`,
		"variables twice": `{"query":"{a}","variables":{"x":1,"x":2}}`, "a list of variables": `{"query":"{a}","variables":[]}`, "two texts": `{"query":"{a}"}{"query":"{b}"}`,
		"bad UTF-8": "{\"query\":\"{a(x:\\\"\xff\\\")}\"}", "no such operation": `{"query":"query A{a}","operationName":"B"}`, "which of two": `{"query":"query A{a} query B{b}"}`,
		"two without a name": `{"query":"{a} {b}"}`, "two of one name": `{"query":"query A{a} mutation A{b}","operationName":"A"}`, "no such fragment": `{"query":"{...F}"}`,
		"a fragment twice": `{"query":"{...F} fragment F on Q{a} fragment F on Q{b}"}`, "fragments alone": `{"query":"fragment F on Q{a}"}`, "a schema": `{"query":"type T{a:Int}"}`,
		"not closed": `{"query":"{a"}`, "nothing asked": `{"query":"{}"}`, "a cycle alone": `{"query":"{...F} fragment F on Q{...F}"}`, "garbage": `{"query":"{a} ?"}`, "an open string": `{"query":"{a(x:\"b)}"}`,
		"deep": `{"query":"` + strings.Repeat("{a", 5000) + strings.Repeat("}", 5000) + `"}`, "long": `{"query":"{a} ` + strings.Repeat(" ", 300<<10) + `"}`, "a long name": `{"query":"{` + strings.Repeat("a", 257) + `}"}`, "many tokens": `{"query":"{` + strings.Repeat("a ", 30_000) + `}"}`,
		"a zero byte": `{"query":"{a\u0000}"}`, "a separator of lines": `{"query":"{a\u2028b}"}`,
	} {
		if r, err := graphql.FromBody([]byte(in)); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	many := "{"
	for i := range 101 {
		many += fmt.Sprintf("f%d ", i)
	}
	if _, err := graphql.FromBody(body(many + "}")); err == nil {
		t.Error("101 fields are decided")
	}
	for _, in := range []string{"query={a}&query={b}", "query={a}&Query={b}", "query={a}&variables=[1]", "query={a}&id=7", "query=%ff", "operationName=x", "query={a}&extensions[persistedQuery]=x", "operationId=7", "operation_id=7", "query={a}&operation.name=x", "doc-id=7", "query_[x]=7"} {
		if r, _, err := graphql.FromQuery(in); err == nil {
			t.Errorf("%s: %+v", in, r)
		}
	}
	if r, rest, err := graphql.FromQuery("x=1&query=" + url.QueryEscape("{a}") + "&y"); err != nil || rest != "x=1&y" || r.Summary() != "query { a }" {
		t.Errorf("%+v %q %v", r, rest, err)
	}
}

// Whatever a request holds, what is sent on is decided as the same.
func FuzzFromBody(f *testing.F) {
	for _, s := range []string{`{orders{id}}`, `query Q($n:Int=3){a:o(x:"""b""",y:$n)} fragment F on T{c}`, "{a # b\r c}", `{a(x:"\u{1F600}\uD83D\uDE00\uD800")}`, "mutation{a(x:[{k:1.5}])@d}"} {
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, query, name string) {
		raw, _ := json.Marshal(name)
		r, err := graphql.FromBody(body(query, `,"operationName":`+string(raw)))
		if err != nil {
			return
		}
		again, err := graphql.FromBody(r.Body())
		if err != nil || again.Text != r.Text || again.Summary() != r.Summary() || again.Reshaped != r.Reshaped {
			t.Fatalf("%q became %q, and that %+v %v", query, r.Text, again, err)
		}
	})
}
