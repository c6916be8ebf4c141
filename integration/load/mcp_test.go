//go:build bench

package load_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// Messages of the stateless protocol, with the headers that repeat them.
const mcpMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}`

type mcpMessage struct{ method, name, params string }

var (
	mcpCall   = mcpMessage{"tools/call", "read", `"name":"read","arguments":{"path":"/public/x"},`}
	mcpMasked = mcpMessage{"tools/call", "customers", `"name":"customers","arguments":{"path":"/public/x"},`}
	mcpList   = mcpMessage{"tools/list", "", ""}
)

// ask sends one message and reads its result.
func (w web) ask(c *http.Client, m mcpMessage) error {
	q, err := http.NewRequest(http.MethodPost, w.url+"/mcp", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"`+m.method+`","params":{`+m.params+mcpMeta+`}}`))
	if err != nil {
		return err
	}
	h := q.Header
	h.Set("Authorization", "Bearer "+w.bearer)
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json, text/event-stream")
	h.Set("Mcp-Protocol-Version", "2026-07-28")
	h.Set("Mcp-Method", m.method)
	if m.name != "" {
		h.Set("Mcp-Name", m.name)
	}
	a, err := c.Do(q)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	if err == nil && !strings.Contains(string(text), `"result":`) {
		err = fmt.Errorf("%s answers %d: %s", w.name, a.StatusCode, text)
	}
	return err
}

// asks is messages per second of so many clients with a connection each.
func (b *bench) asks(w web, c *http.Client, clients int, m mcpMessage) float64 {
	return b.perSecond(clients, func() error { return w.ask(c, m) })
}

// measureMCP is calls of a tool of go-sdk's server through Deputy with everything on, beside nginx as the plainest relay that is trusted with TLS, and
// direct; and through Deputy a result with masks and a list that is cut. The server runs in the client's process in all three.
func measureMCP(b *bench) {
	server := testweb.StartTools(b.t, true)
	m := b.mesh(testmesh.Shop(b.t), "", testmesh.Tools(server), testmesh.Policy(testdata(b, "tools")))
	id := b.identityFor(m, m.Login(b.t, "alice"), testmesh.ToolTarget)
	dir := b.t.TempDir()
	b.try(os.Chmod(dir, 0o755))
	cert, key, ca := testca.New(b.t, "tools.test").Server(dir, "127.0.0.1", "localhost")
	relay := b.nginxBefore(server.URL, cert, key, "proxy_set_header Host 127.0.0.1; proxy_buffering off;")
	ways := []web{
		{"Deputy", "https://" + m.Address("tools"), id.Credential, b.clientTLS(id)},
		{"nginx", relay, testweb.ToolToken, b.siteTLS(&testweb.Site{CAFile: filepath.Clean(ca)})},
		{"direct", server.URL, testweb.ToolToken, nil},
	}
	for _, clients := range []int{1, 8, 32} {
		var subjects []subject
		for _, w := range ways {
			c := w.client(b)
			subjects = append(subjects, subject{w.name, func() float64 {
				defer b.profiled(route{name: w.name, pid: m.Proxy.Pid(), ours: w.name == "Deputy"}, fmt.Sprintf("mcp-%d", clients))()
				return b.asks(w, c, clients, mcpCall)
			}})
		}
		got := b.sideBySide(fmt.Sprintf("mcp, %d clients, calls/s", clients), subjects)
		b.compare(result{Name: "mcp, calls", Unit: "/s", Params: map[string]string{"clients": strconv.Itoa(clients)}}, got, "Deputy", "nginx", "direct")
	}
	for _, o := range []struct {
		name string
		m    mcpMessage
	}{{"masked calls", mcpMasked}, {"lists", mcpList}} {
		var subjects []subject
		for _, w := range ways {
			c := w.client(b)
			subjects = append(subjects, subject{w.name, func() float64 { return b.asks(w, c, 8, o.m) }})
		}
		got := b.sideBySide("mcp, 8 clients, "+o.name+"/s", subjects)
		b.compare(result{Name: "mcp, " + o.name, Unit: "/s", Params: map[string]string{"clients": "8"}}, got, "Deputy", "nginx", "direct")
	}
}
