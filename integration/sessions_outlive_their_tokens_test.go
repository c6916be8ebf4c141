package integration_test

import (
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A live connection goes on past the end of the token that it came with, because its run presents a fresh
// one in time; a connection whose agent doesn't is cut when its token ends.
func TestSessionsOutliveTheirTokens(t *testing.T) {
	t.Parallel() // it waits for most of its time
	// The shortest life that a broker's configuration may give, and what clocks may differ by.
	const life, skew = time.Minute, 30 * time.Second
	m := testmesh.Start(t, testmesh.Edit("broker", func(c string) string {
		return strings.Replace(c, "token_ttl: 5m", "token_ttl: "+life.String(), 1)
	}))
	alice := m.Login(t, "alice")
	probe := testmesh.Program(t, "agentprobe")

	renewing := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAtq"))
	renewing.Type("SELECT 'before';\n")
	renewing.Await("before", 1)
	first := chainOf(t, m)
	if left := time.Until(first.Expires); left > life {
		t.Fatalf("the token lives for another %s", left)
	}
	// It presents its credential itself, and never again.
	silent := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, "sh", "-c",
		`d=$(mktemp -d) && `+probe+` credential `+testmesh.Target+` >$d/own && `+probe+` hold `+m.Address("target")+` $d/own; rm -r $d`))
	silent.Await("let in", 1)
	held := chainOf(t, m)
	if held.Token.ID == first.Token.ID {
		t.Fatal("the two agents came with one token")
	}

	end := silent.Wait(life + skew + patience)
	if !strings.Contains(end.Stdout, "refused 57P01") {
		t.Errorf("a connection without renewal: %s", end)
	}
	closed := m.AwaitRecord(t, "proxy", "the end of the connection without renewal", func(r *audit.Record) bool {
		e, ok := r.Event.(*audit.ConnectionClosed)
		return ok && r.Txn == held.Txn && e.Reason == "expired"
	})
	if late := closed.Time.Sub(held.Expires); late < 0 || late > skew+2*time.Second {
		t.Errorf("it was cut %s after its token's end", late)
	}

	if wait := time.Until(first.Expires.Add(skew + 2*time.Second)); wait > 0 {
		time.Sleep(wait) // the token's end is the claim
	}
	renewing.Type("SELECT 'after';\n")
	renewing.Await("after", 1)
	if r := renewing.Wait(patience); r.Code != 0 {
		t.Errorf("a connection with renewal: %s", r)
	}
	var last *audit.Chain
	for _, r := range m.SettledRecords(t, "proxy") {
		if _, ok := r.Event.(*audit.Decision); ok && r.Txn == first.Txn {
			last = r.Chain
		}
	}
	if last == nil || last.Token.ID == first.Token.ID || !last.Expires.After(first.Expires) {
		t.Errorf("the last statement was decided on the token %+v", last)
	}
	m.Verify(t)
}
