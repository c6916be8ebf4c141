package proxy_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/audit/audittest"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

func TestAnAllowedCommandIsDecidedRecordedAndForwardedOnce(t *testing.T) {
	m := serving(t)
	ctx := context.Background()
	s := m.open(m.flow())
	p, err := s.Authorize(ctx, m.command("select", "customers"))
	if err != nil {
		t.Fatal(err)
	}
	o := p.Obligations()
	if o.MaxRows != 500 {
		t.Errorf("at most %d rows, want the capability's 500, which is below the policy's 1000", o.MaxRows)
	}
	if rule, ok := o.Mask("public", "customers", "email"); !ok || rule.Masker != policy.MaskEmail {
		t.Errorf("email is masked as %v, %v", rule, ok)
	}
	if err := p.Use(); err != nil {
		t.Fatal(err)
	}
	if err := p.Use(); !errors.Is(err, proxy.ErrPassUsed) {
		t.Errorf("a second use: %v, want ErrPassUsed", err)
	}
	p.Forwarded(42)
	if err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	masked := []audit.MaskedCount{{Rule: "email", Column: "public.customers.email", Values: 3}}
	if err := p.Completed(ctx, proxy.Outcome{Status: "ok", Command: "SELECT 3", Rows: 3, Masked: masked}); err != nil {
		t.Fatal(err)
	}
	s.Close("client", "")

	var kinds []audit.Type
	for _, r := range audittest.Records(t, m.log) {
		if r.Connection != s.ID() {
			continue
		}
		kinds = append(kinds, r.Type)
		if r.Chain == nil || r.Chain.Txn != m.txn || len(r.Chain.Hops) != 3 || r.Session != "sid-1" || r.Chain.Verification == "" {
			t.Errorf("%s doesn't carry the whole chain: %+v", r.Type, r.Chain)
		}
		switch e := r.Event.(type) {
		case *audit.Decision:
			if r.ID != p.RecordID() || e.Effect != audit.Allow || e.Action != "postgres:select" || e.PolicyVersion != 1 ||
				e.PolicyDigest == "" || !cmp.Equal(e.Policies, []string{"analyst-reads-shop"}) || e.Account != "shop_reader" || len(e.Obligations) != 3 {
				t.Errorf("decision %+v", e)
			}
			if e.Statement.Scrubbed != "select on customers $1" || strings.Contains(e.Statement.Scrubbed, "secret") || e.Statement.Hash == "" {
				t.Errorf("statement %+v", e.Statement)
			}
		case *audit.Completed:
			if r.Decision != p.RecordID() || e.Status != "ok" || e.Rows != 3 || e.BytesIn != 42 || len(e.Masked) != 1 {
				t.Errorf("completed %+v", e)
			}
		case *audit.ConnectionClosed:
			if e.Reason != "client" || e.Commands != 1 {
				t.Errorf("closed %+v", e)
			}
		}
	}
	want := []audit.Type{audit.TypeConnectionOpened, audit.TypeDecision, audit.TypeMasked, audit.TypeCompleted, audit.TypeConnectionClosed}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestWhatIsntAllowedIsRefusedWithARecord(t *testing.T) {
	m := serving(t)
	ctx := context.Background()
	s := m.open(m.flow())
	other := m.op("select", "orders")
	other.Resource = policy.Table("orders-db", "shop", "public", "customers")
	foreign := m.op("select", "orders")
	foreign.Resource.Target = "payroll"
	hr := m.command("select", "staff")
	hr.Database = "hr"
	for _, c := range []struct {
		name          string
		cmd           proxy.Command
		class, policy string
	}{
		{"a verb outside the capability", m.command("truncate", "orders"), proxy.ClassCapability, ""},
		{"no permit", m.command("update", "orders"), proxy.ClassPolicy, ""},
		{"a forbid", m.command("ddl", "orders"), proxy.ClassPolicy, "no-ddl-by-agents"},
		{"one of two ops", proxy.Command{Kind: "select", Database: "shop", Ops: []proxy.Op{m.op("select", "orders"), m.op("update", "orders")}}, proxy.ClassPolicy, ""},
		{"no ops", proxy.Command{Kind: "empty", Database: "shop"}, proxy.ClassUndecided, ""},
		{"capability and policy see different objects", proxy.Command{Kind: "select", Database: "shop", Ops: []proxy.Op{other}}, proxy.ClassUndecided, ""},
		{"another target", proxy.Command{Kind: "select", Database: "shop", Ops: []proxy.Op{foreign}}, proxy.ClassUndecided, ""},
		{"another database than the session's", hr, proxy.ClassUndecided, ""},
		{"an objection of the engine", func() proxy.Command {
			c := m.command("select", "orders")
			c.Check = func(policy.Obligations) error { return &proxy.Objection{Class: "masked", Reason: "no filter on email"} }
			return c
		}(), "masked", "analyst-reads-shop"},
		{"an error of the engine", func() proxy.Command {
			c := m.command("select", "orders")
			c.Check = func(policy.Obligations) error { return errors.New("catalogue is down: password=x") }
			return c
		}(), proxy.ClassUndecided, "analyst-reads-shop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := s.Authorize(ctx, c.cmd)
			if p != nil {
				t.Fatal("a pass")
			}
			r := refusal(t, err)
			if r.Class != c.class || r.Policy != c.policy {
				t.Errorf("class %q, policy %q (%s); want %q, %q", r.Class, r.Policy, r.Reason, c.class, c.policy)
			}
			if strings.Contains(r.Error(), "password") {
				t.Errorf("the user sees the cause: %s", r.Error())
			}
			rec := m.recorded(r.RecordID)
			if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != c.class || d.Reason == "" {
				t.Errorf("record %+v", rec.Event)
			}
			if !strings.Contains(r.Error(), string(r.RecordID)) {
				t.Errorf("the user isn't told the record: %s", r.Error())
			}
		})
	}
	if s.Context().Err() != nil {
		t.Error("a refused command ended the session")
	}
}

func TestTransactionControlIsDecidedAsConnect(t *testing.T) {
	m := serving(t)
	connect := func(database string) proxy.Command {
		return proxy.Command{Kind: "begin", Database: database, ReadOnly: true, Ops: []proxy.Op{{
			Action:   actor.PostgresAction{Target: m.id, Verb: proxy.VerbConnect, Database: database},
			Resource: policy.Database("orders-db", database),
		}}}
	}
	s := m.open(m.flow())
	if _, err := s.Authorize(context.Background(), connect("shop")); err != nil {
		t.Error(err)
	}
	f := m.flow()
	f.details = actor.Details{actor.PostgresDetail{Locations: f.details.ForTarget(m.id)[0].Targets(), Actions: []string{"select"}, Databases: []string{"hr"}}}
	f.rootCap = f.details
	s = m.open(f)
	if _, err := s.Authorize(context.Background(), connect("shop")); refusal(t, err).Class != proxy.ClassCapability {
		t.Errorf("a credential for hr connects to shop: %v", err)
	}
}

func TestTheRecordKeepsAsMuchAsThePolicySays(t *testing.T) {
	for value, want := range map[string]string{"full": "select on orders 'secret'", "digest": ""} {
		m := newMesh(t)
		u := m.snapshot()
		u.PolicySet = m.policySet(1, map[string]string{"record.cedar": `@record("` + value + `") permit (principal, action, resource);`})
		m.apply(u)
		s := m.open(m.flow())
		p, err := s.Authorize(context.Background(), m.command("select", "orders"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		d := m.recorded(p.RecordID()).Event.(*audit.Decision)
		if d.Statement.Scrubbed != want || d.Statement.Hash == "" {
			t.Errorf("%s: kept %+v", value, d.Statement)
		}
	}
}

// A mask that a target's answers know nothing of must not be forgotten.
func TestAMaskOfAnswersRefusesWhatIsNoRequest(t *testing.T) {
	for _, rule := range []string{"$..email=redact", "detect:email=redact"} {
		m := newMesh(t)
		u := m.snapshot()
		u.PolicySet = m.policySet(1, map[string]string{"json.cedar": `@mask("` + rule + `") permit (principal, action, resource);`})
		m.apply(u)
		s := m.open(m.flow())
		_, err := s.Authorize(context.Background(), m.command("select", "orders"))
		var r *proxy.Refusal
		what, _, _ := strings.Cut(rule, "=")
		if !errors.As(err, &r) || r.Class != proxy.ClassUndecided || !strings.Contains(r.Reason, "the policy masks "+what+" in answers") {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

func TestClosingASessionCompletesItsPasses(t *testing.T) {
	m := serving(t)
	s := m.open(m.flow())
	ctx := context.Background()
	unused := must(s.Authorize(ctx, m.command("select", "orders")))
	used := must(s.Authorize(ctx, m.command("select", "orders")))
	if err := used.Use(); err != nil {
		t.Fatal(err)
	}
	s.Close("client", "")
	s.Close("error", "twice")
	if err := unused.Use(); refusal(t, err).Class != proxy.ClassClosed {
		t.Errorf("a pass of a closed session: %v", err)
	}
	if _, err := s.Authorize(ctx, m.command("select", "orders")); refusal(t, err).Class != proxy.ClassClosed {
		t.Errorf("authorize on a closed session: %v", err)
	}
	got := map[audit.RecordID]string{}
	closed := 0
	for _, r := range audittest.Records(t, m.log) {
		switch e := r.Event.(type) {
		case *audit.Completed:
			got[r.Decision] = e.Status
		case *audit.ConnectionClosed:
			closed++
		}
	}
	if want := map[audit.RecordID]string{unused.RecordID(): "not_sent", used.RecordID(): "cut"}; !cmp.Equal(got, want) || closed != 1 {
		t.Errorf("outcomes %v, closed %d times; want %v, once", got, closed, want)
	}
}

// What policy lets somebody read in part has its masks, too: the answer to a write, such as a collection that is deleted, may show that part.
func TestMasksOfWhatMayBeReadInPartAreDemanded(t *testing.T) {
	m := serving(t)
	m.apply(m.update(feed.Delta, feed.Changes{PolicySet: m.policySet(2, map[string]string{"kube.cedar": `
		@id("maps") @mask("$.data.a=redact") permit (principal, action in [Deputy::Action::"kube:get", Deputy::Action::"kube:list"], resource is Deputy::KubeResource) when { resource.namespace == "shop" };
		@id("but-one") forbid (principal, action, resource is Deputy::KubeResource) when { resource.name == "root" };
		@id("webs") @mask("$.data.b=redact") permit (principal, action == Deputy::Action::"kube:get", resource is Deputy::KubeResource) when { resource.namespace == "other" && resource.name like "web-*" };`})}))
	s := m.open(m.flow())
	for _, c := range []struct {
		verb, namespace, name string
		want                  int
	}{
		{"list", "shop", "", 1}, {"get", "shop", "", 1}, {"get", "shop", "a", 1}, {"get", "shop", "root", 0}, {"list", "other", "", 0},
		{"get", "other", "", 1}, {"get", "other", "web-1", 1}, {"get", "other", "a", 0}, {"get", "", "", 2}, {"list", "", "", 1}, {"list", "third", "", 0},
	} {
		o := actor.KubeObject{Resource: "configmaps", Namespace: c.namespace, Name: c.name}
		op := proxy.Op{Action: actor.KubeAction{Target: m.id, Verb: c.verb, Object: o}, Resource: policy.KubeResource(m.target.String(), o)}
		if got := s.Demands(proxy.Command{Kind: c.verb, Ops: []proxy.Op{op}}).Masks; len(got) != c.want {
			t.Errorf("%s %s/%s: %v, want %d", c.verb, c.namespace, c.name, got, c.want)
		}
	}
}
