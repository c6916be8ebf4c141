package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/target"
)

// agentConfig is agent.yaml: what `deputy login`, `run` and `revoke` believe. It holds no secret.
type agentConfig struct {
	TrustDomain string `yaml:"trust_domain"`
	// Mesh is the broker's issuer URL, byte for byte.
	Mesh             string              `yaml:"mesh"`
	IssuerSocket     string              `yaml:"issuer_socket"`
	Broker           agentBroker         `yaml:"broker"`
	IdentityProvider agentIDP            `yaml:"identity_provider"`
	RuntimeDir       string              `yaml:"runtime_dir,omitempty"`
	Targets          []agentTargetConfig `yaml:"targets"`
}

type agentBroker struct {
	TokenURL string `yaml:"token_url"`
	SPIFFEID string `yaml:"spiffe_id"`
	// WebURL is the base of the web listener, for operators' calls.
	WebURL    string `yaml:"web_url"`
	WebCAFile string `yaml:"web_ca_file,omitempty"`
}

type agentIDP struct {
	Issuer   string `yaml:"issuer"`
	ClientID string `yaml:"client_id"`
	// Algorithms of its ID tokens; empty: RS256.
	Algorithms []string `yaml:"algorithms,omitempty"`
	CAFile     string   `yaml:"ca_file,omitempty"`
	Scopes     []string `yaml:"scopes,omitempty"`
	// Callback is the loopback address of the redirect; port 0 takes a free one.
	Callback string `yaml:"callback,omitempty"`
}

type agentTargetConfig struct {
	Name    string `yaml:"name"`
	Kind    string `yaml:"kind"`
	Address string `yaml:"address"`
	// Proxy is the exact SPIFFE ID of the proxy at Address.
	Proxy    string `yaml:"proxy"`
	Renewal  string `yaml:"renewal"`
	Database string `yaml:"database,omitempty"`
	User     string `yaml:"user,omitempty"`
}

// idTokenAlgorithms may sign ID tokens; never none, and nothing with a shared secret.
var idTokenAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

func (c *agentConfig) check() error {
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return fieldError("$.trust_domain", "a SPIFFE trust domain such as example.org is expected: %v", err)
	}
	if !isHTTPS(c.Mesh) {
		return fieldError("$.mesh", "the broker's issuer URL is expected, such as https://broker.example.org")
	}
	if c.IssuerSocket == "" {
		return fieldError("$.issuer_socket", "the path of the issuer's Unix socket is expected")
	}
	if !isHTTPS(c.Broker.TokenURL) {
		return fieldError("$.broker.token_url", "the URL of the token endpoint is expected, such as https://127.0.0.1:7402/token")
	}
	if id, err := spiffeid.FromString(c.Broker.SPIFFEID); err != nil || id.TrustDomain() != td {
		return fieldError("$.broker.spiffe_id", "the broker's SPIFFE ID is expected, such as spiffe://%s/deputy/broker", td)
	}
	if !isHTTPS(c.Broker.WebURL) {
		return fieldError("$.broker.web_url", "the base URL of the broker's web listener is expected, such as https://127.0.0.1:7403")
	}
	if !isHTTPS(c.IdentityProvider.Issuer) {
		return fieldError("$.identity_provider.issuer", "the OpenID provider's issuer URL is expected, such as https://login.example.org")
	}
	if c.IdentityProvider.ClientID == "" {
		return fieldError("$.identity_provider.client_id", "this client's name at the provider is expected")
	}
	for i, a := range c.IdentityProvider.Algorithms {
		if !slices.Contains(idTokenAlgorithms, a) {
			return fieldError(fmt.Sprintf("$.identity_provider.algorithms[%d]", i), "one of %s is expected", strings.Join(idTokenAlgorithms, ", "))
		}
	}
	if cb := c.IdentityProvider.Callback; cb != "" {
		host, _, err := net.SplitHostPort(cb)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return fieldError("$.identity_provider.callback", "a loopback address such as 127.0.0.1:0 is expected")
		}
	}
	seen := make(map[string]bool)
	for i, t := range c.Targets {
		if err := t.check(fmt.Sprintf("$.targets[%d]", i), td, seen); err != nil {
			return err
		}
	}
	return nil
}

func (t agentTargetConfig) check(at string, td spiffeid.TrustDomain, seen map[string]bool) error {
	if _, err := target.ParseName(t.Name); err != nil {
		return fieldError(at+".name", "%v", err)
	}
	if seen[t.Name] {
		return fieldError(at+".name", "the target %s is there twice", t.Name)
	}
	seen[t.Name] = true
	if _, err := target.ParseKind(t.Kind); err != nil {
		return fieldError(at+".kind", "%v", err)
	}
	if _, _, err := net.SplitHostPort(t.Address); err != nil {
		return fieldError(at+".address", "host:port of the proxy is expected")
	}
	if id, err := spiffeid.FromString(t.Proxy); err != nil || id.TrustDomain() != td {
		return fieldError(at+".proxy", "the proxy's SPIFFE ID is expected, such as spiffe://%s/deputy/proxy/db", td)
	}
	if t.Renewal != "" && !isHTTPS(t.Renewal) {
		return fieldError(at+".renewal", "the base URL of the proxy's renewal listener is expected, such as https://127.0.0.1:7406")
	}
	return nil
}

func isHTTPS(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.Fragment == ""
}

// loadAgentConfig reads agent.yaml and makes its paths absolute.
func loadAgentConfig(path string) (*agentConfig, error) {
	path, err := findAgentConfig(path)
	if err != nil {
		return nil, err
	}
	cfg, err := loadConfig(path, (*agentConfig).check)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	for _, p := range []*string{&cfg.IssuerSocket, &cfg.Broker.WebCAFile, &cfg.IdentityProvider.CAFile, &cfg.RuntimeDir} {
		*p = beside(abs, *p)
	}
	if cfg.RuntimeDir == "" {
		cfg.RuntimeDir = defaultRuntimeDir()
	}
	return cfg, nil
}

// agentConfigUsage is the help of every --config that names agent.yaml.
const agentConfigUsage = "agent.yaml `file` (default: DEPUTY_CONFIG, ~/.config/deputy/agent.yaml, /etc/deputy/agent/agent.yaml)"

// findAgentConfig is the flag, else DEPUTY_CONFIG, else the usual places.
func findAgentConfig(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if env := os.Getenv("DEPUTY_CONFIG"); env != "" {
		return env, nil
	}
	// Not the working folder: whose files lie there is not the user's choice.
	var places []string
	if dir, err := os.UserConfigDir(); err == nil {
		places = append(places, filepath.Join(dir, "deputy", "agent.yaml"))
	}
	places = append(places, "/etc/deputy/agent/agent.yaml")
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("no agent.yaml in ~/.config/deputy or in /etc/deputy/agent; name one with --config or DEPUTY_CONFIG (`deputy init` writes it as agent/agent.yaml)")
}

// defaultRuntimeDir holds sockets: it must be short, on this machine, and this user's own.
func defaultRuntimeDir() string {
	if os.Geteuid() == 0 {
		return "/run/deputy-agents"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "deputy")
	}
	dir := fmt.Sprintf("/run/user/%d", os.Geteuid())
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return filepath.Join(dir, "deputy")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("deputy-%d", os.Geteuid()))
}
