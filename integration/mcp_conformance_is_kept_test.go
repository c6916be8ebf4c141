package integration_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// The protocol's own conformance suite finds nothing through a run's listener and the proxy that it doesn't find at the server itself, in both eras.
func TestMCPConformanceIsKept(t *testing.T) {
	for era, stateless := range map[string]bool{"2025-11-25": false, "2026-07-28": true} {
		t.Run(era, func(t *testing.T) {
			url := testmesh.Everything(t, stateless)
			m := testmesh.Start(t, testmesh.ToolsAt(url), testmesh.Policy(filepath.Join("testdata", "tools-open")))
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
				if got[check] != status && got[check] != lost[check] && (status == "SUCCESS" || got[check] == "FAILURE" || got[check] == "") {
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
