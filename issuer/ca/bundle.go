package ca

import (
	"crypto/x509"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is the trust domain's set of authorities, with news of changes. Safe for concurrent use.
type Bundle struct {
	td spiffeid.TrustDomain

	mu      sync.Mutex
	certs   []*x509.Certificate
	changed chan struct{}
}

// NewBundle holds the authorities of a trust domain.
func NewBundle(td spiffeid.TrustDomain, certs ...*x509.Certificate) *Bundle {
	return &Bundle{td: td, certs: certs, changed: make(chan struct{})}
}

// TrustDomain is whose authorities these are.
func (b *Bundle) TrustDomain() spiffeid.TrustDomain { return b.td }

// Current returns the authorities, and a channel that is closed when they change.
func (b *Bundle) Current() ([]*x509.Certificate, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.certs, b.changed
}

// Set replaces the authorities and wakes everybody who holds a channel of Current.
func (b *Bundle) Set(certs ...*x509.Certificate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.certs = certs
	close(b.changed)
	b.changed = make(chan struct{})
}
