package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

// mcpConfig is a tool server: a web service's origin and accounts, and where at it the Model Context Protocol is spoken.
type mcpConfig struct {
	Service httpConfig `yaml:",inline"`
	// Endpoint is the path at the server; /mcp by default.
	Endpoint string `yaml:"endpoint,omitempty"`
	// ReviewedFile is what deputy mcp review writes. Without it a tool is held once it isn't what this proxy has seen first.
	ReviewedFile string `yaml:"reviewed_file,omitempty"`
}

func (c *mcpConfig) check(path string) error {
	if c == nil {
		return fieldError(path, "url and accounts are expected, and endpoint unless it is /mcp")
	}
	if c.Service.PlainHTTP2 || c.Service.FoldCase || c.Service.Cookies {
		return fieldError(path, "plain_http2, fold_case and cookies don't stand at a tool server")
	}
	if c.Endpoint == "" {
		c.Endpoint = "/mcp"
	}
	return c.Service.check(path)
}

func (t *targetConfig) mcpEngine(config, mesh string, td spiffeid.TrustDomain, core *proxy.Core, name target.Name, svid x509svid.Source, server *tls.Config, logger *slog.Logger) (proxy.Engine, error) {
	c := &t.MCP.Service
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
	var reviewed map[string]string
	if t.MCP.ReviewedFile != "" {
		f, err := os.Open(beside(config, t.MCP.ReviewedFile))
		if err != nil {
			return nil, fmt.Errorf("target %s: reviewed_file: %w", t.Name, err)
		}
		reviewed, err = mcpd.ParseReviewed(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("target %s: reviewed_file: %w", t.Name, err)
		}
	}
	var accounts []mcpd.Account
	for _, a := range c.Accounts {
		accounts = append(accounts, a.account)
	}
	e, err := mcpd.New(mcpd.Config{
		Core: mcpd.ForTarget(core, name), Target: name.ID(td), Mesh: mesh, TLS: server, SVID: svid, Endpoint: t.MCP.Endpoint,
		Upstream: mcpd.Upstream{URL: u, RootCAs: cas, ServerName: c.ServerName}, Accounts: accounts, Reviewed: reviewed, Logger: logger.With("target", t.Name),
	})
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return e, nil
}
