package streams_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/moby/spdystream"

	"github.com/deputymesh/deputy/proxy/kube/streams"
)

// ports decides by a number, and writes down.
type ports struct {
	mu    sync.Mutex
	asked []uint16
	ended []string
}

func (p *ports) config(c *streams.Config) {
	c.Kind = streams.PortForward
	c.AllowPort = func(_ context.Context, port uint16) (func(int64, int64), error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = append(p.asked, port)
		if port != 80 {
			return nil, fmt.Errorf("port %d isn't allowed", port)
		}
		return func(sent, received int64) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.ended = append(p.ended, fmt.Sprintf("%d/%d", sent, received))
		}, nil
	}
}

func (p *ports) all() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprint(p.asked, p.ended)
}

// echo is an API server behind which every port says back what it hears.
func echo(t *testing.T) func(*spdystream.Stream) {
	return func(s *spdystream.Stream) {
		if port := s.Headers().Get("port"); port != "80" || len(s.Headers()) != 3 {
			t.Errorf("a stream arrived with %v", s.Headers())
		}
		go func() {
			if s.Headers().Get("streamType") == "data" {
				_, _ = io.Copy(s, s)
			}
			_ = s.Close()
		}()
	}
}

// forward opens a connection to a port, and says something.
func forward(t *testing.T, conn *spdystream.Connection, port, request int, say string) (heard, failed string) {
	t.Helper()
	fail := open(t, conn, "streamType", "error", "port", strconv.Itoa(port), "requestID", strconv.Itoa(request))
	_ = fail.Close()
	data := open(t, conn, "streamType", "data", "port", strconv.Itoa(port), "requestID", strconv.Itoa(request))
	_, _ = io.WriteString(data, say)
	_ = data.Close()
	text, _ := io.ReadAll(data)
	why, _ := io.ReadAll(fail)
	return string(text), string(why)
}

func TestEachForwardedPortIsDecided(t *testing.T) {
	for _, over := range []string{"SPDY", "WebSocket"} {
		t.Run(over, func(t *testing.T) {
			var p ports
			var conn *spdystream.Connection
			var r *rig
			if over == "SPDY" {
				r = newRig(t, spdyServer(t, "portforward.k8s.io", echo(t)), p.config)
				conn = r.spdy("portforward.k8s.io")
			} else {
				r = newRig(t, websocketServer(t, "SPDY/3.1+portforward.k8s.io", func(ctx context.Context, c *websocket.Conn) {
					s, err := spdystream.NewConnection(websocket.NetConn(ctx, c, websocket.MessageBinary), true)
					if err != nil {
						t.Error(err)
						return
					}
					s.Serve(func(st *spdystream.Stream) {
						_ = st.SendReply(nil, false)
						echo(t)(st)
					})
				}), p.config)
				c, ctx := r.websocket("SPDY/3.1+portforward.k8s.io")
				conn = r.serve(websocket.NetConn(ctx, c, websocket.MessageBinary), false, spdystream.NoOpStreamHandler)
			}
			if heard, why := forward(t, conn, 80, 0, "hello"); heard != "hello" || why != "" {
				t.Errorf("%q, %q", heard, why)
			}
			if heard, why := forward(t, conn, 5432, 1, "hello"); heard != "" || !strings.Contains(why, "port 5432 isn't allowed") {
				t.Errorf("%q, %q", heard, why)
			}
			// The connection lives on, and an id may be used again.
			if heard, why := forward(t, conn, 80, 0, strings.Repeat("x", 100_000)); len(heard) != 100_000 || why != "" {
				t.Errorf("%d bytes, %q", len(heard), why)
			}
			left := open(t, conn, "streamType", "data", "port", "80", "requestID", "7")
			_, _ = io.WriteString(left, "abc")
			_, _ = io.ReadFull(left, make([]byte, 3))
			_ = left.Reset()
			_ = conn.Close()
			if e := r.outcome(); e.Sent != 100_008 || e.Received != 100_008 || e.Exit != nil {
				t.Errorf("%+v", e)
			}
			if got := p.all(); got != "[80 5432 80 80] [5/5 100000/100000 3/3]" {
				t.Errorf("decided and ended: %s", got)
			}
		})
	}
}

func TestForwardsAreBounded(t *testing.T) {
	var p ports
	r := newRig(t, spdyServer(t, "portforward.k8s.io", func(*spdystream.Stream) {}), p.config)
	conn := r.spdy("portforward.k8s.io")
	for i := range 256 {
		open(t, conn, "streamType", "error", "port", "80", "requestID", strconv.Itoa(i))
	}
	no := open(t, conn, "streamType", "error", "port", "80", "requestID", "256")
	if why, _ := io.ReadAll(no); !strings.Contains(string(why), "256 connections are forwarded") {
		t.Errorf("%q", why)
	}
	_ = conn.Close()
	_ = r.outcome()
	if n := strings.Count(p.all(), "0/0"); n != 256 {
		t.Errorf("%d connections ended", n)
	}
}

func TestWhatBelongsToNoPortEndsAForward(t *testing.T) {
	for name, frames := range map[string][]any{
		"no port":        {syn(1, "streamtype", "data", "requestid", "1")},
		"port 0":         {syn(1, "streamtype", "data", "port", "0", "requestid", "1")},
		"a long port":    {syn(1, "streamtype", "data", "port", "65616", "requestid", "1")},
		"two ports":      {syn(1, "streamtype", "data", "port", "80", "port", "81", "requestid", "1")},
		"two in one":     {syn(1, "streamtype", "data", "port", "80\x0081", "requestid", "1")},
		"another's form": {syn(1, "streamtype", "data", "port", "080", "requestid", "1")},
		"a sign":         {syn(1, "streamtype", "data", "port", "+80", "requestid", "1")},
		"no request":     {syn(1, "streamtype", "data", "port", "80")},
		"a long request": {syn(1, "streamtype", "data", "port", "80", "requestid", strings.Repeat("1", 65))},
		"a command's":    {syn(1, "streamtype", "stdin", "port", "80", "requestid", "1")},
		"another port":   {syn(1, "streamtype", "error", "port", "80", "requestid", "1"), syn(3, "streamtype", "data", "port", "443", "requestid", "1")},
		"one kind twice": {syn(1, "streamtype", "data", "port", "80", "requestid", "1"), syn(3, "streamtype", "data", "port", "80", "requestid", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			var p ports
			r := newRig(t, spdyServer(t, "portforward.k8s.io", func(s *spdystream.Stream) {
				if s.Headers().Get("port") != "80" {
					t.Errorf("the API server got %v", s.Headers())
				}
			}), p.config)
			conn, _, _ := r.raw(upgradeTo("portforward.k8s.io"))
			script(t, conn, frames...)
			if e := r.outcome(); !errors.Is(e.err, streams.ErrAgent) {
				t.Errorf("%+v", e)
			}
		})
	}
}
