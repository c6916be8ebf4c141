package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"log/slog"
	"os"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/proxy"
)

// TestWhatWasNotRecordedHasNoOutcome: an agent that uses up its quota leaves a log in which nothing is wrong.
func TestWhatWasNotRecordedHasNoOutcome(t *testing.T) {
	var cfg audit.Config
	var told bytes.Buffer
	m := serving(t, func(c *audit.Config, p *proxy.Config, _ *proxy.StateConfig) {
		p.Logger = slog.New(slog.NewTextHandler(&told, nil))
		q := audit.DefaultQuota()
		q.RecordsPerSecond, q.RecordBurst = 0.001, 40
		c.Quota = &q
		cfg = *c
	})
	s := m.open(m.flow())
	refused := false
	for range 60 {
		p, err := s.Authorize(t.Context(), m.command("select", "orders"))
		if err != nil {
			if r := refusal(t, err); r.Class != proxy.ClassQuota || r.Ended {
				t.Fatalf("got %+v", r)
			}
			refused = true
			continue
		}
		if err := p.Use(); err != nil {
			t.Fatal(err)
		}
		p.Forwarded(7)
		if err := p.Wait(t.Context()); err != nil {
			t.Fatalf("a command went to the target although its decision was refused: %v", err)
		}
	}
	if !refused {
		t.Error("the quota stopped nothing")
	}
	if told.Len() > 0 {
		t.Errorf("it fills the operator's log instead: %s", told.String())
	}
	s.Close("client", "")
	if err := m.log.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(os.DirFS(m.log.Dir()), &audit.Keys{Mesh: meshURL, TrustDomain: domain, Logs: []string{cfg.Key.Public()}, CertifyingKeys: []*ecdsa.PublicKey{&m.certifying.PublicKey}, Authorities: m.ca.Bundle().X509Authorities()}, audit.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		if p.Kind != audit.ProblemCredential { // the keys of this mesh aren't on the list
			t.Errorf("%v", p)
		}
	}
}
