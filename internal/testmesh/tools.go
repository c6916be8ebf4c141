package testmesh

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/deputymesh/deputy/internal/testweb"
)

// ToolTarget is the tool server, where there is one.
const ToolTarget = "tools"

// Tools puts a tool server behind the proxy, as ToolTarget, for analysts. It is an option of a policy set that speaks about it.
func Tools(server *testweb.Tools) Option { return func(s *settings) { s.tools = server } }

// addTools writes the tool server into the configurations of broker, proxy and agents.
func (m *Mesh) addTools(server *testweb.Tools) {
	m.t.Helper()
	path := filepath.Join(m.Dir, "proxy", "tools.token")
	if err := os.WriteFile(path, []byte(testweb.ToolToken+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if Isolated() {
		if err := os.Chown(path, proxyUID, proxyUID); err != nil {
			m.t.Fatal(err)
		}
	}
	m.addTarget(ToolTarget, "mcp", "tools", fmt.Sprintf(`    mcp:
      url: %s
      accounts:
        - name: agents
          bearer_file: tools.token
          roles: [analyst]
`, server.URL))
}
