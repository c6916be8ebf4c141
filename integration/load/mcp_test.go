//go:build bench

package load_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

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
	ctx, cancel := context.WithTimeout(context.Background(), b.seconds)
	defer cancel()
	counts := make([]int, clients)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := w.ask(c, m); err != nil {
					b.t.Error(err)
					return
				}
				counts[i]++
			}
		})
	}
	wg.Wait()
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / time.Since(began).Seconds()
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
	port := testmesh.FreePorts(b.t, 1)
	conf := b.file("mcp-relay.conf", fmt.Sprintf(`daemon off; master_process off; pid %[1]s/relay.pid; error_log /dev/null;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  keepalive_requests 1000000;
  upstream tools { server %[2]s; keepalive 64; keepalive_requests 1000000; }
  server {
    listen 127.0.0.1:%[3]d ssl;
    ssl_certificate %[4]s; ssl_certificate_key %[5]s;
    location / { proxy_pass http://tools; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host 127.0.0.1; proxy_buffering off; }
  }
}
`, dir, strings.TrimPrefix(server.URL, "http://"), port, cert, key))
	b.serveAs(nil, nil, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "/usr/sbin/nginx", "-e", "/dev/null", "-c", conf)
	ways := []web{
		{"Deputy", "https://" + m.Address("tools"), id.Credential, b.clientTLS(id)},
		{"nginx", "https://127.0.0.1:" + strconv.Itoa(port), testweb.ToolToken, b.siteTLS(&testweb.Site{CAFile: filepath.Clean(ca)})},
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
		for _, peer := range []string{"nginx", "direct"} {
			b.compare(result{Name: "mcp, calls", Unit: "/s", Params: map[string]string{"clients": strconv.Itoa(clients)}}, got, "Deputy", peer)
		}
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
		for _, peer := range []string{"nginx", "direct"} {
			b.compare(result{Name: "mcp, " + o.name, Unit: "/s", Params: map[string]string{"clients": "8"}}, got, "Deputy", peer)
		}
	}
}
