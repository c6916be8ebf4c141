package httpd_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
	"net/http/httptest"
	"net/url"
)

// What may only be posted isn't a call of gRPC to any service, however the type of its content is written.
func TestACallOfGRPCIsNoPost(t *testing.T) {
	var calls atomic.Int64
	r := newRig(t, http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		for _, kind := range q.Header.Values("Content-Type") {
			if strings.HasPrefix(strings.ToLower(strings.TrimSpace(kind)), "application/grpc") {
				calls.Add(1)
			}
		}
	}))
	r.Set(func() { r.Allow = func(c proxy.Command) bool { return c.Ops[0].Action.Name() == "http:post" } })
	for _, kinds := range [][]string{
		{"application/grpc"}, {"application/grpc+proto"}, {"APPLICATION/gRPC"}, {"application/grpc; a=1; a=2"}, {"application/grpc;;x"}, {"application/grpc,text/plain"},
		{"text/plain", "application/grpc"}, {"application/grpc", "text/plain"}, {"", "application/grpc"}, {"application/grpc /"}, {"application/grpc-web"}, {"text/plain, application/grpc"},
	} {
		q := r.request("POST", "/orders.Orders/Delete", strings.NewReader("\x00\x00\x00\x00\x00"))
		q.Header["Content-Type"] = kinds
		a, err := r.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
		if n := calls.Swap(0); n > 0 && kinds[0] != "application/grpc-web" {
			t.Errorf("%q went to the service as a post", kinds)
		}
	}
	if a, _ := r.do("POST", "/x", strings.NewReader("a=b"), "Content-Type", "application/x-www-form-urlencoded"); a.StatusCode != 200 {
		t.Errorf("a form: %d", a.StatusCode)
	}
}

// PHP takes a dot, a space and an opening bracket in the name of a parameter for an underscore.
func TestNoKeyOfAQueryAsksForAnotherMethod(t *testing.T) {
	var reached atomic.Int64
	r := newRig(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	for _, key := range []string{"_method", "_METHOD", "%5Fmethod", ".method", "%2emethod", "[method", "%5Bmethod", "x-http-method-override", "X_HTTP_Method_Override", "x.http.method.override", "_method[]"} {
		if a, _ := r.do("POST", "/x?"+key+"=DELETE", nil); a.StatusCode != 400 {
			t.Errorf("%s: %d", key, a.StatusCode)
		}
	}
	if reached.Load() > 0 {
		t.Errorf("%d requests reached the service", reached.Load())
	}
	if a, _ := r.do("GET", "/x?method=a&a.b=c&f[x]=1", nil); a.StatusCode != 200 {
		t.Errorf("other keys: %d", a.StatusCode)
	}
}

// HTTP/2 lets a target hold what would end it in HTTP/1.1.
func TestQueriesAreSentOnInOneSpelling(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, q.RequestURI) }))
	t.Cleanup(service.Close)
	u, err := url.Parse(service.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := rigFor(t, httpd.Upstream{URL: u})
	for sent, want := range map[string]string{
		"a=b HTTP/1.0": "/x?a=b%20HTTP/1.0", "a=\u00e9": "/x?a=%C3%A9", "a=\u2028": "/x?a=%E2%80%A8", "a=%C3%A9&b=1+2&c": "/x?a=%C3%A9&b=1+2&c", `a="<>"`: "/x?a=%22%3C%3E%22",
		"a=b/c?d:e@f,[g]": "/x?a=b/c?d:e@f,[g]",
	} {
		q := r.request("GET", "/x", nil)
		q.URL.RawQuery = sent
		a, err := r.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(a.Body)
		_ = a.Body.Close()
		if err != nil || string(got) != want {
			t.Errorf("%q: the service got %q, want %q (%v)", sent, got, want, err)
		}
	}
}

// Services and what stands before them read names of headers in ways of their own, and know who asks by many.
func TestNoSpellingOfAHeaderSaysWhoAsks(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo))
	var headers []string
	for _, name := range []string{
		"X.Forwarded.For", "Remote.User", "X~Real~Ip", "X-Webauth-User", "Remote-Groups", "Remote-Email", "X-Authentik-Username", "X-Pomerium-Jwt-Assertion", "Cf-Access-Jwt-Assertion",
		"X-Consumer-Username", "X-Credential-Identifier", "Oidc-Claim-Sub", "X-Oidc-Email", "Iv-User", "Sm-User", "Tailscale-User-Login", "X-Arr-Clientcert", "X-Vouch-User", "X-Userinfo", "X-Access-Token",
		"X-Id-Token", "X-Jwt-Assertion", "X-Spiffe-Id", "X-Appengine-User-Email", "X-User-Id", "X-User-Roles", "X-Verified-User",
	} {
		headers = append(headers, name, "1.2.3.4")
	}
	s := r.seen("GET", "/", nil, append(headers, "X-Request-Id", "kept", "Traceparent", "kept")...)
	for name, values := range s.Header {
		if strings.Contains(strings.Join(values, ","), "1.2.3.4") {
			t.Errorf("%s got through", name)
		}
	}
	if s.Header.Get("X-Request-Id") != "kept" || s.Header.Get("Traceparent") != "kept" {
		t.Errorf("other headers: %v", s.Header)
	}
}

// A path that names a host once its own is taken away would lead agents away from the service.
func TestLocationsStayAtTheService(t *testing.T) {
	var own string
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		own = "https://" + q.Host
		w.Header().Set("Location", own+q.URL.Query().Get("to"))
		w.WriteHeader(http.StatusFound)
	}))
	for to, want := range map[string]string{"/a?b=c": "/a?b=c", "//evil.example/a": "", "/a//b": "/a//b", "": ""} {
		a, _ := r.do("GET", "/x?to="+url.QueryEscape(to), nil)
		if want == "" {
			want = own + to
		}
		if got := a.Header.Get("Location"); got != want {
			t.Errorf("%q became %q, want %q", to, got, want)
		}
	}
}

// What can't be read in one way only is refused, and what is decided is what the service gets.
func TestOnePathOneDecision(t *testing.T) {
	r := newRig(t, http.HandlerFunc(echo))
	for _, target := range []string{
		"/a%2Fb", "/a%5Cb", `/a\b`, "/a/../b", "/a/%2e%2e/b", "/a/%2E/b", "/./a", "//a", "/a//b", "/a;x=1/b", "/a%3Bx", "/a%00b", "/a%0Ab", "/%252e%252e/a",
		"/a.", "/a./b", "/a%20/b", "/a%23b", "/a%3Fb", "/a?b;c=d", "/a?_method=DELETE", "/a?%5Fmethod=DELETE", "/a?x%26y=1", "/a?a%00=1", "/a?x=%zz", "/a?x+y=1", "/%ff",
		"http://other.example/a", "http://billing/a", "*",
	} {
		text := "GET " + target + " HTTP/1.1\r\nHost: billing\r\nAuthorization: Bearer " + goodCredential + "\r\nConnection: close\r\n\r\n"
		if out := r.raw(text); !strings.HasPrefix(out, "HTTP/1.1 400") {
			t.Errorf("%q: %.200q", target, out)
		}
	}
	if n := len(r.All("decided")); n != 0 {
		t.Errorf("%d of them were decided", n)
	}
	for sent, want := range map[string]string{
		"/%61%62": "/ab", "/a%20b": "/a%20b", "/caf%C3%A9": "/caf%C3%A9", "/a/": "/a/", "/a?%70age=%31&&x": "/a?page=%31&x", "/A": "/A", "/a:b@c": "/a:b@c",
	} {
		out := r.raw("GET " + sent + " HTTP/1.1\r\nHost: billing\r\nAuthorization: Bearer " + goodCredential + "\r\nConnection: close\r\n\r\n")
		if !strings.Contains(out, fmt.Sprintf(`"URI":%q`, want)) {
			t.Errorf("%q: want %q in %q", sent, want, out)
		}
	}
	for _, name := range []string{"X-HTTP-Method-Override", "X-Method-Override", "x-http-method"} {
		if a, text := r.do("POST", "/a", nil, name, "DELETE"); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, a.StatusCode, text)
		}
	}
	for _, method := range []string{"TRACE", "CONNECT", "PROPFIND", "get", "GETX"} {
		out := r.raw(method + " /a HTTP/1.1\r\nHost: billing\r\nAuthorization: Bearer " + goodCredential + "\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(out, "HTTP/1.1 40") {
			t.Errorf("%s: %.200q", method, out)
		}
	}
	folded := newRig(t, http.HandlerFunc(echo), func(c *httpd.Config) { c.FoldCase = true })
	for _, path := range []string{"/adm%C4%B1n", "/admin/u%C5%BFers"} {
		if a, text := folded.do("GET", path, nil); a.StatusCode != 400 {
			t.Errorf("%s where case doesn't count: %d %s", path, a.StatusCode, text)
		}
	}
	if s := folded.seen("GET", "/Admin/Users", nil); s.URI != "/admin/users" || folded.All("decided")[0].Cmd.Ops[0].Resource.Name != "/admin/users" {
		t.Errorf("the service saw %q", s.URI)
	}
}

// However a request is framed, the service sees as many requests as were decided.
func TestNothingIsSmuggled(t *testing.T) {
	var reached atomic.Int64
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		reached.Add(1)
		if strings.Contains(q.URL.Path, "smuggled") {
			t.Errorf("%s %s reached the service", q.Method, q.URL)
		}
		echo(w, q)
	}))
	r.Set(func() { r.Allow = func(c proxy.Command) bool { return !strings.Contains(c.Scrubbed, "smuggled") } })
	auth := "Host: billing\r\nAuthorization: Bearer " + goodCredential + "\r\n"
	inner := "GET /smuggled HTTP/1.1\r\n" + auth + "\r\n"
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner)
	for name, text := range map[string]string{
		"CL.TE":               "POST /a HTTP/1.1\r\n" + auth + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"TE.CL":               "POST /a HTTP/1.1\r\n" + auth + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
		"two lengths":         "POST /a HTTP/1.1\r\n" + auth + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + inner,
		"list of lengths":     "POST /a HTTP/1.1\r\n" + auth + "Content-Length: 0, 44\r\n\r\n" + inner,
		"signed length":       "POST /a HTTP/1.1\r\n" + auth + "Content-Length: +0\r\n\r\n" + inner,
		"hex length":          "POST /a HTTP/1.1\r\n" + auth + "Content-Length: 0x0\r\n\r\n" + inner,
		"TE twice":            "POST /a HTTP/1.1\r\n" + auth + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked,
		"TE unknown":          "POST /a HTTP/1.1\r\n" + auth + "Transfer-Encoding: xchunked\r\n\r\n" + chunked,
		"TE with a space":     "POST /a HTTP/1.1\r\n" + auth + "Transfer-Encoding : chunked\r\n\r\n" + chunked,
		"TE with a tab":       "POST /a HTTP/1.1\r\n" + auth + "Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n\r\n" + chunked,
		"folded":              "POST /a HTTP/1.1\r\n" + auth + "X: y\r\n Transfer-Encoding: chunked\r\n\r\n" + chunked,
		"bare LF":             "POST /a HTTP/1.1\r\n" + auth + "X: y\nContent-Length: 0\r\n\r\n" + inner,
		"chunk extension":     "POST /a HTTP/1.1\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\n0;x=\"\r\n" + inner + "\"\r\n\r\n",
		"GET with a body":     "GET /a HTTP/1.1\r\n" + auth + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(inner)) + inner,
		"trailers":            "POST /a HTTP/1.1\r\n" + auth + "Transfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n\r\n0\r\nX-Forwarded-For: smuggled\r\n\r\n",
		"HTTP/1.0 keep-alive": "POST /a HTTP/1.0\r\n" + auth + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
		"absolute":            "GET http://billing/smuggled HTTP/1.1\r\n" + auth + "\r\n",
		"line in the path":    "GET /a\rGET /smuggled HTTP/1.1\r\n" + auth + "\r\n",
		"h2c":                 "GET /a HTTP/1.1\r\n" + auth + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + inner,
		"a nominated header":  "GET /a HTTP/1.1\r\n" + auth + "Connection: Authorization, keep-alive\r\n\r\n",
	} {
		out := r.raw(text)
		t.Logf("%s: %.60q", name, out)
	}
	if got, want := reached.Load(), int64(len(r.All("decided"))); got > want {
		t.Errorf("%d requests reached the service and %d were decided", got, want)
	}
}
