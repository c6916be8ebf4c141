package integration_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A client that knows no ProxyCommand reaches a host by the run's own listener, which serves the run's processes and nobody else. The host key is
// that of the proxy, which came inside TLS, and is pinned.
func TestSSHWithoutProxyCommandWorks(t *testing.T) {
	m, host := hostMesh(t)
	alice := m.Login(t, "alice")
	script := m.Share(t, "testdata/paramiko_run.py")
	agents := []string{"planner --target web", "researcher"}
	t.Run("paramiko", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(host.Files, "here"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		r := alice.Run(t, agents, "/usr/bin/python3", script, "echo by its listener", host.Files)
		if r.Code != 0 || !strings.HasPrefix(r.Stdout, "by its listener\n") || !strings.Contains(r.Stdout, "'here'") {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "ssh:exec" && d.Statement.Scrubbed == "echo by its listener"
		})
		if n := len(rec.Chain.Hops); n != 3 || !strings.Contains(rec.Chain.Hops[2].ID, "/researcher/") {
			t.Errorf("the chain: %+v", rec.Chain)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := alice.Run(t, agents, "/usr/bin/python3", script, "touch /tmp/never")
		if r.Code != 126 || testmesh.RecordIn(t, r.Stderr) == "" {
			t.Errorf("%s", r)
		}
	})
	// As a client that reads its file of keys, and takes no other.
	pinned := `ssh -F none -o UserKnownHostsFile="$DEPUTY_SSH_KNOWN_HOSTS" -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes -o UpdateHostKeys=no -p "${DEPUTY_ADDRESS_WEB##*:}" deputy@127.0.0.1 `
	t.Run("OpenSSH with the pinned key", func(t *testing.T) {
		if r := alice.Run(t, onHost, "sh", "-c", pinned+"echo pinned"); r.Code != 0 || r.Stdout != "pinned\n" {
			t.Errorf("%s", r)
		}
	})
	t.Run("another key than the pinned one", func(t *testing.T) {
		r := alice.Run(t, onHost, "sh", "-c", pinned+`true; sed 's/.\{12\}$/AAAAAAAAAAAA/' "$DEPUTY_SSH_KNOWN_HOSTS" >k; DEPUTY_SSH_KNOWN_HOSTS=$PWD/k; `+pinned+`echo no`)
		if r.Code == 0 || strings.Contains(r.Stdout, "no") || !strings.Contains(r.Stderr, "ost key verification failed") && !strings.Contains(r.Stderr, "REMOTE HOST IDENTIFICATION HAS CHANGED") {
			t.Errorf("%s", r)
		}
	})
	t.Run("outside the run", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, agents[:1], "sh", "-c", `echo "at $DEPUTY_ADDRESS_WEB."; read stop`))
		live.Await("at 127.0.0.1:", 1)
		address := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(live.Output()), "at "), ".")
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		said := make([]byte, 4096)
		n := 0
		for err == nil && n < len(said) {
			var m int
			m, err = conn.Read(said[n:])
			n += m
		}
		live.Type("\n")
		if text := string(said[:n]); strings.Contains(text, "SSH-2.0") || !strings.HasPrefix(text, "deputy: ") {
			t.Errorf("a stranger hears %q", text)
		}
	})
	t.Run("an inner run", func(t *testing.T) {
		// The inner agent has its own listener; the outer one's serves it not.
		r := alice.Run(t, agents[:1], "sh", "-c", fmt.Sprintf(`OUTER=$DEPUTY_ADDRESS_WEB exec %s run --as researcher -- sh -c 'DEPUTY_ADDRESS_WEB=$OUTER exec /usr/bin/python3 %s "echo no"'`, testmesh.Deputy(t), script))
		if r.Code == 0 || strings.Contains(r.Stdout, "no\n") {
			t.Errorf("%s", r)
		}
	})
	m.Verify(t)
}
