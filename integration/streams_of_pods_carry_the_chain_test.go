package integration_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// decidedOn finds a decision by its action and a part of its statement.
func decidedOn(action, part string) func(*audit.Record) bool {
	return func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == action && d.Statement != nil && strings.Contains(d.Statement.Scrubbed, part)
	}
}

// played is what a recording holds, by kind of event.
func played(t *testing.T, m *testmesh.Mesh, id audit.RecordID) map[string]string {
	t.Helper()
	file := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "audit", "recording", "--log", m.LogDir("proxy"), id.String()}})
	if file.Code != 0 {
		t.Fatalf("%s", file)
	}
	said := map[string]string{}
	for _, line := range testmesh.Lines(file.Stdout)[1:] {
		var e [3]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		said[e[1].(string)] += e[2].(string)
	}
	return said
}

// What a run's kubectl does inside pods is decided before it begins, carries the chain, ends as it ended there, and is on record with all that passed, over
// both kinds of streams that kubectl has.
func TestStreamsOfPodsCarryTheChain(t *testing.T) {
	m, c, kubectl := clusterMesh(t)
	alice := m.Login(t, "alice")
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "behind the pod") }))
	defer behind.Close()
	port := fmt.Sprint(behind.Listener.Addr().(*net.TCPAddr).Port)
	c.Pod("shop", "cat", "sh", "-c", "echo first; exec cat")
	for name, env := range map[string]string{"WebSocket": "", "SPDY": "export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false KUBECTL_PORT_FORWARD_WEBSOCKETS=false; "} {
		run := func(t *testing.T, script string) testmesh.Result {
			return alice.Run(t, inCluster, "sh", "-c", env+"k() { "+kubectl+` -n shop "$@"; }; `+script)
		}
		t.Run(name, func(t *testing.T) {
			mark := "mark-" + name
			r := run(t, `echo typed | k exec -i web -- sh -c "cat; echo `+mark+` >&2; exit 7"`)
			if r.Code != 7 || r.Stdout != "typed\n" || !strings.HasPrefix(r.Stderr, mark+"\n") {
				t.Fatalf("exec: %s", r)
			}
			rec := m.AwaitRecord(t, "proxy", "the exec", decidedOn("kube:exec", mark))
			if n := len(rec.Chain.Hops); n != 3 || !strings.Contains(rec.Chain.Hops[2].ID, "/researcher/") {
				t.Errorf("the chain: %+v", rec.Chain)
			}
			if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Command != "exit 7" || out.BytesOut != int64(len("typed\n"+mark+"\n")) {
				t.Errorf("the outcome: %+v", out)
			}
			if said := played(t, m, rec.ID); said["i"] != "typed\n" || !strings.Contains(said["o"], "typed\n") || !strings.Contains(said["o"], mark+"\n") {
				t.Errorf("recorded: %q", said)
			}

			r = run(t, `k exec web -- nc -l 80`)
			if d, ok := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr)).Event.(*audit.Decision); r.Code == 0 || !ok || d.Class != "policy" || strings.Join(d.Policies, ",") != "no-nc" {
				t.Errorf("nc: %s: %+v", r, d)
			}
			if r := run(t, `k exec cat -- id`); r.Code == 0 || !strings.Contains(r.Stderr, "record: ") || r.Stdout != "" {
				t.Errorf("another pod: %s", r)
			}

			r = run(t, `d=$(mktemp -d) && head -c 300000 /dev/urandom >"$d/a" && k cp "$d/a" web:copy-`+name+` && k cp web:copy-`+name+` "$d/b" && cmp "$d/a" "$d/b" && rm -r "$d"`)
			if r.Code != 0 {
				t.Errorf("cp: %s", r)
			}

			forward := `exec 3>&1; d=$(mktemp -d); k port-forward pod/web :` + port + ` >"$d/out" 2>&1 & p=$!; until grep -q 127.0.0.1 "$d/out"; do kill -0 $p || break; sleep 0.05; done
				curl -sS --max-time 20 "http://$(grep -o '127.0.0.1:[0-9]*' "$d/out" | head -1)/"; kill $p; rm -r "$d"`
			if r := run(t, forward); r.Stdout != "behind the pod" {
				t.Errorf("port-forward: %s", r)
			}
			rec = m.AwaitRecord(t, "proxy", "the connection", decidedOn("kube:portforward", "port "+port))
			if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.BytesOut == 0 || out.Status != "ok" {
				t.Errorf("the connection's outcome: %+v", out)
			}
			if r := run(t, strings.Replace(forward, "pod/web", "pod/cat", 1)); r.Stdout != "" {
				t.Errorf("port-forward to another pod: %s", r)
			}
		})
	}
	t.Run("a terminal", func(t *testing.T) {
		cmd := alice.Agents(t, inCluster, "sh", "-c", "stty cols 91 rows 31; exec "+kubectl+" -n shop exec -it web -- sh -c 'echo mark-terminal; exec sh'")
		cmd.TTY = true
		live := testmesh.Begin(t, cmd)
		live.Await("mark-terminal", 1)
		live.Type("echo $((6*7))-seen; stty size; exit 5\n")
		live.Await("42-seen", 1)
		live.Await("31 91", 1)
		if r := live.Wait(patience); r.Code != 5 {
			t.Errorf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the exec", decidedOn("kube:exec", "mark-terminal"))
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Command != "exit 5" {
			t.Errorf("the outcome: %+v", out)
		}
		if said := played(t, m, rec.ID); !strings.Contains(said["i"], "6*7") || !strings.Contains(said["o"], "42-seen") || !strings.Contains(said["r"], "91x31") {
			t.Errorf("recorded: %q", said)
		}
	})
	t.Run("debug and attach", func(t *testing.T) {
		r := alice.Run(t, inCluster, "sh", "-c", "echo hello | "+kubectl+` -n shop debug -i web --image=none --container=looking --attach=true -- sh -c 'read line; echo "$line, from inside"; sleep 0.5'`)
		if !strings.Contains(r.Stdout, "hello, from inside") {
			t.Errorf("%s", r)
		}
		m.AwaitRecord(t, "proxy", "the debugging", decidedOn("kube:debug", ""))
		rec := m.AwaitRecord(t, "proxy", "the attaching", decidedOn("kube:attach", ""))
		if said := played(t, m, rec.ID); said["i"] != "hello\n" || !strings.Contains(said["o"], "hello, from inside\n") {
			t.Errorf("recorded: %q", said)
		}
	})
	m.Verify(t)
}

// A revocation ends what runs in and out of pods within a second.
func TestRevokedStreamsOfPodsEndWithinASecond(t *testing.T) {
	m, c, kubectl := clusterMesh(t)
	c.Pod("shop", "talker", "sh", "-c", "while echo tick; do sleep 0.1; done")
	oscar := m.Login(t, "oscar")
	for _, s := range []struct{ name, args, action, part, says, env string }{
		{"exec", "exec -i web -- sh -c 'echo begun-a; exec cat'", "kube:exec", "begun-a", "begun-a", ""},
		{"exec over SPDY", "exec -i web -- sh -c 'echo begun-b; exec cat'", "kube:exec", "begun-b", "begun-b", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false"},
		{"logs -f", "logs -f talker", "kube:get", "/log", "tick", ""},
		{"port-forward", "port-forward pod/web :80", "kube:portforward", "", "Forwarding", ""},
		{"watch", "get pods --watch", "kube:watch", "", "web", ""},
	} {
		t.Run(s.name, func(t *testing.T) {
			alice := m.Login(t, "alice")
			live := testmesh.Begin(t, alice.Agents(t, inCluster, "sh", "-c", "exec env "+s.env+" "+kubectl+" -n shop "+s.args))
			live.Await(s.says, 1)
			rec := m.AwaitRecord(t, "proxy", "the decision", decidedOn(s.action, s.part))
			if r := oscar.Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
				t.Fatalf("revoke: %s", r)
			}
			revoked := m.AwaitRecord(t, "broker", "the revocation", func(r *audit.Record) bool {
				e, ok := r.Event.(*audit.Revoked)
				return ok && e.Value == rec.Chain.Txn
			})
			closed := m.AwaitRecord(t, "proxy", "the end of the connection", func(r *audit.Record) bool {
				e, ok := r.Event.(*audit.ConnectionClosed)
				return ok && r.Connection == rec.Connection && e.Reason == "revoked"
			})
			if took := closed.Time.Sub(revoked.Time); took > time.Second {
				t.Errorf("the connection ended %s after the revocation", took)
			}
			if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "cut" {
				t.Errorf("the outcome: %+v", out)
			}
			end := live.Wait(patience)
			if s.action == "kube:exec" && (end.Code == 0 || !strings.Contains(end.Stderr, "this session has ended")) {
				t.Errorf("the agent's end: %s", end)
			}
		})
	}
	// So does a proxy that is stopped, and says why.
	live := testmesh.Begin(t, m.Login(t, "alice").Agents(t, inCluster, "sh", "-c", "exec "+kubectl+" -n shop exec -i web -- sh -c 'echo begun-c; exec cat'"))
	live.Await("begun-c", 1)
	m.Proxy.Stop()
	if end := live.Wait(patience); end.Code == 0 || !strings.Contains(end.Stderr, "the proxy is shutting down") {
		t.Errorf("the agent's end: %s", end)
	}
}

// An exec and a watch through a run's listener go on past the end of the token that they began with.
func TestStreamsOfPodsOutliveTheirTokens(t *testing.T) {
	t.Parallel() // it waits for most of its time
	const life, skew = time.Minute, 30 * time.Second
	m, c, kubectl := clusterMesh(t, testmesh.Edit("broker", func(c string) string {
		return strings.Replace(c, "token_ttl: 5m", "token_ttl: "+life.String(), 1)
	}))
	alice := m.Login(t, "alice")
	begin := func(env, args string) *testmesh.Live {
		return testmesh.Begin(t, alice.Agents(t, inCluster, "sh", "-c", "exec env "+env+" "+kubectl+" -n shop "+args))
	}
	overWebSocket := begin("", "exec -i web -- cat")
	overSPDY := begin("KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "exec -i web -- cat")
	watch := begin("", "get pods --watch -o name")
	overWebSocket.Type("first\n")
	overSPDY.Type("first\n")
	for _, l := range []*testmesh.Live{overWebSocket, overSPDY} {
		l.Await("first", 1)
	}
	watch.Await("pod/web", 1)
	rec := m.AwaitRecord(t, "proxy", "the watch", decidedOn("kube:watch", ""))
	if wait := time.Until(rec.Chain.Expires.Add(skew + 3*time.Second)); wait > 0 {
		time.Sleep(wait) // the token's end is the claim
	}
	for _, l := range []*testmesh.Live{overWebSocket, overSPDY} {
		l.Type("second\n")
		l.Await("second", 1)
	}
	c.Pod("shop", "late")
	watch.Await("pod/late", 1)
	for _, l := range []*testmesh.Live{overWebSocket, overSPDY} {
		if r := l.Wait(patience); r.Code != 0 {
			t.Errorf("after the input's end: %s", r)
		}
	}
}
