package integration_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// The protocol's own conformance suite finds nothing through a run's listener and the proxy that it doesn't find at the server itself, in both eras; nor
// does it where the server is on standard input and output.
func TestMCPConformanceIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		era   string
		stdio bool
	}{
		"2025-11-25": {"2025-11-25", false}, "2026-07-28": {"2026-07-28", false}, "2025-11-25 on stdio": {"2025-11-25", true}, "2026-07-28 on stdio": {"2026-07-28", true},
	} {
		t.Run(name, func(t *testing.T) {
			era := c.era
			url := testmesh.Everything(t, era == "2026-07-28")
			behind := testmesh.ToolsAt(url)
			if c.stdio {
				address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testmesh.FreePorts(t, 1)))
				behind = testmesh.ToolsBehind("http://"+address, toolToken)
				onStdio(t, address, testmesh.Program(t, "everything-server"))
			}
			m := testmesh.Start(t, behind, testmesh.Policy(filepath.Join("testdata", "tools-open")))
			m.NodeModules(t)
			modules := filepath.Join(m.Root, "node_modules")
			suite := func(url, dir string) string {
				return filepath.Join(modules, "node", "bin", "node") + " " + filepath.Join(modules, "@modelcontextprotocol", "conformance", "dist", "index.js") +
					" server --url " + url + " --requirements " + era + " -o " + dir
			}
			direct := t.TempDir()
			r := testmesh.Exec(t, testmesh.Command{Args: []string{"sh", "-c", suite(url+"/mcp", direct)}})
			want := checksIn(t, direct)
			if r.Code != 0 || len(want) < 60 {
				t.Fatalf("direct, %d checks: %s", len(want), r)
			}
			through := filepath.Join(m.Root, "conformance-"+era)
			if err := os.Mkdir(through, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(through, 0o777); err != nil { // the agent has a uid of its own
				t.Fatal(err)
			}
			alice := m.Login(t, "alice")
			r = alice.Run(t, []string{"planner --target tools", "researcher"}, "sh", "-c", "umask 0; "+suite(`"$DEPUTY_URL_TOOLS"`, through))
			got := checksIn(t, through)
			for check, status := range want {
				instead, known := lost[check]
				if c.stdio {
					if on, there := lostOnStdio[check]; there {
						instead, known = on, true
					}
				}
				if got[check] != status && !(known && got[check] == instead) && (status == "SUCCESS" || got[check] == "FAILURE" || got[check] == "") {
					t.Errorf("%s: direct %s, through Deputy %s", check, status, got[check])
				}
			}
			if r.Code != 0 || t.Failed() {
				t.Errorf("through Deputy: %s", r)
			}
			m.Verify(t)
		})
	}
}

// lost is what the proxy takes away: recommended for streams that can be resumed, and none can here.
var lost = map[string]string{"server-sse-polling: server-sse-retry-field": "WARNING"}

// lostOnStdio is what deputy mcp takes away, too: streams where nothing comes before the answer, what one process says of another's changes, and whoever
// could hold Mcp-Param headers against a tool's schema, since no server on standard input sees a header.
var lostOnStdio = map[string]string{
	"server-sse-polling: server-sse-retry-field":                                   "",
	"server-sse-polling: server-sse-priming-event":                                 "",
	"server-sse-polling: stream-closed":                                            "",
	"server-sse-polling: server-sse-disconnect-resume":                             "",
	"server-sse-multiple-streams: server-sse-streams-functional":                   "INFO",
	"server-stateless: sep-2575-server-sends-prompts-list-changed-on-subscription": "WARNING",
	"server-stateless: sep-2575-server-sends-tools-list-changed-on-subscription":   "WARNING",
	"http-custom-header-server-validation: sep-2243-server-reject-param-mismatch":  "FAILURE",
	"http-custom-header-server-validation: sep-2243-server-validate-param-match":   "FAILURE",
}

// stamp is what ends the name of a scenario's folder.
var stamp = regexp.MustCompile(`-\d{4}-\d\d-\d\dT[0-9-]+Z$`)

// checksIn are the results in a folder of the suite: of each check by its scenario the worst.
func checksIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "checks.json"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var checks []struct{ ID, Status, ErrorMessage string }
		if err := json.Unmarshal(raw, &checks); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		scenario := strings.TrimPrefix(stamp.ReplaceAllString(filepath.Base(filepath.Dir(file)), ""), "server-")
		for _, c := range checks {
			name := scenario + ": " + c.ID
			if out[name] != "FAILURE" {
				out[name] = c.Status
			}
		}
	}
	return out
}
