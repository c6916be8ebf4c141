package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// clientCertificate is what an account at a target proves itself with. Its files may change at any time: they are read for each
// connection.
type clientCertificate struct {
	certFile, keyFile string

	mu   sync.Mutex
	last *tls.Certificate // the last good one
}

// get reads the files. While they don't make a pair, as between the renewal of the one and of the other, the last good pair
// goes on, and the log says so.
func (c *clientCertificate) get() (*tls.Certificate, error) {
	pair, err := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.last = pair
		return pair, nil
	}
	if c.last == nil || time.Now().After(c.last.Leaf.NotAfter) {
		return nil, err
	}
	slog.Warn("a client certificate can't be read; the one before is used on", "error", err, "until", c.last.Leaf.NotAfter)
	return c.last, nil
}

func (c *clientCertificate) read() (*tls.Certificate, error) {
	if err := checkPrivate(c.keyFile); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s with the key %s: %w", c.certFile, c.keyFile, err)
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("%s has expired at %s", c.certFile, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &pair, nil
}

// readSecrets reads an account's password, and its certificate for the first time.
func (a *accountConfig) readSecrets(config string) (err error) {
	if a.PasswordFile != "" {
		if a.password, err = readSecret(beside(config, a.PasswordFile)); err != nil {
			return err
		}
	}
	if a.CertificateFile == "" {
		return nil
	}
	a.certificate = &clientCertificate{certFile: beside(config, a.CertificateFile), keyFile: beside(config, a.KeyFile)}
	_, err = a.certificate.get()
	return err
}
