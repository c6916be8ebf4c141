package policy_test

import (
	"testing"

	"github.com/deputymesh/deputy/policy"
)

func BenchmarkDecide(b *testing.B) {
	set := load(b, exampleSource(b))
	r := ask("select", policy.Table("orders-db", "shop", "public", "customers"))
	r.Subject = subject(b, facts([]string{"analyst"}, planner, researcher))
	for b.Loop() {
		if d := set.Decide(r); !d.Allow {
			b.Fatal(d.Reason)
		}
	}
}
