package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree is every file below a folder, with its mode and contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		out[strings.TrimPrefix(path, dir)] = info.Mode().String() + " " + string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// aMesh is what init made, a folder with a policy set, and one for entries.
func aMesh(t *testing.T) (mesh, policy, entries string) {
	t.Helper()
	dir := t.TempDir()
	if out, err := deputyInit(initArgs(t, dir)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	policy, entries = filepath.Join(dir, "policy"), filepath.Join(dir, "entries")
	if err := os.CopyFS(policy, os.DirFS("../../examples/policy")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(entries, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "mesh"), policy, entries
}

var entriesOfEachKind = map[string]string{
	"billing": `# as docs/targets/http.md shows it
- name: billing
  kind: http
  http:
    url: https://billing.corp.example
    ca_file: ca.pem
    accounts:
      - name: reader
        bearer_file: secrets/billing.token
        roles: [analyst]
      - name: writer
        header_files: {x-api-key: api.key}
        roles: [billing-admin]
`,
	"web": `name: web
kind: ssh
ssh:
  address: web.corp.example:22
  host_ca_file: ca.pem
  accounts:
    - name: deploy
      ca_key_file: web-user-ca.key
      principals: [deploy]
      roles: [analyst]
`,
	"files": `name: files
kind: mcp
listen: 127.0.0.1:9000
mcp:
  url: https://files.corp.example/mcp
  accounts:
    - name: agents
      bearer_file: /run/secrets/files.token
      roles: [analyst]
`,
	"cache": `name: cache
kind: tcp
tcp:
  address: cache.corp.example:6379
`,
	"prod": `name: prod
kind: kube
kube:
  url: https://prod.corp.example:6443
  ca_file: ca.pem
  accounts:
    - name: deputy
      token_file: prod.token
      roles: [analyst]
  groups:
    analyst: [shop-readers]
`,
	"crm-db": `name: crm-db
kind: postgres
postgres:
  address: crm.corp.example:5432
  ca_file: ca.pem
  databases: [crm]
  default_database: crm
  accounts:
    - name: crm_app
      password_file: crm.password
      roles: [analyst]
`,
}

// A target of each kind goes into every role's file, which keep all that stood there, and its secrets to the proxy's folder.
func TestTargetAddTellsEveryRole(t *testing.T) {
	mesh, policy, entries := aMesh(t)
	if err := os.Mkdir(filepath.Join(entries, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, entries, map[string]string{"ca.pem": "ca", "secrets/billing.token": "t", "api.key": "k", "web-user-ca.key": "u", "crm.password": "p", "prod.token": "s"})
	before := tree(t, mesh)
	for _, name := range []string{"billing", "web", "files", "cache", "crm-db", "prod"} {
		file := filepath.Join(entries, name+".yaml")
		writeFiles(t, entries, map[string]string{name + ".yaml": entriesOfEachKind[name]})
		out, err := deputyInit([]string{"target", "add", mesh, file, "--policy", policy})
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		again := tree(t, mesh)
		if out, err := deputyInit([]string{"target", "add", mesh, file}); err == nil || !strings.Contains(err.Error(), "has a target "+name+" already") {
			t.Errorf("twice: %v\n%s", err, out)
		}
		if d := cmp.Diff(again, tree(t, mesh)); d != "" {
			t.Errorf("a refusal changed %s", d)
		}
	}
	after := tree(t, mesh)
	for path, was := range before {
		now := after[path]
		for line := range strings.Lines(was) {
			if !strings.Contains(now, line) {
				t.Errorf("%s lost %q", path, line)
			}
		}
		if now[:10] != was[:10] {
			t.Errorf("%s has mode %s, had %s", path, now[:10], was[:10])
		}
	}
	for name, want := range map[string]string{"billing-ca.pem": "ca", "billing.token": "t", "billing-api.key": "k", "web-ca.pem": "ca", "web-user-ca.key": "u", "crm-db-crm.password": "p", "prod.token": "s"} {
		if got := after["/proxy/"+name]; got != "-rw------- "+want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if n := len(after) - len(before); n != 9 { // crm-db-ca.pem and prod-ca.pem, too
		t.Errorf("%d new files", n)
	}
	proxy, err := loadConfig(filepath.Join(mesh, "proxy", "proxy.yaml"), func(c *proxyConfig) error { return c.check(false) })
	if err != nil {
		t.Fatal(err)
	}
	listen := map[string]string{}
	for _, c := range proxy.Targets {
		listen[c.Name] = c.Listen
	}
	if d := cmp.Diff(map[string]string{"orders-db": "127.0.0.1:7404", "billing": "127.0.0.1:7405", "web": "127.0.0.1:7406", "files": "127.0.0.1:9000", "cache": "127.0.0.1:9001", "crm-db": "127.0.0.1:9002", "prod": "127.0.0.1:9003"}, listen); d != "" {
		t.Error(d)
	}
	if b := proxy.Targets[1]; b.HTTP.CAFile != "billing-ca.pem" || b.HTTP.Accounts[0].BearerFile != "billing.token" || b.HTTP.Accounts[1].HeaderFiles["x-api-key"] != "billing-api.key" ||
		proxy.Targets[3].MCP.Service.Accounts[0].BearerFile != "/run/secrets/files.token" {
		t.Errorf("%+v", b.HTTP)
	}
	agent, err := loadAgentConfig(filepath.Join(mesh, "agent", "agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := agent.Targets[5]; !reflect.DeepEqual(got, agentTargetConfig{Name: "crm-db", Kind: "postgres", Address: "127.0.0.1:9002",
		Proxy: "spiffe://corp.example/deputy/proxy/main", Renewal: "https://127.0.0.1:7403", Database: "crm"}) {
		t.Errorf("%+v", got)
	}
	broker, err := loadConfig(filepath.Join(mesh, "broker", "broker.yaml"), func(c *brokerConfig) error { return c.check(false) })
	if err != nil || len(broker.Targets) != 7 || broker.Targets[2].Kind != "ssh" {
		t.Errorf("%+v, %v", broker, err)
	}
	if source, err := readPolicyFolder(policy); err != nil || source.Targets["billing"].Kind != "http" || len(source.Targets) != 7 {
		t.Errorf("%+v, %v", source.Targets, err)
	}
}

// What can't be read changes nothing, and says where it is wrong.
func TestTargetAddIsAllOrNothing(t *testing.T) {
	mesh, policy, entries := aMesh(t)
	writeFiles(t, entries, map[string]string{"ca.pem": "ca", "api.key": "k"})
	tcp := entriesOfEachKind["cache"]
	for name, c := range map[string]struct{ text, want string }{
		"a missing file":     {entriesOfEachKind["billing"], "secrets/billing.token"},
		"an unknown key":     {tcp + "  port: 1\n", "cache.yaml:5:3: unknown key"},
		"another kind":       {strings.Replace(tcp, "kind: tcp", "kind: redis", 1), "kind"},
		"no such name":       {strings.Replace(tcp, "cache", "Cache!", 1), "name"},
		"an address in use":  {tcp + "listen: 127.0.0.1:7404\n", "127.0.0.1:7404 is in use"},
		"the feed's address": {tcp + "listen: 127.0.0.1:7402\n", "127.0.0.1:7402 is in use"},
		"two":                {"- " + strings.ReplaceAll(strings.TrimSpace(tcp), "\n", "\n  ") + "\n- name: x\n  kind: tcp\n", "one target at a time"},
		"nothing":            {"# nothing\n", "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(entries, "cache.yaml")
			writeFiles(t, entries, map[string]string{"cache.yaml": c.text})
			before := tree(t, mesh)
			out, err := deputyInit([]string{"target", "add", mesh, file, "--policy", policy})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\n%s", err, out)
			}
			if d := cmp.Diff(before, tree(t, mesh)); d != "" {
				t.Error(d)
			}
		})
	}
	writeFiles(t, entries, map[string]string{"cache.yaml": tcp})
	writeFiles(t, policy, map[string]string{"policy.yaml": "version: 1\ntargets: {orders-db: {kind: postgres}}\n"})
	before := tree(t, mesh)
	if _, err := deputyInit([]string{"target", "add", mesh, filepath.Join(entries, "cache.yaml"), "--policy", policy}); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("targets on one line: %v", err)
	}
	if d := cmp.Diff(before, tree(t, mesh)); d != "" {
		t.Error(d)
	}
}
