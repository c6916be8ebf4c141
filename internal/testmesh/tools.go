package testmesh

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testweb"
)

// ToolTarget is the tool server, where there is one.
const ToolTarget = "tools"

// toolServer is where it is, and what the proxy shows it.
type toolServer struct{ url, bearer string }

// Tools puts a tool server behind the proxy, as ToolTarget, for analysts. It is an option of a policy set that speaks about it.
func Tools(server *testweb.Tools) Option { return toolsAt(server.URL, testweb.ToolToken) }

// ToolsBehind is [Tools] for a server at http://host:port that demands a bearer token.
func ToolsBehind(url, bearer string) Option { return toolsAt(url, bearer) }

// ToolsAt is [Tools] for a server at http://host:port that demands no credential.
func ToolsAt(url string) Option { return toolsAt(url, "") }

func toolsAt(url, bearer string) Option {
	return func(s *settings) { s.tools = &toolServer{url, bearer} }
}

// addTools writes the tool server into the configurations of broker, proxy and agents.
func (m *Mesh) addTools(server toolServer) {
	m.t.Helper()
	account, files := "        - name: agents\n", map[string][]byte{}
	if server.bearer != "" {
		files["tools.token"] = []byte(server.bearer + "\n")
		account += "          bearer_file: tools.token\n"
	}
	m.addTarget(ToolTarget, "mcp", "tools", fmt.Sprintf("    mcp:\n      url: %s\n      accounts:\n%s          roles: [analyst]\n", server.url, account), files)
}

// Everything starts the everything server of go-sdk, which its conformance is tested with, and gives its URL.
func Everything(t testing.TB, stateless bool) string {
	t.Helper()
	address := net.JoinHostPort("127.0.0.1", fmt.Sprint(FreePorts(t, 1)))
	ListensAt(t, Begin(t, Command{Args: []string{Program(t, "everything-server"), "-http", address, fmt.Sprintf("-stateless=%t", stateless)}}), address)
	return "http://" + address
}

// ListensAt waits until a command listens.
func ListensAt(t testing.TB, l *Live, address string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens at %s: %v\n%s", address, err, l.Output())
		}
	}
}
