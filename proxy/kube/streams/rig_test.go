package streams_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/spdystream"

	"github.com/deputymesh/deputy/proxy/internal/recording"
	"github.com/deputymesh/deputy/proxy/kube/streams"
)

const patience = 20 * time.Second

// rig is a bridge between an agent and an API server, both the test's.
type rig struct {
	t      *testing.T
	api    *httptest.Server
	front  *httptest.Server
	ended  chan ending
	cancel context.CancelCauseFunc
}

// ending is what Bridge returned.
type ending struct {
	streams.Result
	err error
}

// newRig bridges to an API server that is a handler, with a configuration that the test may change.
func newRig(t *testing.T, api http.HandlerFunc, change func(*streams.Config)) *rig {
	t.Helper()
	r := &rig{t: t, api: httptest.NewTLSServer(api), ended: make(chan ending, 1)}
	t.Cleanup(r.api.Close)
	transport := r.api.Client().Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = false
	t.Cleanup(transport.CloseIdleConnections)
	session, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	t.Cleanup(func() { cancel(nil) })
	r.front = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		ctx, stop := context.WithCancelCause(q.Context())
		defer stop(nil)
		defer context.AfterFunc(session, func() { stop(context.Cause(session)) })()
		out, err := http.NewRequest(http.MethodGet, r.api.URL+q.URL.Path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		out.Header.Set("Authorization", "Bearer the-accounts")
		cfg := streams.Config{Request: out, RoundTrip: transport.RoundTrip}
		var told atomic.Int32
		cfg.Ended = func(streams.Result, error) { told.Add(1) }
		change(&cfg)
		w.Header().Set("Deputy-Record", "rec-1")
		result, err := streams.Bridge(w, q.WithContext(ctx), cfg)
		if no := (*streams.NotBegun)(nil); errors.As(err, &no) {
			http.Error(w, no.Reason, no.Status)
		} else if n := told.Load(); (n == 1) != (result.Status == http.StatusSwitchingProtocols) || n > 1 {
			t.Errorf("the end was told %d times: %+v", n, result)
		}
		r.ended <- ending{result, err}
	}))
	t.Cleanup(r.front.Close)
	return r
}

func command(*streams.Config) {}

// outcome waits for the end.
func (r *rig) outcome() ending {
	r.t.Helper()
	select {
	case e := <-r.ended:
		return e
	case <-time.After(patience):
		r.t.Fatal("the bridge doesn't end")
		return ending{}
	}
}

// websocket connects as an agent.
func (r *rig) websocket(protocols ...string) (*websocket.Conn, context.Context) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	c, a, err := websocket.Dial(ctx, r.front.URL, &websocket.DialOptions{HTTPClient: r.front.Client(), Subprotocols: protocols})
	if err != nil {
		r.t.Fatal(err)
	}
	if a.Header.Get("Deputy-Record") != "rec-1" {
		r.t.Errorf("headers %v", a.Header)
	}
	r.t.Cleanup(func() { _ = c.CloseNow() })
	return c, ctx
}

// raw sends a request as it is, and returns the connection and its answer.
func (r *rig) raw(request string) (net.Conn, *bufio.Reader, *http.Response) {
	r.t.Helper()
	conn, err := tls.Dial("tcp", r.front.Listener.Addr().String(), r.front.Client().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		r.t.Fatal(err)
	}
	b := bufio.NewReader(conn)
	a, err := http.ReadResponse(b, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return conn, b, a
}

// upgradeTo asks for SPDY.
func upgradeTo(protocol string) string {
	return "POST /exec HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: " + protocol + "\r\n\r\n"
}

// spdy connects as an agent does, with the library that client-go uses.
func (r *rig) spdy(protocol string) *spdystream.Connection {
	r.t.Helper()
	conn, b, a := r.raw(upgradeTo(protocol))
	if a.StatusCode != http.StatusSwitchingProtocols || a.Header.Get("X-Stream-Protocol-Version") != protocol || a.Header.Get("Deputy-Record") != "rec-1" {
		r.t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	return r.serve(buffered{conn, b}, false, spdystream.NoOpStreamHandler)
}

func (r *rig) serve(conn net.Conn, server bool, handle spdystream.StreamHandler) *spdystream.Connection {
	s, err := spdystream.NewConnection(conn, server)
	if err != nil {
		r.t.Fatal(err)
	}
	go s.Serve(handle)
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// spdyServer is an API server that gives what is opened to a function.
func spdyServer(t *testing.T, protocol string, handle func(*spdystream.Stream)) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		conn, b := hijack(t, w, q, protocol)
		s, err := spdystream.NewConnection(buffered{conn, b}, true)
		if err != nil {
			t.Error(err)
			return
		}
		s.Serve(func(st *spdystream.Stream) {
			_ = st.SendReply(http.Header{}, false)
			handle(st)
		})
		_ = conn.Close()
	}
}

func hijack(t *testing.T, w http.ResponseWriter, q *http.Request, protocol string) (net.Conn, *bufio.Reader) {
	if q.Header.Get("Authorization") != "Bearer the-accounts" || !strings.Contains(strings.Join(q.Header.Values("X-Stream-Protocol-Version"), ","), protocol) {
		t.Errorf("the API server is asked with %v", q.Header)
	}
	conn, b, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n", protocol)
	return conn, b.Reader
}

// open opens a stream of a kind.
func open(t *testing.T, c *spdystream.Connection, headers ...string) *spdystream.Stream {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	s, err := c.CreateStream(h, nil, false)
	if err == nil {
		err = s.WaitTimeout(patience)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tape is what a recorder kept.
type tape struct {
	mu     sync.Mutex
	text   strings.Builder
	broken error
}

func (k *tape) recorder() *recording.Recorder {
	return recording.New(recording.Terminal{}, time.Now, func(piece []byte) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.broken == nil {
			k.text.Write(piece)
		}
		return k.broken
	})
}

// said are the recorded bytes of one kind: "i", "o", "r".
func (k *tape) said(kind string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all strings.Builder
	for line := range strings.Lines(k.text.String()) {
		var e []any
		if json.Unmarshal([]byte(line), &e) == nil && len(e) == 3 && e[1] == kind {
			all.WriteString(e[2].(string))
		}
	}
	return all.String()
}
