package policy_test

import (
	"fmt"
	"runtime"
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
@id("filter") permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Tool::"tools/find")
  when { resource.hasTag("/filter/path") && resource.getTag("/filter/path") like "/public/*" && ["/filter/path", "/filter/kinds/*"].containsAll(resource.nested) };
@id("two") permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Tool::"tools/two")
  when { resource.hasTag("/paths/0") && resource.getTag("/paths/0") like "/public/*" && !resource.hasTag("/paths/1") && resource.nested == ["/paths/*"] };
@id("no-deep-force") forbid (principal, action, resource is Deputy::Tool in Deputy::Target::"tools") when { resource.nested.contains("/steps/*/force") };
@id("steps") permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Tool::"tools/steps");
@id("slash") permit (principal, action == Deputy::Action::"mcp:call", resource == Deputy::Tool::"tools/slash") when { resource.hasTag("/a/b") && resource.getTag("/a/b") == "yes" };
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
		{"mcp:call", tool("find", `{"filter":{"path":"/public/a"}}`), "filter"},
		{"mcp:call", tool("find", `{"filter":{"p\u0061th":"/public/a","kinds":["x",{},[]]},"n":1}`), "filter"},
		{"mcp:call", tool("find", `{"filter":{"path":"/secret/a"}}`), ""},
		{"mcp:call", tool("find", `{"filter":{"path":"/public/a","more":1}}`), ""},
		{"mcp:call", tool("find", `{"filter":{"path":"/public/a","kinds":{"*":"x"}}}`), ""},
		{"mcp:call", tool("find", `{"filter":{"path":"/public/a","kinds":{"0":"x"}}}`), ""},
		{"mcp:call", tool("find", `{"filter":{"path":["/public/a"]}}`), ""},
		{"mcp:call", tool("find", `{"/filter/path":"/public/a"}`), ""},
		{"mcp:call", tool("find", `{"/filter/path":"/public/a","filter":{"path":"/secret/a"}}`), ""},
		{"mcp:call", tool("find", `{"filter":{"path":"/public/a"},"filter/path":{"x":1}}`), ""},
		{"mcp:call", tool("two", `{"paths":["/public/a"]}`), "two"},
		{"mcp:call", tool("two", `{"paths":["/public/a","/secret/b"]}`), ""},
		{"mcp:call", tool("two", `{"paths":{"0":"/public/a"}}`), ""},
		{"mcp:call", tool("steps", `{"steps":[{"a":1},{"b":{"c":2}}]}`), "steps"},
		{"mcp:call", tool("steps", `{"steps":[{"a":1},{"a":2},{"force":null}]}`), ""},
		{"mcp:call", tool("steps", `{"steps":[{"force":{}}]}`), ""},
		{"mcp:call", tool("steps", `{"/force":1}`), "steps"},
		{"mcp:call", tool("slash", `{"a":{"b":"yes"}}`), "slash"},
		{"mcp:call", tool("slash", `{"/a/b":"yes"}`), ""},
		{"mcp:call", tool("slash", `{"a/b":"yes"}`), ""},
		{"mcp:call", tool("slash", `{"a":"no","":{"a":{"b":"yes"}}}`), ""},
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

// A small text can't become a large one by the names that its values stand under.
func TestArgumentsThatHoldTooMuchAreNotDecided(t *testing.T) {
	name := strings.Repeat("n", 1000)
	for what, text := range map[string]string{
		"values": `{"a":[` + strings.Repeat("1,", 20_000) + `1]}`,
		"names":  `{"` + name + `":[` + strings.Repeat("1,", 5_000) + `1]}`,
		"levels": `{"a":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`,
	} {
		if _, err := policy.Arguments([]byte(text)); err == nil || !strings.Contains(err.Error(), "than can be decided") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if text, err := policy.Arguments([]byte(`{"a":[` + strings.Repeat("1,", 10_000) + `1]}`)); err != nil || len(text) < 100_000 {
		t.Errorf("%d bytes: %v", len(text), err)
	}
}

// What a tool was called with isn't remembered: an agent could fill the proxy's memory with it.
func TestLongArgumentsAreNotRemembered(t *testing.T) {
	set := load(t, toolSource(toolPolicies))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 40 {
		text, err := policy.Arguments([]byte(fmt.Sprintf(`{"n":%d,"a":%q}`, i, strings.Repeat("x", 1<<20))))
		if err != nil {
			t.Fatal(err)
		}
		if d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "mcp:call", Resource: policy.Tool("tools", "steps", text)}); !d.Allow {
			t.Fatalf("%+v", d)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 16<<20 {
		t.Errorf("%d MiB are kept", kept>>20)
	}
	runtime.KeepAlive(set)
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
