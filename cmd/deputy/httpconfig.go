package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
)

// httpConfig is a web service: one origin.
type httpConfig struct {
	// URL is scheme, host and port. http is for a service on this machine's loopback only.
	URL    string `yaml:"url"`
	CAFile string `yaml:"ca_file,omitempty"`
	// ServerName in the service's certificate; by default the host of url.
	ServerName string `yaml:"server_name,omitempty"`
	// PlainHTTP2 speaks HTTP/2 to an http URL, as gRPC servers want.
	PlainHTTP2 bool `yaml:"plain_http2,omitempty"`
	// FoldCase is for services to which /A and /a are one.
	FoldCase bool `yaml:"fold_case,omitempty"`
	// GraphQL are the paths of GraphQL endpoints, whose operations are decided by the fields that they ask for.
	GraphQL []string `yaml:"graphql,omitempty"`
	// Cookies lets them pass. By default a session of the account's stays at the proxy.
	Cookies  bool                `yaml:"cookies,omitempty"`
	Accounts []httpAccountConfig `yaml:"accounts"`
}

// httpAccountConfig is as whom requests are made, and the roles of users that may use it.
type httpAccountConfig struct {
	Name  string   `yaml:"name"`
	Roles []string `yaml:"roles"`
	// BearerFile holds a token; User and PasswordFile are for HTTP's Basic scheme; HeaderFiles hold the values of headers such as an API
	// key; ClientCredentials fetch a token (RFC 6749 §4.4); CertificateFile and KeyFile are for TLS.
	BearerFile        string                   `yaml:"bearer_file,omitempty"`
	User              string                   `yaml:"user,omitempty"`
	PasswordFile      string                   `yaml:"password_file,omitempty"`
	HeaderFiles       map[string]string        `yaml:"header_files,omitempty"`
	ClientCredentials *clientCredentialsConfig `yaml:"client_credentials,omitempty"`
	CertificateFile   string                   `yaml:"certificate_file,omitempty"`
	KeyFile           string                   `yaml:"key_file,omitempty"`

	account httpd.Account // once the files are read
}

type clientCredentialsConfig struct {
	TokenURL   string   `yaml:"token_url"`
	CAFile     string   `yaml:"ca_file,omitempty"`
	ClientID   string   `yaml:"client_id"`
	SecretFile string   `yaml:"client_secret_file"`
	Scopes     []string `yaml:"scopes,omitempty"`
}

func (c *httpConfig) check(path string) error {
	if c == nil {
		return fieldError(path, "url and accounts are expected")
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fieldError(path+".url", "an origin such as https://billing.example:8443 is expected")
	}
	if u.Scheme == "http" && c.CAFile != "" {
		return fieldError(path+".ca_file", "this goes with an https URL")
	}
	for i, p := range c.GraphQL {
		if err := actor.CheckHTTPPath(p); err != nil || strings.HasSuffix(p, "/") {
			return fieldError(fmt.Sprintf("%s.graphql[%d]", path, i), "a path such as /graphql is expected, without a slash at its end")
		}
	}
	if len(c.Accounts) == 0 {
		return fieldError(path+".accounts", "at least one account is expected (name, roles, and what it signs in with)")
	}
	for i, a := range c.Accounts {
		at := fmt.Sprintf("%s.accounts[%d]", path, i)
		if err := actor.CheckAccount(a.Name); err != nil {
			return fieldError(at+".name", "%v", err)
		}
		if (a.CertificateFile == "") != (a.KeyFile == "") {
			return fieldError(at, "certificate_file and key_file go together")
		}
		if (a.User == "") != (a.PasswordFile == "") {
			return fieldError(at, "user and password_file go together")
		}
		for name := range a.HeaderFiles {
			if !httpguts.ValidHeaderFieldName(name) {
				return fieldError(at+".header_files", "%q is no name of a header", name)
			}
		}
		if cc := a.ClientCredentials; cc != nil && (!isHTTPS(cc.TokenURL) || cc.ClientID == "" || cc.SecretFile == "") {
			return fieldError(at+".client_credentials", "token_url (https), client_id and client_secret_file are expected")
		}
	}
	return nil
}

func (c *httpConfig) readSecrets(config string) error {
	for i := range c.Accounts {
		if err := c.Accounts[i].readSecrets(config); err != nil {
			return fmt.Errorf("account %s: %w", c.Accounts[i].Name, err)
		}
	}
	return nil
}

func (a *httpAccountConfig) readSecrets(config string) (err error) {
	a.account = httpd.Account{Name: a.Name, Roles: a.Roles, User: a.User}
	for file, to := range map[string]*string{a.BearerFile: &a.account.Bearer, a.PasswordFile: &a.account.Password} {
		if file == "" {
			continue
		}
		if *to, err = readSecret(beside(config, file)); err != nil {
			return err
		}
	}
	for name, file := range a.HeaderFiles {
		value, err := readSecret(beside(config, file))
		if err != nil {
			return err
		}
		if !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("%s can't stand in a header", file)
		}
		if a.account.Headers == nil {
			a.account.Headers = map[string]string{}
		}
		a.account.Headers[textproto.CanonicalMIMEHeaderKey(name)] = value
	}
	if a.CertificateFile != "" {
		certificate := &clientCertificate{certFile: beside(config, a.CertificateFile), keyFile: beside(config, a.KeyFile)}
		if _, err := certificate.get(); err != nil {
			return err
		}
		a.account.Certificate = certificate.get
	}
	if cc := a.ClientCredentials; cc != nil {
		secret, err := readSecret(beside(config, cc.SecretFile))
		if err != nil {
			return err
		}
		client, err := httpClient(beside(config, cc.CAFile))
		if err != nil {
			return fmt.Errorf("client_credentials.ca_file: %w", err)
		}
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		conf := clientcredentials.Config{ClientID: cc.ClientID, ClientSecret: secret, TokenURL: cc.TokenURL, Scopes: cc.Scopes}
		a.account.Tokens = conf.TokenSource(context.WithValue(context.Background(), oauth2.HTTPClient, client))
	}
	return nil
}

func (t *targetConfig) httpEngine(config, mesh string, td spiffeid.TrustDomain, core *proxy.Core, name target.Name, svid x509svid.Source, server *tls.Config, logger *slog.Logger) (proxy.Engine, error) {
	c := t.HTTP
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	var cas *x509.CertPool
	if c.CAFile != "" {
		if cas, err = readPool(beside(config, c.CAFile)); err != nil {
			return nil, fmt.Errorf("target %s: ca_file: %w", t.Name, err)
		}
	}
	var accounts []httpd.Account
	for _, a := range c.Accounts {
		accounts = append(accounts, a.account)
	}
	e, err := httpd.New(httpd.Config{
		Core: httpd.ForTarget(core, name), Target: name.ID(td), Mesh: mesh, TLS: server, SVID: svid,
		Upstream: httpd.Upstream{URL: u, RootCAs: cas, ServerName: c.ServerName, PlainHTTP2: c.PlainHTTP2},
		Accounts: accounts, FoldCase: c.FoldCase, GraphQL: c.GraphQL, Cookies: c.Cookies, Logger: logger.With("target", t.Name),
	})
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return e, nil
}
