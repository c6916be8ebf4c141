package kube_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/kube"
)

const value = "hunter2-the-value"

var value64 = base64.StdEncoding.EncodeToString([]byte(value))

// aSecret holds its value wherever one has been found.
func aSecret() map[string]any {
	applied, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "db", "annotations": map[string]any{}}, "data": map[string]any{"password": value64}, "stringData": map[string]any{"other": value}})
	return map[string]any{
		"kind": "Secret", "apiVersion": "v1", "type": "Opaque", "immutable": true,
		"metadata": map[string]any{
			"name": "db", "namespace": "shop", "resourceVersion": "7", "labels": map[string]any{"app": "web", "copied": value},
			"annotations": map[string]any{
				"kubectl.kubernetes.io/last-applied-configuration": string(applied), "kapp.k14s.io/original": string(applied), "note": "short and plain", "copied": "it is " + value, "copied64": value64, "list": "[1]",
			},
			"managedFields": []any{map[string]any{"manager": "x", "fieldsV1": map[string]any{"f:data": map[string]any{"v:" + value: map[string]any{}}}}},
		},
		"data": map[string]any{"password": value64, "empty": ""}, "stringData": map[string]any{"other": value}, "more": value, "status": map[string]any{"value": value},
	}
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func without(o map[string]any, names ...string) map[string]any {
	for _, n := range names {
		delete(o, n)
	}
	return o
}

func noReveal(r *rig) {
	r.Set(func() {
		r.Allow = func(cmd proxy.Command) bool { return len(cmd.Ops) > 0 && !strings.Contains(spellOps(cmd), "reveal") }
	})
}

func TestValuesOfSecretsAreInNoFormOfAnAnswer(t *testing.T) {
	table := map[string]any{
		"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": map[string]any{"resourceVersion": "9"}, "columnDefinitions": []any{map[string]any{"name": "Name"}},
		"rows": []any{map[string]any{"cells": []any{"db", "Opaque", 2}, "object": aSecret()}, map[string]any{"cells": []any{"b"}, "object": without(aSecret(), "data", "stringData", "kind")}},
	}
	for name, c := range map[string]struct {
		method, uri, accept string
		cluster             any
		keeps               []string
	}{
		"get":                          {"GET", "/api/v1/namespaces/shop/secrets/db", "application/json", aSecret(), []string{`"type":"Opaque"`, `"immutable":true`, `"password":"` + base64.StdEncoding.EncodeToString([]byte(kube.Placeholder)), "short and plain", `"app":"web"`, `"resourceVersion":"7"`}},
		"list":                         {"GET", "/api/v1/secrets", "", map[string]any{"kind": "SecretList", "apiVersion": "v1", "metadata": map[string]any{"continue": "c"}, "items": []any{without(aSecret(), "kind", "apiVersion"), aSecret()}}, []string{`"items":[{`, `"continue":"c"`, `"kind":"SecretList"`}},
		"empty list":                   {"GET", "/api/v1/secrets", "", map[string]any{"kind": "SecretList", "items": []any{}}, []string{`"items":[]`}},
		"no items":                     {"GET", "/api/v1/secrets", "", map[string]any{"kind": "SecretList", "items": nil}, []string{`"items":null`}},
		"table":                        {"GET", "/api/v1/namespaces/shop/secrets", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", table, []string{`"cells":["db","Opaque",2]`, "columnDefinitions"}},
		"metadata":                     {"GET", "/api/v1/namespaces/shop/secrets/db", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", without(aSecret(), "data", "stringData"), []string{"short and plain"}},
		"update":                       {"PUT", "/api/v1/namespaces/shop/secrets/db", "", aSecret(), []string{`"name":"db"`}},
		"delete":                       {"DELETE", "/api/v1/namespaces/shop/secrets/db", "", aSecret(), nil},
		"delete all":                   {"DELETE", "/api/v1/namespaces/shop/secrets", "", map[string]any{"kind": "SecretList", "items": []any{aSecret()}}, nil},
		"of a group, asked as a table": {"GET", "/apis/copies.example/v1/namespaces/shop/secrets", "application/json;as=Table;v=v1;g=meta.k8s.io", map[string]any{"kind": "SecretList", "items": []any{aSecret()}}, nil},
		"of a group":                   {"GET", "/apis/copies.example/v1/namespaces/shop/secrets/db", "", aSecret(), nil},
		"status of":                    {"GET", "/api/v1/namespaces/shop/secrets/db/status", "", aSecret(), nil},
		"a failure":                    {"GET", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "details": map[string]any{"name": "db"}, "code": 404}, []string{`"details":{"name":"db"}`}},
		"a failure that quotes":        {"PATCH", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "message": "bigger context ..." + value64, "details": map[string]any{"name": "db", "causes": []any{map[string]any{"message": value}}}, "code": 400}, []string{`"details":{"name":"db"}`, "words are withheld"}},
		"a denial that quotes":         {"PATCH", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "message": `secrets "db" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ` + value64, "details": map[string]any{"causes": []any{map[string]any{"message": value}}}, "code": 403}, []string{`Policy 'p' with binding 'b' denied request: the cluster's words are withheld`}},
		"a webhook that quotes":        {"PATCH", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "message": `admission webhook "w" denied the request: denied request: ` + value, "code": 409}, []string{`admission webhook \"w\" denied the request: the cluster's words are withheld`}},
		"admission's own words":        {"PATCH", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "message": `secrets "db" is forbidden: violates a rule: ` + value, "code": 403}, []string{`"reason":"Forbidden"`, "words are withheld"}},
		"a failure that isn't said":    {"GET", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "reason": "Invalid", "message": value, "code": 422}, []string{"words are withheld"}},
		"RBAC":                         {"PATCH", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "message": `secrets "db" is forbidden: User "a" cannot patch resource "secrets"`, "code": 403}, []string{`User \"a\" cannot patch`}},
		"no map":                       {"GET", "/api/v1/namespaces/shop/secrets/db", "", map[string]any{"kind": "Secret", "data": []any{value64}, "stringData": value}, nil},
	} {
		r := newRig(t, answer("application/json", marshal(c.cluster)))
		noReveal(r)
		body := ""
		if c.method == "PUT" || c.method == "PATCH" {
			body = `{"metadata":{"name":"db","resourceVersion":"1"},"stringData":{"a":"b"}}`
		}
		header := []string{"Accept", c.accept}
		if c.method == "PATCH" {
			header = append(header, "Content-Type", "application/merge-patch+json")
		}
		a := r.ask(c.method, c.uri, body, header...)
		got := text(t, a)
		if a.StatusCode != 200 || strings.Contains(got, value) || strings.Contains(got, value64) || !json.Valid([]byte(got)) || strings.Contains(got, "managedFields") {
			t.Errorf("%s: %d %s", name, a.StatusCode, got)
		}
		for _, want := range c.keeps {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q isn't in %s", name, want, got)
			}
		}
		if strings.Contains(marshal(c.cluster), value) && c.cluster.(map[string]any)["kind"] != "Status" {
			if e := r.Await(t, "completed", c.method); len(e.Out.Masked) != 1 || e.Out.Masked[0].Values == 0 {
				t.Errorf("%s: masked %+v", name, e.Out.Masked)
			}
		}
		if q, _ := r.got(); q.Header.Get("Accept-Encoding") != "identity" || strings.Contains(q.Header.Get("Accept"), "protobuf") {
			t.Errorf("%s: the cluster was asked with %v", name, q.Header)
		}
	}
}

// What a policy masks in Secrets it masks in those of a list that it shows, too, wherever the object keeps a copy.
func TestARevealedSecretKeepsTheMasksOfAPolicy(t *testing.T) {
	for method, uri := range map[string]string{"DELETE": "/api/v1/namespaces/shop/secrets", "PATCH": "/api/v1/namespaces/shop/secrets/db"} {
		o := without(aSecret(), "stringData", "more", "status")
		o["data"].(map[string]any)["open"] = "c2hvd24="
		o["metadata"] = without(o["metadata"].(map[string]any), "labels", "managedFields")
		o["metadata"].(map[string]any)["annotations"] = map[string]any{"kubectl.kubernetes.io/last-applied-configuration": marshal(map[string]any{"kind": "Secret", "data": map[string]any{"password": value64}})}
		body := marshal(o)
		if method == "DELETE" {
			body = `{"kind":"SecretList","items":[` + body + `]}`
		}
		r := newRig(t, answer("application/json", body))
		r.Set(func() {
			r.Demanded = func(proxy.Command) policy.Obligations {
				return policy.Obligations{Masks: []policy.MaskRule{{Path: "$.data.password", Masker: policy.MaskRedact}}}
			}
		})
		if got := text(t, r.ask(method, uri, "", "Content-Type", "application/merge-patch+json")); strings.Contains(got, value64) || !strings.Contains(got, "c2hvd24=") {
			t.Errorf("%s: %s", uri, got)
		}
	}
}

func TestEventsOfSecretsAreMaskedOneByOne(t *testing.T) {
	lines := []any{
		map[string]any{"type": "ADDED", "object": aSecret()}, map[string]any{"type": "DELETED", "object": aSecret()},
		map[string]any{"type": "BOOKMARK", "object": map[string]any{"kind": "Secret", "metadata": map[string]any{"resourceVersion": "12"}}},
		map[string]any{"type": "MODIFIED", "object": map[string]any{"kind": "Table", "columnDefinitions": []any{}, "rows": []any{map[string]any{"cells": []any{"db"}, "object": aSecret()}}}},
		map[string]any{"type": "ERROR", "object": map[string]any{"kind": "Status", "code": 410, "details": map[string]any{"name": "x"}}},
	}
	var body strings.Builder
	for _, l := range lines {
		body.WriteString(marshal(l) + "\n")
	}
	for _, uri := range []string{"/api/v1/namespaces/shop/secrets?watch=true&allowWatchBookmarks=true", "/api/v1/watch/namespaces/shop/secrets/db"} {
		r := newRig(t, answer("application/json", body.String()))
		noReveal(r)
		got := text(t, r.ask("GET", uri, "", "Accept", "application/vnd.kubernetes.protobuf;stream=watch,application/json"))
		if strings.Contains(got, value) || strings.Contains(got, value64) || strings.Count(got, "\n") != len(lines) {
			t.Errorf("%s: %s", uri, got)
		}
		for _, want := range []string{`"resourceVersion":"12"`, `"cells":["db"]`, `"code":410`, `"type":"DELETED"`} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q isn't in %s", uri, want, got)
			}
		}
	}
}

func TestAnAnswerWithoutEndIsHeldInBounds(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, "{")
		for i := 0; q.Context().Err() == nil; i++ {
			_, _ = fmt.Fprintf(w, `"k%d":%q,`, i, strings.Repeat("x", 1<<20))
		}
	})
	noReveal(r)
	if a := r.ask("GET", "/api/v1/namespaces/shop/secrets/db", ""); a.StatusCode != 502 {
		t.Errorf("%d", a.StatusCode)
	}
}

func TestWarningsAboutMaskedObjectsAreWithheld(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Add("Warning", `299 - "Validation failed for ValidatingAdmissionPolicy 'w': `+value+`"`)
		_, _ = fmt.Fprint(w, `{"kind":"Secret"}`)
	})
	noReveal(r)
	for uri, want := range map[string]int{"/api/v1/namespaces/shop/secrets/db": 0, "/api/v1/namespaces/shop/secrets?watch=true": 0, "/api/v1/namespaces/shop/configmaps/c": 1} {
		if a := r.ask("GET", uri, ""); len(a.Header.Values("Warning")) != want {
			t.Errorf("%s: %q, want %d", uri, a.Header.Values("Warning"), want)
		}
	}
}

func TestAnAnswerThatNoMaskCanBePutOnIsWithheld(t *testing.T) {
	good := marshal(aSecret())
	for name, c := range map[string]struct{ kind, encoding, body, uri string }{
		"protobuf":            {"application/vnd.kubernetes.protobuf", "", "k8s\x00" + value, ""},
		"CBOR":                {"application/cbor", "", value, ""},
		"YAML":                {"application/yaml", "", "data:\n  a: " + value64, ""},
		"text":                {"text/plain", "", value, ""},
		"no type":             {"", "", good, ""},
		"another charset":     {"application/json; charset=utf-16", "", good, ""},
		"compressed":          {"application/json", "gzip", value, ""},
		"a list of objects":   {"application/json", "", "[" + good + "]", ""},
		"two objects":         {"application/json", "", good + good, ""},
		"a text":              {"application/json", "", `"` + value + `"`, ""},
		"cut off":             {"application/json", "", good[:len(good)-9], ""},
		"an item that's text": {"application/json", "", `{"kind":"SecretList","items":["` + value + `"]}`, ""},
		"items in an object":  {"application/json", "", `{"kind":"SecretList","items":{"a":"` + value + `"}}`, ""},
		"an event of text":    {"application/json", "", `"` + value + `"`, "/api/v1/secrets?watch=true"},
		"an object of text":   {"application/json", "", `{"type":"ADDED","object":"` + value + `"}`, "/api/v1/secrets?watch=true"},
		"a table of a group":  {"application/json", "", `{"kind":"Table","rows":[{"cells":["` + value + `"]}]}`, "/apis/copies.example/v1/secrets"},
		"a row of text":       {"application/json", "", `{"type":"ADDED","object":{"rows":["` + value + `"]}}`, "/api/v1/secrets?watch=true"},
	} {
		r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{c.kind}
			if c.encoding != "" {
				w.Header().Set("Content-Encoding", c.encoding)
			}
			_, _ = fmt.Fprint(w, c.body)
		})
		noReveal(r)
		uri := c.uri
		if uri == "" {
			uri = "/api/v1/namespaces/shop/secrets/db"
		}
		a := r.ask("GET", uri, "")
		var got strings.Builder
		buffer := make([]byte, 1<<16)
		for {
			n, err := a.Body.Read(buffer)
			got.Write(buffer[:n])
			if err != nil {
				if a.StatusCode == 200 && err.Error() == "EOF" {
					t.Errorf("%s: an answer that ends well: %s", name, got.String())
				}
				break
			}
		}
		if strings.Contains(got.String(), value) || strings.Contains(got.String(), value64) || a.StatusCode != 200 && a.StatusCode != 502 {
			t.Errorf("%s: %d %s", name, a.StatusCode, got.String())
		}
	}
}

func TestNoMaskIsWrittenBackAndNoPatchAsksForAValue(t *testing.T) {
	mask64 := base64.StdEncoding.EncodeToString([]byte(kube.Placeholder))
	r := newRig(t, answer("application/json", "{}"))
	noReveal(r)
	for name, c := range map[string]struct {
		method, kind, body string
		allowed            bool
	}{
		"data":           {"PUT", "application/json", `{"metadata":{"name":"db","resourceVersion":"1"},"data":{"a":"` + mask64 + `"}}`, false},
		"stringData":     {"PUT", "application/json", `{"metadata":{"name":"db","resourceVersion":"1"},"stringData":{"a":"` + kube.Placeholder + `"}}`, false},
		"an annotation":  {"PATCH", "application/merge-patch+json", `{"metadata":{"annotations":{"x":"{\"data\":{\"a\":\"` + mask64 + `\"}}"}}}`, false},
		"escaped":        {"PATCH", "application/merge-patch+json", `{"data":{"a":"\u0062` + mask64[1:] + `"}}`, false},
		"applied":        {"PATCH", "application/apply-patch+yaml", `{"data":{"a":"` + mask64 + `"}}`, false},
		"a value":        {"PATCH", "application/merge-patch+json", `{"data":{"a":"` + value64 + `"}}`, true},
		"added":          {"PATCH", "application/json-patch+json", `[{"op":"add","path":"/data/a","value":"` + value64 + `"},{"op":"remove","path":"/data/b"}]`, true},
		"added mask":     {"PATCH", "application/json-patch+json", `[{"op":"replace","path":"/data/a","value":"` + mask64 + `"}]`, false},
		"tested":         {"PATCH", "application/json-patch+json", `[{"op":"test","path":"/data/a","value":"` + value64 + `"}]`, false},
		"copied":         {"PATCH", "application/json-patch+json", `[{"op":"copy","from":"/data/a","path":"/metadata/labels/a"}]`, false},
		"moved":          {"PATCH", "application/json-patch+json", `[{"op":"move","from":"/data","path":"/metadata/annotations"}]`, false},
		"op in capitals": {"PATCH", "application/json-patch+json", `[{"op":"add","OP":"copy","path":"/a","from":"/data/a"},{"OP":"test"}]`, false},
		"no list":        {"PATCH", "application/json-patch+json", `{"op":"add"}`, false},
	} {
		a := r.ask(c.method, "/api/v1/namespaces/shop/secrets/db", c.body, "Content-Type", c.kind)
		if (a.StatusCode == 200) != c.allowed {
			t.Errorf("%s: %d %s", name, a.StatusCode, text(t, a))
		}
		if !c.allowed {
			if e := r.Await(t, "refused", "secrets/db"); strings.Contains(e.Cmd.Text+e.Cmd.Scrubbed, value64) {
				t.Errorf("%s: the record says %q", name, e.Cmd.Text)
			}
		}
	}
}

func TestMasksOfAPolicyAreOnEveryObject(t *testing.T) {
	object := map[string]any{
		"kind": "ConfigMap", "apiVersion": "v1", "data": map[string]any{"password": value, "color": "blue"},
		"metadata": map[string]any{"name": "c", "annotations": map[string]any{"kubectl.kubernetes.io/last-applied-configuration": `{"data":{"password":"` + value + `","color":"blue"}}`, "kapp": `{"data":"` + value + `"}`}},
	}
	masks := []policy.MaskRule{{Path: "$.data.password", Masker: policy.MaskRedact}, {Path: "$.items[*].price", Masker: policy.MaskRedact}}
	list := map[string]any{"kind": "ConfigMapList", "metadata": map[string]any{}, "items": []any{object, object}}
	table := map[string]any{"kind": "Table", "rows": []any{map[string]any{"cells": []any{value}, "object": object}}}
	for name, c := range map[string]struct {
		uri     string
		cluster any
		status  int
	}{
		"get": {"/api/v1/namespaces/shop/configmaps/c", object, 200}, "list": {"/api/v1/configmaps?fieldSelector=metadata.namespace%3Dshop", list, 200},
		"an object with items": {"/apis/x.example/v1/namespaces/shop/menus/c", map[string]any{"kind": "Menu", "metadata": map[string]any{"name": "c"}, "items": []any{map[string]any{"price": value, "data": map[string]any{"password": value, "color": "blue"}}}, "color": "blue"}, 200},
		"watch":                {"/api/v1/configmaps?watch=true", map[string]any{"type": "ADDED", "object": object}, 200}, "table": {"/api/v1/configmaps", table, 502},
	} {
		r := newRig(t, answer("application/json", marshal(c.cluster)))
		r.Set(func() { r.Ob.Masks = masks })
		a := r.ask("GET", c.uri, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
		got := text(t, a)
		if a.StatusCode != c.status || strings.Contains(got, value) || c.status == 200 && strings.Count(got, `blue`) != 2*max(1, strings.Count(got, `"name":"c"`)) {
			t.Errorf("%s: %d %s", name, a.StatusCode, got)
		}
		if q, _ := r.got(); strings.Contains(q.Header.Get("Accept"), "Table") {
			t.Errorf("%s: the cluster was asked for a table", name)
		}
	}
}

func TestAWriteShowsNoMoreThanReading(t *testing.T) {
	object := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c"},"data":{"password":"` + value + `"}}`
	for _, c := range []struct{ method, uri, body, kind, read string }{
		{"PATCH", "/api/v1/namespaces/shop/configmaps/c", `{}`, "application/merge-patch+json", "get shop/configmaps/c"},
		{"PATCH", "/api/v1/namespaces/shop/configmaps/c/status", `{}`, "application/merge-patch+json", "get shop/configmaps/c"},
		{"PUT", "/api/v1/namespaces/shop/configmaps/c?dryRun=All", `{"metadata":{"name":"c"}}`, "application/json", "get shop/configmaps/c"},
		{"DELETE", "/api/v1/namespaces/shop/configmaps/c?dryRun=All", "", "application/json", "get shop/configmaps/c"},
		{"DELETE", "/api/v1/namespaces/shop/configmaps", "", "application/json", "list shop/configmaps"},
		{"DELETE", "/api/v1/namespaces/shop/configmaps?dryRun=All", "", "application/json", "get shop/configmaps"},
		{"PATCH", "/api/v1/namespaces/shop/configmaps/c", `{}`, "application/merge-patch+json", "list shop/configmaps/c"},
		{"PATCH", "/api/v1/namespaces/shop/configmaps/c", `{}`, "application/merge-patch+json", "watch shop/configmaps/c"},
	} {
		r := newRig(t, answer("application/json", object))
		r.Set(func() {
			r.Demanded = func(cmd proxy.Command) policy.Obligations {
				if spellOps(cmd) != c.read {
					return policy.Obligations{}
				}
				return policy.Obligations{Masks: []policy.MaskRule{{Path: "$.data.password", Masker: policy.MaskRedact}}}
			}
		})
		a := r.ask(c.method, c.uri, c.body, "Content-Type", c.kind)
		if got := text(t, a); a.StatusCode != 200 || strings.Contains(got, value) {
			t.Errorf("%s %s: %d %s", c.method, c.uri, a.StatusCode, got)
		}
	}
}

func TestMaskedValuesArentGuessedBySelectors(t *testing.T) {
	for uri, status := range map[string]int{
		"/apis/copies.example/v1/namespaces/shop/secrets?fieldSelector=data.password%3Dx":                      403,
		"/apis/copies.example/v1/secrets?watch=true&fieldSelector=metadata.name%3Ddb,data.password%3Dx":        403,
		"/apis/copies.example/v1/watch/secrets?fieldSelector=data.password%3Dx":                                403,
		"/apis/copies.example/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Ddb&labelSelector=a%3Db": 200,
		"/api/v1/namespaces/shop/secrets?fieldSelector=type%3DOpaque":                                          200,
	} {
		r := newRig(t, answer("application/json", `{"type":"ADDED","object":{"kind":"Secret"}}`))
		noReveal(r)
		if a := r.ask("GET", uri, ""); a.StatusCode != status {
			t.Errorf("%s: %d, want %d", uri, a.StatusCode, status)
		}
	}
	// So is a collection deleted, as a dry run.
	r := newRig(t, answer("application/json", "{}"))
	noReveal(r)
	if a := r.ask("DELETE", "/apis/copies.example/v1/namespaces/shop/secrets?dryRun=All&fieldSelector=data.password%3Dx", ""); a.StatusCode != 403 {
		t.Errorf("%d", a.StatusCode)
	}
}

func TestTheEndOfAMaskedAnswerWaitsForItsRecord(t *testing.T) {
	r := newRig(t, answer("application/json", marshal(aSecret())))
	noReveal(r)
	r.Set(func() {
		r.Outcome = func(proxy.Outcome) error {
			return &proxy.Refusal{Class: proxy.ClassEvidence, Reason: "nothing can be recorded"}
		}
	})
	if a := r.ask("GET", "/api/v1/namespaces/shop/secrets/db", ""); a.StatusCode != 502 || strings.Contains(text(t, a), "Opaque") {
		t.Errorf("%d", a.StatusCode)
	}
}

func TestWhatIsAcceptedIsJSON(t *testing.T) {
	for accept, want := range map[string][2]string{
		"": {"application/json", "application/json"},
		"application/vnd.kubernetes.protobuf,application/json":                                    {"application/json", "application/json"},
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json":                           {"application/json; as=Table; g=meta.k8s.io; v=v1,application/json", "application/json"},
		"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,*/*": {"application/json; as=PartialObjectMetadataList; g=meta.k8s.io; v=v1,application/json", "application/json; as=PartialObjectMetadataList; g=meta.k8s.io; v=v1,application/json"},
		"application/cbor, application/yaml;q=0.5":                                                {"application/json", "application/json"},
		"text/html": {"application/json", "application/json"},
		"bad;;=":    {"application/json", "application/json"},
	} {
		for i, tables := range []bool{true, false} {
			h := http.Header{"Accept": {accept}, "If-None-Match": {"x"}}
			kube.AcceptMasked(h, tables)
			if got := h.Get("Accept"); got != want[i] || h.Get("If-None-Match") != "" {
				t.Errorf("%q becomes %q, want %q", accept, got, want[i])
			}
		}
	}
}
