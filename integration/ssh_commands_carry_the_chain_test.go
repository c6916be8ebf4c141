package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testssh"
)

// hostMesh is a mesh with a host behind its proxy.
func hostMesh(t *testing.T, options ...testmesh.Option) (*testmesh.Mesh, *testssh.Server) {
	t.Helper()
	host := testssh.Start(t)
	return testmesh.Start(t, append([]testmesh.Option{testmesh.Host(host), testmesh.Policy(filepath.Join("testdata", "hosts"))}, options...)...), host
}

// onHost are the agents of most tests: two, that reach the host. OpenSSH's client refuses to run under a uid that has no name, as those of
// isolated agents have none unless the operator gives them one.
var onHost = []string{"planner --target web --no-isolate", "researcher --no-isolate"}

// sshConfig is how OpenSSH's client is told of the run's configuration.
const sshRun = `ssh -F "$DEPUTY_SSH_CONFIG" `

// Each command on a host carries the whole chain: into the proxy's records, and by its digest into the host's own log. What isn't allowed
// never starts, and the refusal names its record.
func TestSSHCommandsCarryTheChain(t *testing.T) {
	m, host := hostMesh(t)
	alice := m.Login(t, "alice")
	t.Run("a command", func(t *testing.T) {
		r := alice.Run(t, onHost, "sh", "-c", sshRun+`web echo from the host`)
		if r.Code != 0 || r.Stdout != "from the host\n" {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "ssh:exec" && d.Statement.Scrubbed == "echo from the host"
		})
		d := rec.Event.(*audit.Decision)
		if d.Effect != audit.Allow || d.Account != host.Account || d.Target != testmesh.HostTarget || strings.Join(d.Policies, ",") != "analyst-runs" || d.ReadOnly {
			t.Errorf("the decision: %+v", d)
		}
		if n := len(rec.Chain.Hops); n != 3 || !strings.Contains(rec.Chain.User.Subject, "alice") || !strings.Contains(rec.Chain.Hops[2].ID, "/researcher/") {
			t.Errorf("the chain: %+v", rec.Chain)
		}
		out := m.Outcome(t, rec.ID).Event.(*audit.Completed)
		if out.Status != "ok" || out.Command != "exit 0" || out.BytesOut != 14 {
			t.Errorf("the outcome: %+v", out)
		}
		if line := host.AwaitLog("Accepted publickey for " + host.Account); !strings.Contains(line, "session="+rec.Connection) || !strings.Contains(line, "task="+rec.Chain.Txn) || !strings.Contains(line, "agent="+rec.Chain.Hops[2].ID) {
			t.Errorf("the host's log: %s", line)
		}
	})
	t.Run("a refused one", func(t *testing.T) {
		mark := filepath.Join(host.Files, "started")
		r := alice.Run(t, onHost, "sh", "-c", sshRun+`web 'echo x; touch `+mark+`'`)
		if r.Code != 126 || r.Stdout != "" {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		d, ok := rec.Event.(*audit.Decision)
		if !ok || d.Effect != audit.Refuse || d.Class != "policy" || !strings.HasPrefix(d.Statement.Scrubbed, "echo x; touch") {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Error("it ran")
		}
	})
	t.Run("a sub-agent that may less", func(t *testing.T) {
		agents := []string{onHost[0], onHost[1] + " --allow web:sftp-read"}
		r := alice.Run(t, agents, "sh", "-c", sshRun+`web echo x`)
		if r.Code != 126 || r.Stdout != "" {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Class != "capability" {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
	})
	t.Run("a program of a capability", func(t *testing.T) {
		capFile := filepath.Join(m.Root, "programs.json")
		if err := os.WriteFile(capFile, []byte(`[{"type":"deputy_ssh","locations":["spiffe://`+testmesh.TrustDomain+`/target/web"],"actions":["exec"],"programs":["id"]}]`), 0o644); err != nil {
			t.Fatal(err)
		}
		agents := []string{onHost[0], onHost[1] + " --cap " + capFile}
		if r := alice.Run(t, agents, "sh", "-c", sshRun+`web id -un`); strings.TrimSpace(r.Stdout) != host.Account {
			t.Errorf("%s", r)
		}
		if r := alice.Run(t, agents, "sh", "-c", sshRun+`web echo x`); r.Code != 126 || !strings.Contains(r.Stderr, "reach that far") {
			t.Errorf("%s", r)
		}
	})
	t.Run("a shell for one alone", func(t *testing.T) {
		if r := alice.Run(t, onHost, "sh", "-c", `echo 'id -un' | `+sshRun+`-T web`); r.Code != 126 || !strings.Contains(r.Stderr, "record: ") {
			t.Errorf("two agents: %s", r)
		}
		if r := alice.Run(t, onHost[:1], "sh", "-c", `echo 'id -un' | `+sshRun+`-T web`); !strings.Contains(r.Stdout, host.Account) {
			t.Errorf("one agent: %s", r)
		}
	})
	t.Run("another role", func(t *testing.T) {
		bob := m.Login(t, "bob")
		r := bob.Run(t, onHost, "sh", "-c", sshRun+`web id`)
		if r.Code != 126 || r.Stdout != "" {
			t.Fatalf("%s", r)
		}
	})
	t.Run("no account for the role", func(t *testing.T) {
		ben := m.Login(t, "ben")
		r := ben.Run(t, onHost, "sh", "-c", sshRun+`web id`)
		if r.Code != 255 || !strings.Contains(r.Stderr, "none of the user's roles has an account") || testmesh.RecordIn(t, r.Stderr) == "" {
			t.Fatalf("%s", r)
		}
	})
	t.Run("outside every agent", func(t *testing.T) {
		if r := alice.Deputy(t, "connect", "web"); r.Code == 0 || !strings.Contains(r.Stderr, "not inside an agent") {
			t.Errorf("%s", r)
		}
	})
	t.Run("forwardings", func(t *testing.T) {
		for _, args := range []string{"-W 127.0.0.1:22 web", "-o ExitOnForwardFailure=yes -R 0:127.0.0.1:22 web id"} {
			if r := alice.Run(t, onHost, "sh", "-c", sshRun+args); r.Code == 0 || r.Stdout != "" {
				t.Errorf("%s: %s", args, r)
			}
		}
		r := alice.Run(t, onHost, "sh", "-c", sshRun+"-W 127.0.0.1:22 web")
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Class != "forwarding" || d.Effect != audit.Refuse {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
		m.AwaitRecord(t, "proxy", "the refusal of -R", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "remote-forward" && d.Effect == audit.Refuse
		})
	})
	t.Run("clients", func(t *testing.T) {
		file := host.Write("text", []byte("some text\n"))
		for name, script := range map[string]string{
			"scp -O": `scp -q -O -F "$DEPUTY_SSH_CONFIG" web:` + file + ` /dev/stdout`,
			"rsync":  `d=$(mktemp -d) && rsync web:` + file + ` "$d/" && cat "$d/text"; rm -r "$d"`,
			"shared": `d=$(mktemp -d) && ` + sshRun + `-o ControlPath="$d/c" -M -N -f web && ` + sshRun + `-o ControlPath="$d/c" web cat ` + file + `; ` + sshRun + `-q -o ControlPath="$d/c" -O exit web; rm -r "$d"`,
		} {
			if r := alice.Run(t, onHost, "sh", "-c", script); r.Stdout != "some text\n" {
				t.Errorf("%s: %s", name, r)
			}
		}
	})
	t.Run("isolated agents", func(t *testing.T) {
		if !testmesh.Isolated() {
			return // there are none
		}
		isolated := []string{"planner --target web", "researcher"}
		r := alice.Run(t, isolated, "sh", "-c", sshRun+`web echo x`)
		if r.Code != 255 || !strings.Contains(r.Stderr, "No user exists for uid") || !strings.Contains(r.Stderr, "has no name") {
			t.Errorf("without a name: %s", r)
		}
		// With names for its uids, as an operator gives them.
		names := filepath.Join(m.Root, "passwd")
		raw, err := os.ReadFile("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		for _, uid := range m.AgentUIDs() {
			raw = fmt.Appendf(raw, "agent%d:x:%d:%d::/nonexistent:/usr/sbin/nologin\n", uid, uid, uid)
		}
		if err := os.WriteFile(names, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		c := alice.Agents(t, isolated, "sh", "-c", sshRun+`web echo x`)
		c.Args = append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/passwd && exec "$@"`, names}, c.Args...)
		if r := testmesh.Exec(t, c); r.Code != 0 || r.Stdout != "x\n" {
			t.Errorf("with names: %s", r)
		}
	})
	t.Run("a restricted host", func(t *testing.T) {
		m.EditConfig(t, "proxy", func(c string) string {
			return strings.Replace(c, "      host_keys_file: web-host.pub\n", "      host_keys_file: web-host.pub\n      restricted: true\n", 1)
		})
		m.Proxy.Stop()
		m.Proxy.Begin()
		eventually(t, alice)
		for name, script := range map[string]string{
			"a shell":    `echo 'id -un' | ` + sshRun + `-T web`,
			"a terminal": sshRun + `-tt web id -un`,
		} {
			r := alice.Run(t, onHost[:1], "sh", "-c", script)
			if r.Code != 126 || strings.Contains(r.Stdout, host.Account) {
				t.Fatalf("%s: %s", name, r)
			}
			if d, ok := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr)).Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "restricted" {
				t.Errorf("%s: the record: %+v", name, d)
			}
		}
		if r := alice.Run(t, onHost[:1], "sh", "-c", sshRun+`web id -un`); strings.TrimSpace(r.Stdout) != host.Account {
			t.Errorf("a command: %s", r)
		}
	})
	m.Verify(t)
}
