package integration_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// onLoopback is for a server that listens on all interfaces.
const onLoopback = `const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  if (typeof args[0] === "object" && args[0] !== null) args[0] = { ...args[0], host: "127.0.0.1" };
  else args.splice(1, typeof args[1] === "string" ? 1 : 0, "127.0.0.1");
  return listen.apply(this, args);
};
`

// operation is what a client does with a server: its words for the inspector, and what the answer has and hasn't.
type operation struct {
	name, words string
	want, not   string
	refused     bool
}

// inspectors are the ways that the inspector of the protocol's own project reaches a server: by HTTP, and by a server that it starts.
var inspectors = map[string]string{"inspector": `"$DEPUTY_URL_TOOLS"`, "inspector on stdio": "deputy mcp connect tools"}

// The servers of the protocol's own project, and its inspector, work unmodified: what is allowed runs, and what isn't is neither shown nor run.
func TestMCPOfOthersWorks(t *testing.T) {
	cells := documented(t, "mcp.md")
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testmesh.FreePorts(t, 1)))
	for server, c := range map[string]struct {
		begin      func(t *testing.T, m *testmesh.Mesh, node, packages string) // at address
		operations []operation
	}{
		"everything": {everythingServer(address), []operation{
			{"list tools", "--method tools/list", `"name": "echo"`, "get-env", false},
			{"call", "--method tools/call --tool-name echo --tool-arg message=hello", "Echo: hello", "", false},
			{"masked call", "--method tools/call --tool-name get-structured-content --tool-arg location=Chicago", `"conditions": "****"`, "Light rain / drizzle", false},
			{"refused call", "--method tools/call --tool-name get-env", "no policy permits", "PATH", true},
			{"list resources", "--method resources/list", "demo://resource/static/", "", false},
			{"read", "--method resources/read --uri demo://resource/static/document/architecture.md", `"contents"`, "", false},
			{"refused read", "--method resources/read --uri demo://resource/dynamic/text/1", "no policy permits", "contents", true},
			{"list templates", "--method resources/templates/list", "resourceTemplates", "dynamic", false},
			{"list prompts", "--method prompts/list", "simple-prompt", "args-prompt", false},
			{"prompt", "--method prompts/get --prompt-name simple-prompt", `"messages"`, "", false},
			{"refused prompt", "--method prompts/get --prompt-name args-prompt --prompt-args city=Paris", "no policy permits", "messages", true},
		}},
		"filesystem on stdio": {filesystemServer(address), []operation{
			{"list tools", "--method tools/list", `"name": "read_text_file"`, "write_file", false},
			{"call", "--method tools/call --tool-name read_text_file --tool-arg path=@FILES@/public/a.txt", "what is public", "", false},
			{"masked call", "--method tools/call --tool-name read_text_file --tool-arg path=@FILES@/people/ada.json", `a***@example.com`, "ada@example.com", false},
			{"refused call", "--method tools/call --tool-name read_text_file --tool-arg path=@FILES@/secret/b.txt", "no policy permits", "what is secret", true},
		}},
	} {
		t.Run(server, func(t *testing.T) {
			m := testmesh.Start(t, testmesh.ToolsBehind("http://"+address, toolToken), testmesh.Policy(filepath.Join("testdata", "tools-others")))
			m.NodeModules(t)
			modules := filepath.Join(m.Root, "node_modules")
			node, packages := filepath.Join(modules, "node", "bin", "node"), filepath.Join(modules, "@modelcontextprotocol")
			c.begin(t, m, node, packages)
			alice := m.Login(t, "alice")
			for client, way := range inspectors {
				row := client + ", " + server
				script := "PATH=" + filepath.Dir(testmesh.Deputy(t)) + ":$PATH\n"
				for _, o := range c.operations {
					script += "timeout 60 " + node + " " + filepath.Join(packages, "inspector", "cli", "build", "index.js") + " " + way + " " +
						strings.ReplaceAll(o.words, "@FILES@", filepath.Join(m.Root, "shared")) + " </dev/null 2>&1; echo \"exit $?\"; echo =====\n"
				}
				r := alice.Run(t, []string{"planner --target tools", "researcher"}, "sh", "-c", script)
				answers := strings.Split(r.Stdout, "=====\n")
				if len(answers) != len(c.operations)+1 {
					t.Fatalf("%s", r)
				}
				done := map[string]bool{}
				for i, o := range c.operations {
					t.Run(client+"/"+o.name, func(t *testing.T) {
						done[strings.ReplaceAll(o.name, " ", "_")] = true
						got := answers[i]
						if !strings.HasSuffix(got, "exit 0\n") != o.refused || !strings.Contains(got, o.want) || o.not != "" && strings.Contains(got, o.not) {
							t.Fatalf("%s", got)
						}
						if o.refused {
							rec := m.Record(t, "proxy", testmesh.RecordIn(t, got))
							if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || len(rec.Chain.Hops) != 3 {
								t.Errorf("record %s: %+v", rec.ID, rec.Event)
							}
						}
					})
				}
				for operation := range cells[row] {
					if !done[operation] {
						t.Errorf("docs/targets/mcp.md says that %s does %s, and no test has it", row, operation)
					}
				}
				for operation := range done {
					if !cells[row][operation] {
						t.Errorf("docs/targets/mcp.md doesn't say that %s does %s", row, operation)
					}
				}
			}
			m.Verify(t)
		})
	}
}

// toolToken is what the filesystem server's shim demands; the everything server demands nothing.
const toolToken = "the-local-tool-servers-token"

func everythingServer(address string) func(*testing.T, *testmesh.Mesh, string, string) {
	return func(t *testing.T, m *testmesh.Mesh, node, packages string) {
		preload := filepath.Join(m.Root, "loopback.cjs")
		if err := os.WriteFile(preload, []byte(onLoopback), 0o644); err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(address)
		testmesh.ListensAt(t, testmesh.Begin(t, testmesh.Command{
			Args: []string{node, "--require", preload, filepath.Join(packages, "server-everything", "dist", "index.js"), "streamableHttp"}, Env: []string{"PORT=" + port},
		}), address)
	}
}

func filesystemServer(address string) func(*testing.T, *testmesh.Mesh, string, string) {
	return func(t *testing.T, m *testmesh.Mesh, node, packages string) {
		files := filepath.Join(m.Root, "shared")
		for _, dir := range []string{"public", "secret", "people"} {
			if err := os.MkdirAll(filepath.Join(files, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for path, text := range map[string]string{filepath.Join(files, "public", "a.txt"): "what is public", filepath.Join(files, "secret", "b.txt"): "what is secret", filepath.Join(files, "people", "ada.json"): `{"name":"Ada","email":"ada@example.com"}`} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		onStdio(t, address, node, filepath.Join(packages, "server-filesystem", "dist", "index.js"), files)
	}
}

// onStdio starts a server on standard input and output behind deputy mcp.
func onStdio(t *testing.T, address string, server ...string) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(toolToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	testmesh.ListensAt(t, testmesh.Begin(t, testmesh.Command{Args: append([]string{testmesh.Deputy(t), "mcp", "--listen", address, "--token-file", token, "--"}, server...)}), address)
}
