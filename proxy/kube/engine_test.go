package kube_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
	"github.com/deputymesh/deputy/proxy/kube"
)

func TestTheClusterHearsWhoAsks(t *testing.T) {
	r := newRig(t, answer("application/json", `{"kind":"Pod","apiVersion":"v1"}`))
	a := r.ask("GET", "/api/v1/namespaces/shop/pods/web?pretty=1", "", "X-Remote-User", "root", "X-Remote-Group", "system:masters", "X-Forwarded-For", "1.2.3.4", "Cookie", "a=b", "Audit-Id", "mine", "User-Agent", "kubectl/v1.36")
	if a.StatusCode != 200 || text(t, a) != `{"kind":"Pod","apiVersion":"v1"}` || a.Header.Get("Deputy-Record") != "rec-decided" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	q, _ := r.got()
	if q.RequestURI != "/api/v1/namespaces/shop/pods/web?pretty=1" || q.Method != "GET" {
		t.Errorf("the cluster got %s %s", q.Method, q.RequestURI)
	}
	for name, want := range map[string][]string{
		"Authorization": {"Bearer the-clusters-own-secret"}, "Impersonate-User": {"https://idp.test#ada"}, "Impersonate-Group": {"readers", "shop"},
		"Impersonate-Extra-Deputy-User": {"https://idp.test#ada"}, "Impersonate-Extra-Deputy-Actors": {hoptest.Agent}, "Impersonate-Extra-Deputy-Task": {strings.Repeat("0f", 16)},
		"Impersonate-Extra-Deputy-Chain": {"sha256-of-the-chain"}, "Impersonate-Extra-Deputy-Record": {"rec-decided"}, "Impersonate-Extra-Deputy-Grade": {"asserted"},
		"User-Agent": {"kubectl/v1.36"}, "X-Remote-User": nil, "X-Remote-Group": nil, "X-Forwarded-For": nil, "Cookie": nil, "Audit-Id": nil,
	} {
		if got := q.Header.Values(name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name := range q.Header {
		key := strings.ToLower(strings.TrimPrefix(name, "Impersonate-Extra-"))
		if strings.HasPrefix(name, "Impersonate-Extra-") && !slices.Contains(kube.Extras(), key) {
			t.Errorf("%s isn't among the keys that a ClusterRole is told", name)
		}
	}
	r.Await(t, "completed", "GET /api/v1/namespaces/shop/pods/web?pretty=…")
}

func TestNobodyActsAsSomebodyElse(t *testing.T) {
	r := newRig(t, answer("application/json", "{}"))
	for _, name := range []string{"Impersonate-User", "impersonate-group", "Impersonate-Uid", "Impersonate-Extra-Scopes"} {
		a := r.ask("GET", "/api/v1/pods", "", name, "system:admin")
		if reason, message, record := status(t, a); a.StatusCode != 403 || reason != "Forbidden" || record != "rec-refused" || !strings.Contains(message, "nobody acts as somebody else") {
			t.Errorf("%s: %d %s %q", name, a.StatusCode, reason, message)
		}
	}
	if q, _ := r.got(); q != nil {
		t.Errorf("the cluster got %v", q.Header)
	}
	// What is said behind a proxy subresource keeps its headers, but for those that the API server itself would heed.
	r.ask("POST", "/api/v1/namespaces/shop/services/web/proxy/x", "hello", "Audit-ID", "a1b2c3d4", "X-Remote-User", "admin", "X-Own", "1")
	if q, _ := r.got(); q == nil || q.Header.Get("Audit-Id") != "" || q.Header.Get("X-Remote-User") != "" || q.Header.Get("X-Own") != "1" {
		t.Errorf("the cluster got %v", q.Header)
	}
}

func TestNobodyIsTheSystem(t *testing.T) {
	ids := func(i kube.Identities) func(*kube.Config) { return func(c *kube.Config) { c.Identities = i } }
	for name, i := range map[string]kube.Identities{
		"masters":           {Groups: map[string][]string{"a": {"system:masters"}}, SystemGroups: true},
		"a system group":    {Groups: map[string][]string{"a": {"system:nodes"}}},
		"an empty group":    {Groups: map[string][]string{"a": {""}}},
		"a group of lines":  {Groups: map[string][]string{"a": {"x\nImpersonate-User: y"}}},
		"a system's prefix": {Prefixes: map[string]string{"https://idp.test": "system:"}},
		"the same prefix":   {Prefixes: map[string]string{"https://idp.test": "x:", "https://other.test": "x:"}},
		"no prefix beside":  {Prefixes: map[string]string{"https://idp.test": "corp:", "https://other.test": ""}},
	} {
		if _, err := kube.New(kube.Config{Identities: i}); err == nil || !strings.Contains(err.Error(), "system") && !strings.Contains(err.Error(), "no name") && !strings.Contains(err.Error(), "could have the name of one of") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := newRig(t, answer("application/json", "{}"), ids(kube.Identities{Prefixes: map[string]string{"https://idp.test": "idp:", "https://other.test": "other:"}, Groups: map[string][]string{"analyst": {"system:x"}}, SystemGroups: true}))
	if a := r.ask("GET", "/api/v1/pods", ""); a.StatusCode != 200 {
		t.Fatal(a.StatusCode)
	}
	if q, _ := r.got(); q.Header.Get("Impersonate-User") != "idp:ada" || q.Header.Get("Impersonate-Group") != "system:x" {
		t.Errorf("%v", q.Header)
	}
	r = newRig(t, answer("application/json", "{}"), ids(kube.Identities{Prefixes: map[string]string{"https://other.test": "other:"}}))
	if a := r.ask("GET", "/api/v1/pods", ""); a.StatusCode != 403 {
		t.Errorf("a user of an unknown issuer: %d", a.StatusCode)
	}
}

func TestEachRequestIsDecidedAsWhatItDoes(t *testing.T) {
	r := newRig(t, answer("application/json", "{}"))
	patch := func(kind string) []string { return []string{"Content-Type", kind} }
	for _, c := range []struct {
		method, uri, body string
		header            []string
		ops               string
	}{
		{"GET", "/api", "", nil, "discover "},
		{"GET", "/apis/apps/v1", "", nil, "discover "},
		{"GET", "/openapi/v3/apis/apps/v1?hash=x", "", nil, "discover "},
		{"GET", "/version", "", nil, "discover "},
		{"GET", "/healthz", "", nil, "nonresource /healthz"},
		{"GET", "/metrics", "", nil, "nonresource /metrics"},
		{"GET", "/apisx", "", nil, "nonresource /apisx"},
		{"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"name":"web"}}`, nil, "create shop/pods/web"},
		{"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"generateName":"web-","namespace":"shop"}}`, nil, "create shop/pods/web-*"},
		{"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"generateName":"` + strings.Repeat("a", 60) + `-"}}`, nil, "create shop/pods/" + strings.Repeat("a", 58) + "*"},
		{"POST", "/api/v1/namespaces/shop/pods?dryRun=All", `{"metadata":{"name":"web","generateName":"x-"}}`, nil, "create shop/pods/web"},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", `{"spec":{}}`, nil, "create /selfsubjectaccessreviews.authorization.k8s.io"},
		{"POST", "/api/v1/namespaces/shop/pods/web/eviction", `{"metadata":{"name":"web"}}`, nil, "create shop/pods/web/eviction"},
		{"PUT", "/api/v1/namespaces/shop/configmaps/c", `{"metadata":{"name":"c","uid":"0f"}}`, nil, "update shop/configmaps/c"},
		{"PUT", "/api/v1/namespaces/shop/configmaps/c", `{"metadata":{"name":"c"}}`, nil, "update shop/configmaps/c, create shop/configmaps/c"},
		{"PUT", "/api/v1/namespaces/shop/configmaps/c", `{"metadata":{"name":"c","uid":"","resourceVersion":"5"}}`, nil, "update shop/configmaps/c, create shop/configmaps/c"},
		{"PUT", "/api/v1/namespaces/shop/configmaps/c", `{"metadata":{"name":"c","uid":null}}`, nil, "update shop/configmaps/c, create shop/configmaps/c"},
		{"PUT", "/api/v1/namespaces/shop/services/s/status", `{"metadata":{"name":"s"}}`, nil, "update shop/services/s/status, create shop/services/s"},
		{"PATCH", "/api/v1/namespaces/shop/services/s/status", `{}`, patch("application/apply-patch+yaml"), "patch shop/services/s/status, create shop/services/s"},
		{"PATCH", "/api/v1/namespaces/shop/configmaps/c", `{"data":{"a":"b"}}`, patch("application/merge-patch+json"), "patch shop/configmaps/c"},
		{"PATCH", "/api/v1/namespaces/shop/configmaps/c?fieldManager=x", `{"metadata":{"name":"c"}}`, patch("application/apply-patch+yaml"), "patch shop/configmaps/c, create shop/configmaps/c"},
		{"DELETE", "/api/v1/namespaces/shop/pods/web", `{"kind":"DeleteOptions","apiVersion":"v1"}`, nil, "delete shop/pods/web"},
		{"DELETE", "/api/v1/namespaces/shop/pods", "", nil, "deletecollection shop/pods"},
		{"PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles/x", `{}`, patch("application/apply-patch+yaml"), "patch shop/roles.rbac.authorization.k8s.io/x, create shop/roles.rbac.authorization.k8s.io/x, escalate shop/roles.rbac.authorization.k8s.io/x"},
		{"PATCH", "/api/v1/namespaces/shop/pods/web/ephemeralcontainers", `{"spec":{}}`, patch("application/strategic-merge-patch+json"), "debug shop/pods/web/ephemeralcontainers"},
		{"POST", "/api/v1/namespaces/shop/serviceaccounts/ci/token", `{"spec":{}}`, nil, "token shop/serviceaccounts/ci/token"},
		{"POST", "/api/v1/namespaces/shop/services/web:80/proxy/x", "hello", patch("text/plain"), "proxy shop/services/web:80/proxy"},
		{"GET", "/api/v1/namespaces/shop/pods?watch=true", "", nil, "watch shop/pods"},
	} {
		r.can() // nothing: a refusal first
		a := r.ask(c.method, c.uri, c.body, c.header...)
		if strings.HasPrefix(c.ops, "discover") {
			if got := text(t, a); a.StatusCode != 403 || got != "deputy: no policy permits it (record: rec-refused)\n" {
				t.Errorf("%s %s: %d %q", c.method, c.uri, a.StatusCode, got)
			}
			continue
		}
		reason, message, record := status(t, a)
		if a.StatusCode != 403 || reason != "Forbidden" || record != "rec-refused" || !strings.Contains(message, "no policy permits it (record: rec-refused)") {
			t.Errorf("%s %s: %d %s %q", c.method, c.uri, a.StatusCode, reason, message)
		}
		if q, _ := r.got(); q != nil {
			t.Fatalf("%s %s reached the cluster", c.method, c.uri)
		}
		all := r.All("refused")
		if got := spellOps(all[len(all)-1].Cmd); got != c.ops {
			t.Errorf("%s %s is decided as %q, want %q", c.method, c.uri, got, c.ops)
		}
	}
	// What is decided is what the cluster gets.
	r.can("create shop/pods/web")
	if a := r.ask("POST", "/api/v1/n%61mespaces/shop/pods?fieldManager=a%20b", `{"metadata":{"name":"web"}}`); a.StatusCode != 200 {
		t.Error(a.StatusCode)
	}
	if q, body := r.got(); q.RequestURI != "/api/v1/namespaces/shop/pods?fieldManager=a+b" || body != `{"metadata":{"name":"web"}}` || q.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the cluster got %s %s", q.RequestURI, body)
	}
	// How much left is on record, also of what isn't read here.
	r.can("proxy shop/services/web/proxy")
	if a := r.ask("POST", "/api/v1/namespaces/shop/services/web/proxy/x", "hello", "Content-Type", "text/plain"); a.StatusCode != 200 {
		t.Error(a.StatusCode)
	}
	for path, want := range map[string]int64{"/proxy/x": int64(len("hello")), "/shop/pods": int64(len(`{"metadata":{"name":"web"}}`))} {
		if e := r.Await(t, "completed", path); e.Out.Sent != want {
			t.Errorf("%s: %d bytes were sent by the record, want %d", path, e.Out.Sent, want)
		}
	}
}

func TestWhatCantBeDecidedIsRefused(t *testing.T) {
	r := newRig(t, answer("application/json", "{}"))
	for name, c := range map[string]struct {
		method, uri, body string
		header            []string
		status            int
	}{
		"another namespace":       {"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"name":"a","namespace":"kube-system"}}`, nil, 400},
		"a namespace at a node":   {"POST", "/api/v1/nodes", `{"metadata":{"name":"a","namespace":"x"}}`, nil, 400},
		"another name":            {"PUT", "/api/v1/namespaces/shop/pods/a", `{"metadata":{"name":"b"}}`, nil, 400},
		"another name, patched":   {"PATCH", "/api/v1/namespaces/shop/pods/a", `{"metadata":{"name":"b"}}`, []string{"Content-Type", "application/merge-patch+json"}, 400},
		"a name with a slash":     {"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"name":"a/b"}}`, nil, 400},
		"a name with a star":      {"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"name":"a*"}}`, nil, 400},
		"a star made up":          {"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"generateName":"*"}}`, nil, 400},
		"a member twice":          {"POST", "/api/v1/namespaces/shop/pods", `{"metadata":{"name":"a"},"metadata":{"name":"b"}}`, nil, 400},
		"YAML":                    {"POST", "/api/v1/namespaces/shop/pods", "metadata:\n  name: a\n", []string{"Content-Type", "application/yaml"}, 415},
		"YAML applied":            {"PATCH", "/api/v1/namespaces/shop/pods/a", "metadata:\n  name: a\n", []string{"Content-Type", "application/apply-patch+yaml"}, 400},
		"CBOR":                    {"POST", "/api/v1/namespaces/shop/pods", "\xd9\xd9\xf7\xa0", []string{"Content-Type", "application/cbor"}, 415},
		"protobuf of nothing":     {"POST", "/api/v1/namespaces/shop/pods", "k8s", []string{"Content-Type", "application/vnd.kubernetes.protobuf"}, 400},
		"a patch without a type":  {"PATCH", "/api/v1/namespaces/shop/pods/a", `{}`, []string{"Content-Type", "application/json"}, 415},
		"compressed":              {"POST", "/api/v1/namespaces/shop/pods", `{}`, []string{"Content-Encoding", "gzip"}, 415},
		"a charset":               {"POST", "/api/v1/namespaces/shop/pods", `{}`, []string{"Content-Type", "application/json; charset=utf-16"}, 415},
		"a GET with content":      {"GET", "/api/v1/namespaces/shop/pods", `{}`, nil, 400},
		"too large":               {"POST", "/api/v1/namespaces/shop/configmaps", `{"a":"` + strings.Repeat("a", 3<<20) + `"}`, nil, 413},
		"a POST to no resource":   {"POST", "/healthz", "", nil, 403},
		"a PUT to a path":         {"PUT", "/logs/a", "{}", nil, 403},
		"exec without leaving":    {"POST", "/api/v1/namespaces/shop/pods/a/exec?command=ls", "", nil, 403},
		"an encoded slash":        {"GET", "/api/v1/namespaces/shop%2Fpods", "", nil, 400},
		"a path that goes up":     {"GET", "/api/v1/namespaces/shop/../other/pods", "", nil, 400},
		"a watch in two ways":     {"GET", "/api/v1/pods?watch=0&watch=1", "", nil, 400},
		"a way around by a verb":  {"GET", "/api/v1/proxy/namespaces/x/services/y", "", nil, 400},
		"metadata spelt too well": {"POST", "/api/v1/namespaces/shop/pods", `{"METADATA":{"name":"a"}}`, nil, 400},
	} {
		a := r.ask(c.method, c.uri, c.body, c.header...)
		if q, _ := r.got(); q != nil {
			t.Fatalf("%s reached the cluster", name)
		}
		if _, _, record := status(t, a); a.StatusCode != c.status || record != "rec-refused" {
			t.Errorf("%s: %d, record %s, want %d", name, a.StatusCode, record, c.status)
		}
	}
}

func TestAWatchComesAsItHappensAndEndsWithItsSession(t *testing.T) {
	for _, uri := range []string{"/api/v1/namespaces/shop/pods?watch=true", "/api/v1/namespaces/shop/secrets?watch=true"} {
		more := make(chan string)
		r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for {
				_ = http.NewResponseController(w).Flush()
				select {
				case line := <-more:
					_, _ = fmt.Fprintln(w, line)
				case <-q.Context().Done():
					more <- "gone"
					return
				}
			}
		})
		noReveal(r)
		a := r.ask("GET", uri, "")
		if a.StatusCode != 200 {
			t.Fatalf("%s: %d", uri, a.StatusCode)
		}
		events := bufio.NewReader(a.Body)
		for i := range 3 {
			more <- fmt.Sprintf(`{"type":"ADDED","object":{"metadata":{"name":"o%d"},"data":{"k":"c2VjcmV0"}}}`, i)
			line, err := events.ReadString('\n')
			if err != nil || !strings.Contains(line, fmt.Sprintf("o%d", i)) || strings.Contains(line, "c2VjcmV0") != strings.Contains(uri, "pods") {
				t.Fatalf("%s: %q %v", uri, line, err)
			}
		}
		r.Last().Revoke()
		begin := time.Now()
		if _, err := events.ReadString('\n'); err == nil {
			t.Error("the watch goes on")
		}
		if <-more != "gone" || time.Since(begin) > 5*time.Second {
			t.Error("the cluster's end goes on")
		}
		if e := r.Await(t, "completed", strings.SplitN(uri, "?", 2)[0]); e.Out.Status != "cut" {
			t.Errorf("%+v", e.Out)
		}
	}
}

func TestAnAnswerOfTheClustersIsPassedOn(t *testing.T) {
	for name, c := range map[string]struct {
		cluster http.HandlerFunc
		status  int
		says    string
	}{
		"a refusal of RBAC's": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(403)
			_, _ = fmt.Fprint(w, `{"kind":"Status","reason":"Forbidden"}`)
		}, 403, `"reason":"Forbidden"`},
		"what hasn't changed":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, 304, ""},
		"protobuf":               {answer("application/vnd.kubernetes.protobuf", "k8s\x00..."), 200, "k8s\x00..."},
		"the proxy isn't let in": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, 502, "didn't accept the proxy's own credential"},
		"a redirect isn't followed": {func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, "https://evil.test/", http.StatusFound)
		}, 302, ""},
		"it breaks off before it says": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, "can't be reached, or broke off"},
	} {
		r := newRig(t, c.cluster)
		r.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, uri := range []string{"/api/v1/namespaces/shop/pods", "/api"} {
			a := r.ask("GET", uri, "", "Accept", "application/vnd.kubernetes.protobuf")
			if body := text(t, a); a.StatusCode != c.status || !strings.Contains(body, c.says) || a.StatusCode == 304 && a.Header.Get("Content-Type") != "" {
				t.Errorf("%s: %d %q %v", name, a.StatusCode, body, a.Header)
			}
		}
	}
}

func TestWithoutACredentialThereIsAStatus(t *testing.T) {
	r := newRig(t, answer("application/json", "{}"))
	q, err := http.NewRequestWithContext(t.Context(), "GET", r.base+"/api", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := r.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if reason, _, _ := status(t, a); a.StatusCode != 401 || reason != "Unauthorized" {
		t.Errorf("%d %s", a.StatusCode, reason)
	}
}

func TestARevealedSecretIsShown(t *testing.T) {
	body := `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"db"},"data":{"password":"aHVudGVyMg=="}}`
	r := newRig(t, answer("application/json", body))
	for _, c := range []struct {
		can   []string
		shown bool
	}{{[]string{"get shop/secrets/db"}, false}, {[]string{"get shop/secrets/db", "reveal shop/secrets/db"}, true}, {[]string{"get shop/secrets/db", "reveal shop/secrets/other"}, false}} {
		r.can(c.can...)
		a := r.ask("GET", "/api/v1/namespaces/shop/secrets/db", "")
		if got := text(t, a); a.StatusCode != 200 || strings.Contains(got, "aHVudGVyMg==") != c.shown {
			t.Errorf("%v: %d %s", c.can, a.StatusCode, got)
		}
		e := r.Await(t, "completed", "secrets/db")
		if revealed := strings.Contains(spellOps(e.Cmd), "reveal"); revealed != c.shown || (len(e.Out.Masked) > 0) == c.shown {
			t.Errorf("%v: %s, %+v", c.can, spellOps(e.Cmd), e.Out)
		}
	}
	r.can("reveal shop/secrets/db")
	if a := r.ask("GET", "/api/v1/namespaces/shop/secrets/db", ""); a.StatusCode != 403 {
		t.Errorf("revealed without get: %d", a.StatusCode)
	}
}

func TestOfManySecretsThoseAreShownThatAPolicyNames(t *testing.T) {
	item := func(name string) string {
		return fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"shop"},"data":{"k":"aHVudGVyMg=="}}`, name)
	}
	list := `{"kind":"SecretList","items":[` + item("a") + "," + item("b") + `]}`
	events := `{"type":"ADDED","object":` + item("a") + "}\n" + `{"type":"ADDED","object":` + item("b") + "}\n"
	for uri, body := range map[string]string{
		"/api/v1/namespaces/shop/secrets": list, "/api/v1/secrets": list, "/api/v1/namespaces/shop/secrets?watch=true": events, "/api/v1/namespaces/other/secrets": list,
	} {
		r := newRig(t, answer("application/json", body))
		r.can("list shop/secrets", "list /secrets", "list other/secrets", "watch shop/secrets", "reveal shop/secrets/b")
		want := 1
		if strings.Contains(uri, "other") { // what the cluster says of another namespace shows nothing
			want = 0
		}
		a := r.ask("GET", uri, "")
		got := text(t, a)
		if a.StatusCode != 200 || strings.Count(got, "aHVudGVyMg==") != want || want == 1 && !strings.Contains(got, `"b"`) {
			t.Errorf("%s: %d %s", uri, a.StatusCode, got)
		}
		if n := len(r.All("completed")); n != 1+want {
			t.Errorf("%s: %d outcomes", uri, n)
		}
		if want == 1 {
			if e := r.Await(t, "decided", "reveal shop/b"); spellOps(e.Cmd) != "reveal shop/secrets/b" {
				t.Error(spellOps(e.Cmd))
			}
		}
		r.Set(func() {
			r.Durable = func(context.Context) error {
				return &proxy.Refusal{Class: proxy.ClassEvidence, Reason: "nothing can be recorded"}
			}
		})
		if got := text(t, r.ask("GET", uri, "")); strings.Contains(got, "aHVudGVyMg==") {
			t.Errorf("%s: shown without a record: %s", uri, got)
		}
	}
}

// A policy may show all Secrets but one. That one isn't had by asking for all.
func TestOfManySecretsThoseStayMaskedThatAPolicyLeavesOut(t *testing.T) {
	item := func(name string) string {
		return fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"shop"},"data":{"k":"aHVudGVyMg=="}}`, name)
	}
	list := `{"kind":"SecretList","items":[` + item("root-1") + "," + item("b") + `]}`
	for _, c := range []struct {
		method, uri, body, answer string
		shown                     int
	}{
		{"GET", "/api/v1/namespaces/shop/secrets", "", list, 1},
		{"GET", "/api/v1/secrets", "", list, 1},
		{"DELETE", "/api/v1/namespaces/shop/secrets", "", list, 1},
		{"GET", "/api/v1/secrets?fieldSelector=metadata.name%3Droot-1", "", `{"kind":"SecretList","items":[` + item("root-1") + `]}`, 0},
		{"GET", "/api/v1/secrets?watch=true", "", `{"type":"ADDED","object":` + item("root-1") + `}` + "\n" + `{"type":"ADDED","object":` + item("b") + "}\n", 1},
		{"POST", "/api/v1/namespaces/shop/secrets", `{"metadata":{"generateName":"root-"}}`, item("root-1"), 0},
		{"POST", "/api/v1/namespaces/shop/secrets", `{"metadata":{"name":"b"}}`, item("b"), 1},
	} {
		r := newRig(t, answer("application/json", c.answer))
		r.Set(func() {
			r.Allow = func(cmd proxy.Command) bool { return !strings.Contains(spellOps(cmd), "reveal shop/secrets/root-1") }
		})
		a := r.ask(c.method, c.uri, c.body)
		if got := text(t, a); a.StatusCode != 200 || strings.Count(got, "aHVudGVyMg==") != c.shown || c.shown == 1 && !strings.Contains(got, `"b"`) {
			t.Errorf("%s %s: %d %s", c.method, c.uri, a.StatusCode, got)
		}
	}
}

func TestWhatAPolicyDemandsAndIsntThereIsARefusal(t *testing.T) {
	r := newRig(t, answer("application/json", "{}"))
	masks := []policy.MaskRule{{Path: "$.data.password", Masker: policy.MaskRedact}}
	for uri, ob := range map[string]policy.Obligations{
		"/api/v1/namespaces/shop/pods":                {MaxRows: 5},
		"/api/v1/namespaces/shop/services":            {Masks: []policy.MaskRule{{Table: "t", Column: "c", Masker: policy.MaskNull}}},
		"/api/v1/namespaces/shop/pods/web/log":        {Masks: masks},
		"/api/v1/namespaces/shop/services/web/proxy/": {Masks: masks},
		"/version": {Masks: masks},
		"/api/v1/namespaces/shop/configmaps?fieldSelector=data.password%3Dx":                {Masks: masks},
		"/api/v1/namespaces/shop/configmaps?labelSelector=a%3Db":                            {Masks: []policy.MaskRule{{Path: "$..password", Masker: policy.MaskRedact}}},
		"/api/v1/namespaces/shop/configmaps?labelSelector=owner%3Dada":                      {Masks: []policy.MaskRule{{Detect: "email", Masker: policy.MaskEmail}}},
		"/api/v1/namespaces/shop/configmaps?fieldSelector=metadata.name%3Da,data.x%3Dhello": {Masks: masks},
	} {
		r.Set(func() { r.Ob = ob })
		if a := r.ask("GET", uri, ""); a.StatusCode != 403 {
			t.Errorf("%s under %+v: %d", uri, ob, a.StatusCode)
		}
	}
	if q, _ := r.got(); q != nil {
		t.Errorf("%s reached the cluster", q.RequestURI)
	}
}
