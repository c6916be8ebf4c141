package httpd_test

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
)

const (
	goodCredential = hoptest.Credential
	nextCredential = hoptest.NextCredential
	agentID        = hoptest.Agent
)

// rig is an engine in front of a service.
type rig struct {
	*hoptest.Ledger
	t       testing.TB
	address string
	tls     *tls.Config // of the agent
	client  *http.Client
	ca      *testca.CA
	stop    func() // ends the engine and waits for it
}

type change func(*httpd.Config)

// newRig puts the engine in front of a service's handler, which speaks TLS with HTTP/2.
func newRig(t testing.TB, service http.Handler, changes ...change) *rig {
	t.Helper()
	return rigFor(t, hoptest.Service(t, service), changes...)
}

func rigFor(t testing.TB, up httpd.Upstream, changes ...change) *rig {
	t.Helper()
	ca := testca.New(t, "test.example")
	server := ca.SVID(ca.ID("/deputy/proxy/main"), testca.Hosts("localhost"))
	r := &rig{t: t, ca: ca, Ledger: hoptest.NewLedger()}
	cfg := httpd.Config{
		Core: r.Ledger, Target: spiffeid.RequireFromString(hoptest.Target), Mesh: "https://broker.test", SVID: server, TLS: proxy.ServerTLS(server, ca.Bundle(), ca.TrustDomain()),
		Upstream: up, Accounts: []httpd.Account{{Name: "reader", Bearer: "the-services-own-secret"}}, Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range changes {
		c(&cfg)
	}
	e, err := httpd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.address, r.stop = hoptest.Serve(t, e)
	r.tls = hoptest.AgentTLS(ca, agentID)
	transport := &http.Transport{TLSClientConfig: r.tls.Clone(), ForceAttemptHTTP2: true, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	r.client = &http.Client{Transport: transport, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r
}

func (r *rig) request(method, path string, body io.Reader, headers ...string) *http.Request {
	r.t.Helper()
	q, err := http.NewRequest(method, "https://"+r.address+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+goodCredential)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Add(headers[i], headers[i+1])
	}
	return q
}

// do sends a request and reads the answer.
func (r *rig) do(method, path string, body io.Reader, headers ...string) (*http.Response, string) {
	r.t.Helper()
	a, err := r.client.Do(r.request(method, path, body, headers...))
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

// raw sends bytes over HTTP/1.1 and reads all that comes until the proxy closes or nothing comes for a while.
func (r *rig) raw(text string) string {
	r.t.Helper()
	cfg := r.tls.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", r.address, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return ""
	}
	_ = c.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	out, _ := io.ReadAll(c)
	return string(out)
}
