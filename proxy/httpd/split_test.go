package httpd_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deputymesh/deputy/proxy"
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
	r.set(func() { r.allow = func(c proxy.Command) bool { return c.Ops[0].Action.Name() == "http:post" } })
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
