package policy_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
)

const home = "example.org"

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// exampleSource is the set in examples/policy, which the demo uses.
func exampleSource(t testing.TB) policy.Source {
	t.Helper()
	s := policy.Source{
		Version: 1, Schema: policy.SchemaID, IssuedAt: now.Unix(),
		Files:   map[string]string{},
		Targets: map[string]policy.Target{"orders-db": {Kind: "postgres", Groups: []string{"demo"}}},
	}
	paths, err := filepath.Glob("../examples/policy/*.cedar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no example policies: %v", err)
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		s.Files[filepath.Base(p)] = string(text)
	}
	return s
}

func load(t testing.TB, s policy.Source) *policy.Set {
	t.Helper()
	key := newKey(t)
	signed, err := policy.Sign(key, s)
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Open(signed, keysOf(key), 0)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func facts(roles []string, agents ...string) policy.Facts {
	f := policy.Facts{
		User:  policy.User{Issuer: "https://login.example.org", Subject: "alice", Grade: "attested"},
		Roles: roles, RootEvidence: "verified", TrustDomain: home, Purpose: "q3 refunds",
		SignedIn: now.Add(-10 * time.Minute), Started: now.Add(-5 * time.Minute), Issued: now.Add(-time.Minute),
	}
	for _, a := range agents {
		f.Agents = append(f.Agents, policy.Agent{ID: a, Grade: "attested"})
	}
	return f
}

func subject(t testing.TB, f policy.Facts) *policy.Subject {
	t.Helper()
	s, err := policy.NewSubjectFromFacts(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	planner    = "spiffe://example.org/agent/planner/00000000000000000000000000000001"
	researcher = planner + "/researcher/00000000000000000000000000000002"
	stranger   = "spiffe://example.org/agent/stranger/00000000000000000000000000000003"
	lookalike  = "spiffe://example.org/agent/planner-two/00000000000000000000000000000004"
	foreign    = "spiffe://other.example/agent/planner/00000000000000000000000000000005"
)

func ask(action string, r policy.Resource) policy.Request {
	return policy.Request{
		Now: now, Action: "postgres:" + action, Resource: r,
		Command: policy.Command{Database: r.Database, Account: "shop_reader", Kind: action},
	}
}

func TestTheExampleSetDecidesAsTheDemoSays(t *testing.T) {
	set := load(t, exampleSource(t))
	orders := policy.Table("orders-db", "shop", "public", "orders")
	customers := policy.Table("orders-db", "shop", "public", "customers")
	shop := policy.Database("orders-db", "shop")
	for _, c := range []struct {
		name     string
		roles    []string
		agents   []string
		action   string
		resource policy.Resource
		allow    bool
		policies []string
	}{
		{"analyst selects", []string{"analyst"}, []string{planner, researcher}, "select", customers, true, []string{"analyst-reads-shop"}},
		{"analyst connects", []string{"analyst"}, []string{planner}, "connect", shop, true, []string{"analyst-reads-shop"}},
		{"select without a table", []string{"analyst"}, []string{planner}, "select", shop, true, []string{"analyst-reads-shop"}},
		{"analyst updates", []string{"analyst"}, []string{planner}, "update", orders, false, nil},
		{"another database", []string{"analyst"}, []string{planner}, "select", policy.Table("orders-db", "hr", "public", "staff"), false, nil},
		{"nobody's role", nil, []string{planner}, "select", orders, false, nil},
		{"support updates orders", []string{"support"}, []string{planner}, "update", orders, true, []string{"support-updates-orders"}},
		{"support reads customers", []string{"support"}, []string{planner}, "select", customers, false, nil},
		{"both roles", []string{"analyst", "support"}, []string{planner}, "select", orders, true, []string{"analyst-reads-shop", "support-updates-orders"}},
		{"drop table", []string{"analyst", "support"}, []string{planner, researcher}, "ddl", orders, false, []string{"no-ddl-by-agents"}},
		{"truncate", []string{"support"}, []string{planner}, "truncate", orders, false, []string{"no-ddl-by-agents"}},
		{"a function nobody named", []string{"analyst"}, []string{planner}, "call", policy.Function("orders-db", "shop", "public", "f"), false, nil},
		{"a stranger", []string{"analyst"}, []string{stranger}, "select", orders, false, []string{"planner-and-its-children-only"}},
		{"a stranger behind the planner", []string{"analyst"}, []string{planner, stranger}, "select", orders, false, []string{"planner-and-its-children-only"}},
		{"a name that only starts the same", []string{"analyst"}, []string{lookalike}, "select", orders, false, []string{"planner-and-its-children-only"}},
		{"another trust domain's planner", []string{"analyst"}, []string{foreign}, "select", orders, false, []string{"planner-and-its-children-only"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := ask(c.action, c.resource)
			r.Subject = subject(t, facts(c.roles, c.agents...))
			d := set.Decide(r)
			if d.Err != nil {
				t.Fatal(d.Err)
			}
			if d.Allow != c.allow || !cmp.Equal(d.Policies, c.policies) {
				t.Errorf("allow %v by %v (%s), want %v by %v", d.Allow, d.Policies, d.Reason, c.allow, c.policies)
			}
			if !d.Allow && d.Reason == "" {
				t.Error("a refusal without a reason")
			}
			if !d.Allow && !cmp.Equal(d.Obligations, policy.Obligations{}) {
				t.Error("a refusal with obligations")
			}
		})
	}
}

func TestObligationsOfAllMatchingPermitsApply(t *testing.T) {
	s := exampleSource(t)
	s.Files["more.cedar"] = `
@id("weaker") @mask("customers.email=null, public.customers.phone=redact+filter, customers.city=hash+filter") @limit("rows=5000") @record("digest")
permit (principal, action in Deputy::Action::"read", resource);
@id("full") @record("full") @mask("customers.city=hash")
permit (principal, action, resource) when { context.chain.purpose == "q3 refunds" };`
	set := load(t, s)
	r := ask("select", policy.Table("orders-db", "shop", "public", "customers"))
	r.Subject = subject(t, facts([]string{"analyst"}, planner))
	d := set.Decide(r)
	want := policy.Obligations{
		MaxRows: 1000, Record: policy.RecordFull,
		Masks: []policy.MaskRule{
			{Table: "customers", Column: "city", Masker: policy.MaskHash},
			{Table: "customers", Column: "email", Masker: policy.MaskNull},
			{Table: "customers", Column: "phone", Masker: policy.MaskLast4},
			{Schema: "public", Table: "customers", Column: "phone", Masker: policy.MaskRedact, Filter: true},
		},
	}
	if diff := cmp.Diff(want, d.Obligations); diff != "" {
		t.Errorf("obligations (-want +got):\n%s", diff)
	}
	m, ok := d.Obligations.Mask("public", "customers", "phone")
	if !ok || m.Masker != policy.MaskRedact || m.Filter {
		t.Errorf("phone is masked as %v (%v), want the stronger masker and no filter", m, ok)
	}
	if _, ok := d.Obligations.Mask("public", "orders", "email"); ok {
		t.Error("a rule for customers covers orders")
	}
	got := set.MaskedTables("orders-db")
	if diff := cmp.Diff([]policy.MaskedTable{{Table: "customers"}, {Schema: "public", Table: "customers"}}, got); diff != "" {
		t.Errorf("masked tables (-want +got):\n%s", diff)
	}
}

func TestExactDemandsAPolicyForThatVeryResource(t *testing.T) {
	s := exampleSource(t)
	s.Files["view.cedar"] = `@id("view") permit (principal in Deputy::Role::"analyst", action, resource == Deputy::Table::"orders-db/shop/public.v_ok");`
	set := load(t, s)
	for name, want := range map[string]bool{"v_ok": true, "v_other": false} {
		r := ask("select", policy.Table("orders-db", "shop", "public", name))
		r.Subject, r.Exact = subject(t, facts([]string{"analyst"}, planner)), true
		if d := set.Decide(r); d.Allow != want {
			t.Errorf("%s: allow %v (%s), want %v", name, d.Allow, d.Reason, want)
		}
	}
}

// Every detector that a policy may name is there, and every one that is there may be named.
func TestPoliciesAndMaskersKnowTheSameDetectors(t *testing.T) {
	for _, name := range []string{"email", "card", "iban", "phone"} {
		rules, err := policy.ParseMasks("detect:" + name + "=redact")
		if err != nil || len(rules) != 1 || rules[0].Detect != name || rules[0].String() != "detect:"+name+"=redact" {
			t.Errorf("%s: %v %v", name, rules, err)
		}
		if _, err := mask.ParseDetector(name); err != nil {
			t.Error(err)
		}
	}
	a, _ := policy.ParseMasks("detect:email=email, $.a=hash")
	b, _ := policy.ParseMasks("detect:email=hash, detect:card=last4")
	got := policy.Obligations{Masks: a}.And(policy.Obligations{Masks: b}).Masks
	if len(got) != 3 || got[0].String() != "detect:card=last4" || got[1].String() != "detect:email=hash" || got[2].String() != "$.a=hash" {
		t.Errorf("joined: %v", got)
	}
}
