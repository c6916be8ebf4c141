package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// A wrong configuration stops its role at once, with file, line and column of the mistake and what would
// be right.
func TestConfigErrorsNameThePlace(t *testing.T) {
	dir := initMesh(t)
	commands := map[string][]string{
		"issuer": {"issuer"}, "broker": {"broker"}, "proxy": {"proxy"}, "agent": {"whoami"}, "sample-signin": {"sample-signin"},
	}
	for _, c := range []struct {
		name, role string
		old, new   string
		at         string // where the message points: the last of these in the file
		says       string
	}{
		{"unknown key", "issuer", "data_dir: data", "data_dri: data", "data_dri", "data_dir"},
		{"unknown key", "broker", "data_dir: data", "data_dri: data", "data_dri", "data_dir"},
		{"unknown key", "proxy", "    root: verified", "    rot: verified", "rot: verified", "root"},
		{"unknown key", "agent", "mesh: ", "mess: ", "mess: ", "mesh"},
		{"unknown key", "sample-signin", "listen: ", "lisen: ", "lisen: ", "listen"},
		{"unknown key", "sample-signin", "    email: ", "    mail: ", "mail: ", "email"},
		{"wrong type", "sample-signin", "    password: ", "    password: [x]\n    word: ", "[x]", "text"},
		{"duplicate key", "issuer", "svid_ttl: 1h", "svid_ttl: 1h\nsvid_ttl: 2h", "svid_ttl: 2h", "svid_ttl"},
		{"duplicate key", "broker", "data_dir: data", "data_dir: data\ndata_dir: other", "data_dir: other", "data_dir"},
		{"duplicate key", "proxy", "staleness: 10s", "staleness: 10s\nstaleness: 1h", "staleness: 1h", "staleness"},
		{"duplicate key", "agent", "trust_domain:", "trust_domain: a.example\ntrust_domain:", "trust_domain:", "trust_domain"},
		{"wrong type", "issuer", "agent_uids:\n  first: 70000", "agent_uids:\n  first: many", "many", "number"},
		{"wrong type", "broker", "policy_keys: [policy.pub]", "policy_keys: policy.pub", "policy.pub", "list"},
		{"wrong type", "proxy", "databases: [shop]", "databases: {shop: yes}", "{shop: yes}", "list"},
		{"wrong type", "agent", "    kind: postgres", "    kind: [postgres]", "[postgres]", "text"},
		{"wrong type", "proxy", "staleness: 10s", "staleness: soon", "soon", "10s"},
		{"wrong value", "issuer", "svid_ttl: 1h", "svid_ttl: 1s", "1s", "a duration from 1m0s"},
		{"wrong value", "issuer", "  first: 70000", "  first: 10", "10\n", "a uid of at least 1000"},
		{"wrong value", "issuer", "agents:\n  - name: planner", "agents:\n  - name: Planner", "Planner", "a name such as planner is expected"},
		{"wrong value", "broker", "  token_ttl: 5m", "  token_ttl: 5h", "5h", "a duration from 1m to 5m0s is expected"},
		{"wrong value", "proxy", "staleness: 10s", "staleness: 1h", "1h", "a duration up to 1m is expected"},
		{"wrong value", "proxy", "    root: verified", "    root: maybe", "maybe", "verified or broker is expected"},
		{"wrong value", "proxy", "    kind: postgres", "    kind: mysql", "mysql", "postgres, ssh, kube, http, mcp or tcp is expected"},
		{"wrong value", "agent", "kind: postgres", "kind: mysql", "mysql", "postgres"},
		{"wrong value", "agent", "mesh: https://", "mesh: http://", "http://127.0.0.1", "the broker's issuer URL is expected"},
		{"a secret's algorithm", "broker", "algorithms: [RS256, ES256]", "algorithms: [HS256]", "", "HS256"},
		{"no YAML", "issuer", "data_dir: data", "data_dir: [data", "", ""},
		{"missing", "proxy", "    listen: 127.0.0.1", "    lister: 127.0.0.1", "lister", "listen"},
	} {
		t.Run(c.role+" "+c.name+" "+strings.TrimSpace(c.new), func(t *testing.T) {
			path := filepath.Join(dir, c.role, c.role+".yaml")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(raw), c.old, c.new, 1)
			if text == string(raw) {
				t.Fatalf("%s has no %q:\n%s", path, c.old, raw)
			}
			broken := filepath.Join(filepath.Dir(path), "broken.yaml")
			if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := testmesh.Exec(t, testmesh.Command{Args: append(append([]string{testmesh.Deputy(t)}, commands[c.role]...), "--config", broken)})
			want := broken + ":"
			if c.at != "" {
				want += place(text, c.at) + ":"
			}
			if r.Code == 0 || !strings.Contains(r.Stderr, want) || !strings.Contains(strings.Replace(r.Stderr, c.new, "", 1), c.says) {
				t.Errorf("want %s … %q: %s", want, c.says, r)
			}
			if strings.Contains(r.Stderr, "a-Pa55word") {
				t.Errorf("the message shows a password: %s", r)
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "proxy", "--config", filepath.Join(dir, "none.yaml")}})
		if r.Code == 0 || !strings.Contains(r.Stderr, "none.yaml") {
			t.Errorf("a file that isn't there: %s", r)
		}
	})
	t.Run("a key that others may read", func(t *testing.T) {
		key := filepath.Join(dir, "proxy", "audit.key")
		if err := os.Chmod(key, 0o644); err != nil {
			t.Fatal(err)
		}
		r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "proxy", "--config", filepath.Join(dir, "proxy", "proxy.yaml")}})
		if r.Code == 0 || !strings.Contains(r.Stderr, "chmod 600 "+key) {
			t.Errorf("a log key that everybody may read: %s", r)
		}
	})
	t.Run("a policy that is wrong", func(t *testing.T) {
		folder := t.TempDir()
		for name, text := range map[string]string{
			"policy.yaml": "version: 1\ntargets:\n  orders-db:\n    kind: postgres\n",
			"a.cedar":     "@id(\"x\")\n@approve(\"dba:1\")\npermit (principal, action, resource);\n",
		} {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := testmesh.Exec(t, testmesh.Command{Args: []string{testmesh.Deputy(t), "policy", "check", folder}})
		if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "a.cedar:") || !strings.Contains(r.Stdout+r.Stderr, "pproval") {
			t.Errorf("a policy that asks for approvals: %s", r)
		}
	})
}

// place is line:column of the last occurrence of part, both from 1.
func place(text, part string) string {
	at := strings.LastIndex(text, part)
	before := text[:at]
	return fmt.Sprintf("%d:%d", strings.Count(before, "\n")+1, at-strings.LastIndex(before, "\n"))
}

// initMesh is a mesh's folder, as `deputy init` writes it; nothing runs.
func initMesh(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	_, _, ca := testca.New(t, "target.test").Server(dir, "127.0.0.1")
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("a-Pa55word"), 0o600); err != nil {
		t.Fatal(err)
	}
	mesh := filepath.Join(dir, "mesh")
	r := testmesh.Exec(t, testmesh.Command{Args: []string{
		testmesh.Deputy(t), "init", mesh, "--trust-domain", testmesh.TrustDomain, "--base-port", "7400",
		"--identity-provider", "https://127.0.0.1:7411", "--sample-user", "alice=analysts:" + password,
		"--postgres", "orders-db=127.0.0.1:5432/shop", "--postgres-ca", ca, "--account", "analyst=shop_app:" + password,
		"--role", "analysts=analyst", "--agent", "planner", "--policy", filepath.Join("testdata", "policy"),
	}})
	if r.Code != 0 {
		t.Fatalf("deputy init: %s", r)
	}
	return mesh
}
