package supervise_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/deputymesh/deputy/internal/supervise"
)

// A client may say that it talks to the run's listener, and nothing else.
func TestOnlyTheListenersOwnOriginIsTakenAway(t *testing.T) {
	var got []string
	h := supervise.OfItself(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Values("Origin") }))
	for _, c := range []struct {
		host    string
		origins []string
		left    int
	}{
		{"127.0.0.1:4711", []string{"http://127.0.0.1:4711"}, 0}, {"localhost:4711", []string{"http://LOCALHOST:4711"}, 0}, {"127.0.0.1:4711", []string{"http://127.0.0.1:4712"}, 1},
		{"127.0.0.1:4711", []string{"https://127.0.0.1:4711"}, 1}, {"127.0.0.1:4711", []string{"http://evil.example"}, 1}, {"127.0.0.1:4711", []string{"null"}, 1}, {"", []string{"http://"}, 1},
		{"127.0.0.1:4711", []string{"http://127.0.0.1:4711", "http://evil.example"}, 2},
	} {
		q := httptest.NewRequest("POST", "/mcp", nil)
		q.Host, q.Header["Origin"] = c.host, c.origins
		h.ServeHTTP(httptest.NewRecorder(), q)
		if len(got) != c.left {
			t.Errorf("%q from %q: %q", c.host, c.origins, got)
		}
	}
}

// A page that a run's browser shows has nothing of the run's authority.
func TestPagesOfOtherOriginsReachNoService(t *testing.T) {
	reached := false
	h := supervise.KeepPagesOut(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	for _, c := range []struct {
		host, site string
		status     int
	}{
		{"127.0.0.1:4711", "", 200}, {"localhost:4711", "", 200}, {"LOCALHOST", "", 200}, {"[::1]:4711", "", 200}, {"", "", 200}, {"127.0.0.1:4711", "same-origin", 200}, {"127.0.0.1:4711", "none", 200},
		{"evil.example:4711", "", 421}, {"evil.example", "same-origin", 421}, {"127.0.0.1.evil.example:4711", "", 421}, {"localhost.evil.example", "", 421}, {"10.0.0.1:80", "", 421}, {"evil.example:x:y", "", 421},
		{"127.0.0.1:4711", "cross-site", 403}, {"127.0.0.1:4711", "same-site", 403}, {"127.0.0.1:4711", "else", 403},
	} {
		q := httptest.NewRequest("GET", "/v1/invoices", nil)
		q.Host = c.host
		if c.site != "" {
			q.Header.Set("Sec-Fetch-Site", c.site)
		}
		reached = false
		w := httptest.NewRecorder()
		h.ServeHTTP(w, q)
		if w.Code != c.status || reached != (c.status == 200) {
			t.Errorf("%q from %q: %d, reached: %v", c.host, c.site, w.Code, reached)
		}
	}
}
