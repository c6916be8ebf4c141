package actor_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

var (
	httpTemplates = strs{"/", "/*", "/a", "/a/", "/a/*", "/{x}", "/{x}/b", "/a/{y}", "/{x}/*", "/a/b", "/a/b/*", "/{x}/{y}"}
	httpPaths     = strs{"/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/b", "/b/b", "/{x}", "/*", "/a/*"}
)

func drawHTTP(t *rapid.T) actor.HTTPDetail {
	from := func(list strs) *rapid.Generator[[]string] {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(list), 1, 3, rapid.ID[string])
	}
	return actor.HTTPDetail{
		Locations: []spiffeid.ID{target}, Actions: rapid.SliceOfNDistinct(rapid.SampledFrom(actor.HTTPVerbs()), 3, 9, rapid.ID[string]).Draw(t, "actions"),
		Paths: maybe(t, from(httpTemplates), "paths"), Query: maybe(t, from(strs{"x", "y", "z"}), "query"),
	}
}

func httpActions() []actor.HTTPAction {
	var out []actor.HTTPAction
	for _, verb := range actor.HTTPVerbs() {
		for _, path := range httpPaths {
			for _, query := range []string{"", "x", "x&y"} {
				out = append(out, actor.HTTPAction{Target: target, Verb: verb, Path: path, Query: query})
			}
		}
	}
	return out
}

func TestNoNarrowingOfRequestsEverWidens(t *testing.T) {
	noNarrowingWidens(t, func(t *rapid.T) (parent, child actor.Detail) {
		p, c := drawHTTP(t), drawHTTP(t)
		if rapid.Bool().Draw(t, "close") {
			c = p
			c.Actions = p.Actions[:2]
			c.Paths = drawHTTP(t).Paths
		}
		return p, c
	}, func(*rapid.T) []actor.HTTPAction { return httpActions() }, 5)
}

// Narrowing and matching of requests come out the same in both verifiers.
func TestTwoVerifiersCompareHTTPCapabilitiesTheSame(t *testing.T) {
	second := compare(t)
	r := rand.New(rand.NewPCG(20261126, 1))
	gen := rapid.Custom(drawHTTP)
	actions := httpActions()
	for i := range 1000 {
		parent, child, a := gen.Example(3*i), gen.Example(3*i+1), actions[r.IntN(len(actions))]
		if i%2 == 0 {
			child = parent
			child.Paths = gen.Example(3*i + 2).Paths
		}
		second.ask(parent, child, a, map[string]any{"type": "deputy_http", "target": a.Target.String(), "verb": a.Verb, "path": a.Path, "query": append(strs{}, actor.SplitQueryKeys(a.Query)...)})
	}
	second.enough(50)
}

func TestMalformedHTTPCapabilitiesAreRefused(t *testing.T) {
	second := compare(t)
	httpCap := func(kind string, actions strs, more ...any) map[string]any {
		m := map[string]any{"type": kind, "locations": strs{target.String()}, "actions": actions}
		for i := 0; i < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	good := httpCap("deputy_http", strs{"get"})
	bad := map[string]any{
		"unknown action": httpCap("deputy_http", strs{"everything"}), "unknown member": httpCap("deputy_http", strs{"get"}, "accounts", strs{"x"}),
		"a method in capitals": httpCap("deputy_http", strs{"GET"}), "no such tcp action": httpCap("deputy_tcp", strs{"get"}),
		"tcp with paths": httpCap("deputy_tcp", strs{"connect"}, "paths", strs{"/a"}), "no tcp action": httpCap("deputy_tcp", strs{}),
	}
	for member, values := range map[string]strs{
		"paths": {"", "a", "*", "//", "/a//b", "/a/../b", "/./b", "/a.", "/a /b", "/a*", "/*/a", "/{}/a", "/{a b}", "/a{b}", "/{a}{b}", "/a;b", "/a%2fb", `/a\b`, "/a?b", "/a#b", "/a\nb", "/" + strings.Repeat("a", 1024)},
		"query": {"", "a b", "a&b", "a=b", "a;b", "a+b", "a%20", "a#", "a\x00", strings.Repeat("a", 129)},
	} {
		for _, v := range values {
			bad[member+" "+v] = httpCap("deputy_http", strs{"get"}, member, strs{v})
		}
		bad[member+" empty"] = httpCap("deputy_http", strs{"get"}, member, strs{})
		bad[member+" twice"] = httpCap("deputy_http", strs{"get"}, member, strs{"/a", "/a"})
	}
	second.judge(good, bad, true)
}

func TestTCPCapabilitiesOnlyConnect(t *testing.T) {
	a := actor.TCPAction{Target: target, Verb: "connect"}
	d := actor.Details{actor.TCPDetail{Locations: []spiffeid.ID{target}, Actions: actor.TCPVerbs()}}
	if _, err := d.Match(a); err != nil {
		t.Error(err)
	}
	for name, other := range map[string]actor.Action{
		"another verb": actor.TCPAction{Target: target, Verb: "get"}, "another target": actor.TCPAction{Verb: "connect"}, "a request": actor.HTTPAction{Target: target, Verb: "get", Path: "/"},
	} {
		if _, err := d.Match(other); err == nil {
			t.Errorf("%s is covered", name)
		}
	}
	if err := (actor.Details{drawHTTPOf("get")}).Within(d); err == nil {
		t.Error("a capability on requests lies within one on connections")
	}
}

func drawHTTPOf(verb string) actor.HTTPDetail {
	return actor.HTTPDetail{Locations: []spiffeid.ID{target}, Actions: []string{verb}}
}
