package integration_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// serviceMesh is a mesh with web services behind its proxy.
func serviceMesh(t *testing.T) (*testmesh.Mesh, *testweb.Site) {
	t.Helper()
	site := testweb.Start(t)
	return testmesh.Start(t, testmesh.Web(site), testmesh.Policy(filepath.Join("testdata", "services"))), site
}

// onService are the agents of most tests: two, that reach the services.
var onService = []string{"planner --target billing --target rpc", "researcher"}

// request finds the decision of a request.
func request(scrubbed string) func(*audit.Record) bool {
	return func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Statement != nil && d.Statement.Scrubbed == scrubbed
	}
}

// Each request to a web service carries the whole chain into the proxy's records. What isn't allowed never reaches it, the refusal names its
// record, and the service's own token stays at the proxy.
func TestHTTPRequestsCarryTheChain(t *testing.T) {
	m, site := serviceMesh(t)
	alice := m.Login(t, "alice")
	curl := "curl -sS --max-time 20 "
	t.Run("curl", func(t *testing.T) {
		r := alice.Run(t, onService, "sh", "-c", curl+`"$DEPUTY_URL_BILLING/v1/invoices/%34%32?page=3"`)
		if r.Code != 0 || r.Stdout != `{"method":"GET","uri":"/v1/invoices/42?page=3"}`+"\n" {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", request("GET /v1/invoices/42?page=…"))
		d := rec.Event.(*audit.Decision)
		if d.Effect != audit.Allow || d.Action != "http:get" || d.Account != "reader" || d.Target != testmesh.ServiceTarget || strings.Join(d.Policies, ",") != "analyst-reads" {
			t.Errorf("the decision: %+v", d)
		}
		if n := len(rec.Chain.Hops); n != 3 || !strings.Contains(rec.Chain.User.Subject, "alice") || !strings.Contains(rec.Chain.Hops[2].ID, "/researcher/") {
			t.Errorf("the chain: %+v", rec.Chain)
		}
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "ok" || out.Code != "200" || out.BytesOut != int64(len(r.Stdout)) {
			t.Errorf("the outcome: %+v", out)
		}
		if line := site.AwaitLog("/v1/invoices/42?page=3"); !strings.Contains(line, "auth=Bearer "+testweb.Token) || !strings.Contains(line, "forwarded=-") {
			t.Errorf("nginx saw %s", line)
		}
		_, chain, _ := strings.Cut(site.AwaitLog("/v1/invoices/42?page=3"), "chain=")
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(chain, ".")[1])
		if err != nil || !strings.Contains(string(payload), `"record":"`+string(rec.ID)+`"`) || !strings.Contains(string(payload), rec.Chain.Hops[2].ID) || !strings.Contains(string(payload), rec.Chain.User.Subject) {
			t.Errorf("nginx was told %s %v", payload, err)
		}
	})
	t.Run("a masked one", func(t *testing.T) {
		if err := os.Mkdir(filepath.Join(site.Files, "customers"), 0o755); err != nil {
			t.Fatal(err)
		}
		site.Write("customers/1.json", []byte(`{"email":"ada@example.com","accounts":[{"iban":"DE0012345678"}]}`))
		site.Write("customers/1.txt", []byte(`ada@example.com`))
		r := alice.Run(t, onService, "sh", "-c", curl+`"$DEPUTY_URL_BILLING/customers/1.json" && `+curl+`-w '\n%{http_code}' "$DEPUTY_URL_BILLING/customers/1.txt"`)
		if !strings.HasPrefix(r.Stdout, `{"email":"a***@example.com","accounts":[{"iban":"****5678"}]}`) || !strings.HasSuffix(r.Stdout, "\n502") || strings.Contains(r.Stdout, "ada") {
			t.Errorf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", request("GET /customers/1.json"))
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); len(out.Masked) != 2 || out.Masked[1].Column != "$.email" || out.Masked[1].Values != 1 {
			t.Errorf("the outcome: %+v", out)
		}
	})
	t.Run("a refused one", func(t *testing.T) {
		r := alice.Run(t, onService, "sh", "-c", curl+`-X DELETE -w '\n%{http_code}' "$DEPUTY_URL_BILLING/v1/invoices/7"`)
		if r.Code != 0 || !strings.HasSuffix(r.Stdout, "\n403") {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stdout))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "policy" || d.Action != "http:delete" {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
		if strings.Contains(site.Log(), "DELETE") {
			t.Error("it reached nginx")
		}
	})
	t.Run("around a forbidden path", func(t *testing.T) {
		for _, path := range []string{
			"/v1/invoices/closed/1", "/v1/invoices/x/../closed/1", "/v1/invoices/%63losed/1", "/v1/invoices//closed/1", "/v1/invoices/closed%2F1", "/v1/invoices/%2e/closed/1",
			"/v1/invoices/closed;x/1", "/v1/invoices/./closed/1", "/v1/invoices/closed%5c1", "/v1/invoices/%252e%252e/invoices/closed/1", "/v1/invoices/x?_method=DELETE",
		} {
			r := alice.Run(t, onService, "sh", "-c", curl+`--path-as-is -w '\n%{http_code}' "$DEPUTY_URL_BILLING`+path+`"`)
			if !strings.HasSuffix(r.Stdout, "\n403") && !strings.HasSuffix(r.Stdout, "\n400") || testmesh.RecordIn(t, r.Stdout) == "" {
				t.Errorf("%s: %s", path, r)
			}
		}
		if strings.Contains(site.Log(), "closed") {
			t.Error("one reached nginx")
		}
	})
	t.Run("a sub-agent that may less", func(t *testing.T) {
		agents := []string{onService[0], onService[1] + " --allow billing:get:/v1/invoices/{id}"}
		if r := alice.Run(t, agents, "sh", "-c", curl+`"$DEPUTY_URL_BILLING/v1/invoices/8"`); !strings.Contains(r.Stdout, `"uri":"/v1/invoices/8"`) {
			t.Errorf("%s", r)
		}
		r := alice.Run(t, agents, "sh", "-c", curl+`"$DEPUTY_URL_BILLING/v1/invoices/8/lines"`)
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stdout))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Class != "capability" {
			t.Errorf("%s: %+v", r, rec.Event)
		}
	})
	t.Run("a key of the query", func(t *testing.T) {
		if r := alice.Run(t, onService, "sh", "-c", curl+`-d x=1 "$DEPUTY_URL_BILLING/v1/invoices/9"`); !strings.Contains(r.Stdout, `"method":"POST"`) {
			t.Errorf("%s", r)
		}
		if r := alice.Run(t, onService, "sh", "-c", curl+`-d x=1 "$DEPUTY_URL_BILLING/v1/invoices/9?%66orce=1"`); !strings.Contains(r.Stdout, "403") {
			t.Errorf("%s", r)
		}
	})
	t.Run("forged headers", func(t *testing.T) {
		r := alice.Run(t, onService, "sh", "-c", curl+`-H 'X-Forwarded-For: 6.6.6.6' -H 'Deputy-Chain: forged' -H 'Authorization: Bearer `+testweb.Token+`' "$DEPUTY_URL_BILLING/v1/invoices/forged"`)
		line := site.AwaitLog("/v1/invoices/forged")
		if r.Code != 0 || strings.Contains(line, "6.6.6.6") || strings.Contains(line, "chain=forged") {
			t.Errorf("%s: nginx saw %s", r, line)
		}
	})
	t.Run("a page in the run's browser", func(t *testing.T) {
		// One had its own name resolve to this machine, one says where it comes from.
		for header, status := range map[string]string{"Host: other.example": "421", "Sec-Fetch-Site: cross-site": "403"} {
			r := alice.Run(t, onService, "sh", "-c", curl+`-H '`+header+`' -w '\n%{http_code}' "$DEPUTY_URL_BILLING/v1/invoices/page"`)
			if r.Code != 0 || !strings.HasSuffix(r.Stdout, "\n"+status) {
				t.Errorf("%s: %s", header, r)
			}
		}
		if strings.Contains(site.Log(), "/v1/invoices/page") || strings.Contains(site.Log(), "other.example") {
			t.Error("one reached nginx")
		}
	})
	t.Run("downloads, ranges and git", func(t *testing.T) {
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
		if err := os.Mkdir(filepath.Join(site.Files, "public"), 0o755); err != nil {
			t.Fatal(err)
		}
		site.Write("public/big", big)
		want := fmt.Sprintf("%x", sha256.Sum256(big))
		if r := alice.Run(t, onService, "sh", "-c", curl+`"$DEPUTY_URL_BILLING/public/big" | sha256sum`); !strings.HasPrefix(r.Stdout, want) {
			t.Errorf("%s", r)
		}
		if r := alice.Run(t, onService, "sh", "-c", curl+`-r 16-20 "$DEPUTY_URL_BILLING/public/big"`); r.Stdout != "01234" {
			t.Errorf("%s", r)
		}
		repository := filepath.Join(site.Files, "public", "repo.git")
		script := `set -e; cd "$1"; git init -q -b main w; cd w; git -c user.name=t -c user.email=t@t.test commit -q --allow-empty -m "the commit"; git clone -q --bare . "$2"; cd "$2"; git update-server-info`
		if out, err := exec.Command("sh", "-c", script, "sh", t.TempDir(), repository).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if r := alice.Run(t, onService, "sh", "-c", `d=$(mktemp -d); HOME=$d git clone -q "$DEPUTY_URL_BILLING/public/repo.git" $d/w && git -C $d/w log --format=%s; rm -rf $d`); strings.TrimSpace(r.Stdout) != "the commit" {
			t.Errorf("%s", r)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		r := alice.Run(t, onService, "sh", "-c", `h2load -n 200 -c 4 -m 10 "$DEPUTY_URL_BILLING/v1/invoices/load" && h2load --h1 -n 200 -c 4 "$DEPUTY_URL_BILLING/v1/invoices/load"`)
		if r.Code != 0 || strings.Count(r.Stdout, "200 succeeded, 0 failed") != 2 {
			t.Errorf("%s", r)
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		probe := testmesh.Program(t, "agentprobe")
		if r := alice.Run(t, onService, "sh", "-c", probe+` rpc "$DEPUTY_URL_RPC" check`); r.Code != 0 || r.Stdout != "SERVING\n" {
			t.Errorf("%s", r)
		}
		r := alice.Run(t, onService, "sh", "-c", probe+` rpc "$DEPUTY_URL_RPC" list`)
		if r.Code == 0 || !strings.Contains(r.Stderr, "PermissionDenied") {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Action != "http:grpc" || d.Effect != audit.Refuse || d.Statement.Scrubbed != "POST /grpc.health.v1.Health/List" {
			t.Errorf("record %s: %+v", rec.ID, rec.Event)
		}
	})
	t.Run("no account for the role", func(t *testing.T) {
		bob := m.Login(t, "bob")
		if r := bob.Run(t, onService, "sh", "-c", curl+`"$DEPUTY_URL_BILLING/v1/invoices/1"`); !strings.Contains(r.Stdout, "none of the user's roles has an account") || testmesh.RecordIn(t, r.Stdout) == "" {
			t.Errorf("%s", r)
		}
	})
	t.Run("outside the run", func(t *testing.T) {
		live := testmesh.Begin(t, alice.Agents(t, onService[:1], "sh", "-c", `echo "at $DEPUTY_URL_BILLING."; read stop`))
		live.Await("at http://127.0.0.1:", 1)
		url := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(live.Output()), "at "), ".")
		out, err := exec.Command("curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}", url+"/v1/invoices/stolen").CombinedOutput()
		live.Type("\n")
		if err != nil || !strings.HasSuffix(string(out), "\n403") || strings.Contains(site.Log(), "stolen") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// A revoked stream ends within a second, and nothing else is let in.
func TestARevokedHTTPStreamEndsWithinASecond(t *testing.T) {
	m, _ := serviceMesh(t)
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	live := testmesh.Begin(t, alice.Agents(t, onService, testmesh.Program(t, "agentprobe"), "rpc", "env:DEPUTY_URL_RPC", "watch"))
	live.Await("SERVING", 1)
	rec := m.AwaitRecord(t, "proxy", "the decision", request("POST /grpc.health.v1.Health/Watch"))
	if r := oscar.Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
		t.Fatalf("revoke: %s", r)
	}
	revoked := m.AwaitRecord(t, "broker", "the revocation", func(r *audit.Record) bool { _, ok := r.Event.(*audit.Revoked); return ok })
	closed := m.AwaitRecord(t, "proxy", "the end of the connection", func(r *audit.Record) bool {
		e, ok := r.Event.(*audit.ConnectionClosed)
		return ok && r.Connection == rec.Connection && e.Reason == "revoked"
	})
	if took := closed.Time.Sub(revoked.Time); took > time.Second {
		t.Errorf("the connection ended %s after the revocation", took)
	}
	if end := live.Wait(patience); end.Code == 0 {
		t.Errorf("the agent's end: %s", end)
	}
	if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status == "ok" {
		t.Errorf("the outcome: %+v", out)
	}
}
