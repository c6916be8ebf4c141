package sqlparse_test

import (
	"fmt"
	"testing"

	"github.com/deputymesh/deputy/internal/sqlparse"
)

const benchText = "SELECT abalance FROM pgbench_accounts WHERE aid = %d"

// BenchmarkChild parses every text anew in a child.
func BenchmarkChild(b *testing.B) {
	p := newPool(b, sqlparse.Config{CacheBytes: -1})
	benchmark(b, p, func(i int) string { return fmt.Sprintf(benchText, i) })
}

// BenchmarkTemplate finds every text by its template.
func BenchmarkTemplate(b *testing.B) {
	p := newPool(b, sqlparse.Config{})
	benchmark(b, p, func(i int) string { return fmt.Sprintf(benchText, i) })
}

// BenchmarkExact finds every text as it is.
func BenchmarkExact(b *testing.B) {
	p := newPool(b, sqlparse.Config{})
	benchmark(b, p, func(int) string { return "SELECT a FROM t ORDER BY 1" })
}

func benchmark(b *testing.B, p *sqlparse.Pool, text func(int) string) {
	for i := 0; b.Loop(); i++ {
		if _, err := p.Parse(b.Context(), text(i)); err != nil {
			b.Fatal(err)
		}
	}
}
