package integration_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// A stream through a run's listener goes on past the end of the token that it began with. A client that has only the agent's SVID and a credential
// is served without `deputy run`, and cut when its token ends.
func TestStreamsOutliveTheirTokens(t *testing.T) {
	t.Parallel() // it waits for most of its time
	const life, skew = time.Minute, 30 * time.Second
	site := testweb.Start(t)
	m := testmesh.Start(t, testmesh.Web(site), testmesh.Policy(filepath.Join("testdata", "services")), testmesh.Edit("broker", func(c string) string {
		return strings.Replace(c, "token_ttl: 5m", "token_ttl: "+life.String(), 1)
	}))
	alice := m.Login(t, "alice")
	probe := testmesh.Program(t, "agentprobe")

	watching := testmesh.Begin(t, alice.Agents(t, onService, probe, "rpc", "env:DEPUTY_URL_RPC", "watch"))
	watching.Await("SERVING", 1)
	connected := testmesh.Begin(t, alice.Agents(t, []string{"planner --target raw"}, testmesh.Deputy(t), "connect", "raw"))
	rec := m.AwaitRecord(t, "proxy", "the connection", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == "tcp:connect"
	})
	streaming := m.AwaitRecord(t, "proxy", "the stream", request("POST /grpc.health.v1.Health/Watch"))

	cfg, credential := direct(t, alice, testmesh.RPCTarget)
	conn, err := grpc.NewClient("passthrough:///"+m.Address("rpc"), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+credential), life+skew+patience)
	defer cancel()
	silent, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Recv(); err != nil {
		t.Fatalf("directly, with SVID and credential: %v", err)
	}
	begun := time.Now()
	if _, err := silent.Recv(); err == nil || ctx.Err() != nil {
		t.Errorf("a stream without renewal: %v", err)
	}
	if took := time.Since(begun); took > life+skew+5*time.Second {
		t.Errorf("it was cut after %s", took)
	}
	// Its credential gets nobody in any more, and the answer says why.
	again := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}, Timeout: 20 * time.Second}
	q, err := http.NewRequest(http.MethodGet, "https://"+m.Address("rpc")+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+credential)
	a, err := again.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil || a.StatusCode != http.StatusUnauthorized || !strings.Contains(a.Header.Get("WWW-Authenticate"), "invalid_token") {
		t.Errorf("%d %v %s", a.StatusCode, a.Header, text)
	}

	for _, r := range []*audit.Record{rec, streaming} {
		if wait := time.Until(r.Chain.Expires.Add(skew + 3*time.Second)); wait > 0 {
			time.Sleep(wait) // the token's end is the claim
		}
	}
	for _, r := range m.Records(t, "proxy") {
		if e, ok := r.Event.(*audit.ConnectionClosed); ok && (r.Connection == rec.Connection || r.Connection == streaming.Connection) {
			t.Errorf("a renewed session has ended: %+v", e)
		}
	}
	connected.Type("GET / HTTP/1.0\r\n\r\n")
	connected.Await("plain HTTP request", 1)
}

// direct is how a client without `deputy run` reaches a target: the agent's own SVID, and a credential.
func direct(t *testing.T, s *testmesh.Session, target string) (*tls.Config, string) {
	t.Helper()
	live := testmesh.Begin(t, s.Agents(t, []string{"planner --target " + target}, testmesh.Program(t, "agentprobe"), "identity", target))
	live.Type("\n")
	live.Await("}", 1)
	var id struct{ SVID, Key, Bundle, Credential string }
	if err := json.Unmarshal([]byte(testmesh.Lines(live.Output())[0]), &id); err != nil {
		t.Fatal(err)
	}
	svid, err := x509svid.Parse([]byte(id.SVID), []byte(id.Key))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), []byte(id.Bundle))
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := spiffeid.FromString("spiffe://" + testmesh.TrustDomain + "/deputy/proxy/main")
	if err != nil {
		t.Fatal(err)
	}
	cfg := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(proxy))
	cfg.MinVersion = tls.VersionTLS13
	return cfg, id.Credential
}
