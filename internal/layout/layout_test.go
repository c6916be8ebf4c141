package layout_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/deputymesh/deputy/"

type pkg struct {
	ImportPath string
	Imports    []string
	CgoFiles   []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,CgoFiles", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}

// ours returns the module's own imports, without the module's prefix.
func ours(p pkg) []string {
	var in []string
	for _, i := range p.Imports {
		if rest, ok := strings.CutPrefix(i, module); ok {
			in = append(in, rest)
		}
	}
	return in
}

func under(path string, tops ...string) bool {
	return slices.ContainsFunc(tops, func(top string) bool {
		return path == top || strings.HasPrefix(path, top+"/")
	})
}

// public packages and what of ours they may import.
var public = map[string][]string{
	"actor":  {"internal/strictjson"},
	"audit":  {"internal/strictjson", "actor", "audit"},
	"policy": {"internal/strictjson", "actor"},
	"client": {"internal/strictjson", "actor", "proto", "client"},
}

var roles = []string{"issuer", "broker", "proxy", "console"}

// testOnly packages are imported by tests alone, or by other testOnly packages.
var testOnly = []string{"internal/testca", "internal/testkube", "internal/testmesh", "internal/testpg", "internal/testssh", "internal/testweb", "proxy/internal/hop/hoptest", "audit/audittest", "broker/storetest"}

var engines = []string{"proxy/postgres", "proxy/sshd", "proxy/kube", "proxy/httpd", "proxy/mcpd", "proxy/tcp"}

// engineMayImport lists what is made for engines, beside their own folder.
var engineMayImport = []string{"proxy", "actor", "policy", "audit", "internal/target", "internal/mask", "internal/sqlparse", "internal/strictjson", "internal/eventstream", "proxy/internal/lobby", "proxy/internal/preface", "proxy/internal/hop", "proxy/internal/recording", "proxy/internal/sock"}

func TestImportDirections(t *testing.T) {
	for _, p := range list(t) {
		path, inModule := strings.CutPrefix(p.ImportPath, module)
		if !inModule {
			continue
		}
		for _, imp := range ours(p) {
			bad := func(rule string) { t.Errorf("%s imports %s: %s", path, imp, rule) }
			for top, allowed := range public {
				if under(path, top) && !under(path, testOnly...) && !under(imp, append(allowed, top)...) {
					bad("a public package may import of ours only " + strings.Join(allowed, ", "))
				}
			}
			for _, role := range roles {
				if under(path, role) {
					for _, other := range roles {
						if other != role && under(imp, other) {
							bad("roles meet on the wire, never by import")
						}
					}
				}
				if under(path, "internal") && !under(path, testOnly...) && under(imp, role) {
					bad("no internal package but the test harness imports a role")
				}
			}
			for _, e := range engines {
				if under(path, e) && !under(imp, e) && !slices.Contains(engineMayImport, imp) {
					bad("an engine sees only " + strings.Join(engineMayImport, ", "))
				}
			}
			if under(path, "examples") && !under(imp, "examples") && !under(imp, "actor", "audit", "policy", "client") {
				bad("examples import public packages only")
			}
			if under(imp, "cmd") && !under(path, "cmd") {
				bad("nobody imports cmd")
			}
			if under(imp, testOnly...) && !under(path, testOnly...) {
				bad("only tests import the test harness")
			}
		}
		if len(p.CgoFiles) > 0 && path != "internal/sqlparse" {
			t.Errorf("%s uses cgo: internal/sqlparse is the only package that may", path)
		}
	}
}

// TestGeneratedTypesStopAtTheEdges: the types of proto/ are seen only where a wire ends.
func TestGeneratedTypesStopAtTheEdges(t *testing.T) {
	edges := []string{
		"proto", "client", "internal/feed", "internal/supervise", "internal/login", "internal/testmesh",
		"issuer/spawn", "issuer/workloadapi", "issuer", "broker/feedapi", "broker/issuerfeed", "broker", "proxy/feedclient", "proxy", "cmd/deputy",
	}
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range ours(p) {
			if under(imp, "proto") && !under(path, "proto") && !slices.Contains(edges, path) {
				t.Errorf("%s imports %s: generated types stop at the edges (%s)", path, imp, strings.Join(edges, ", "))
			}
		}
	}
}
