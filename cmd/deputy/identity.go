package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// identity is a role's X.509-SVID and trust bundle. It comes from the Workload API. Until that answers
// for the first time the SVID that `deputy init` made is used, so that roles can start in any order.
// It implements x509svid.Source and x509bundle.Source.
type identity struct {
	want   spiffeid.ID
	first  *x509svid.SVID
	bundle *x509bundle.Bundle
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	source *workloadapi.X509Source
}

// identityFiles are the first SVID, its key and the bundle, PEM. All empty means there is none.
type identityFiles struct {
	SVID   string `yaml:"svid,omitempty"`
	Key    string `yaml:"key,omitempty"`
	Bundle string `yaml:"bundle,omitempty"`
}

func (f identityFiles) beside(config string) identityFiles {
	return identityFiles{SVID: beside(config, f.SVID), Key: beside(config, f.Key), Bundle: beside(config, f.Bundle)}
}

// openIdentity connects to the Workload API at socket. Without a first SVID it waits for an answer
// until ctx ends. Close it when done.
func openIdentity(ctx context.Context, socket string, want spiffeid.ID, files identityFiles) (*identity, error) {
	id := &identity{want: want, done: make(chan struct{})}
	if files.SVID != "" {
		if err := checkPrivate(files.Key); err != nil {
			return nil, fmt.Errorf("reading the first SVID's key: %w", err)
		}
		svid, err := x509svid.Load(files.SVID, files.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the first SVID: %w", err)
		}
		if svid.ID != want {
			return nil, fmt.Errorf("the first SVID in %s is for %s; this role is %s", files.SVID, svid.ID, want)
		}
		if id.bundle, err = x509bundle.Load(want.TrustDomain(), files.Bundle); err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		if time.Now().Before(svid.Certificates[0].NotAfter) {
			id.first = svid
		}
	}
	bg, cancel := context.WithCancel(context.WithoutCancel(ctx))
	id.cancel = cancel
	ready := make(chan error, 1)
	go id.connect(bg, socket, ready)
	if id.first != nil {
		return id, nil
	}
	select {
	case err := <-ready:
		if err != nil {
			cancel()
			<-id.done
			return nil, err
		}
		return id, nil
	case <-ctx.Done():
		cancel()
		<-id.done
		return nil, fmt.Errorf("waiting for the Workload API at %s to give this role %s: %w; is the issuer running, and does its configuration have an entry for this uid and binary?", socket, want, ctx.Err())
	}
}

func (id *identity) connect(ctx context.Context, socket string, ready chan<- error) {
	defer close(id.done)
	source, err := workloadapi.NewX509Source(ctx,
		workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+socket)),
		workloadapi.WithDefaultX509SVIDPicker(func(svids []*x509svid.SVID) *x509svid.SVID {
			for _, s := range svids {
				if s.ID == id.want {
					return s
				}
			}
			return svids[0]
		}))
	if err == nil {
		var svid *x509svid.SVID
		if svid, err = source.GetX509SVID(); err == nil && svid.ID != id.want {
			err = fmt.Errorf("the Workload API at %s gives this process %s; this role is %s. Check the issuer's entries", socket, svid.ID, id.want)
		}
		if err != nil {
			_ = source.Close()
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			slog.ErrorContext(ctx, "no identity from the Workload API", "error", err)
		}
		ready <- err
		return
	}
	id.mu.Lock()
	id.source = source
	id.mu.Unlock()
	ready <- nil
}

// Close ends the connection to the Workload API.
func (id *identity) Close() error {
	id.cancel()
	<-id.done
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.source != nil {
		return id.source.Close()
	}
	return nil
}

func (id *identity) live() *workloadapi.X509Source {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.source
}

// GetX509SVID implements x509svid.Source.
func (id *identity) GetX509SVID() (*x509svid.SVID, error) {
	if s := id.live(); s != nil {
		return s.GetX509SVID()
	}
	if id.first == nil || time.Now().After(id.first.Certificates[0].NotAfter) {
		return nil, errors.New("this role has no SVID yet: the Workload API has not answered and the first SVID is missing or has expired")
	}
	return id.first, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (id *identity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if s := id.live(); s != nil {
		return s.GetX509BundleForTrustDomain(td)
	}
	if id.bundle == nil || td != id.want.TrustDomain() {
		return nil, fmt.Errorf("no trust bundle for %s yet", td)
	}
	return id.bundle, nil
}
