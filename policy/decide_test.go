package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/policy"
)

// TestAForbidThatFailsIsARefusal: Cedar skips a policy that errors, so an error in a forbid would
// otherwise turn into a permission. Adding up large ages overflows, which no validation can foresee.
func TestAForbidThatFailsIsARefusal(t *testing.T) {
	s := exampleSource(t)
	s.Files["trap.cedar"] = `@id("trap") forbid (principal, action, resource) when { context.chain.signInAge * 9223372036854775807 > 0 };`
	set := load(t, s)
	r := ask("select", policy.Table("orders-db", "shop", "public", "orders"))
	r.Subject = subject(t, facts([]string{"analyst"}, planner))
	d := set.Decide(r)
	if d.Allow || d.Err == nil || !cmp.Equal(d.Policies, []string{"trap"}) || !strings.Contains(d.Reason, `"trap"`) {
		t.Errorf("got %+v, want a refusal that names the policy", d)
	}
}

func TestWhatCantBeAskedIsRefused(t *testing.T) {
	s := exampleSource(t)
	s.Files["all.cedar"] = `permit (principal, action, resource);`
	set := load(t, s)
	table := policy.Table("orders-db", "shop", "public", "orders")
	good := ask("select", table)
	good.Subject = subject(t, facts(nil, planner))
	if d := set.Decide(good); !d.Allow {
		t.Fatalf("the control is refused: %+v", d)
	}
	for name, change := range map[string]func(*policy.Request){
		"unknown action":        func(r *policy.Request) { r.Action = "postgres:peek" },
		"a group for an action": func(r *policy.Request) { r.Action = "read" },
		"unknown target":        func(r *policy.Request) { r.Resource.Target = "payroll" },
		"no subject":            func(r *policy.Request) { r.Subject = nil },
		"no table name":         func(r *policy.Request) { r.Resource.Name = "" },
		"unknown kind":          func(r *policy.Request) { r.Resource.Kind = "cube" },
		"name that isn't UTF-8": func(r *policy.Request) { r.Resource.Name = "\xff" },
		"action on a wrong object": func(r *policy.Request) {
			r.Action = "postgres:insert"
			r.Resource = policy.Database("orders-db", "shop")
		},
		"two databases": func(r *policy.Request) { r.Command.Database = "hr" },
	} {
		r := good
		change(&r)
		if d := set.Decide(r); d.Allow || d.Err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestAChainThatCantBeJudgedHasNoSubject(t *testing.T) {
	for name, change := range map[string]func(*policy.Facts){
		"no user":             func(f *policy.Facts) { f.User.Subject = "" },
		"issuer with a #":     func(f *policy.Facts) { f.User.Issuer = "https://a#b" },
		"no agents":           func(f *policy.Facts) { f.Agents = nil },
		"unknown grade":       func(f *policy.Facts) { f.Agents[0].Grade = "certified" },
		"unknown evidence":    func(f *policy.Facts) { f.RootEvidence = "" },
		"a role as an agent":  func(f *policy.Facts) { f.Agents[0].ID = "spiffe://example.org/deputy/proxy/x" },
		"half a path":         func(f *policy.Facts) { f.Agents[0].ID = "spiffe://example.org/agent/planner" },
		"no time of sign-in":  func(f *policy.Facts) { f.SignedIn = time.Time{} },
		"more agents than 64": func(f *policy.Facts) { f.Agents = make([]policy.Agent, 65) },
	} {
		f := facts(nil, planner)
		change(&f)
		if _, err := policy.NewSubjectFromFacts(f); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestFactsOfTheChain asks for each fact by a policy that permits only if the fact is as it should be.
func TestFactsOfTheChain(t *testing.T) {
	f := facts([]string{"analyst", "on-call"}, planner, researcher)
	f.Agents[1].Grade = "asserted"
	f.ACR = "mfa"
	two := facts(nil, planner, stranger)
	abroad := facts(nil, foreign)
	for _, c := range []struct {
		facts policy.Facts
		when  string
		want  bool
	}{
		{f, `context.chain.actors == ["planner", "planner/researcher"]`, true},
		{f, `context.chain.actors.contains("researcher")`, false},
		{f, `context.chain.actorIds.contains("` + researcher + `")`, true},
		{f, `context.chain.within == ["planner"]`, true},
		{f, `context.chain.leaf == "planner/researcher" && context.chain.leafId == "` + researcher + `"`, true},
		{f, `context.chain.depth == 2`, true},
		{f, `context.chain.lowestGrade == Deputy::Grade::"asserted"`, true},
		{f, `context.chain.rootEvidence == Deputy::Evidence::"verified"`, true},
		{f, `context.chain.purpose == "q3 refunds" && context.chain.acr == "mfa"`, true},
		{f, `context.chain.roles.containsAll(["analyst", "on-call"])`, true},
		{f, `principal in Deputy::Role::"on-call"`, true},
		{f, `principal in Deputy::Role::"admin"`, false},
		{f, `principal.iss == "https://login.example.org" && principal.sub == "alice"`, true},
		{f, `principal == Deputy::User::"https://login.example.org#alice"`, true},
		{f, `context.chain.signInAge == 600 && context.chain.sessionAge == 300 && context.chain.tokenAge == 60`, true},
		{f, `context.command.account == "shop_reader" && context.command.database == "shop" && context.command.kind == "select" && !context.command.readOnly`, true},
		{f, `resource in Deputy::TargetGroup::"demo" && resource in Deputy::Target::"orders-db" && resource in Deputy::Database::"orders-db/shop"`, true},
		{f, `resource has schema && resource.schema == "public" && resource.name == "orders" && resource.database == "shop" && resource.target == "orders-db"`, true},
		{f, `action in Deputy::Action::"read"`, true},
		{f, `action in Deputy::Action::"write"`, false},
		{two, `context.chain.within.isEmpty()`, true},
		{two, `context.chain.lowestGrade == Deputy::Grade::"attested"`, true},
		{abroad, `context.chain.leaf == "//other.example/planner" && context.chain.within == ["//other.example/planner"]`, true},
	} {
		s := exampleSource(t)
		s.Files = map[string]string{"fact.cedar": `permit (principal, action == Deputy::Action::"postgres:select", resource is Deputy::Table) when { ` + c.when + ` };`}
		set := load(t, s)
		r := ask("select", policy.Table("orders-db", "shop", "public", "orders"))
		r.Subject = subject(t, c.facts)
		if d := set.Decide(r); d.Allow != c.want || d.Err != nil {
			t.Errorf("%s: allow %v (%v), want %v", c.when, d.Allow, d.Err, c.want)
		}
	}
}

func TestAnAgeIsRoundedUp(t *testing.T) {
	s := exampleSource(t)
	s.Files = map[string]string{"age.cedar": `permit (principal, action, resource) when { context.chain.tokenAge <= 60 };`}
	set := load(t, s)
	r := ask("select", policy.Database("orders-db", "shop"))
	r.Subject = subject(t, facts(nil, planner))
	r.Now = now.Add(time.Nanosecond)
	if d := set.Decide(r); d.Allow {
		t.Error("60 seconds and a nanosecond passed for 60 seconds")
	}
}

// TestTheIndexFindsWhatTheFullSetFinds compares the decision by the action index with that of the whole
// set, for random sets of policies and every action.
func TestTheIndexFindsWhatTheFullSetFinds(t *testing.T) {
	actions := append(policy.Actions(), "read", "write", "admin")
	rapid.Check(t, func(rt *rapid.T) {
		var text strings.Builder
		for i := range rapid.IntRange(1, 12).Draw(rt, "policies") {
			effect := rapid.SampledFrom([]string{"permit", "forbid"}).Draw(rt, "effect")
			principal := rapid.SampledFrom([]string{"principal", `principal in Deputy::Role::"analyst"`, `principal in Deputy::Role::"support"`}).Draw(rt, "principal")
			action := "action"
			switch one := func() string {
				return fmt.Sprintf("Deputy::Action::%q", rapid.SampledFrom(actions).Draw(rt, "action"))
			}; rapid.IntRange(0, 3).Draw(rt, "scope") {
			case 1:
				action = "action == " + fmt.Sprintf("Deputy::Action::%q", rapid.SampledFrom(policy.Actions()).Draw(rt, "action"))
			case 2:
				action = "action in " + one()
			case 3:
				action = "action in [" + one() + ", " + one() + "]"
			}
			condition := rapid.SampledFrom([]string{
				"", ` when { action in Deputy::Action::"write" }`, ` unless { context.chain.depth > 1 }`,
				` when { context.chain.signInAge * 9223372036854775807 > 0 }`,
			}).Draw(rt, "condition")
			fmt.Fprintf(&text, "@id(\"p%d\") %s (%s, %s, resource)%s;\n", i, effect, principal, action, condition)
		}
		s := exampleSource(t)
		s.Files = map[string]string{"random.cedar": text.String()}
		set, err := policy.Compile(s)
		if err != nil {
			rt.Fatalf("%v in\n%s", err, text.String())
		}
		roles := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"analyst", "support"}), rapid.ID).Draw(rt, "roles")
		for _, action := range policy.Actions() {
			for _, resource := range []policy.Resource{policy.Database("orders-db", "shop"), policy.Table("orders-db", "shop", "public", "orders")} {
				r := ask(strings.TrimPrefix(action, "postgres:"), resource)
				r.Subject = subject(t, facts(roles, planner))
				byIndex, byAll := set.Decide(r), policy.DecideByFullSet(set, r)
				if byIndex.Allow != byAll.Allow || (byIndex.Err == nil) != (byAll.Err == nil) || !cmp.Equal(byIndex.Policies, byAll.Policies) || !cmp.Equal(byIndex.Obligations, byAll.Obligations) {
					rt.Fatalf("%s on %s: the index says %+v, the full set %+v, for\n%s", action, resource, byIndex, byAll, text.String())
				}
			}
		}
	})
}

// TestIDsOfDifferentObjectsDiffer: a name with a dot or a slash in it must not spell another object.
func TestIDsOfDifferentObjectsDiffer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.StringMatching(`[a-b./%2FE]{1,6}`)
		kind := rapid.SampledFrom([]policy.Kind{policy.KindTable, policy.KindFunction, policy.KindSetting, policy.KindChannel, policy.KindDatabase})
		draw := func(l string) policy.Resource {
			r := policy.Resource{Kind: kind.Draw(rt, l), Target: "t", Database: name.Draw(rt, l)}
			switch r.Kind {
			case policy.KindTable, policy.KindFunction:
				r.Schema, r.Name = name.Draw(rt, l), name.Draw(rt, l)
			case policy.KindSetting, policy.KindChannel:
				r.Name = name.Draw(rt, l)
			}
			return r
		}
		a, b := draw("a"), draw("b")
		if a != b && a.Kind == b.Kind && a.ID() == b.ID() {
			rt.Fatalf("%+v and %+v share the id %s", a, b, a.ID())
		}
		back, err := policy.ParseResourceForTest(a)
		if err != nil || back != a {
			rt.Fatalf("%+v came back as %+v (%v)", a, back, err)
		}
	})
}
