package integration_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Refused commands are on record, too, so they could fill the log: of one task only so many are written, the rest is counted, and
// who isn't authenticated is only ever counted. Others are served all the while.
func TestAFloodOfRefusalsStopsNobody(t *testing.T) {
	const perSecond, burst = 20, 200
	m := testmesh.Start(t, testmesh.Edit("proxy", func(c string) string {
		return strings.Replace(c, "\naudit:\n", fmt.Sprintf("\naudit:\n  quota: {records_per_second: %d}\n", perSecond), 1)
	}))
	alice, bob := m.Login(t, "alice"), m.Login(t, "bob")
	other := testmesh.Begin(t, bob.Agents(t, testmesh.Nested, m.PG.Bin("psql"), "-XAt"))
	served := 0
	stillServed := func(during string) {
		t.Helper()
		served++
		began := time.Now()
		other.Type("SELECT 'orders', count(*) FROM orders;\n")
		other.Await("orders|6", served)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("during %s another task waited for %s", during, took)
		}
	}
	stillServed("nothing")

	t.Run("one task", func(t *testing.T) {
		began := time.Now()
		const floods, each = 3, 1500
		// Several at once share the budget of their task.
		script := fmt.Sprintf("for i in 1 2 3; do (yes 'DROP TABLE orders;' | head -n %d | %s -XAtq -v VERBOSITY=verbose) & done; wait", each, m.PG.Bin("psql"))
		flood := testmesh.Begin(t, alice.Agents(t, testmesh.Nested, "sh", "-c", script))
		for range 5 {
			stillServed("a flood of one task")
		}
		r := flood.Wait(patience)
		took := time.Since(began)
		// It says so, and goes on refusing.
		if n := strings.Count(r.Stderr, "ERROR:"); n != floods*each || !strings.Contains(r.Stderr, "42501") {
			t.Errorf("%d of %d are refused: %s", n, floods*each, r)
		}
		if !strings.Contains(r.Stderr, "(record: none)") {
			t.Errorf("nobody said that the budget is used up: %s", r)
		}
		written := 0
		for _, rec := range m.Records(t, "proxy") {
			if d, ok := rec.Event.(*audit.Decision); ok && d.Effect == audit.Refuse && strings.Contains(d.Action, "ddl") {
				written++
			}
		}
		if most := burst + perSecond*int(took.Seconds()+2); written == 0 || written > most {
			t.Errorf("%d records of %d refusals in %s, at most %d are allowed", written, floods*each, took, most)
		}
		if got := m.PG.Value("select count(*) from orders"); got != "6" {
			t.Errorf("orders: %s", got)
		}
	})
	t.Run("strangers", func(t *testing.T) {
		before := len(m.Records(t, "proxy"))
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				for range 25 {
					strange(m.Address("target"))
				}
			})
		}
		for range 5 {
			stillServed("a flood of strangers")
		}
		all.Wait()
		if n := len(m.Records(t, "proxy")) - before; n > 60 {
			t.Errorf("400 connections of strangers left %d records", n)
		}
	})
	m.Proxy.Stop() // counts are written at the next heartbeat, and at the end
	counted := map[string]int64{}
	for _, rec := range m.Records(t, "proxy") {
		if e, ok := rec.Event.(*audit.Refused); ok && e.Count > 0 {
			counted[e.Class] += e.Count
			if (e.Class == "over_quota") != (rec.Chain != nil) {
				t.Errorf("whose refusals these are: %+v", rec)
			}
		}
	}
	strangers := int64(0)
	for class, n := range counted {
		if class != "over_quota" {
			strangers += n
		}
	}
	if counted["over_quota"] == 0 || strangers < 350 {
		t.Errorf("counted refusals: %v", counted)
	}
	m.Verify(t)
}

// strange connects and says something that is no protocol of the proxy's.
func strange(address string) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write([]byte("\x00\x00\x00\x10GET / HTTP/1.1\r\n\r\n"))
	_, _ = io.Copy(io.Discard, c)
}
