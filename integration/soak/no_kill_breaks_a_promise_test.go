package soak_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sort"
	"strings"
	"testing"
	"time"
)

// roundsPerEra bounds what one mesh writes and how old its sign-ins get. Then its logs are verified whole, and a new mesh begins.
const roundsPerEra = 250

// Whatever is killed, and when: no effect without a durable decision that allows it and came before, no answer without its
// record, no open decision without an outcome after recovery, nobody served after a revocation that was
// confirmed, errors that say something, logs that verify, nothing left behind.
func TestNoKillBreaksAPromise(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()%1_000_000 + 1
	}
	p := newProgress()
	p.say("seed %d, %d rounds; the same again: make soak SEED=%d ROUNDS=%d", *seed, *rounds, *seed, *rounds)
	for n := 0; p.rounds < *rounds && !p.over(); n++ {
		if !t.Run(fmt.Sprintf("era %d", n), func(t *testing.T) {
			newEra(t, p, rand.New(rand.NewPCG(*seed, uint64(n)))).run(min(roundsPerEra, *rounds-p.rounds))
		}) {
			t.Fatalf("seed %d, era %d", *seed, n)
		}
	}
	p.line()
	p.summary(t)
	if p.rounds == 0 || p.served == 0 {
		t.Errorf("%d rounds, %d commands served: nothing was shown", p.rounds, p.served)
	}
}

// progress is what the whole run has done so far.
type progress struct {
	began, said time.Time
	rounds      int
	kills       map[string]int
	served      int
	refused     int
	effects     int
	revoked     int
	// recovery is the longest and the total time from a start until commands were served again, and how often.
	longest, total map[string]time.Duration
	times          map[string]int
	messages       map[string]int // what agents were told, without what differs
}

func newProgress() *progress {
	return &progress{began: time.Now(), said: time.Now(), kills: map[string]int{}, longest: map[string]time.Duration{},
		total: map[string]time.Duration{}, times: map[string]int{}, messages: map[string]int{}}
}

// begin starts the clock at the first mesh that serves: building the programs doesn't count.
func (p *progress) begin() {
	if p.rounds == 0 {
		p.began = time.Now()
	}
}

func (p *progress) say(format string, args ...any) {
	if testing.Verbose() {
		fmt.Fprintf(os.Stderr, "soak: "+format+"\n", args...)
	}
}

// over says whether the time is up.
func (p *progress) over() bool {
	return *seconds > 0 && time.Since(p.began) > time.Duration(*seconds)*time.Second
}

func (p *progress) recovered(what string, took time.Duration) {
	p.longest[what] = max(p.longest[what], took)
	p.total[what] += took
	p.times[what]++
}

// tick prints a line every few seconds.
func (p *progress) tick() {
	if time.Since(p.said) > 5*time.Second {
		p.line()
	}
}

func (p *progress) line() {
	p.said = time.Now()
	took := time.Since(p.began)
	rate := float64(p.rounds) / took.Seconds()
	left := "?"
	if p.rounds > 0 {
		d := time.Duration(float64(*rounds-p.rounds) / rate * float64(time.Second))
		if *seconds > 0 {
			d = min(d, time.Duration(*seconds)*time.Second-took)
		}
		left = max(d, 0).Round(time.Second).String()
	}
	p.say("round %d of %d, %.2f/s, killed %s; %d served, %d refused, %d effects, %d revoked; %s left",
		p.rounds, *rounds, rate, counts(p.kills), p.served, p.refused, p.effects, p.revoked, left)
}

func (p *progress) summary(t *testing.T) {
	for _, what := range sorted(p.times) {
		t.Logf("served again after %s: mean %s, longest %s (%d times)", what,
			(p.total[what] / time.Duration(p.times[what])).Round(time.Millisecond), p.longest[what].Round(time.Millisecond), p.times[what])
	}
	for _, m := range sorted(p.messages) {
		t.Logf("told %6d times: %s", p.messages[m], m)
	}
	t.Logf("%d rounds in %s", p.rounds, time.Since(p.began).Round(time.Second))
}

func counts(of map[string]int) string {
	var parts []string
	for _, k := range sorted(of) {
		parts = append(parts, fmt.Sprintf("%s %d", k, of[k]))
	}
	return strings.Join(parts, ", ")
}

func sorted(of map[string]int) []string {
	var keys []string
	for k := range of {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
