package integration_test

import (
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A revoked SSH session ends within a second, with what it runs.
func TestARevokedSSHSessionEndsWithinASecond(t *testing.T) {
	m, _ := hostMesh(t)
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	live := testmesh.Begin(t, alice.Agents(t, onHost, "sh", "-c", "exec "+sshRun+`web sleep 7031.1`))
	rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == "ssh:exec" && d.Effect == audit.Allow
	})
	m.AwaitRecord(t, "proxy", "that it left for the host", func(r *audit.Record) bool {
		_, ok := r.Event.(*audit.Forwarded)
		return ok && r.Decision == rec.ID
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
	awaitNoProcess(t, "sleep\x007031.1")
	if end := live.Wait(patience); end.Code == 0 || !strings.Contains(end.Stderr, "this session has ended") {
		t.Errorf("the agent's end: %s", end)
	}
	if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status == "ok" {
		t.Errorf("the outcome: %+v", out)
	}
}
