package httpd_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// agent is an HTTP client over one connection, which it can end.
func (r *rig) agent(protocol string) (client *http.Client, leave func()) {
	var mu sync.Mutex
	var conn net.Conn
	transport := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		cfg := r.tls.Clone()
		cfg.NextProtos = []string{protocol}
		c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, network, address)
		mu.Lock()
		defer mu.Unlock()
		conn = c
		return c, err
	}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}, func() {
		mu.Lock()
		defer mu.Unlock()
		_ = conn.Close()
	}
}

// However a download ends, its record says how much of it there was: the session, which ends with it, knows nothing of that.
func TestADownloadThatIsCutIsCounted(t *testing.T) {
	const size = 256 << 10
	for _, protocol := range []string{"http/1.1", "h2"} {
		for name, end := range map[string]func(r *rig, leave func()){
			"revoked": func(r *rig, _ func()) { r.Last().Revoke() }, "shutdown": func(r *rig, _ func()) { r.stop() }, "the agent leaves": func(_ *rig, leave func()) { leave() },
		} {
			t.Run(protocol+" "+name, func(t *testing.T) {
				r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
					_, _ = w.Write(make([]byte, size))
					_ = http.NewResponseController(w).Flush()
					<-q.Context().Done()
				}))
				c, leave := r.agent(protocol)
				a, err := c.Do(r.request("GET", "/download", nil))
				if err != nil {
					t.Fatal(err)
				}
				defer a.Body.Close()
				if _, err := io.ReadFull(a.Body, make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				end(r, leave)
				if _, err := io.Copy(io.Discard, a.Body); err == nil {
					t.Error("it looks whole")
				}
				if out := r.Await(t, "completed", "GET /download").Out; out.Status != "cut" || out.Code != "200" || out.Bytes != size {
					t.Errorf("%+v", out)
				}
				r.Await(t, "closed", "")
			})
		}
	}
}

// Who waits for an answer hears why there is none: the connection, which ends with the session, stands until that is said.
func TestWhoWaitsHearsWhyTheSessionEnds(t *testing.T) {
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			asked := make(chan struct{})
			r := newRig(t, http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
				asked <- struct{}{}
				<-q.Context().Done()
			}))
			for range 20 {
				c, leave := r.agent(protocol)
				go func() {
					<-asked
					r.Last().Revoke()
				}()
				a, err := c.Do(r.request("GET", "/slow", nil))
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(a.Body)
				if err != nil || a.StatusCode != 401 || !strings.Contains(string(text), "the session was ended: revoked") || !strings.Contains(string(text), `"record":"rec-decided"`) {
					t.Errorf("%d %s %v", a.StatusCode, text, err)
				}
				if out := r.Await(t, "completed", "GET /slow").Out; out.Status != "cut" {
					t.Errorf("%+v", out)
				}
				leave()
			}
		})
	}
}

// A target that never answered hasn't failed where it was the agent that left.
func TestAnAgentThatLeavesIsNoErrorOfTheTarget(t *testing.T) {
	for _, protocol := range []string{"http/1.1", "h2"} {
		asked := make(chan struct{})
		r := newRig(t, http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
			close(asked)
			<-q.Context().Done()
		}))
		c, leave := r.agent(protocol)
		go func() {
			<-asked
			leave()
		}()
		if _, err := c.Do(r.request("POST", "/slow", nil)); err == nil { //nolint:bodyclose // there is none; POST isn't tried again
			t.Error("answered")
		}
		if out := r.Await(t, "completed", "POST /slow").Out; out.Status != "cut" || out.Code != "" {
			t.Errorf("%s: %+v", protocol, out)
		}
	}
}

// upgraded is a service that leaves HTTP at once, says hello and does what a test wants with the connection.
func upgraded(end func(c *tls.Conn)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
		_ = rw.Flush()
		_, _ = io.ReadFull(rw, make([]byte, 2))
		end(c.(*tls.Conn))
	})
}

// A WebSocket that a side ends is whole, one that breaks is cut, and either is counted: the session, which ends with it, knows nothing of that.
func TestHowAWebSocketEndsIsOnRecord(t *testing.T) {
	for _, c := range []struct {
		status string
		end    func(c *tls.Conn)
	}{
		{"ok", func(*tls.Conn) {}},
		{"cut", func(c *tls.Conn) {
			_ = c.NetConn().(*net.TCPConn).SetLinger(0)
			_ = c.NetConn().Close()
		}},
	} {
		t.Run(c.status, func(t *testing.T) {
			r := newRig(t, upgraded(c.end))
			for range 20 {
				cfg := r.tls.Clone()
				cfg.NextProtos = []string{"http/1.1"}
				agent, err := tls.Dial("tcp", r.address, cfg)
				if err != nil {
					t.Fatal(err)
				}
				_ = agent.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.WriteString(agent, "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nAuthorization: Bearer "+goodCredential+"\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				from := bufio.NewReader(agent)
				if a, err := http.ReadResponse(from, nil); err != nil || a.StatusCode != 101 { //nolint:bodyclose // it has none
					t.Fatalf("%v %v", a, err)
				}
				if _, err := io.WriteString(agent, "hi"); err != nil {
					t.Fatal(err)
				}
				if said, _ := io.ReadAll(from); string(said) != "hello" {
					t.Errorf("the agent heard %q", said)
				}
				_ = agent.Close()
				r.Await(t, "closed", fmt.Sprintf("s%d ", r.Opened.Load()))
				done := r.All("completed")
				if out := done[len(done)-1].Out; out.Status != c.status || out.Bytes != 5 || out.Sent != 2 {
					t.Errorf("%+v", out)
				}
			}
		})
	}
}

// What is masked is counted to its last byte in the outcome, for which the end of the answer waits.
func TestMaskedAnswersAreCountedToTheirEnd(t *testing.T) {
	r := newRig(t, &answers{kind: "application/json", text: `{"email":"ada@example.com"}`})
	r.Set(func() { r.Ob = masks(t, "$.email=email") })
	for range 100 {
		_, text := r.do("GET", "/masked", nil)
		if done := r.All("completed"); done[len(done)-1].Out.Bytes != int64(len(text)) {
			t.Fatalf("%d bytes, and the outcome %+v", len(text), done[len(done)-1].Out)
		}
	}
}
