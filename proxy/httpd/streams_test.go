package httpd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/proxy"
)

func TestBodiesOfAnySizeAreStreamed(t *testing.T) {
	const size = 64 << 20
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == "PUT" {
			n, err := io.Copy(io.Discard, q.Body)
			fmt.Fprintf(w, "%d %v", n, err)
			return
		}
		http.ServeContent(w, q, "x", time.Time{}, io.NewSectionReader(zeros{}, 0, size))
	}))
	if a, text := r.do("PUT", "/up", io.LimitReader(endless{}, size)); a.StatusCode != 200 || text != fmt.Sprintf("%d <nil>", size) {
		t.Errorf("%d %q", a.StatusCode, text)
	}
	a, text := r.do("GET", "/down", nil)
	if a.StatusCode != 200 || len(text) != size {
		t.Errorf("%d, %d bytes", a.StatusCode, len(text))
	}
	if a, text := r.do("GET", "/down", nil, "Range", "bytes=100-199"); a.StatusCode != 206 || len(text) != 100 || a.Header.Get("Content-Range") == "" {
		t.Errorf("%d, %d bytes", a.StatusCode, len(text))
	}
	if out := r.Await(t, "completed", "PUT /up").Out; out.Sent != size {
		t.Errorf("%+v", out)
	}
	if out := r.All("completed")[1].Out; out.Bytes != size {
		t.Errorf("%+v", out)
	}
}

type zeros struct{}

func (zeros) ReadAt(b []byte, _ int64) (int, error) { clear(b); return len(b), nil }

type endless struct{}

func (endless) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Events arrive as they are sent, and a revocation ends the stream at once.
func TestRevokedStreamsEnd(t *testing.T) {
	gone := make(chan struct{})
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil || q.Context().Err() != nil {
				close(gone)
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-q.Context().Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}))
	a, err := r.client.Do(r.request("GET", "/events", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	lines := bufio.NewReader(a.Body)
	for range 6 {
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	r.Last().Revoke()
	if _, err := io.Copy(io.Discard, lines); err == nil {
		t.Error("the stream ended as if it were complete")
	}
	<-gone
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v", took)
	}
	if out := r.Await(t, "completed", "GET /events").Out; out.Status != "cut" {
		t.Errorf("%+v", out)
	}
}

func TestWebSocketsAreAnActionOfTheirOwn(t *testing.T) {
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		c, err := websocket.Accept(w, q, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(q.Context())
			if err != nil || c.Write(q.Context(), kind, b) != nil {
				return
			}
		}
	}))
	transport := &http.Transport{TLSClientConfig: r.tls.Clone()}
	transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	defer transport.CloseIdleConnections()
	options := &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, HTTPHeader: http.Header{"Authorization": {"Bearer " + goodCredential}}}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://"+r.address+"/ws", options)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(ctx); err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
	if d := r.Await(t, "decided", "GET /ws"); d.Cmd.Ops[0].Action.Name() != "http:upgrade" || !d.Cmd.Ops[0].Write {
		t.Errorf("%+v", d.Cmd)
	}
	begun := time.Now()
	r.Last().Revoke()
	if _, _, err := c.Read(ctx); err == nil || time.Since(begun) > time.Second {
		t.Errorf("after the revocation: %v in %v", err, time.Since(begun))
	}
	out := r.Await(t, "completed", "GET /ws").Out
	if out.Status != "cut" || out.Code != "101" || out.Sent == 0 || out.Bytes == 0 {
		t.Errorf("%+v", out)
	}
	r.Set(func() { r.Allow = func(c proxy.Command) bool { return c.Kind != "upgrade" } })
	if _, a, err := websocket.Dial(ctx, "wss://"+r.address+"/ws", options); err == nil || a == nil || a.StatusCode != 403 {
		t.Errorf("refused: %v %v", a, err)
	}
}

func TestGRPCCallsAreDecidedByMethod(t *testing.T) {
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, health.NewServer())
	r := newRig(t, server)
	conn, err := grpc.NewClient("passthrough:///"+r.address, grpc.WithTransportCredentials(credentials.NewTLS(r.tls.Clone())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+goodCredential), 20*time.Second)
	defer cancel()
	rpc := healthv1.NewHealthClient(conn)
	if a, err := rpc.Check(ctx, &healthv1.HealthCheckRequest{}); err != nil || a.Status != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("%v %v", a, err)
	}
	if d := r.Await(t, "decided", "/grpc.health.v1.Health/Check"); d.Cmd.Ops[0].Action.Name() != "http:grpc" {
		t.Errorf("%+v", d.Cmd)
	}
	if _, err := rpc.Check(ctx, &healthv1.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
		t.Errorf("the service's own status: %v", err)
	}
	watch, err := rpc.Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	r.Set(func() { r.Allow = func(c proxy.Command) bool { return false } })
	if _, err := rpc.Check(ctx, &healthv1.HealthCheckRequest{}); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "record: rec-refused") {
		t.Errorf("refused: %v", err)
	}
	r.Last().Revoke()
	if _, err := watch.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the stream after its revocation: %v", err)
	}
}
