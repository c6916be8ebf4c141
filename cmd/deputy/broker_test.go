package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/testca"
)

const goodBroker = `trust_domain: corp.example
mesh: https://broker.corp.example
workload_api: issuer.sock
listen: 127.0.0.1:7401
feed_listen: 127.0.0.1:7402
web:
  listen: 127.0.0.1:7403
  cert: web.crt
  key: web.key
data_dir: data
token_key: token.key
token_key_statement: token.jwt
certifying_key: certifying.pub
policy_keys: [policy.pub]
identity_providers:
  - issuer: https://login.corp.example
    client_id: deputy
    algorithms: [ES256]
    roles_claim: groups
    role_map: {analysts: analyst}
    operator_roles: {platform: admin}
targets:
  - name: orders-db
    kind: postgres
    proxies: [orders]
sessions:
  max: 8h
open_sessions:
  - agents: /agent/web/*
    issuer: https://login.corp.example
    roles: [analyst]
    authorization_details:
      - type: deputy_postgres
        locations: [spiffe://corp.example/target/orders-db]
        actions: [select]
        max_rows: 10
audit:
  dir: log
  key: log.key
`

func brokerFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "broker.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBrokerConfigErrorsSayWhereAndWhat(t *testing.T) {
	check := func(c *brokerConfig) error { return c.check(false) }
	cfg, err := loadConfig(brokerFile(t, goodBroker), check)
	if err != nil {
		t.Fatal(err)
	}
	// What init writes is what is read: marshalled, it loads again.
	again, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(brokerFile(t, string(again)), check); err != nil {
		t.Errorf("marshalled it doesn't load: %v\n%s", err, again)
	}
	for name, tc := range map[string]struct{ old, new, want string }{
		"dev":              {"trust_domain: corp.example", "trust_domain: dev.deputy.invalid", ":1:15: $.trust_domain: dev.deputy.invalid belongs"},
		"mesh":             {"mesh: https://broker.corp.example", "mesh: http://broker.corp.example", ":2:7: $.mesh:"},
		"listen":           {"listen: 127.0.0.1:7401", "listen: here", ":4:9: $.listen:"},
		"unknown":          {"listen: 127.0.0.1:7401", "lisen: 127.0.0.1:7401", "lisen"},
		"no token key":     {"token_key: token.key", "token_key: ''", "$.token_key"},
		"no policy keys":   {"policy_keys: [policy.pub]", "policy_keys: []", "$.policy_keys"},
		"algorithm":        {"algorithms: [ES256]", "algorithms: [HS256]", "HS256"},
		"http provider":    {"issuer: https://login.corp.example\n    client", "issuer: http://login.corp.example\n    client", "want https"},
		"operator role":    {"{platform: admin}", "{platform: king}", "king"},
		"no claim":         {"    roles_claim: groups\n", "", "$.identity_providers[0].roles_claim (missing)"},
		"target name":      {"name: orders-db", "name: Orders", ":23:11: $.targets[0].name"},
		"target kind":      {"kind: postgres", "kind: mainframe", ":24:11: $.targets[0].kind"},
		"no proxy":         {"proxies: [orders]", "proxies: []", "$.targets[0].proxies"},
		"long sessions":    {"max: 8h", "max: 9000h", ":27:8: $.sessions.max"},
		"odd duration":     {"max: 8h", "max: often", ":27:8: a duration is expected"},
		"open to whom":     {"    roles: [analyst]\n", "", "subjects or roles"},
		"open pattern":     {"/agent/web/*", "/agent/web", "pattern"},
		"open issuer":      {"    issuer: https://login.corp.example\n    roles", "    issuer: https://other.example\n    roles", "$.open_sessions[0].issuer"},
		"unknown details":  {"type: deputy_postgres", "type: everything", "authorization_details"},
		"no audit":         {"  dir: log\n", "", "$.audit.dir"},
		"a secret misread": {"client_id: deputy", "client_id: deputy\n    client_secret: x", "client_secret"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodBroker, tc.old, tc.new, 1)
			if text == goodBroker {
				t.Fatal("nothing was changed")
			}
			_, err := loadConfig(brokerFile(t, text), check)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "broker.yaml") {
				t.Errorf("got %v, want the file and %q", err, tc.want)
			}
		})
	}
}

// The broker starts from files alone, before issuer and provider are there, says so on its metadata, and
// ends cleanly.
func TestRunBrokerFromFiles(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca := testca.New(t, "corp.example")
	certifying, token, policyKey := testca.NewKey(t), testca.NewKey(t), testca.NewKey(t)
	statement, err := actor.SignKeyStatement(certifying, actor.KeyStatement{
		Mesh: "https://broker.corp.example", Key: &token.PublicKey, NotBefore: time.Now(), Expires: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	svid := ca.SVID(ca.ID("/deputy/broker"))
	certs, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"token.jwt": []byte(statement + "\n"), "log.key": []byte(audittest.Key(t, "corp.example/broker").Private()),
		"svid.crt": certs, "svid.key": key, "bundle.crt": bundle,
	} {
		if err := os.WriteFile(in(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{writePrivateKey(in("token.key"), token), writePublicKey(in("certifying.pub"), &certifying.PublicKey), writePublicKey(in("policy.pub"), &policyKey.PublicKey)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	web := freeAddress(t)
	certFile, keyFile, _ := ca.Server(dir, "127.0.0.1")
	text := strings.NewReplacer(
		"web.crt", filepath.Base(certFile), "web.key", filepath.Base(keyFile), "127.0.0.1:7401", "127.0.0.1:0", "127.0.0.1:7402", "127.0.0.1:0",
		"127.0.0.1:7403", web, "https://login.corp.example", "https://127.0.0.1:1", "workload_api: issuer.sock",
		"workload_api: issuer.sock\nfirst_svid: {svid: svid.crt, key: svid.key, bundle: bundle.crt}",
	).Replace(goodBroker)
	config := in("broker.yaml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := newBrokerCommand()
	cmd.SetArgs([]string{"--config", config})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()

	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	status := 0
	for end := time.Now().Add(20 * time.Second); status != http.StatusOK && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		default:
		}
		resp, err := client.Get("https://" + web + "/.well-known/oauth-authorization-server")
		if err == nil {
			status = resp.StatusCode
			resp.Body.Close()
		}
	}
	if status != http.StatusOK {
		t.Errorf("metadata: %d", status)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it didn't end")
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
