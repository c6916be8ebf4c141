package actor_test

import (
	"fmt"
	"testing"

	"github.com/deputymesh/deputy/actor"
)

// BenchmarkVerify measures a new connection: cold with an empty cache, warm with
// the same credential seen before.
func BenchmarkVerify(b *testing.B) {
	for n := 1; n <= actor.HardMaxActors; n++ {
		peer, credential := session(b, agentsOf(n)...)
		deep := func(c *actor.Config) { c.MaxActors = actor.HardMaxActors }
		b.Run(fmt.Sprintf("cold/%d", n), func(b *testing.B) {
			cfg := config(deep)
			for b.Loop() {
				v := must(actor.NewVerifier(cfg))
				must(v.Verify(b.Context(), peer, credential))
			}
		})
		b.Run(fmt.Sprintf("warm/%d", n), func(b *testing.B) {
			v := newVerifier(b, deep)
			for b.Loop() {
				must(v.Verify(b.Context(), peer, credential))
			}
		})
	}
}

// BenchmarkRecheck measures what every command pays before policy.
func BenchmarkRecheck(b *testing.B) {
	peer, credential := session(b, agentsOf(5)...)
	c := must(newVerifier(b).Verify(b.Context(), peer, credential))
	action := actor.PostgresAction{Target: target, Verb: "select", Database: "orders", Schema: "sales", Table: "orders"}
	none := revokedSet{}
	for b.Loop() {
		if err := c.Recheck(now, none); err != nil {
			b.Fatal(err)
		}
		must(c.Match(action))
	}
}
