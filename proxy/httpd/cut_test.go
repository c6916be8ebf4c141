package httpd_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// In HTTP/1.0 the end of the connection is the end of the answer, so one that breaks off is a reset.
func TestAnAnswerInHTTP10ThatIsCutDoesNotLookWhole(t *testing.T) {
	goOn := make(chan struct{})
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.WriteString(w, "half")
		if q.URL.Path == "/whole" {
			return
		}
		_ = http.NewResponseController(w).Flush()
		if <-goOn; q.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
		<-q.Context().Done()
	}))
	ask := func(path string) *http.Response {
		cfg := r.tls.Clone()
		cfg.NextProtos = []string{"http/1.1"}
		c, err := tls.Dial("tcp", r.address, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.0\r\nAuthorization: Bearer "+goodCredential+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if text, err := io.ReadAll(ask("/whole").Body); err != nil || string(text) != "half" {
		t.Errorf("a whole one: %q %v", text, err)
	}
	for path, end := range map[string]func(){"/broken": func() {}, "/revoked": func() { r.Last().Revoke() }} {
		a := ask(path)
		if _, err := io.ReadFull(a.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		goOn <- struct{}{}
		end()
		if text, err := io.ReadAll(a.Body); err == nil {
			t.Errorf("%s: it looks whole behind %q", path, text)
		}
	}
}

// A WebSocket has no end that a service's answer could have: who stops the engine cuts it.
func TestAWebSocketThatEndsWithTheEngineIsCut(t *testing.T) {
	for range 10 {
		r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			c, err := websocket.Accept(w, q, &websocket.AcceptOptions{InsecureSkipVerify: true})
			if err != nil {
				return
			}
			defer c.CloseNow()
			_, _, _ = c.Read(q.Context())
		}))
		transport := &http.Transport{TLSClientConfig: r.tls.Clone()}
		transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		c, _, err := websocket.Dial(ctx, "wss://"+r.address+"/ws", &websocket.DialOptions{
			HTTPClient: &http.Client{Transport: transport}, HTTPHeader: http.Header{"Authorization": {"Bearer " + goodCredential}},
		})
		if err != nil {
			t.Fatal(err)
		}
		r.stop()
		if out := r.Await(t, "completed", "GET /ws").Out; out.Status != "cut" {
			t.Errorf("%+v", out)
		}
		_ = c.CloseNow()
		cancel()
		transport.CloseIdleConnections()
	}
}
