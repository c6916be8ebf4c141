package proxy_test

import (
	"context"
	"testing"

	"github.com/deputymesh/deputy/proxy"
)

// BenchmarkAuthorizeReadOnly is the cost of one read-only statement on the data path: match, decide,
// submit the record, and the outcome.
func BenchmarkAuthorizeReadOnly(b *testing.B) {
	m := serving(b)
	s := m.open(m.flow())
	cmd := m.command("select", "orders")
	ctx := context.Background()
	for b.Loop() {
		p, err := s.Authorize(ctx, cmd)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Use(); err != nil {
			b.Fatal(err)
		}
		p.Forwarded(1)
		if err := p.Completed(ctx, proxy.Outcome{Status: "ok", Rows: 1}); err != nil {
			b.Fatal(err)
		}
	}
}
