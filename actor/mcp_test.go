package actor_test

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testverifier"
)

var (
	mcpTools     = strs{"search", "fetch", "write file"}
	mcpPatterns  = strs{"file:///a/*", "file:///a/b", "file:///a/b*", "file:///*", "memo:x", "memo:x/y"}
	mcpResources = strs{"file:///a/", "file:///a/b", "file:///a/bc", "file:///a/../b", "file:///a//b", "file:///a/%62", "file:///%2e/a", "File:///a/b", "memo:x", "memo:x/y", "memo:x/*", "file:///a?b", "a"}
)

func drawMCP(t *rapid.T) actor.MCPDetail {
	d := actor.MCPDetail{Locations: []spiffeid.ID{target}}
	pick := func(of strs, name string) []string {
		if rapid.Bool().Draw(t, "no "+name) {
			return nil
		}
		return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 1, 3, rapid.ID).Draw(t, name)
	}
	d.Actions = rapid.SliceOfNDistinct(rapid.SampledFrom(actor.MCPVerbs()), 4, 9, rapid.ID).Draw(t, "actions")
	d.Tools, d.Resources, d.Prompts = pick(mcpTools, "tools"), pick(mcpPatterns, "resources"), pick(mcpTools, "prompts")
	return d
}

func mcpActions() []actor.MCPAction {
	var out []actor.MCPAction
	for _, verb := range actor.MCPVerbs() {
		for kind, of := range map[string]strs{"": {"", "x"}, actor.MCPTool: mcpTools, actor.MCPPrompt: mcpTools, actor.MCPResource: mcpResources} {
			for _, object := range of {
				out = append(out, actor.MCPAction{Target: target, Verb: verb, Kind: kind, Object: object})
			}
		}
	}
	return out
}

// Narrowing never widens: what a capability within another covers, that one covers.
func TestNarrowedMCPCapabilitiesCoverNoMore(t *testing.T) {
	actions := mcpActions()
	within := 0
	rapid.Check(t, func(t *rapid.T) {
		child, parent := drawMCP(t), drawMCP(t)
		if rapid.Bool().Draw(t, "near") {
			parent = child
			parent.Resources = drawMCP(t).Resources
		}
		c, p := actor.Details{child}, actor.Details{parent}
		if c.Within(p) != nil {
			return
		}
		within++
		for _, a := range actions {
			if _, err := c.Match(a); err != nil {
				continue
			}
			if _, err := p.Match(a); err != nil {
				t.Fatalf("%+v is in %s but not in %s, which it lies within: %v", a, c, p, err)
			}
		}
	})
	if within < 5 {
		t.Errorf("%d lay within: the draw proves little", within)
	}
}

func TestTwoVerifiersCompareMCPCapabilitiesTheSame(t *testing.T) {
	second := testverifier.Start(t)
	r := rand.New(rand.NewPCG(20261126, 2))
	gen := rapid.Custom(drawMCP)
	actions := mcpActions()
	counts := map[string]int{}
	for i := range 1000 {
		parent, child, a := gen.Example(3*i), gen.Example(3*i+1), actions[r.IntN(len(actions))]
		if i%2 == 0 {
			child = parent
			child.Resources = gen.Example(3*i + 2).Resources
		}
		raw := func(d actor.MCPDetail) json.RawMessage { return must(json.Marshal([]any{d})) }
		var theirs struct{ Class string }
		second.Ask(t, map[string]any{"narrowing": map[string]any{"parent": raw(parent), "child": raw(child)}}, &theirs)
		c, p := actor.Details{child}, actor.Details{parent}
		if got := string(actor.ClassOf(c.Within(p))); got != theirs.Class {
			t.Errorf("ours %q, theirs %q: %s within %s", got, theirs.Class, raw(child), raw(parent))
		}
		counts["narrowing "+theirs.Class]++
		theirs.Class = ""
		second.Ask(t, map[string]any{"matching": map[string]any{"authorization_details": raw(parent),
			"action": map[string]any{"type": "deputy_mcp", "target": a.Target.String(), "verb": a.Verb, "kind": a.Kind, "object": a.Object}}}, &theirs)
		_, err := p.Match(a)
		if got := string(actor.ClassOf(err)); got != theirs.Class {
			t.Errorf("ours %q, theirs %q: %+v within %s", got, theirs.Class, a, raw(parent))
		}
		counts["matching "+theirs.Class]++
	}
	for _, want := range []string{"narrowing ", "narrowing details.wider", "matching ", "matching action.outside"} {
		if counts[want] < 30 {
			t.Errorf("%d times %q: the capabilities don't ask enough (%v)", counts[want], want, counts)
		}
	}
}

func TestMalformedMCPCapabilitiesAreRefused(t *testing.T) {
	second := testverifier.Start(t)
	capability := func(actions strs, member string, values strs) map[string]any {
		m := map[string]any{"type": "deputy_mcp", "locations": strs{target.String()}, "actions": actions}
		if member != "" {
			m[member] = values
		}
		return m
	}
	good := capability(strs{"call"}, "", nil)
	bad := map[string]any{"unknown action": capability(strs{"initialize"}, "", nil), "unknown member": capability(strs{"call"}, "paths", strs{"/a"})}
	for member, values := range map[string]strs{
		"tools":   {"", "a\nb", strings.Repeat("a", 129)},
		"prompts": {"", "a\x00"},
		"resources": {
			"", "*", "a", "/a", "File:///a", "1a:b", "a:b c", `a:\b`, "a:b?c", "a:b#c", "a:b/../c", "a:b/./c", "a://h//b", "a://H/b", "a:b//c", "a:%62", "a:%2f", "a:%2F", "a:%5C", "a:%25", "a:%zz", "a:%2", "a:%0A", "a:é",
			"a:<b>", "a:b^", "a:`", `a:"`, "a:../b", "a:b/..", "a:" + strings.Repeat("a", 1024),
		},
	} {
		for _, v := range values {
			bad[member+" "+v] = capability(strs{"call"}, member, strs{v})
		}
		bad[member+" empty"] = capability(strs{"call"}, member, strs{})
		bad[member+" twice"] = capability(strs{"call"}, member, strs{"a:b", "a:b"})
	}
	for name, d := range bad {
		_, err := actor.ParseDetails(must(json.Marshal([]any{d})))
		var theirs struct{ Class string }
		second.Ask(t, map[string]any{"narrowing": map[string]any{"parent": []any{good}, "child": []any{d}}}, &theirs)
		if err == nil || verdict(theirs.Class) != "malformed" {
			t.Errorf("%.60q: ours %v, theirs %q", name, err, theirs.Class)
		}
	}
	for _, uri := range []string{"file:///a/b", "file:///a/*", "https://h.example:8443/a%20b", "memo:x", "file:///{path}", "a:~|b", "postgres://db/t/schema", "file:///a/"} {
		_, err := actor.ParseDetails(must(json.Marshal([]any{capability(strs{"read"}, "resources", strs{uri})})))
		var theirs struct{ Class string }
		second.Ask(t, map[string]any{"narrowing": map[string]any{"parent": []any{capability(strs{"read"}, "", nil)}, "child": []any{capability(strs{"read"}, "resources", strs{uri})}}}, &theirs)
		if err != nil || theirs.Class != "" {
			t.Errorf("%q: ours %v, theirs %q", uri, err, theirs.Class)
		}
	}
}
