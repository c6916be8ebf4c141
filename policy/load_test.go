package policy_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
)

// TestALoadErrorNamesThePlace holds every fault that a set can have to one line, with file, place, policy
// and what would be right.
func TestALoadErrorNamesThePlace(t *testing.T) {
	const head = "permit (principal, action, resource)"
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "\npermit (principal, action resource);", `bad.cedar:2:35: "," is expected before this place, not "resource"`},
		{"the end is missing", "\npermit (principal, action, resource)", `the file ends where ";" is expected`},
		{"unclosed string", "permit (principal == \"x", `bad.cedar:1:`},
		{"unknown annotation", "@mask(\"t.c=null\")\n@limits(\"rows=1\")\n" + head + ";", `bad.cedar:1:1: policy "bad.cedar:1": unknown annotation @limits`},
		{"annotation twice", "@mask(\"t.c=null\") @mask(\"t.d=null\") " + head + ";", `duplicate annotation: @mask`},
		{"approve", "@id(\"a\") @approve(\"dba:2\") " + head + ";", `policy "a": @approve("dba:2"): approvals aren't there yet`},
		{"bad masker", "@id(\"m\") @mask(\"t.c=blur\") " + head + ";", `unknown masker "blur"`},
		{"bad mask", "@mask(\"c=null\") " + head + ";", `"c=null" should read [schema.]table.column=masker[+filter]`},
		{"mask without value", "@mask(\"\") " + head + ";", `should read`},
		{"mask with trailing comma", "@mask(\"t.c=null,\") " + head + ";", `should read`},
		{"bad path", "@mask(\"$=null\") " + head + ";", `"$=null" should read $.member=masker`},
		{"path with an index", "@mask(\"$.a[0]=null\") " + head + ";", `should read $.member=masker`},
		{"path with a filter", "@mask(\"$.a=null+filter\") " + head + ";", `should read $.member=masker`},
		{"path with a bad masker", "@mask(\"$.a=blur\") " + head + ";", `unknown masker "blur"`},
		{"path twice", "@mask(\"$.a=null, $.a=hash\") " + head + ";", `stands there twice`},
		{"unknown detector", "@mask(\"detect:ssn=redact\") " + head + ";", `unknown detector "ssn"`},
		{"detector without a masker", "@mask(\"detect:email\") " + head + ";", `should read detect:kind=masker`},
		{"detector with a filter", "@mask(\"detect:email=redact+filter\") " + head + ";", `should read detect:kind=masker`},
		{"detector with a bad masker", "@mask(\"detect:email=blur\") " + head + ";", `unknown masker "blur"`},
		{"detector with null", "@mask(\"detect:card=null\") " + head + ";", `can't be null`},
		{"detector with a masker of another", "@mask(\"detect:card=email\") " + head + ";", `is for addresses`},
		{"detector twice", "@mask(\"detect:card=hash, $.a=hash, detect:card=last4\") " + head + ";", `detect:card stands there twice`},
		{"mask twice", "@mask(\"t.c=null, t.c=hash\") " + head + ";", `stands there twice`},
		{"bad limit", "@limit(\"1000\") " + head + ";", `should read "rows=<number>"`},
		{"limit zero", "@limit(\"rows=0\") " + head + ";", `should read "rows=<number>"`},
		{"limit with sign", "@limit(\"rows=+5\") " + head + ";", `should read "rows=<number>"`},
		{"bad record", "@record(\"all\") " + head + ";", `should read "full" or "digest"`},
		{"mask on a forbid", "@mask(\"t.c=null\") forbid (principal, action, resource);", `an obligation belongs to a permit`},
		{"bad id", "@id(\"a b\") " + head + ";", `an id is 1 to 64 letters`},
		{"id twice", "@id(\"x\") " + head + ";\n@id(\"x\") " + head + ";", `bad.cedar:2:1: policy "x": the id is taken already, at bad.cedar:1`},
		{"id of another file", "@id(\"no-ddl-by-agents\") " + head + ";", `the id is taken already`},
		{"unknown action", "permit (principal, action == Deputy::Action::\"postgres:selct\", resource);", `postgres:selct`},
		{"unknown type", "permit (principal is Deputy::Person, action, resource);", `Person`},
		{"unknown attribute", head + " when { context.chain.dept > 1 };", `dept`},
		{"wrong type", head + " when { context.chain.depth == \"2\" };", `bad.cedar:1:1`},
		{"misspelt grade", head + " when { context.chain.lowestGrade == Deputy::Grade::\"atested\" };", `atested`},
		{"unknown target", "permit (principal, action, resource in Deputy::Target::\"orders\");", `not among the set's targets`},
		{"unknown target in a condition", head + " when { resource in Deputy::Target::\"orders\" };", `not among the set's targets`},
		{"unknown target in a set", head + " when { resource in [Deputy::Target::\"orders-db\", Deputy::Target::\"orders\"] };", `not among the set's targets`},
		{"unknown group", "permit (principal, action, resource in Deputy::TargetGroup::\"prod\");", `no target of the set stands in that group`},
		{"table without a schema", "permit (principal, action, resource == Deputy::Table::\"orders-db/shop/orders\");", `should read <target>/<database>/<schema>.<table>`},
		{"table of an unknown target", "permit (principal, action, resource == Deputy::Table::\"x/shop/public.orders\");", `not among the set's targets`},
		{"another spelling of a name", "permit (principal, action, resource == Deputy::Table::\"orders-db/shop/public.a.b\");", `should be written "orders-db/shop/public.a%2Eb"`},
		{"database with a slash too many", "permit (principal, action, resource in Deputy::Database::\"orders-db/shop/\");", `should read <target>/<database>`},
		{"user without an issuer", "permit (principal == Deputy::User::\"alice\", action, resource);", `should read <issuer>#<subject>`},
		{"a group for an action", "forbid (principal, action == Deputy::Action::\"admin\", resource);", `bad.cedar:1:1`},
		{"a role for a user", "forbid (principal == Deputy::Role::\"analyst\", action, resource);", `bad.cedar:1:1`},
		{"a target for an object", "forbid (principal, action, resource == Deputy::Target::\"orders-db\");", `bad.cedar:1:1`},
		{"a group for an action in a condition", "forbid (principal, action, resource) when { action == Deputy::Action::\"admin\" };", `bad.cedar:1:1`},
		{"a target for an object in a condition", "forbid (principal, action, resource) when { resource == Deputy::Target::\"orders-db\" };", `bad.cedar:1:1`},
		{"action that doesn't apply", "permit (principal, action == Deputy::Action::\"postgres:set\", resource is Deputy::Table);", `bad.cedar:1:1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := exampleSource(t)
			s.Files["bad.cedar"] = c.text
			err := policy.Check(s)
			if err == nil {
				t.Fatal("loads")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v\nwant: %s", err, c.want)
			}
			if _, err := policy.Sign(newKey(t), s); err == nil {
				t.Error("signed")
			}
		})
	}
}

func TestALoadErrorNamesTheFrame(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*policy.Source)
		want   string
	}{
		{"no files", func(s *policy.Source) { s.Files = nil }, "a set has 1 to"},
		{"a path for a name", func(s *policy.Source) { s.Files["../x.cedar"] = "" }, "no plain file name"},
		{"not UTF-8", func(s *policy.Source) { s.Files["x.cedar"] = "\xff" }, "not UTF-8"},
		{"a large file", func(s *policy.Source) { s.Files["x.cedar"] = strings.Repeat(" ", 300<<10) }, "at most"},
		{"no time", func(s *policy.Source) { s.IssuedAt = 0 }, "issued_at"},
		{"a kind nobody knows", func(s *policy.Source) { s.Targets["x"] = policy.Target{Kind: "gopher"} }, `kind "gopher" is not known`},
		{"a target's name", func(s *policy.Source) { s.Targets["X/Y"] = policy.Target{Kind: "postgres"} }, "no target name"},
		{"a group twice", func(s *policy.Source) {
			s.Targets["x"] = policy.Target{Kind: "postgres", Groups: []string{"a", "a"}}
		}, "stands there twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := exampleSource(t)
			c.change(&s)
			if err := policy.Check(s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v, want %s", err, c.want)
			}
		})
	}
}
