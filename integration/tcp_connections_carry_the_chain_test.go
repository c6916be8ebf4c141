package integration_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// A connection to a service whose protocol nobody here speaks is decided and recorded as what it is: a connection, and nothing more. It ends
// within a second of its revocation.
func TestTCPConnectionsCarryTheChain(t *testing.T) {
	m, site := serviceMesh(t)
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	alone := []string{"planner --target raw"}
	curl := `curl -ksS --max-time 20 -H "Authorization: Bearer ` + testweb.Token + `" "https://$DEPUTY_ADDRESS_RAW/v1/`
	t.Run("a connection", func(t *testing.T) {
		r := alice.Run(t, alone, "sh", "-c", curl+`tcp"`)
		if r.Code != 0 || !strings.Contains(r.Stdout, `"uri":"/v1/tcp"`) {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "tcp:connect" && d.Effect == audit.Allow
		})
		d := rec.Event.(*audit.Decision)
		if d.Target != testmesh.RawTarget || strings.Join(d.Policies, ",") != "analyst-connects" || d.ReadOnly || !strings.Contains(d.Statement.Scrubbed, "nothing that is said on the connection is decided or recorded") || len(rec.Chain.Hops) != 2 {
			t.Errorf("the decision: %+v", d)
		}
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.BytesIn == 0 || out.BytesOut == 0 || out.Command != "connect" {
			t.Errorf("the outcome: %+v", out)
		}
	})
	t.Run("by deputy connect", func(t *testing.T) {
		script := `printf 'GET / HTTP/1.0\r\n\r\n' | ` + testmesh.Deputy(t) + ` connect raw`
		if r := alice.Run(t, alone, "sh", "-c", script); r.Code != 0 || !strings.Contains(r.Stdout, "plain HTTP request was sent to HTTPS port") {
			t.Errorf("%s", r)
		}
	})
	t.Run("a refused one", func(t *testing.T) {
		two := []string{"planner --target raw", "researcher"}
		r := alice.Run(t, two, "sh", "-c", testmesh.Deputy(t)+" connect raw </dev/null")
		if r.Code == 0 || r.Stdout != "" {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "policy" {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
		if r := alice.Run(t, two, "sh", "-c", curl+`refused"`); r.Code == 0 || strings.Contains(site.Log(), "/v1/refused") {
			t.Errorf("%s", r)
		}
	})
	t.Run("outside the run", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, alone, "sh", "-c", `echo "at $DEPUTY_ADDRESS_RAW."; read stop`))
		live.Await("at 127.0.0.1:", 1)
		address := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(live.Output()), "at "), ".")
		out, err := exec.Command("curl", "-ksS", "--max-time", "10", "https://"+address+"/v1/stolen").CombinedOutput()
		live.Type("\n")
		if err == nil || strings.Contains(site.Log(), "stolen") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		begun := time.Now()
		live := testmesh.Begin(t, alice.Agents(t, alone, testmesh.Deputy(t), "connect", "raw"))
		decided := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Effect == audit.Allow && r.Time.After(begun)
		})
		rec := m.AwaitRecord(t, "proxy", "that it left", func(r *audit.Record) bool {
			_, ok := r.Event.(*audit.Forwarded)
			return ok && r.Decision == decided.ID
		})
		if r := oscar.Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
			t.Fatalf("revoke: %s", r)
		}
		revoked := m.AwaitRecord(t, "broker", "the revocation", func(r *audit.Record) bool { _, ok := r.Event.(*audit.Revoked); return ok })
		closed := m.AwaitRecord(t, "proxy", "the end of the connection", func(r *audit.Record) bool {
			e, ok := r.Event.(*audit.ConnectionClosed)
			return ok && r.Connection == rec.Connection && e.Reason == "revoked"
		})
		if took := closed.Time.Sub(revoked.Time); took > time.Second {
			t.Errorf("the connection ended %s after the revocation", took)
		}
		if end := live.Wait(patience); end.Code == 0 {
			t.Errorf("the agent's end: %s", end)
		}
	})
}
