package kube_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
	"github.com/deputymesh/deputy/proxy/kube"
)

// rig is an engine in front of something that answers as an API server does.
type rig struct {
	*hoptest.Ledger
	t      testing.TB
	client *http.Client
	base   string
	stop   func()

	mu   sync.Mutex
	seen []*http.Request // what the cluster got
	sent []string        // their bodies
}

func newRig(t testing.TB, cluster http.HandlerFunc, changes ...func(*kube.Config)) *rig {
	t.Helper()
	r := &rig{t: t, Ledger: hoptest.NewLedger()}
	up := hoptest.Service(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		r.mu.Lock()
		r.seen, r.sent = append(r.seen, q), append(r.sent, string(body))
		r.mu.Unlock()
		cluster(w, q)
	}))
	ca := testca.New(t, "test.example")
	server := ca.SVID(ca.ID("/deputy/proxy/main"), testca.Hosts("localhost"))
	cfg := kube.Config{
		Core: r.Ledger, Target: spiffeid.RequireFromString(hoptest.Target), Mesh: "https://broker.test", SVID: server, TLS: proxy.ServerTLS(server, ca.Bundle(), ca.TrustDomain()),
		Upstream: up, Accounts: []kube.Account{{Name: "deputy", Bearer: "the-clusters-own-secret"}}, Logger: slog.New(slog.DiscardHandler),
		Identities: kube.Identities{Groups: map[string][]string{"analyst": {"readers", "shop"}}},
	}
	for _, c := range changes {
		c(&cfg)
	}
	e, err := kube.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	address, stop := hoptest.Serve(t, e)
	r.base, r.stop = "https://"+address, stop
	r.client = &http.Client{Transport: &http.Transport{TLSClientConfig: hoptest.AgentTLS(ca, hoptest.Agent), ForceAttemptHTTP2: true, DisableCompression: true}, Timeout: 20 * time.Second}
	t.Cleanup(r.client.CloseIdleConnections)
	return r
}

// ask sends a request; header are pairs of a name and a value.
func (r *rig) ask(method, uri, body string, header ...string) *http.Response {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), method, r.base, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	path, query, _ := strings.Cut(uri, "?")
	q.URL.Opaque = "//" + q.URL.Host + path
	q.URL.RawQuery = query
	q.Header.Set("Authorization", "Bearer "+hoptest.Credential)
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		q.Header.Add(header[i], header[i+1])
	}
	if len(q.Header.Values("Content-Type")) > 1 {
		q.Header["Content-Type"] = q.Header["Content-Type"][1:]
	}
	a, err := r.client.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = a.Body.Close() })
	return a
}

func text(t testing.TB, a *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// got is the last request that the cluster got, and its body.
func (r *rig) got() (*http.Request, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) == 0 {
		return nil, ""
	}
	return r.seen[len(r.seen)-1], r.sent[len(r.sent)-1]
}

// status reads a refusal as clients do.
func status(t testing.TB, a *http.Response) (reason, message, record string) {
	t.Helper()
	var s struct {
		Kind, APIVersion, Status, Reason, Message string
		Code                                      int
		Details                                   struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal([]byte(text(t, a)), &s); err != nil || s.Kind != "Status" || s.APIVersion != "v1" || s.Status != "Failure" || s.Code != a.StatusCode {
		t.Fatalf("no Status: %+v (%v)", s, err)
	}
	for _, c := range s.Details.Causes {
		if c.Reason == "DeputyRecord" {
			record = c.Message
		}
	}
	return s.Reason, s.Message, record
}

// can allows commands that do only these things, as in "get shop/pods/web".
func (r *rig) can(allowed ...string) {
	r.Set(func() {
		r.Allow = func(cmd proxy.Command) bool {
			for _, op := range cmd.Ops {
				if !slices.Contains(allowed, spellOp(op)) {
					return false
				}
			}
			return len(cmd.Ops) > 0
		}
	})
}

func spellOp(op proxy.Op) string {
	o := op.Resource.Kube
	verb := strings.TrimPrefix(op.Action.Name(), "kube:")
	if o.Resource == "" {
		return verb + " " + op.Resource.Name
	}
	return verb + " " + spell(o)
}

func spellOps(cmd proxy.Command) string {
	var out []string
	for _, op := range cmd.Ops {
		out = append(out, spellOp(op))
	}
	return strings.Join(out, ", ")
}

func answer(kind, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = fmt.Fprint(w, body)
	}
}
