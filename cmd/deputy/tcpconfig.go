package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/tcp"
)

// tcpConfig is a service whose protocol no engine speaks: only the connection is decided.
type tcpConfig struct {
	Address string `yaml:"address"`
	// CAFile verifies the service by TLS. Without it the service is reached in the clear, on this machine's loopback only.
	CAFile     string `yaml:"ca_file,omitempty"`
	ServerName string `yaml:"server_name,omitempty"`
}

func (c *tcpConfig) check(path string) error {
	if c == nil {
		return fieldError(path, "address is expected, and ca_file unless it is on this machine's loopback")
	}
	if c.ServerName != "" && c.CAFile == "" {
		return fieldError(path+".server_name", "this goes with ca_file")
	}
	return checkAddress(path+".address", c.Address)
}

func (t *targetConfig) tcpEngine(config string, td spiffeid.TrustDomain, core *proxy.Core, name target.Name, server *tls.Config, logger *slog.Logger) (proxy.Engine, error) {
	var cas *x509.CertPool
	if t.TCP.CAFile != "" {
		var err error
		if cas, err = readPool(beside(config, t.TCP.CAFile)); err != nil {
			return nil, fmt.Errorf("target %s: ca_file: %w", t.Name, err)
		}
	}
	e, err := tcp.New(tcp.Config{
		Core: tcp.ForTarget(core, name), Name: name, Target: name.ID(td), TLS: server, Address: t.TCP.Address, RootCAs: cas, ServerName: t.TCP.ServerName,
		Logger: logger.With("target", t.Name),
	})
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return e, nil
}
