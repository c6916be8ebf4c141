//go:build bench

package load_test

import (
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// timed makes a script say how long it took, with a folder $d of its own. The time is taken beside the client, so that nothing counts of
// what starts it.
func timed(script string) string {
	return `d=$(mktemp -d) && s=$(date +%s%N) && ` + script + ` && e=$(date +%s%N) && echo took $((e - s)); rm -r "$d"`
}

// took is what a timed script said, in seconds.
func (b *bench) took(script string, r testmesh.Result) float64 {
	b.t.Helper()
	_, after, ok := strings.Cut(r.Stdout, "took ")
	ns, err := strconv.ParseFloat(strings.TrimSpace(after), 64)
	if !ok || err != nil {
		b.t.Fatalf("%s: %s", script, r)
	}
	return ns / 1e9
}
