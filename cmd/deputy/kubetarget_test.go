package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/client"
)

func TestAClustersConfigurationIsChecked(t *testing.T) {
	good := func() *kubeConfig {
		return &kubeConfig{URL: "https://10.0.0.1:6443", CAFile: "ca.crt", Accounts: []kubeAccountConfig{{Name: "deputy", TokenFile: "token"}}}
	}
	if err := good().check("kube"); err != nil {
		t.Fatal(err)
	}
	for says, change := range map[string]func(*kubeConfig){
		"kube.url":                  func(c *kubeConfig) { c.URL = "http://10.0.0.1:6443" },
		"kube.ca_file":              func(c *kubeConfig) { c.CAFile = "" },
		"kube.accounts":             func(c *kubeConfig) { c.Accounts = nil },
		"kube.accounts[0].name":     func(c *kubeConfig) { c.Accounts[0].Name = "" },
		"token_file, or":            func(c *kubeConfig) { c.Accounts[0].TokenFile = "" },
		"certificate_file with key": func(c *kubeConfig) { c.Accounts[0].CertificateFile = "a.crt" },
		"kube.users[0].issuer":      func(c *kubeConfig) { c.Users = []kubeUsersConfig{{Prefix: "x:"}} },
		"kube.users[1].issuer": func(c *kubeConfig) {
			c.Users = []kubeUsersConfig{{"https://a.example", "a:"}, {"https://a.example", ""}}
		},
	} {
		c := good()
		change(c)
		if err := c.check("kube"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if err := (*kubeConfig)(nil).check("kube"); err == nil {
		t.Error("nothing is accepted")
	}
}

func TestATokenIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(s string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(s+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{"one", "two"} {
		write(s, 0o600)
		if token, err := fileToken(path).Token(); err != nil || token.AccessToken != s || token.Type() != "Bearer" || token.Expiry.IsZero() {
			t.Errorf("%+v %v", token, err)
		}
	}
	write("three", 0o644)
	if token, err := fileToken(path).Token(); err == nil {
		t.Errorf("a token that everybody may read is used: %+v", token)
	}
}

func TestAllowForAClusterIsRead(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("corp.example")
	targets := []client.Target{{Name: "prod", Kind: "kube"}}
	d, err := parseAllow("prod:get,list:shop,shop-*:pods,pods/log,deployments.apps", td, targets)
	k, ok := d.(actor.KubeDetail)
	if err != nil || !ok || strings.Join(k.Actions, " ") != "get list" || strings.Join(k.Namespaces, " ") != "shop shop-*" || strings.Join(k.Resources, " ") != "pods pods/log deployments.apps" {
		t.Errorf("%+v %v", d, err)
	}
	if d, err := parseAllow("prod:get:*", td, targets); err != nil || d.(actor.KubeDetail).Namespaces != nil {
		t.Errorf("%+v %v", d, err)
	}
	for _, in := range []string{"prod", "prod:fly", "prod:get:Shop", "prod:get:shop:Pods", "prod:get:shop:pods:x"} {
		if d, err := parseAllow(in, td, targets); err == nil {
			t.Errorf("%s is read as %+v", in, d)
		}
	}
}
