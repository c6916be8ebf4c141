package actor_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/actor"
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
	noNarrowingWidens(t, func(t *rapid.T) (parent, child actor.Detail) {
		c, p := drawMCP(t), drawMCP(t)
		if rapid.Bool().Draw(t, "near") {
			p = c
			p.Resources = drawMCP(t).Resources
		}
		return p, c
	}, func(*rapid.T) []actor.MCPAction { return mcpActions() }, 5)
}

func TestTwoVerifiersCompareMCPCapabilitiesTheSame(t *testing.T) {
	second := compare(t)
	r := rand.New(rand.NewPCG(20261126, 2))
	gen := rapid.Custom(drawMCP)
	actions := mcpActions()
	for i := range 1000 {
		parent, child, a := gen.Example(3*i), gen.Example(3*i+1), actions[r.IntN(len(actions))]
		if i%2 == 0 {
			child = parent
			child.Resources = gen.Example(3*i + 2).Resources
		}
		second.ask(parent, child, a, map[string]any{"type": "deputy_mcp", "target": a.Target.String(), "verb": a.Verb, "kind": a.Kind, "object": a.Object})
	}
	second.enough(30)
}

func TestMalformedMCPCapabilitiesAreRefused(t *testing.T) {
	second := compare(t)
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
	second.judge(good, bad, true)
	fine := map[string]any{}
	for _, uri := range []string{"file:///a/b", "file:///a/*", "https://h.example:8443/a%20b", "memo:x", "file:///{path}", "a:~|b", "postgres://db/t/schema", "file:///a/"} {
		fine[uri] = capability(strs{"read"}, "resources", strs{uri})
	}
	second.judge(capability(strs{"read"}, "", nil), fine, false)
}
