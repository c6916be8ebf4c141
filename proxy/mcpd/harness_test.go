package mcpd_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

const (
	goodCredential = hoptest.Credential
	agentID        = hoptest.Agent
	otherID        = "spiffe://test.example/agent/planner/ffffffffffffffffffffffffffffffff"
)

// rig is an engine in front of a service.
type rig struct {
	*hoptest.Ledger
	t       testing.TB
	address string
	stop    func()
	client  *http.Client
	ca      *testca.CA
}

type change func(*mcpd.Config)

// newRig puts the engine in front of a server's handler at /up.
func newRig(t testing.TB, service http.Handler, changes ...change) *rig {
	t.Helper()
	return rigFor(t, hoptest.Service(t, service), changes...)
}

func rigFor(t testing.TB, up mcpd.Upstream, changes ...change) *rig {
	t.Helper()
	ca := testca.New(t, "test.example")
	server := ca.SVID(ca.ID("/deputy/proxy/main"), testca.Hosts("localhost"))
	r := &rig{t: t, ca: ca, Ledger: hoptest.NewLedger()}
	cfg := mcpd.Config{
		Core: r.Ledger, Target: spiffeid.RequireFromString(hoptest.Target), Mesh: "https://broker.test", SVID: server, TLS: proxy.ServerTLS(server, ca.Bundle(), ca.TrustDomain()),
		Upstream: up, Endpoint: "/up", Accounts: []mcpd.Account{{Name: "reader", Bearer: "the-services-own-secret"}}, Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range changes {
		c(&cfg)
	}
	e, err := mcpd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.address, r.stop = hoptest.Serve(t, e)
	r.client = r.clientOf(agentID)
	return r
}

// clientOf is an HTTP client of an agent, which shows the credential.
func (r *rig) clientOf(id string) *http.Client {
	r.t.Helper()
	transport := &http.Transport{TLSClientConfig: hoptest.AgentTLS(r.ca, id), ForceAttemptHTTP2: true, DisableCompression: true}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: credentialed{transport}, Timeout: 30 * time.Second}
}

type credentialed struct{ *http.Transport }

func (c credentialed) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	q.Header.Set("Authorization", "Bearer "+goodCredential)
	return c.Transport.RoundTrip(q)
}

// post sends one message as it is and reads the answer.
func (r *rig) post(body string, headers ...string) (*http.Response, string) {
	r.t.Helper()
	return r.send(r.client, http.MethodPost, mcpd.Path, body, headers...)
}

func (r *rig) send(c *http.Client, method, path, body string, headers ...string) (*http.Response, string) {
	r.t.Helper()
	q, err := http.NewRequest(method, "https://"+r.address+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	q.Header.Set("Accept", "application/json, text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		q.Header.Add(headers[i], headers[i+1])
	}
	a, err := c.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return a, string(text)
}
