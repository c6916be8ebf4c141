package integration_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// grpcurl, which asks the server for its descriptors before it calls, works through a run; each call is decided and recorded, and a refused one
// is told in gRPC's own words, with its record.
func TestGrpcurlWorksUnmodified(t *testing.T) {
	m, _ := serviceMesh(t)
	alice := m.Login(t, "alice")
	grpcurl := m.Tool(t, "grpcurl")
	call := func(agents []string, args string) testmesh.Result {
		return alice.Run(t, agents, "sh", "-c", grpcurl+" -plaintext "+strings.Replace(args, "AT", `"${DEPUTY_URL_RPC#http://}"`, 1))
	}
	t.Run("list and describe", func(t *testing.T) {
		if r := call(onService, "AT list"); r.Code != 0 || !strings.Contains(r.Stdout, "grpc.health.v1.Health") {
			t.Errorf("%s", r)
		}
		if r := call(onService, "AT describe grpc.health.v1.Health"); r.Code != 0 || !strings.Contains(r.Stdout, "rpc Watch") {
			t.Errorf("%s", r)
		}
		m.AwaitRecord(t, "proxy", "the stream of reflection", request("POST /grpc.reflection.v1.ServerReflection/ServerReflectionInfo"))
	})
	t.Run("unary", func(t *testing.T) {
		r := call(onService, `-d '{"service":""}' AT grpc.health.v1.Health/Check`)
		if r.Code != 0 || !strings.Contains(r.Stdout, `"status": "SERVING"`) {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", request("POST /grpc.health.v1.Health/Check"))
		if d := rec.Event.(*audit.Decision); d.Action != "http:grpc" || d.Effect != audit.Allow || len(rec.Chain.Hops) != 3 {
			t.Errorf("%+v", d)
		}
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "ok" {
			t.Errorf("%+v", out)
		}
	})
	t.Run("an error of the server's", func(t *testing.T) {
		if r := call(onService, `-d '{"service":"none"}' AT grpc.health.v1.Health/Check`); r.Code == 0 || !strings.Contains(r.Stderr, "Code: NotFound") || strings.Contains(r.Stderr, "record:") {
			t.Errorf("%s", r)
		}
	})
	t.Run("server streaming", func(t *testing.T) {
		r := call(onService, `-max-time 2 AT grpc.health.v1.Health/Watch`)
		if r.Code == 0 || !strings.Contains(r.Stdout, `"status": "SERVING"`) || !strings.Contains(r.Stderr, "DeadlineExceeded") {
			t.Errorf("%s", r)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := call(onService, "AT grpc.health.v1.Health/List")
		if r.Code != 64+7 || !strings.Contains(r.Stderr, "Code: PermissionDenied") {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "policy" || d.Statement.Scrubbed != "POST /grpc.health.v1.Health/List" {
			t.Errorf("%+v", rec.Event)
		}
	})
	t.Run("a mask on a message", func(t *testing.T) {
		r := call(onService[:1], "AT grpc.health.v1.Health/List")
		if r.Code != 64+7 || !strings.Contains(r.Stderr, "the policy asks for masks") {
			t.Fatalf("%s", r)
		}
		rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
		if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "unsupported" {
			t.Errorf("%+v", rec.Event)
		}
	})
}
