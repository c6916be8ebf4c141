package postgres_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy/postgres"
)

// slowWriter is a connection whose writes return late, as on a busy machine: the answer is there before they do.
type slowWriter struct{ net.Conn }

func (c slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	time.Sleep(60 * time.Millisecond)
	return n, err
}

// While a write is slow, pgconn reads on in the background, and may still do so when the engine takes over: the answer to
// the first statement must not be lost there.
func TestTheFirstAnswerIsNotLostWhenWritesAreSlow(t *testing.T) {
	w := newWorld(t, []string{"clerk"}, func(c *postgres.Config) {
		c.Upstream.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return slowWriter{conn}, nil
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn := w.connect()
	var one int
	if err := conn.QueryRow(ctx, "select 1").Scan(&one); err != nil || one != 1 {
		t.Fatalf("select 1: %d %v", one, err)
	}
}
