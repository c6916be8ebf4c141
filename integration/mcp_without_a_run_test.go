package integration_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// withCredential shows a credential as bearer token.
type withCredential struct {
	*http.Transport
	credential string
}

func (w withCredential) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	q.Header.Set("Authorization", "Bearer "+w.credential)
	return w.Transport.RoundTrip(q)
}

// A client with an SVID and a credential of its own needs no run, in both eras; with the credential alone it gets nothing.
func TestMCPWithoutARun(t *testing.T) {
	for version, stateless := range map[string]bool{"2025-11-25": false, "2026-07-28": true} {
		t.Run(version, func(t *testing.T) {
			server := testweb.StartTools(t, stateless)
			m := testmesh.Start(t, testmesh.Tools(server), testmesh.Policy(filepath.Join("testdata", "tools")))
			cfg, credential := direct(t, m.Login(t, "alice"), "tools")
			connect := func(cfg *tls.Config, credential string) (*mcp.ClientSession, error) {
				transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
				t.Cleanup(transport.CloseIdleConnections)
				client := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil)
				return client.Connect(t.Context(), &mcp.StreamableClientTransport{
					Endpoint: "https://" + m.Address("tools") + "/mcp", HTTPClient: &http.Client{Transport: withCredential{transport, credential}, Timeout: time.Minute},
				}, &mcp.ClientSessionOptions{ProtocolVersion: version})
			}
			s, err := connect(cfg, credential)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got := s.InitializeResult().ProtocolVersion; got != version {
				t.Errorf("it speaks %s", got)
			}
			tools, err := s.ListTools(t.Context(), nil)
			if err != nil || len(tools.Tools) != 3 {
				t.Errorf("%+v %v", tools, err)
			}
			r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "read", Arguments: map[string]any{"path": "/public/direct"}})
			if err != nil || r.IsError || r.Content[0].(*mcp.TextContent).Text != "read /public/direct" {
				t.Errorf("%+v %v", r, err)
			}
			if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "wipe", Arguments: map[string]any{"path": "/public/direct"}}); err == nil || !strings.Contains(err.Error(), "record: ") || server.Wiped() != 0 {
				t.Errorf("%v", err)
			}
			rec := m.AwaitRecord(t, "proxy", "the decision", request("tools/call read(path)"))
			if d := rec.Event.(*audit.Decision); d.Effect != audit.Allow || len(rec.Chain.Hops) != 2 {
				t.Errorf("%+v", rec)
			}
			thief := cfg.Clone()
			thief.Certificates, thief.GetClientCertificate = nil, nil
			for name, c := range map[string]struct {
				cfg        *tls.Config
				credential string
			}{"no SVID": {thief, credential}, "no credential": {cfg, ""}, "half of it": {cfg, credential[:len(credential)/2]}} {
				if _, err := connect(c.cfg, c.credential); err == nil {
					t.Errorf("%s: connected", name)
				}
			}
		})
	}
}

// A client of both eras, and a real server on standard input and output: in the stateless protocol each request is decided and has a process of its own,
// and a subscription's ends with the chain. A server that knows sessions alone says so itself, and the client begins one.
func TestLocalToolServersNeedNoSessions(t *testing.T) {
	start := func(t *testing.T) (*testmesh.Mesh, string) {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testmesh.FreePorts(t, 1)))
		return testmesh.Start(t, testmesh.ToolsBehind("http://"+address, toolToken), testmesh.Policy(filepath.Join("testdata", "tools-others"))), address
	}
	connect := func(t *testing.T, m *testmesh.Mesh, options *mcp.ClientOptions) *mcp.ClientSession {
		cfg, credential := direct(t, m.Login(t, "alice"), "tools")
		transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		s, err := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, options).Connect(t.Context(), &mcp.StreamableClientTransport{
			Endpoint: "https://" + m.Address("tools") + "/mcp", HTTPClient: &http.Client{Transport: withCredential{transport, credential}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	t.Run("both eras", func(t *testing.T) {
		m, address := start(t)
		program := testmesh.Program(t, "everything-server")
		onStdio(t, address, program, "-stateless", m.Root) // the server ignores these
		awaitProcesses := func(want int) {
			t.Helper()
			for deadline := time.Now().Add(patience); len(processes(t, program, "-stateless", m.Root)) != want; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d processes run, want %d", len(processes(t, program, "-stateless", m.Root)), want)
				}
			}
		}
		s := connect(t, m, &mcp.ClientOptions{ToolListChangedHandler: func(context.Context, *mcp.ToolListChangedRequest) {}}) // so it subscribes
		if got := s.InitializeResult().ProtocolVersion; got != "2026-07-28" {
			t.Errorf("it speaks %s", got)
		}
		tools, err := s.ListTools(t.Context(), nil)
		if err != nil || len(tools.Tools) != 2 {
			t.Errorf("%+v %v", tools, err)
		}
		r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "test_simple_text"})
		if err != nil || r.IsError || !strings.Contains(r.Content[0].(*mcp.TextContent).Text, "simple text") {
			t.Errorf("%+v %v", r, err)
		}
		elicits, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "test_input_required_result_elicitation"})
		if err == nil || !strings.Contains(err.Error(), "record: ") {
			t.Errorf("it asks for what it may not: %+v %v", elicits, err)
		}
		if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "test_image_content"}); err == nil || !strings.Contains(err.Error(), "record: ") {
			t.Errorf("%v", err)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", request("tools/call test_simple_text"))
		if d := rec.Event.(*audit.Decision); d.Effect != audit.Allow || len(rec.Chain.Hops) != 2 {
			t.Errorf("%+v", rec)
		}
		awaitProcesses(1) // the subscription's
		if r := m.Login(t, "oscar").Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
			t.Fatalf("revoke: %s", r)
		}
		awaitProcesses(0)
		m.Verify(t)
	})
	t.Run("sessions alone", func(t *testing.T) {
		m, address := start(t)
		m.NodeModules(t)
		modules := filepath.Join(m.Root, "node_modules")
		filesystemServer(address)(t, m, filepath.Join(modules, "node", "bin", "node"), filepath.Join(modules, "@modelcontextprotocol"))
		s := connect(t, m, nil)
		if got := s.InitializeResult().ProtocolVersion; got != "2025-11-25" {
			t.Errorf("it speaks %s", got)
		}
		r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "read_text_file", Arguments: map[string]any{"path": filepath.Join(m.Root, "shared", "public", "a.txt")}})
		if err != nil || r.IsError || !strings.Contains(r.Content[0].(*mcp.TextContent).Text, "what is public") {
			t.Errorf("%+v %v", r, err)
		}
	})
}

// A local server's process ends with the chain that it was begun for, though the client still holds the line.
func TestLocalToolServersEndWithTheirChain(t *testing.T) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testmesh.FreePorts(t, 1)))
	m := testmesh.Start(t, testmesh.ToolsBehind("http://"+address, toolToken), testmesh.Policy(filepath.Join("testdata", "tools-others")))
	m.NodeModules(t)
	modules := filepath.Join(m.Root, "node_modules")
	filesystemServer(address)(t, m, filepath.Join(modules, "node", "bin", "node"), filepath.Join(modules, "@modelcontextprotocol"))
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	live := testmesh.Begin(t, alice.Agents(t, []string{"planner --target tools", "researcher"}, "sh", "-c", testmesh.Deputy(t)+" mcp connect tools; echo ended $?"))
	live.Type(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}` + "\n")
	live.Await("serverInfo", 1)
	live.Type(`{"jsonrpc":"2.0","method":"notifications/initialized"}` + "\n" + `{"jsonrpc":"2.0","id":2,"method":"tools/list"}` + "\n")
	live.Await("read_text_file", 1)
	if strings.Contains(live.Output(), "write_file") {
		t.Errorf("it shows what may not be called: %s", live.Output())
	}
	running := servers(t, m)
	if len(running) != 1 {
		t.Fatalf("%d servers run", len(running))
	}
	rec := m.AwaitRecord(t, "proxy", "the decision", request("tools/list"))
	if r := oscar.Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
		t.Fatalf("revoke: %s", r)
	}
	for deadline := time.Now().Add(patience); len(servers(t, m)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server still runs")
		}
	}
}

// servers are the processes of the filesystem server in front of the mesh's files, without the shim.
func servers(t *testing.T, m *testmesh.Mesh) []string {
	t.Helper()
	modules := filepath.Join(m.Root, "node_modules")
	return processes(t, filepath.Join(modules, "node", "bin", "node"), filepath.Join(modules, "@modelcontextprotocol", "server-filesystem", "dist", "index.js"), filepath.Join(m.Root, "shared"))
}

// processes are those that were started as this.
func processes(t *testing.T, words ...string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, file := range all {
		raw, err := os.ReadFile(file)
		if err == nil && string(raw) == strings.Join(words, "\x00")+"\x00" {
			out = append(out, file)
		}
	}
	return out
}
