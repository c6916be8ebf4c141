package testmesh

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/deputymesh/deputy/internal/testssh"
)

// HostTarget is the name of an SSH target, where there is one.
const HostTarget = "web"

// Host puts an SSH server behind the proxy, as HostTarget: analysts and support log in with certificates of its user CA. It is an
// option of a policy set that speaks about it.
func Host(host *testssh.Server) Option { return func(s *settings) { s.host = host } }

// addHost writes the host into the configurations of broker, proxy and agents.
func (m *Mesh) addHost(host *testssh.Server) {
	m.t.Helper()
	files := map[string][]byte{}
	for name, from := range map[string]string{"web-host.pub": host.HostKeyFile, "web-ca.key": host.UserCAFile} {
		raw, err := os.ReadFile(from)
		if err != nil {
			m.t.Fatal(err)
		}
		files[name] = raw
	}
	m.addTarget(HostTarget, "ssh", "host", fmt.Sprintf(`    ssh:
      address: %s
      host_keys_file: web-host.pub
      accounts:
        - name: %s
          ca_key_file: web-ca.key
          roles: [analyst, support]
`, host.Address(), host.Account), files)
}

// addTarget adds a target by `deputy target add`. block is what the proxy needs to know of it, and files are what it names.
func (m *Mesh) addTarget(name, kind, listener, block string, files map[string][]byte) {
	m.t.Helper()
	dir := m.t.TempDir()
	entry := filepath.Join(dir, name+".yaml")
	text := fmt.Sprintf("- name: %s\n  kind: %s\n  listen: %s\n  root: verified\n%s", name, kind, m.Address(listener), strings.ReplaceAll("\n"+block, "\n    ", "\n  ")[1:])
	for file, data := range files {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := os.WriteFile(entry, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if out, err := exec.Command(Deputy(m.t), "target", "add", m.Dir, entry).CombinedOutput(); err != nil {
		m.t.Fatalf("deputy target add: %v\n%s%s", err, out, text)
	}
}
