package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodAgentConfig = `trust_domain: corp.example
mesh: https://127.0.0.1:7400
issuer_socket: run/issuer.sock
broker:
  token_url: https://127.0.0.1:7401/token
  spiffe_id: spiffe://corp.example/deputy/broker
  web_url: https://127.0.0.1:7400
  web_ca_file: web-ca.pem
identity_provider:
  issuer: https://login.corp.example
  client_id: deputy-cli
  algorithms: [RS256, ES256]
  scopes: [openid, groups]
targets:
  - name: orders-db
    kind: postgres
    address: 127.0.0.1:7404
    proxy: spiffe://corp.example/deputy/proxy/main
    renewal: https://127.0.0.1:7403
    database: shop
`

func writeAgentConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAgentConfigIsReadRelativeToItself(t *testing.T) {
	path := writeAgentConfig(t, goodAgentConfig)
	cfg, err := loadAgentConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "run/issuer.sock"); cfg.IssuerSocket != want {
		t.Errorf("issuer_socket %q, want %q", cfg.IssuerSocket, want)
	}
	if !filepath.IsAbs(cfg.RuntimeDir) || !filepath.IsAbs(cfg.Broker.WebCAFile) {
		t.Errorf("runtime_dir %q, web_ca_file %q", cfg.RuntimeDir, cfg.Broker.WebCAFile)
	}
	t.Setenv("DEPUTY_CONFIG", path)
	if _, err := loadAgentConfig(""); err != nil {
		t.Errorf("by DEPUTY_CONFIG: %v", err)
	}
}

func TestAgentConfigErrorsSayWhereAndWhatWouldBeRight(t *testing.T) {
	for name, tt := range map[string]struct{ old, new, want string }{
		"trust domain":      {"trust_domain: corp.example", "trust_domain: Corp Example", "agent.yaml:1:"},
		"mesh":              {"mesh: https://127.0.0.1:7400", "mesh: http://127.0.0.1", "agent.yaml:2:7: $.mesh: the broker's issuer URL is expected"},
		"no socket":         {"issuer_socket: run/issuer.sock\n", "", "$.issuer_socket (missing)"},
		"token URL":         {"token_url: https://127.0.0.1:7401/token", "token_url: 127.0.0.1", "agent.yaml:5:"},
		"broker elsewhere":  {"spiffe://corp.example/deputy/broker", "spiffe://evil.example/deputy/broker", "agent.yaml:6:"},
		"none":              {"[RS256, ES256]", "[RS256, none]", "$.identity_provider.algorithms[1]: one of RS256"},
		"HMAC":              {"[RS256, ES256]", "[HS256]", "$.identity_provider.algorithms[0]"},
		"callback":          {"  client_id: deputy-cli", "  client_id: deputy-cli\n  callback: 0.0.0.0:80", "a loopback address"},
		"kind":              {"kind: postgres", "kind: floppy", "$.targets[0].kind"},
		"name":              {"name: orders-db", "name: Orders DB", "$.targets[0].name"},
		"address":           {"address: 127.0.0.1:7404", "address: somewhere", "$.targets[0].address: host:port"},
		"proxy elsewhere":   {"spiffe://corp.example/deputy/proxy/main", "spiffe://evil.example/deputy/proxy/main", "$.targets[0].proxy"},
		"unknown key":       {"mesh:", "mash: x\nmesh:", "agent.yaml"},
		"duplicate key":     {"mesh:", "trust_domain: x\nmesh:", "agent.yaml"},
		"password in a URL": {"web_url: https://127.0.0.1:7400", "web_url: https://a:b@127.0.0.1:7400", "$.broker.web_url"},
	} {
		_, err := loadAgentConfig(writeAgentConfig(t, strings.Replace(goodAgentConfig, tt.old, tt.new, 1)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	twice := goodAgentConfig + strings.Split(goodAgentConfig, "targets:\n")[1]
	if _, err := loadAgentConfig(writeAgentConfig(t, twice)); err == nil || !strings.Contains(err.Error(), "is there twice") {
		t.Errorf("a target twice: %v", err)
	}
}
