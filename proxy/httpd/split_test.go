package httpd_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
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
