package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// devTrustDomain belongs to `deputy dev` alone: with issuer and broker in one process its grants prove nothing.
const devTrustDomain = "dev.deputy.invalid"

// parseTrustDomain reads the trust_domain of a role's configuration.
func parseTrustDomain(s string, unsafeDev bool) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil || td.Name() != s {
		return spiffeid.TrustDomain{}, fieldError("$.trust_domain", "a lower-case name such as corp.example is expected")
	}
	if s == devTrustDomain && !unsafeDev {
		return spiffeid.TrustDomain{}, fieldError("$.trust_domain", "%s belongs to `deputy dev`, whose grants prove nothing; choose a name of your own (--unsafe-dev accepts it)", devTrustDomain)
	}
	return td, nil
}

// checkMesh reads the mesh: the broker's issuer URL, compared byte for byte everywhere.
func checkMesh(s string) error { return checkMeshAt("$.mesh", s) }

func checkMeshAt(path, s string) error {
	if !strings.HasPrefix(s, "https://") || strings.ContainsAny(s, "?# ") || strings.HasSuffix(s, "/") {
		return fieldError(path, "the broker's issuer URL is expected, such as https://broker.corp.example, without a trailing slash")
	}
	return nil
}

// checkAddress demands host:port.
func checkAddress(path, s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return fieldError(path, "an address is expected, such as 127.0.0.1:7401")
	}
	return nil
}

// readPool reads the certificates of a PEM file. Without a file the system's are used.
func readPool(path string) (*x509.CertPool, error) {
	if path == "" {
		return x509.SystemCertPool()
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return pool, nil
}

// httpClient trusts the CAs of a file, or the system's. It follows no redirect to another host and has a deadline.
func httpClient(caFile string) (*http.Client, error) {
	pool, err := readPool(caFile)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout: 15 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
			ForceAttemptHTTP2:     true,
			ResponseHeaderTimeout: 10 * time.Second,
			IdleConnTimeout:       time.Minute,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > 5 || r.URL.Host != via[0].URL.Host {
				return errors.New("a redirect to another host isn't followed")
			}
			return nil
		},
	}, nil
}

// readSecret reads a one-line secret from a file that only its owner may read.
func readSecret(path string) (string, error) {
	if err := checkPrivate(path); err != nil {
		return "", err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	s := strings.TrimRight(string(raw), "\r\n")
	if s == "" || len(s) > 4096 || strings.ContainsAny(s, "\r\n\x00") {
		return "", fmt.Errorf("%s: one line with the secret is expected", path)
	}
	return s, nil
}
