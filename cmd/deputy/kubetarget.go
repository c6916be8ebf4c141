package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/oauth2"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/kube"
)

// kubeConfig is a Kubernetes cluster: its API server, the accounts that impersonate users there, and as whom users are there.
type kubeConfig struct {
	URL string `yaml:"url"`
	// CAFile verifies the API server.
	CAFile string `yaml:"ca_file"`
	// ServerName in the server's certificate; by default the host of url.
	ServerName string              `yaml:"server_name,omitempty"`
	Accounts   []kubeAccountConfig `yaml:"accounts"`
	// Users are put before their subject in the cluster, by issuer. Without any, a user is <issuer>#<subject>.
	Users []kubeUsersConfig `yaml:"users,omitempty"`
	// Groups stand for roles in the cluster.
	Groups map[string][]string `yaml:"groups,omitempty"`
	// SystemGroups allows groups that begin with system:, but never system:masters.
	SystemGroups bool `yaml:"system_groups,omitempty"`
}

// kubeAccountConfig is an account that may impersonate: by a client certificate, or by a token, which is read again when it has changed.
type kubeAccountConfig struct {
	Name            string   `yaml:"name"`
	Roles           []string `yaml:"roles,omitempty"`
	TokenFile       string   `yaml:"token_file,omitempty"`
	CertificateFile string   `yaml:"certificate_file,omitempty"`
	KeyFile         string   `yaml:"key_file,omitempty"`

	account kube.Account // once the files are read
}

type kubeUsersConfig struct {
	Issuer string `yaml:"issuer"`
	Prefix string `yaml:"prefix"`
}

func (c *kubeConfig) check(path string) error {
	if c == nil {
		return fieldError(path, "url, ca_file and accounts are expected")
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "https" {
		return fieldError(path+".url", "an API server such as https://10.0.0.1:6443 is expected")
	}
	if c.CAFile == "" {
		return fieldError(path+".ca_file", "the CA of the API server's certificate is expected (certificate-authority-data of a kubeconfig)")
	}
	if len(c.Accounts) == 0 {
		return fieldError(path+".accounts", "at least one account is expected (name, and token_file or certificate_file with key_file)")
	}
	for i, a := range c.Accounts {
		at := fmt.Sprintf("%s.accounts[%d]", path, i)
		if err := actor.CheckAccount(a.Name); err != nil {
			return fieldError(at+".name", "%v", err)
		}
		if (a.CertificateFile == "") != (a.KeyFile == "") || (a.TokenFile == "") == (a.CertificateFile == "") {
			return fieldError(at, "token_file, or certificate_file with key_file, is expected")
		}
	}
	for i, u := range c.Users {
		if u.Issuer == "" {
			return fieldError(fmt.Sprintf("%s.users[%d].issuer", path, i), "the issuer of the users' ID tokens is expected")
		}
		if slices.ContainsFunc(c.Users[:i], func(o kubeUsersConfig) bool { return o.Issuer == u.Issuer }) {
			return fieldError(fmt.Sprintf("%s.users[%d].issuer", path, i), "each issuer stands here once; its users have one prefix")
		}
	}
	return nil
}

func (c *kubeConfig) readSecrets(config string) error {
	for i := range c.Accounts {
		if err := c.Accounts[i].readSecrets(config); err != nil {
			return fmt.Errorf("account %s: %w", c.Accounts[i].Name, err)
		}
	}
	return nil
}

func (a *kubeAccountConfig) readSecrets(config string) error {
	a.account = kube.Account{Name: a.Name, Roles: a.Roles}
	if a.TokenFile != "" {
		source := fileToken(beside(config, a.TokenFile))
		if _, err := source.Token(); err != nil {
			return err
		}
		a.account.Tokens = oauth2.ReuseTokenSource(nil, source)
		return nil
	}
	certificate := &clientCertificate{certFile: beside(config, a.CertificateFile), keyFile: beside(config, a.KeyFile)}
	if _, err := certificate.get(); err != nil {
		return err
	}
	a.account.Certificate = certificate.get
	return nil
}

// fileToken is a token in a file that somebody renews, as those of service accounts are. It is read again each half minute.
type fileToken string

func (f fileToken) Token() (*oauth2.Token, error) {
	secret, err := readSecret(string(f))
	if err != nil {
		return nil, err
	}
	// A token counts as over ten seconds before its expiry.
	return &oauth2.Token{AccessToken: secret, TokenType: "Bearer", Expiry: time.Now().Add(40 * time.Second)}, nil
}

func (t *targetConfig) kubeEngine(config, mesh string, td spiffeid.TrustDomain, core *proxy.Core, name target.Name, svid x509svid.Source, server *tls.Config, logger *slog.Logger) (proxy.Engine, error) {
	c := t.Kube
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	var cas *x509.CertPool
	if cas, err = readPool(beside(config, c.CAFile)); err != nil {
		return nil, fmt.Errorf("target %s: ca_file: %w", t.Name, err)
	}
	identities := kube.Identities{Groups: c.Groups, SystemGroups: c.SystemGroups}
	for _, u := range c.Users {
		if identities.Prefixes == nil {
			identities.Prefixes = map[string]string{}
		}
		identities.Prefixes[u.Issuer] = u.Prefix
	}
	var accounts []kube.Account
	for _, a := range c.Accounts {
		accounts = append(accounts, a.account)
	}
	e, err := kube.New(kube.Config{
		Core: kube.ForTarget(core, name), Target: name.ID(td), Mesh: mesh, TLS: server, SVID: svid, Upstream: kube.Upstream{URL: u, RootCAs: cas, ServerName: c.ServerName},
		Accounts: accounts, Identities: identities, Logger: logger.With("target", t.Name),
	})
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return e, nil
}
