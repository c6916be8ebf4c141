//go:build bench

package load_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// bench is one run of the measurements.
type bench struct {
	t *testing.T
	settings
	began   time.Time
	dir     string // programs, files of the peers
	world   servers
	results []result
}

// result is one line of bench/results.json. Value and PeerValue are medians; Ratio is the median of the rounds' ratios, since
// what ran side by side is comparable, and a machine is not the same ten seconds later.
type result struct {
	Name      string            `json:"name"`
	Params    map[string]string `json:"params"`
	Value     float64           `json:"value"`
	Unit      string            `json:"unit"`
	Peer      string            `json:"peer,omitempty"`
	PeerValue float64           `json:"peer_value,omitempty"`
	Ratio     float64           `json:"ratio,omitempty"`

	aim string // for the table
}

func (b *bench) add(r result) {
	b.results = append(b.results, r)
	b.note("%s", r.line(" "))
}

// line is the result as text.
func (r result) line(sep string) string {
	var params []string
	for _, k := range slices.Sorted(maps.Keys(r.Params)) {
		params = append(params, k+"="+r.Params[k])
	}
	f := []string{r.Name, strings.Join(params, " "), human(r.Value) + " " + r.Unit, "", "", r.aim}
	if r.Peer != "" {
		f[3], f[4] = r.Peer+" "+human(r.PeerValue), fmt.Sprintf("%.2f", r.Ratio)
	}
	return strings.Join(f, sep)
}

func human(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// write keeps what is there so far.
func (b *bench) write() {
	b.t.Helper()
	if b.out == "" {
		return
	}
	raw, err := json.MarshalIndent(b.results, "", " ")
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(b.out), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.out, append(raw, '\n'), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat\twith\tmeasured\tpeer\tratio\taim")
	for _, r := range b.results {
		fmt.Fprintln(w, r.line("\t"))
	}
	_ = w.Flush()
	fmt.Printf("\n%d results in %s, medians of %d rounds of %s\n", len(b.results), time.Since(b.began).Round(time.Second), b.rounds, b.seconds)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// ratios are the pairwise quotients.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// subject is one thing that is measured beside others.
type subject struct {
	name    string
	measure func() float64
}

// sideBySide measures all subjects once per round, in alternating order, so that none always comes first.
func (b *bench) sideBySide(what string, subjects []subject) map[string][]float64 {
	out := map[string][]float64{}
	for round := range b.rounds {
		order := slices.Clone(subjects)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		var said []string
		for _, s := range order {
			v := s.measure()
			out[s.name] = append(out[s.name], v)
			said = append(said, s.name+" "+human(v))
		}
		b.note("%s, round %d of %d: %s", what, round+1, b.rounds, strings.Join(said, ", "))
	}
	return out
}

// compare adds one result per peer.
func (b *bench) compare(r result, got map[string][]float64, me string, peers ...string) {
	for _, p := range peers {
		r := r
		r.Value, r.Peer, r.PeerValue, r.Ratio = median(got[me]), p, median(got[p]), median(ratios(got[me], got[p]))
		b.add(r)
	}
}
