package mcpd_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
)

// waits is a server whose answer to a tool's call doesn't come, or breaks off behind a notification; asked hears of each call.
type waits struct {
	stream bool
	asked  chan struct{}
}

func (s waits) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	_, _ = io.Copy(io.Discard, q.Body)
	if s.stream {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
	} else {
		s.asked <- struct{}{}
	}
	<-q.Context().Done()
}

// However a call ends that has no answer yet, its record says that it was cut, and the agent hears why where it can: nothing that ends is an error of the
// target's, or looks like an end.
func TestACallThatIsCutSaysSo(t *testing.T) {
	for name, end := range map[string]func(r *rig, leave func()){
		"revoked": func(r *rig, _ func()) { r.Last().Revoke() }, "shutdown": func(r *rig, _ func()) { r.stop() }, "the agent leaves": func(_ *rig, leave func()) { leave() },
	} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, stream %t", name, stream), func(t *testing.T) {
				server := waits{stream, make(chan struct{}, 1)}
				r := newRig(t, server)
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				q, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+r.address+"/mcp", strings.NewReader(callTool))
				if err != nil {
					t.Fatal(err)
				}
				q.Header.Set("Content-Type", "application/json")
				if !stream {
					go func() {
						<-server.asked
						end(r, leave)
					}()
				}
				a, err := r.client.Do(q)
				var text []byte
				if err == nil {
					from := bufio.NewReader(a.Body)
					if stream {
						if _, err := from.ReadString('x'); err != nil {
							t.Fatal(err)
						}
						end(r, leave)
					}
					text, err = io.ReadAll(from)
					_ = a.Body.Close()
				}
				if told := name == "revoked" && !stream; told != (err == nil) || told && (a.StatusCode != 401 || !strings.Contains(string(text), "the session was ended: revoked")) {
					t.Errorf("the agent got %s, %v", text, err)
				}
				if out := r.Await(t, "completed", "").Out; out.Status != "cut" || stream != (out.Bytes > 0) {
					t.Errorf("%+v", out)
				}
			})
		}
	}
}

// A session may end when the answer is through, and http.Server still holds the end of it: in HTTP/1.0 it must not look whole then.
func TestAnAnswerInHTTP10ThatASessionOvertakesDoesNotLookWhole(t *testing.T) {
	r := newRig(t, &says{result: `"result":{"content":[{"type":"text","text":"` + strings.Repeat("x", 5000) + `"}]}`})
	r.Set(func() {
		r.Outcome = func(proxy.Outcome) error {
			r.Last().Revoke()
			return nil
		}
	})
	for range 300 {
		cfg := hoptest.AgentTLS(r.ca, agentID)
		cfg.NextProtos = []string{"http/1.1"}
		c, err := tls.Dial("tcp", r.address, cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := fmt.Fprintf(c, "POST /mcp HTTP/1.0\r\nAuthorization: Bearer "+goodCredential+"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(callTool), callTool); err != nil {
			t.Fatal(err)
		}
		if a, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			if text, err := io.ReadAll(a.Body); err == nil && !strings.HasSuffix(strings.TrimSpace(string(text)), "}}") {
				t.Fatalf("%d bytes look whole: %d", len(text), a.StatusCode)
			}
		}
		_ = c.Close()
	}
}
