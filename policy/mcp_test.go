package policy_test

import (
	"strings"
	"testing"

	"github.com/deputymesh/deputy/policy"
)

const toolPolicies = `
@id("connect") permit (principal, action in [Deputy::Action::"mcp:connect", Deputy::Action::"mcp:list"], resource == Deputy::Service::"tools");
@id("read") permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Tool::"tools/read")
  when { resource.hasTag("path") && resource.getTag("path") like "/public/*" };
@id("few") permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Tool::"tools/top") when { resource.hasTag("n") && resource.getTag("n") == "10" };
@id("any") permit (principal, action in Deputy::Action::"write", resource == Deputy::Tool::"tools/any %2F tool");
@id("no-force") forbid (principal, action, resource is Deputy::Tool in Deputy::Target::"tools") when { resource.arguments.contains("force") };
@id("memo") permit (principal, action in Deputy::Action::"read", resource is Deputy::McpResource in Deputy::Target::"tools") when { resource.uri like "memo:///public/*" };
@id("prompt") permit (principal, action == Deputy::Action::"mcp:prompt", resource == Deputy::Prompt::"tools/review");
`

func toolSource(text string) policy.Source {
	return policy.Source{
		Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{"tools.cedar": text},
		Targets: map[string]policy.Target{"tools": {Kind: "mcp"}, "orders-db": {Kind: "postgres"}},
	}
}

func TestToolsAreDecidedByTheirArguments(t *testing.T) {
	set := load(t, toolSource(toolPolicies))
	tool := func(name, arguments string) policy.Resource {
		text, err := policy.Arguments([]byte(arguments))
		if err != nil {
			t.Fatal(err)
		}
		return policy.Tool("tools", name, text)
	}
	for _, c := range []struct {
		action string
		on     policy.Resource
		by     string // "" for a refusal
	}{
		{"mcp:connect", policy.Service("tools"), "connect"},
		{"mcp:sampling", policy.Service("tools"), ""},
		{"mcp:list", policy.Service("tools"), "connect"},
		{"mcp:list", tool("read", ""), ""},
		{"mcp:call", tool("read", `{"path":"/public/a"}`), "read"},
		{"mcp:call", tool("read", `{"path":"\/publi\u0063/a"}`), "read"},
		{"mcp:call", tool("read", `{"path":"/secret/a"}`), ""},
		{"mcp:call", tool("read", `{"path":["/public/a"]}`), ""},
		{"mcp:call", tool("read", `{"path":{"a":"/public/a"}}`), ""},
		{"mcp:call", tool("read", `{"path":null}`), ""},
		{"mcp:call", tool("read", `{"Path":"/public/a"}`), ""},
		{"mcp:call", tool("read", ""), ""},
		{"mcp:call", tool("read", `{"path":"/public/a","force":null}`), ""},
		{"mcp:call", tool("read", `{"path":"/public/a","force":{}}`), ""},
		{"mcp:call", tool("top", `{"n":10}`), "few"},
		{"mcp:call", tool("top", `{"n":1e1}`), "few"},
		{"mcp:call", tool("top", `{"n":10.0}`), "few"},
		{"mcp:call", tool("top", `{"n":10.5}`), ""},
		{"mcp:call", tool("any / tool", ""), "any"},
		{"mcp:call", tool("any", ""), ""},
		{"mcp:read", policy.MCPResource("tools", "memo:///public/a"), "memo"},
		{"mcp:subscribe", policy.MCPResource("tools", "memo:///public/a"), "memo"},
		{"mcp:read", policy.MCPResource("tools", "memo:///secret/b"), ""},
		{"mcp:prompt", policy.Prompt("tools", "review", ""), "prompt"},
		{"mcp:prompt", policy.Prompt("tools", "attack", ""), ""},
	} {
		r := policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: c.action, Resource: c.on}
		d := set.Decide(r)
		if d.Err != nil || d.Allow != (c.by != "") || d.Allow && strings.Join(d.Policies, ",") != c.by {
			t.Errorf("%s on %s %s: %+v, want %q", c.action, c.on, c.on.Arguments, d, c.by)
		}
	}
}

func TestWhatIsNoObjectOfAToolServerIsUndecided(t *testing.T) {
	set := load(t, toolSource(toolPolicies))
	for name, r := range map[string]policy.Resource{
		"a path around":         policy.MCPResource("tools", "memo:///public/../secret/b"),
		"a URI with arguments":  {Kind: policy.KindMCPResource, Target: "tools", Name: "memo:///public/a", Arguments: `{"a":"b"}`},
		"a tool with a query":   {Kind: policy.KindTool, Target: "tools", Name: "read", Query: "a"},
		"a tool without a name": policy.Tool("tools", "", ""),
		"arguments unsorted":    policy.Tool("tools", "read", `{"b":"1","a":"2"}`),
		"arguments in numbers":  policy.Tool("tools", "read", `{"a":1}`),
		"arguments in a list":   policy.Tool("tools", "read", `["a"]`),
	} {
		action := "mcp:call"
		if r.Kind == policy.KindMCPResource {
			action = "mcp:read"
		}
		if d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: action, Resource: r}); d.Allow || d.Err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestPoliciesAboutToolsMustBeSpelledRight(t *testing.T) {
	for name, text := range map[string]string{
		"a tag that may be missing": `permit (principal, action == Deputy::Action::"mcp:call", resource) when { resource.getTag("path") == "/a" };`,
		"a call of a service":       `permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Service::"tools");`,
	} {
		if err := policy.Check(toolSource("@id(\"x\") " + text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
