package kube_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
)

// An engine that is stopped, and a session that ends, tell the agent of a command why, and wait for none that doesn't listen.
func TestWhoeverIsCutOffHearsWhy(t *testing.T) {
	for _, by := range []string{"the session", "the engine"} {
		for _, listens := range []bool{true, false} {
			gone := make(chan struct{})
			r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
				c, err := websocket.Accept(w, q, &websocket.AcceptOptions{Subprotocols: []string{"v5.channel.k8s.io"}})
				if err != nil {
					t.Error(err)
					return
				}
				defer c.CloseNow()
				_, _, _ = c.Read(q.Context())
				close(gone)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			transport := r.client.Transport.(*http.Transport).Clone()
			transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
			defer transport.CloseIdleConnections()
			c, _, err := websocket.Dial(ctx, r.base+"/api/v1/namespaces/shop/pods/web/exec?command=id&stdout=true", &websocket.DialOptions{
				HTTPClient: &http.Client{Transport: transport}, HTTPHeader: http.Header{"Authorization": {"Bearer " + hoptest.Credential}}, Subprotocols: []string{"v5.channel.k8s.io"},
			})
			if err != nil {
				t.Fatal(err)
			}
			want := "this session has ended: the session was ended: revoked"
			if by == "the session" {
				r.Last().Revoke()
			} else {
				want = "this session has ended: the proxy is shutting down"
				go r.stop()
			}
			<-gone
			if listens {
				if _, m, err := c.Read(ctx); err != nil || !strings.Contains(string(m), want) {
					t.Errorf("%s: the agent hears %q, %v", by, m, err)
				}
			}
			r.stop()
			_ = c.CloseNow()
			if e := r.Await(t, "completed", ""); e.Out.Status != "cut" {
				t.Errorf("%s: %+v", by, e.Out)
			}
		}
	}
}
