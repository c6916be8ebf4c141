package integration_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// What passes in a shell under @record("full") stands in the log, belongs to the decision that allowed it, and can be taken out to be played.
func TestARecordedShellIsOnRecord(t *testing.T) {
	m, _ := hostMesh(t)
	bob := m.Login(t, "bob")
	r := bob.Run(t, onHost, "sh", "-c", `printf 'echo $((6*7))-seen\nexit 3\n' | `+sshRun+`-T web`)
	if r.Code != 3 || !strings.Contains(r.Stdout, "42-seen") {
		t.Fatalf("%s", r)
	}
	rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == "ssh:shell" && d.Effect == audit.Allow
	})
	if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Command != "exit 3" {
		t.Errorf("the outcome: %+v", out)
	}
	file := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "recording", "--log", m.LogDir("proxy"), rec.ID.String()}})
	lines := strings.Split(strings.TrimSpace(file.Stdout), "\n")
	var head struct{ Version int }
	if err := json.Unmarshal([]byte(lines[0]), &head); file.Code != 0 || err != nil || head.Version != 2 {
		t.Fatalf("%v: %s", err, file)
	}
	said := map[string]string{}
	for _, line := range lines[1:] {
		var e [3]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		said[e[1].(string)] += e[2].(string)
	}
	if said["i"] != "echo $((6*7))-seen\nexit 3\n" || !strings.HasSuffix(said["o"], "42-seen\n") {
		t.Errorf("typed %q, shown %q", said["i"], said["o"])
	}
	// Nothing is there for what wasn't recorded.
	alice := m.Login(t, "alice")
	alice.Run(t, onHost[:1], "sh", "-c", `echo id | `+sshRun+`-T web`)
	other := m.AwaitRecord(t, "proxy", "the decision about another shell", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == "ssh:shell" && strings.Contains(r.Chain.User.Subject, "alice")
	})
	if r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "recording", "--log", m.LogDir("proxy"), other.ID.String()}}); r.Code == 0 || !strings.Contains(r.Stderr, "nothing was recorded") {
		t.Errorf("%s", r)
	}
	// Both verifiers take such a log.
	m.Verify(t)
	m.Proxy.Stop()
	agrees(t, testmesh.Result{}, m.KeysFile(), m.LogDir("proxy"))
}

// Somebody who may read the log watches a shell while it runs: what has passed is there, what comes follows, and the end of the shell ends it.
func TestARecordedShellIsWatchedWhileItRuns(t *testing.T) {
	m, _ := hostMesh(t)
	bob := m.Login(t, "bob")
	shell := testmesh.Begin(t, bob.Agents(t, onHost, "sh", "-c", sshRun+`-T web`))
	shell.Type("echo first-$((6*7))\n")
	shell.Await("first-42", 1)
	rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == "ssh:shell" && d.Effect == audit.Allow
	})
	watcher := testmesh.Begin(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "recording", "--follow", "--log", m.LogDir("proxy"), rec.ID.String()}})
	watcher.Await("first-42", 1)
	shell.Type("echo second-$((7*7))\n")
	watcher.Await("second-49", 1)
	shell.Type("exit 4\n")
	if end := shell.Wait(patience); end.Code != 4 {
		t.Errorf("the shell: %s", end)
	}
	if end := watcher.Wait(patience); end.Code != 0 || !strings.Contains(end.Stdout, "exit 4") {
		t.Errorf("who watches: %s", end)
	}
}
