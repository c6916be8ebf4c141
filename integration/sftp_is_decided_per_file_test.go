package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// OpenSSH's sftp and scp work through a run unmodified, and each file that they touch is decided and recorded for itself, with the whole chain
// and the bytes that passed.
func TestSFTPIsDecidedPerFile(t *testing.T) {
	m, host := hostMesh(t)
	alice := m.Login(t, "alice")
	const scp, sftp = `scp -q -F "$DEPUTY_SSH_CONFIG" `, `sftp -q -b - -F "$DEPUTY_SSH_CONFIG" web`
	batch := func(lines ...string) string { return sftp + " <<'EOF'\n" + strings.Join(lines, "\n") + "\nEOF\n" }
	// fetch copies a file and prints it: clients want to seek where they write.
	fetch := func(path string) string {
		return `d=$(mktemp -d) && ` + scp + `web:` + path + ` "$d/copy" && cat "$d/copy"; e=$?; rm -r "$d"; exit $e`
	}
	decided := func(action, path string) func(*audit.Record) bool {
		return func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == action && len(d.Objects) > 0 && d.Objects[0].Name == path
		}
	}
	t.Run("scp", func(t *testing.T) {
		text := strings.Repeat("some text\n", 50_000)
		from, there := host.Write("from", []byte(text)), host.Files+"/there"
		r := alice.Run(t, onHost, "sh", "-c", `d=$(mktemp -d) && `+scp+`web:`+from+` "$d/copy" && `+scp+`"$d/copy" web:`+there+`; e=$?; rm -r "$d"; exit $e`)
		if got, err := os.ReadFile(there); r.Code != 0 || err != nil || string(got) != text {
			t.Fatalf("%v: %s", err, r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision about reading", decided("ssh:sftp-read", from))
		d := rec.Event.(*audit.Decision)
		if d.Effect != audit.Allow || d.ReadOnly || d.Account != host.Account || strings.Join(d.Policies, ",") != "analyst-files" || d.Objects[0].Kind != "path" ||
			d.Statement.Scrubbed != `sftp-open "`+from+`" for reading` {
			t.Errorf("the decision: %+v", d)
		}
		if n := len(rec.Chain.Hops); n != 3 || !strings.Contains(rec.Chain.User.Subject, "alice") || !strings.Contains(rec.Chain.Hops[2].ID, "/researcher/") {
			t.Errorf("the chain: %+v", rec.Chain)
		}
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "ok" || out.BytesOut != int64(len(text)) || out.BytesIn != 0 {
			t.Errorf("the outcome of reading: %+v", out)
		}
		rec = m.AwaitRecord(t, "proxy", "the decision about writing", decided("ssh:sftp-write", there))
		if d := rec.Event.(*audit.Decision); !d.Objects[0].Write {
			t.Errorf("the decision: %+v", d)
		}
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "ok" || out.BytesIn != int64(len(text)) || out.BytesOut != 0 {
			t.Errorf("the outcome of writing: %+v", out)
		}
		// A person sees it, too.
		shown := m.Show(t, rec.Chain.Txn)
		for _, part := range []string{"ssh:sftp-read on web: " + from, "500000 bytes read", "ssh:sftp-write on web: " + there, "500000 bytes written"} {
			if !strings.Contains(shown.Stdout, part) {
				t.Errorf("no %q in %s", part, shown)
			}
		}
	})
	t.Run("sftp", func(t *testing.T) {
		dir := host.Files + "/dir"
		host.Write("file", []byte("text"))
		got := filepath.Join(t.TempDir(), "got")
		r := alice.Run(t, onHost, "sh", "-c", batch("mkdir "+dir, "put /etc/hostname "+dir+"/a", "rename "+dir+"/a "+dir+"/b", "ln -s b "+dir+"/c", "chmod 600 "+dir+"/b",
			"ls -l "+dir, "get "+host.Files+"/file "+got, "rm "+dir+"/c", "rm "+dir+"/b", "rmdir "+dir))
		if r.Code != 0 || !strings.Contains(r.Stdout, "-rw-------") {
			t.Fatalf("%s", r)
		}
		for action, path := range map[string]string{
			"ssh:sftp-write": dir, "ssh:sftp-rename": dir + "/a", "ssh:sftp-link": dir + "/c", "ssh:sftp-setstat": dir + "/b", "ssh:sftp-list": dir,
			"ssh:sftp-read": host.Files + "/file", "ssh:sftp-remove": dir + "/c", "ssh:sftp-stat": dir,
		} {
			rec := m.AwaitRecord(t, "proxy", action+" on "+path, decided(action, path))
			if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); rec.Event.(*audit.Decision).Effect != audit.Allow || out.Status != "ok" && action != "ssh:sftp-stat" {
				t.Errorf("%s on %s: %+v, %+v", action, path, rec.Event, out)
			}
		}
	})
	// refused says why the last record that an agent was told of refuses something.
	refused := func(t *testing.T, r testmesh.Result, class, action, path string) {
		t.Helper()
		if r.Code == 0 || !strings.Contains(r.Stderr, "deputy: ") {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		d, ok := rec.Event.(*audit.Decision)
		if !ok || d.Effect != audit.Refuse || d.Class != class || !strings.Contains(d.Action, action) || len(d.Objects) == 0 || d.Objects[len(d.Objects)-1].Name != path {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
	}
	t.Run("refused", func(t *testing.T) {
		link := host.Files + "/link"
		if err := os.Symlink("/etc/passwd", link); err != nil {
			t.Fatal(err)
		}
		mine := host.Write("mine", []byte("mine"))
		refused(t, alice.Run(t, onHost, "sh", "-c", fetch("/etc/passwd")), "policy", "ssh:sftp-stat", "/etc/passwd")
		refused(t, alice.Run(t, onHost, "sh", "-c", fetch(link)), "policy", "ssh:sftp-stat", "/etc/passwd")
		refused(t, alice.Run(t, onHost, "sh", "-c", batch("get "+host.Files+"/../../../etc/passwd /tmp/never")), "policy", "ssh:sftp-stat", "/etc/passwd")
		refused(t, alice.Run(t, onHost, "sh", "-c", batch("rename "+mine+" /var/tmp/mine")), "policy", "ssh:sftp-rename", "/var/tmp/mine")
		refused(t, alice.Run(t, onHost, "sh", "-c", batch("ln -s /etc/shadow "+host.Files+"/shadow")), "policy", "ssh:sftp-link", "/etc/shadow")
		if got, err := os.ReadFile(mine); err != nil || string(got) != "mine" {
			t.Errorf("what may not be renamed: %q, %v", got, err)
		}
	})
	t.Run("a sub-agent that may less", func(t *testing.T) {
		if err := os.Mkdir(host.Files+"/in", 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(host.Files+"/in", 0o777); err != nil {
			t.Fatal(err)
		}
		in, out := host.Write("in/file", []byte("inside")), host.Write("outside", []byte("outside"))
		capability := filepath.Join(m.Root, "files.json")
		if err := os.WriteFile(capability, fmt.Appendf(nil, `[{"type":"deputy_ssh","locations":["spiffe://%s/target/web"],"actions":["sftp-read","sftp-stat","sftp-rename"],"paths":[%q]}]`,
			testmesh.TrustDomain, host.Files+"/in/*"), 0o644); err != nil {
			t.Fatal(err)
		}
		agents := []string{onHost[0], onHost[1] + " --cap " + capability}
		if r := alice.Run(t, agents, "sh", "-c", fetch(in)); r.Code != 0 || r.Stdout != "inside" {
			t.Errorf("what it may: %s", r)
		}
		refused(t, alice.Run(t, agents, "sh", "-c", fetch(out)), "capability", "ssh:sftp-stat", out)
		refused(t, alice.Run(t, agents, "sh", "-c", batch("put /etc/hostname "+in)), "capability", "ssh:sftp-write", in)
		refused(t, alice.Run(t, agents, "sh", "-c", batch("rename "+in+" "+host.Files+"/taken")), "capability", "ssh:sftp-rename", host.Files+"/taken")
		if r := alice.Run(t, agents, "sh", "-c", sshRun+"web cat "+in); r.Code != 126 {
			t.Errorf("a command: %s", r)
		}
	})
	t.Run("revoked in the middle", func(t *testing.T) {
		oscar := m.Login(t, "oscar")
		big, there := filepath.Join(m.Root, "big"), host.Files+"/big"
		f, err := os.Create(big)
		if err == nil {
			err = errors.Join(f.Truncate(1<<36), f.Close(), os.Chmod(big, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		live := testmesh.Begin(t, alice.Agents(t, onHost, "sh", "-c", "exec "+scp+big+" web:"+there))
		rec := m.AwaitRecord(t, "proxy", "the decision", decided("ssh:sftp-write", there))
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if info, err := os.Stat(there); err == nil && info.Size() > 1<<20 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("nothing is copied")
			}
		}
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
		if end := live.Wait(patience); end.Code == 0 || !strings.Contains(end.Stderr, "this session has ended") {
			t.Errorf("the agent's end: %s", end)
		}
		info, err := os.Stat(there)
		if err != nil {
			t.Fatal(err)
		}
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "cut" || out.BytesIn < info.Size() || info.Size() == 0 {
			t.Errorf("the outcome: %+v; %d bytes are there", out, info.Size())
		}
	})
	m.Verify(t)
}
