package streams_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/deputymesh/deputy/proxy/kube/streams"
)

const (
	failed7 = `{"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with exit code 7","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}`
	success = `{"metadata":{},"status":"Success"}`
)

// websocketServer is an API server that speaks one protocol.
func websocketServer(t *testing.T, protocol string, script func(context.Context, *websocket.Conn)) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") != "Bearer the-accounts" {
			t.Errorf("the API server is asked with %v", q.Header)
		}
		c, err := websocket.Accept(w, q, &websocket.AcceptOptions{Subprotocols: []string{protocol}})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		script(q.Context(), c)
	}
}

func read(t *testing.T, ctx context.Context, c *websocket.Conn) string {
	t.Helper()
	_, m, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(m)
}

// drain reads to the end, as clients do.
func drain(ctx context.Context, c *websocket.Conn) {
	for {
		if _, _, err := c.Read(ctx); err != nil {
			return
		}
	}
}

func TestACommandPassesAndIsRecorded(t *testing.T) {
	var k tape
	r := newRig(t, websocketServer(t, "v5.channel.k8s.io", func(ctx context.Context, c *websocket.Conn) {
		_ = c.Write(ctx, websocket.MessageBinary, []byte("\x01"))
		for _, want := range []string{"\x00typed", "\x04" + `{"Width":80,"Height":24}`, "\xff\x00"} {
			_, m, err := c.Read(ctx)
			if err != nil || string(m) != want {
				t.Errorf("the API server got %q, %v; want %q", m, err, want)
			}
			if want == "\x00typed" && k.said("i") != "typed" {
				t.Errorf("it came before it was on record: %q", k.said("i"))
			}
		}
		for _, m := range []string{"\x01shown", "\x02wrong", "\x03" + failed7} {
			_ = c.Write(ctx, websocket.MessageBinary, []byte(m))
		}
		_ = c.Close(websocket.StatusNormalClosure, "done")
	}), func(c *streams.Config) { c.Recorder = k.recorder() })
	agent, ctx := r.websocket("v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io")
	if agent.Subprotocol() != "v5.channel.k8s.io" {
		t.Errorf("protocol %q", agent.Subprotocol())
	}
	for _, m := range []string{"\x00typed", "\x04" + `{"Width":80,"Height":24}`, "\xff\x00"} {
		if err := agent.Write(ctx, websocket.MessageBinary, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"\x01", "\x01shown", "\x02wrong", "\x03" + failed7} {
		if got := read(t, ctx, agent); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if _, _, err := agent.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("the end: %v", err)
	}
	e := r.outcome()
	if e.err != nil || e.Status != 101 || e.Exit == nil || e.Exit.Code != 7 || e.Sent != 5 || e.Received != 10 {
		t.Errorf("%+v, exit %+v", e, e.Exit)
	}
	if k.said("o") != "shownwrong" || k.said("r") != "80x24" {
		t.Errorf("recorded: %q, sizes %q", k.said("o"), k.said("r"))
	}
}

// What can't be kept doesn't pass, in either direction, and the agent hears why.
func TestNothingPassesUnrecorded(t *testing.T) {
	for _, direction := range []string{"in", "out"} {
		t.Run(direction, func(t *testing.T) {
			k := tape{broken: errors.New("the disk with the secret name is full")}
			r := newRig(t, websocketServer(t, "v4.channel.k8s.io", func(ctx context.Context, c *websocket.Conn) {
				if direction == "out" {
					_ = c.Write(ctx, websocket.MessageBinary, []byte("\x01shown"))
				}
				if _, m, err := c.Read(ctx); err == nil {
					t.Errorf("the API server got %q", m)
				}
			}), func(c *streams.Config) { c.Recorder = k.recorder() })
			agent, ctx := r.websocket("v4.channel.k8s.io")
			if direction == "in" {
				_ = agent.Write(ctx, websocket.MessageBinary, []byte("\x00typed"))
			}
			got := read(t, ctx, agent)
			if !strings.HasPrefix(got, "\x03{") || !strings.Contains(got, "can't be recorded") || strings.Contains(got, "secret") {
				t.Errorf("the agent hears %q", got)
			}
			drain(ctx, agent)
			if e := r.outcome(); !errors.Is(e.err, streams.ErrUnrecorded) || !strings.Contains(e.err.Error(), "secret") || e.Sent+e.Received != 0 {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestWhatAPeerMayNotSayEndsACommand(t *testing.T) {
	long := strings.Repeat("x", 1<<20+1)
	for name, m := range map[string]string{
		"no channel": "", "output from the agent": "\x01x", "errors": "\x02x", "a status": "\x03{}", "a channel that isn't": "\x05x", "another": "\x80",
		"v5's close of another channel": "\xff\x01", "a close that is longer": "\xff\x00\x00", "a size that isn't": "\x04{", "a long size": "\x04" + strings.Repeat(" ", 300) + "{}",
		"a size with more behind": `{"Width":1}{"Width":2}`, "a long message": "\x00" + long,
	} {
		t.Run("agent: "+name, func(t *testing.T) {
			r := newRig(t, websocketServer(t, "v5.channel.k8s.io", func(ctx context.Context, c *websocket.Conn) {
				if _, m, err := c.Read(ctx); err == nil {
					t.Errorf("the API server got %q", m)
				}
			}), command)
			agent, ctx := r.websocket("v5.channel.k8s.io")
			_ = agent.Write(ctx, websocket.MessageBinary, []byte(m))
			drain(ctx, agent)
			if e := r.outcome(); e.err == nil || !errors.Is(e.err, streams.ErrAgent) && name != "a long message" {
				t.Errorf("%+v", e)
			}
		})
	}
	for name, m := range map[string]string{"no channel": "", "input": "\x00x", "a size": "\x04{}", "a close": "\xff\x01", "a long message": "\x01" + long, "a long status": "\x03" + long[:64<<10+1]} {
		t.Run("target: "+name, func(t *testing.T) {
			r := newRig(t, websocketServer(t, "v5.channel.k8s.io", func(ctx context.Context, c *websocket.Conn) {
				_ = c.Write(ctx, websocket.MessageBinary, []byte(m))
				_, _, _ = c.Read(ctx)
			}), command)
			agent, ctx := r.websocket("v5.channel.k8s.io")
			if _, got, err := agent.Read(ctx); err == nil && !strings.Contains(string(got), "broke the protocol") {
				t.Errorf("the agent got %.40q", got)
			}
			drain(ctx, agent)
			if e := r.outcome(); e.err == nil || !errors.Is(e.err, streams.ErrTarget) && name != "a long message" {
				t.Errorf("%+v", e)
			}
		})
	}
	// Version 4 knows no half-close.
	r := newRig(t, websocketServer(t, "v4.channel.k8s.io", func(ctx context.Context, c *websocket.Conn) { _, _, _ = c.Read(ctx) }), command)
	agent, ctx := r.websocket("v4.channel.k8s.io")
	_ = agent.Write(ctx, websocket.MessageBinary, []byte("\xff\x00"))
	drain(ctx, agent)
	if e := r.outcome(); !errors.Is(e.err, streams.ErrAgent) {
		t.Errorf("%+v", e)
	}
}

// The end of either, or of the session, ends both.
func TestBothEndsEnd(t *testing.T) {
	for _, by := range []string{"agent", "target", "session"} {
		t.Run(by, func(t *testing.T) {
			gone := make(chan error, 1)
			r := newRig(t, websocketServer(t, "v4.channel.k8s.io", func(ctx context.Context, c *websocket.Conn) {
				if by == "target" {
					gone <- nil
					return
				}
				_, _, err := c.Read(ctx)
				gone <- err
			}), command)
			agent, ctx := r.websocket("v4.channel.k8s.io")
			switch by {
			case "agent":
				_ = agent.CloseNow()
			case "session":
				r.cancel(errors.New("revoked by oscar"))
			}
			if _, m, err := agent.Read(ctx); (err == nil) != (by == "session") || err == nil && !strings.Contains(string(m), "this session has ended: revoked by oscar") {
				t.Errorf("the agent hears %q, %v", m, err)
			}
			drain(ctx, agent)
			if err := <-gone; err == nil && by != "target" {
				t.Error("the API server reads on")
			}
			if e := r.outcome(); e.Exit != nil || by == "session" && !errors.Is(e.err, streams.ErrEnded) {
				t.Errorf("%+v", e)
			}
		})
	}
}

// What the API server says instead of agreeing reaches the agent, but what is about the proxy's own credential.
func TestOtherAnswersPass(t *testing.T) {
	for status, want := range map[int]int{403: 403, 404: 404, 500: 500, 302: 302, 200: 502, 401: 502} {
		r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Location", "https://127.0.0.1:1/elsewhere")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"kind":"Status","message":"`+strings.Repeat("long ", 1000)+`"}`)
		}, command)
		for _, request := range []string{upgradeTo("v4.channel.k8s.io"), websocketRequest("v5.channel.k8s.io", "")} {
			_, _, a := r.raw(request)
			text, _ := io.ReadAll(a.Body)
			if a.StatusCode != want || a.Header.Get("Location") != "" {
				t.Errorf("%d: the agent got %d %v", status, a.StatusCode, a.Header)
			}
			if want == status && (!strings.HasSuffix(string(text), `"}`) || a.Header.Get("Content-Type") != "application/json") {
				t.Errorf("%d: %q", status, text)
			}
			if e := r.outcome(); e.Status != status || e.Sent != 0 {
				t.Errorf("%d: %+v", status, e)
			}
		}
	}
}

func websocketRequest(protocol, more string) string {
	return "GET /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: " +
		protocol + "\r\n" + more + "\r\n"
}

// Nothing is started at the API server for a request that the agent's end couldn't be answered for.
func TestUpgradesThatArentOnesStartNothing(t *testing.T) {
	r := newRig(t, func(_ http.ResponseWriter, q *http.Request) { t.Errorf("the API server is asked %v", q.Header) }, command)
	good := websocketRequest("v5.channel.k8s.io", "")
	for name, request := range map[string]string{
		"no protocol":        strings.Replace(good, "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", "", 1),
		"base64":             websocketRequest("base64.channel.k8s.io", ""),
		"a port-forward's":   websocketRequest("SPDY/3.1+portforward.k8s.io", ""),
		"a page's":           websocketRequest("v5.channel.k8s.io", "Origin: https://x\r\n"),
		"a body":             websocketRequest("v5.channel.k8s.io", "Content-Length: 3\r\n") + "abc",
		"a chunked body":     websocketRequest("v5.channel.k8s.io", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
		"two upgrades":       websocketRequest("v5.channel.k8s.io", "Upgrade: SPDY/3.1\r\n"),
		"an old version":     strings.Replace(good, "Version: 13", "Version: 8", 1),
		"no key":             strings.Replace(good, "AAAAAAAAAAAAAAAAAAAAAA==", "short", 1),
		"POST":               strings.Replace(good, "GET", "POST", 1),
		"h2c":                strings.Replace(good, "Upgrade: websocket", "Upgrade: h2c", 1),
		"no Connection":      strings.Replace(good, "Connection: Upgrade\r\n", "", 1),
		"SPDY, no protocol":  strings.Replace(upgradeTo("v4.channel.k8s.io"), "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n", "", 1),
		"SPDY, unknown":      upgradeTo("v9.channel.k8s.io"),
		"SPDY, PUT":          strings.Replace(upgradeTo("v4.channel.k8s.io"), "POST", "PUT", 1),
		"SPDY, port-forward": upgradeTo("portforward.k8s.io"),
	} {
		if _, _, a := r.raw(request); a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", name, a.StatusCode)
		}
		if e := r.outcome(); e.Status != 0 {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// An API server that hangs, or agrees to something else, begins nothing.
func TestAHangingHandshakeEnds(t *testing.T) {
	hang := make(chan struct{})
	r := newRig(t, func(http.ResponseWriter, *http.Request) { <-hang }, func(c *streams.Config) { c.HandshakeTimeout = 50 * time.Millisecond })
	defer close(hang)
	for _, request := range []string{upgradeTo("v4.channel.k8s.io"), websocketRequest("v5.channel.k8s.io", "")} {
		if _, _, a := r.raw(request); a.StatusCode != http.StatusBadGateway {
			t.Errorf("%d", a.StatusCode)
		}
		_ = r.outcome()
	}
	other := newRig(t, func(w http.ResponseWriter, q *http.Request) { _, _ = hijack(t, w, q, "") }, command)
	if _, _, a := other.raw(upgradeTo("v4.channel.k8s.io")); a.StatusCode != http.StatusBadGateway {
		t.Errorf("it chose nothing: %d", a.StatusCode)
	}
}
