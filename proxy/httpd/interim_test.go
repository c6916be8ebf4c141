package httpd_test

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
)

// hinting says things before its answer and after it that may not stand in the answer's header.
func hinting(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	for _, name := range secretHeaders {
		h.Set(name, "ada@example.com")
	}
	w.WriteHeader(http.StatusEarlyHints)
	clear(h)
	h.Set("Content-Type", "application/json")
	h.Set("Trailer", "Set-Cookie, Checksum")
	_, _ = io.WriteString(w, `{"email":"ada@example.com"}`)
	w.(http.Flusher).Flush()
	h.Set("Checksum", "abc")
	for _, name := range secretHeaders {
		h.Set(name, "ada@example.com")
		h.Set(http.TrailerPrefix+name, "ada@example.com")
	}
}

var secretHeaders = []string{"Set-Cookie", "Deputy-Record", "Deputy-Session", "Www-Authenticate", "Alt-Svc"}

func TestInterimAnswersAndTrailersSayNothingThatHeadersMayNot(t *testing.T) {
	r := newRig(t, http.HandlerFunc(hinting))
	ask := func(http1 bool) (*http.Response, []http.Header) {
		t.Helper()
		client := r.client
		if http1 {
			transport := &http.Transport{TLSClientConfig: r.tls.Clone()}
			defer transport.CloseIdleConnections()
			client = &http.Client{Transport: transport}
		}
		var mu sync.Mutex
		var interim []http.Header
		q := r.request("POST", "/x", strings.NewReader("body"), "Expect", "100-continue", "Te", "trailers")
		q = q.WithContext(httptrace.WithClientTrace(q.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			if code != http.StatusContinue || len(h) > 0 {
				interim = append(interim, http.Header(maps.Clone(h)))
			}
			return nil
		}}))
		a, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		if _, err := io.ReadAll(a.Body); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return a, interim
	}
	check := func(how string, a *http.Response, interim []http.Header) {
		t.Helper()
		if len(interim) > 0 {
			t.Errorf("%s: interim answers came through: %v", how, interim)
		}
		if a.Header.Get("Deputy-Record") != "rec-decided" || !strings.HasPrefix(a.Header.Get("Deputy-Session"), "s") {
			t.Errorf("%s: the answer lost what the proxy says of it: %v", how, a.Header)
		}
		for _, name := range secretHeaders {
			if a.Trailer.Get(name) != "" {
				t.Errorf("%s: %s is in the trailer: %v", how, name, a.Trailer)
			}
		}
	}
	for how, http1 := range map[string]bool{"HTTP/1.1": true, "HTTP/2": false} {
		a, interim := ask(http1)
		check(how, a, interim)
		if a.Trailer.Get("Checksum") != "abc" {
			t.Errorf("%s: the service's own trailer is gone: %v", how, a.Trailer)
		}
	}
	r.Set(func() { r.Ob = masks(t, "$.email=email") })
	for how, http1 := range map[string]bool{"masked, HTTP/1.1": true, "masked, HTTP/2": false} {
		a, interim := ask(http1)
		check(how, a, interim)
		for name, values := range a.Trailer {
			if len(values) > 0 {
				t.Errorf("%s: the trailer %s came through: %v", how, name, values)
			}
		}
	}
}
