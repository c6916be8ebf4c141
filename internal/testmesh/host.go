package testmesh

import (
	"fmt"
	"os"
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
	dir := filepath.Join(m.Dir, "proxy")
	for name, from := range map[string]string{"web-host.pub": host.HostKeyFile, "web-ca.key": host.UserCAFile} {
		raw, err := os.ReadFile(from)
		if err != nil {
			m.t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			m.t.Fatal(err)
		}
		if Isolated() {
			if err := os.Chown(path, proxyUID, proxyUID); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	m.addTarget(HostTarget, "ssh", "host", fmt.Sprintf(`    ssh:
      address: %s
      host_keys_file: web-host.pub
      accounts:
        - name: %s
          ca_key_file: web-ca.key
          roles: [analyst, support]
`, host.Address(), host.Account))
}

// addTarget writes a target into the configurations of broker, proxy and agents. block is what the proxy needs to know of it.
func (m *Mesh) addTarget(name, kind, listener, block string) {
	m.t.Helper()
	insert := func(role, before, text string) {
		m.EditConfig(m.t, role, func(c string) string {
			at := len(c)
			if before != "" {
				if at = strings.Index(c, before); at < 0 {
					m.t.Fatalf("the configuration of the %s has no %q", role, before)
				}
			}
			return c[:at] + text + c[at:]
		})
	}
	insert("broker", "sessions:\n", fmt.Sprintf("  - name: %s\n    kind: %s\n    proxies: [main]\n", name, kind))
	insert("proxy", "audit:\n", fmt.Sprintf("  - name: %s\n    kind: %s\n    listen: %s\n    root: verified\n%s", name, kind, m.Address(listener), block))
	insert("agent", "", fmt.Sprintf("  - name: %s\n    kind: %s\n    address: %s\n    proxy: spiffe://%s/deputy/proxy/main\n    renewal: https://%s\n",
		name, kind, m.Address(listener), TrustDomain, m.Address("renewal")))
}
