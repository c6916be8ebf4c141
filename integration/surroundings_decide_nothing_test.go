package integration_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// What an agent builds around itself changes nothing of who it is: namespaces of its own, other uids that root among agents can
// take, variables for what it starts, links in its folder, files that make others its uid.
func TestSurroundingsDecideNothing(t *testing.T) {
	m := testmesh.Shared(t)
	alice := m.Login(t, "alice")
	dir, probe, deputy := openFolder(t, m), testmesh.Program(t, "agentprobe"), testmesh.Deputy(t)
	outer := attackAll(t, m, alice) + "unset A_AGENT A_PG A_PASS\n" // what is outside the agent

	t.Run("namespaces", func(t *testing.T) {
		for _, flags := range []string{"-Ur", "-Urm", "-Urn", "-Urpf --mount-proc", "-UrmnipuCf --mount-proc"} {
			r := alice.Run(t, []string{"planner"}, "sh", "-c", outer+"unshare "+flags+" sh -c 'id -u; exec "+probe+" attack'")
			if strings.HasPrefix(r.Stderr, "unshare: ") {
				t.Logf("this machine gives no such namespace: %s: %s", flags, r.Stderr)
				continue
			}
			if r.Code != 0 || !strings.HasPrefix(r.Stdout, "0\n") || !strings.Contains(r.Stdout, "over\n") || strings.Contains(r.Stdout, "SERVED") {
				t.Errorf("unshare %s: %s", flags, r)
			}
		}
	})
	t.Run("the uid of a role", func(t *testing.T) {
		if !testmesh.Isolated() {
			t.Log("only root takes other uids; as root this is tried")
			return
		}
		for _, uid := range m.RoleUIDs() {
			r := alice.Run(t, []string{"planner --no-isolate"}, "setpriv", "--reuid", strconv.Itoa(int(uid)), "--clear-groups", "sh", "-c", outer+"exec "+probe+" attack")
			if r.Code != 0 || !strings.Contains(r.Stdout, "over\n") || strings.Contains(r.Stdout, "SERVED") {
				t.Errorf("uid %d: %s", uid, r)
			}
		}
	})
	t.Run("variables", func(t *testing.T) {
		hostile := "LD_PRELOAD=/nonexistent.so LD_LIBRARY_PATH=/tmp LD_AUDIT=/nonexistent.so GODEBUG=x509sha1=1,tls10server=1,netdns=go SSL_CERT_FILE=/dev/null SSL_CERT_DIR=/tmp" +
			" DEPUTY_CONFIG=/nonexistent DEPUTY_TRUST_DOMAIN=evil.example HTTPS_PROXY=http://127.0.0.1:1 ALL_PROXY=socks5://127.0.0.1:1 GRPC_PROXY=http://127.0.0.1:1 GRPC_GO_LOG_SEVERITY_LEVEL=info GOTRACEBACK=crash"
		supervisor := filepath.Join(dir, "supervisor")
		l := testmesh.Begin(t, alice.Agents(t, []string{"planner"}, "sh", "-c", "exec env "+hostile+" "+deputy+` run --as researcher -- env -u LD_PRELOAD -u LD_AUDIT sh -c '`+
			strings.Join(m.Psql(), " ")+` -c "SELECT email FROM customers WHERE id = 1"; echo $PPID >`+supervisor+`; echo up; read stop' 2>/dev/null`))
		l.Await("up\n", 1)
		if !strings.Contains(l.Output(), "i***@example.com\n") {
			t.Errorf("the child with hostile variables around it: %s%s", l.Output(), l.Errors())
		}
		if testmesh.Isolated() {
			pid, err := os.ReadFile(supervisor)
			if err != nil {
				t.Fatal(err)
			}
			environ, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "environ"))
			if err != nil {
				t.Fatal(err)
			}
			for v := range strings.SplitSeq(strings.TrimRight(string(environ), "\x00"), "\x00") {
				if !strings.HasPrefix(v, "GORACE=") {
					t.Errorf("the supervisor under another uid got its parent's %s", v)
				}
			}
		}
		l.Type("\n")
		l.Wait(patience)
	})
	if !testmesh.Isolated() {
		return // the rest is about uids of one's own
	}
	t.Run("links in the agent's folder", func(t *testing.T) {
		kept := filepath.Join(m.Root, "kept")
		if err := os.MkdirAll(filepath.Join(kept, "deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(kept, "deep", "file"), []byte("kept"), 0o644); err != nil {
			t.Fatal(err)
		}
		r := alice.Run(t, []string{"planner"}, "sh", "-c", `cd "$(dirname "${DEPUTY_AGENT_SOCKET#unix://}")" || exit 9
rm -rf pg agent.sock streams.sock pgpass; ln -s `+kept+` pg; ln -s `+kept+` agent.sock; ln -s `+kept+`/deep/file pgpass; mkdir -p a/b; ln -s `+kept+` a/b/c; ln -s / a/root; ln -s .. a/up
chmod 0 a; mv "$PWD" "$PWD.moved" 2>/dev/null && echo MOVED; ln -s `+kept+` ../link 2>/dev/null && echo LINKED; rm -f ../*.lock 2>/dev/null; ls ../*.lock >/dev/null 2>&1 && echo LISTED; true`)
		if r.Code != 0 || r.Stdout != "" {
			t.Errorf("an agent among the folders of others: %s", r)
		}
		if raw, err := os.ReadFile(filepath.Join(kept, "deep", "file")); err != nil || string(raw) != "kept" {
			t.Errorf("what a link led to: %q %v", raw, err)
		}
		left, err := filepath.Glob(filepath.Join(filepath.Dir(alice.SessionDir()), "a", "*"))
		if err != nil || len(left) != 0 {
			t.Errorf("left of the agents: %v %v", left, err)
		}
	})
	t.Run("a set-uid file of its own", func(t *testing.T) {
		file, where := filepath.Join(dir, "setuid"), filepath.Join(dir, "where")
		l := testmesh.Begin(t, alice.Agents(t, []string{"planner"}, "sh", "-c", "cp "+probe+" "+file+"; chmod 6755 "+file+
			"; echo $DEPUTY_AGENT_SOCKET $PGHOST $PGPASSFILE >"+where+"; id -u; read stop"))
		l.Await("\n", 1)
		// Whoever runs it outside every agent has the agent's uid, and so a place in it, but the agent didn't start it.
		r := testmesh.Exec(t, alice.Command("sh", "-c", "read A_AGENT A_PG A_PASS <"+where+"; export A_AGENT A_PG A_PASS; id -u; exec setpriv --reuid=65534 --regid=65534 --clear-groups "+file+" attack"))
		if r.Code != 0 || strings.Contains(r.Stdout, "SERVED") || strings.Count(r.Stdout, "this agent's program didn't start it") != 5 {
			t.Errorf("a process that a set-uid file made the agent's uid: %s", r)
		}
		l.Type("\n")
		l.Wait(patience)
	})
}
