package actor_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/actor"
)

const rbacGroup = "rbac.authorization.k8s.io"

var (
	kubePatterns   = strs{"pods", "pods/*", "pods/exec", "pods/log", "*", "*.*", "*/*", "*.*/*", "deployments.apps", "deployments.*", "*.apps", "*.apps/scale", "secrets", "roles." + rbacGroup}
	kubeNamespaces = strs{"shop", "shop-eu", "shop-*", "s*", "*", "kube-system"}
	kubeNames      = strs{"web", "web-1", "web-*", "w*", "*", "system:node", "web.*"}
	kubeCommands   = strs{"ls", "ls -l", "cat '/a b'", "'l s'", "sh -c 'id; ls'", "''"}
	kubePaths      = strs{"/healthz", "/healthz/*", "/*", "/metrics"}
)

func drawKube(t *rapid.T) actor.KubeDetail {
	pick := func(of strs, name string) []string {
		if rapid.IntRange(0, 2).Draw(t, "no "+name) > 0 {
			return nil
		}
		return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 1, 4, rapid.ID).Draw(t, name)
	}
	return actor.KubeDetail{
		Locations: []spiffeid.ID{target}, Actions: rapid.SliceOfNDistinct(rapid.SampledFrom(actor.KubeVerbs()), 8, 19, rapid.ID).Draw(t, "actions"),
		Resources: pick(kubePatterns, "resources"), Namespaces: pick(kubeNamespaces, "namespaces"), Names: pick(kubeNames, "names"),
		Containers: pick(strs{"app", "side"}, "containers"), Commands: pick(kubeCommands, "commands"), Programs: pick(strs{"ls", "cat", "sh"}, "programs"),
		Paths: pick(kubePaths, "paths"),
	}
}

func drawKubeAction(t *rapid.T) actor.KubeAction {
	from := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	a := actor.KubeAction{Target: target, Verb: from("verb", actor.KubeVerbs()...)}
	if a.Verb == "nonresource" && rapid.Bool().Draw(t, "path") {
		a.Path = from("path", "/healthz", "/healthz/", "/healthz/ready", "/metrics", "/a/../b", "/a//b", "")
		return a
	}
	a.Object = rapid.SampledFrom([]actor.KubeObject{
		{Resource: "pods"}, {Resource: "pods", Subresource: "log"}, {Resource: "pods", Subresource: "exec"}, {Resource: "pods", Subresource: "attach"},
		{Resource: "pods", Subresource: "portforward"}, {Resource: "pods", Subresource: "ephemeralcontainers"}, {Resource: "services", Subresource: "proxy"},
		{Resource: "nodes", Subresource: "proxy"}, {Resource: "serviceaccounts", Subresource: "token"}, {Resource: "secrets"}, {Group: "apps", Resource: "deployments"},
		{Group: "apps", Resource: "deployments", Subresource: "scale"}, {Group: rbacGroup, Resource: "roles"}, {Group: rbacGroup, Resource: "clusterrolebindings"},
		{Group: "certificates.k8s.io", Resource: "certificatesigningrequests", Subresource: "approval"}, {Group: "Apps", Resource: "deployments"}, {Resource: "Pods"},
	}).Draw(t, "object")
	a.Object.Namespace = from("namespace", "", "shop", "shop", "shop-eu", "other", "Shop")
	a.Object.Name = from("name", "", "web", "web-1", "web-*", "system:node", "..", "a b")
	if rapid.IntRange(0, 3).Draw(t, "container there") == 0 {
		a.Object.Container = from("container", "app", "other", "a_b")
	}
	if (a.Verb == "exec") == (rapid.IntRange(0, 9).Draw(t, "odd") > 0) {
		a.Object.Command = from("command", append(kubeCommands, "rm", "ls  -l", "'ls'", "a;b", "'a'\\''b'", "x '")...)
	}
	return a
}

// near changes one member of a detail to another's.
func nearKube(t *rapid.T, d, other actor.KubeDetail) actor.KubeDetail {
	switch rapid.IntRange(0, 6).Draw(t, "member") {
	case 0:
		d.Resources = other.Resources
	case 1:
		d.Namespaces = other.Namespaces
	case 2:
		d.Names = other.Names
	case 3:
		d.Containers = other.Containers
	case 4:
		d.Commands = other.Commands
	case 5:
		d.Programs = other.Programs
	case 6:
		d.Paths = other.Paths
	}
	return d
}

// Narrowing never widens: what a capability within another covers, that one covers.
func TestNarrowedKubeCapabilitiesCoverNoMore(t *testing.T) {
	noNarrowingWidens(t, func(t *rapid.T) (parent, child actor.Detail) {
		p := drawKube(t)
		return p, nearKube(t, p, drawKube(t))
	}, func(t *rapid.T) []actor.KubeAction {
		out := make([]actor.KubeAction, 60)
		for i := range out {
			out[i] = drawKubeAction(t)
		}
		return out
	}, 20)
}

func TestTwoVerifiersCompareKubeCapabilitiesTheSame(t *testing.T) {
	second := compare(t)
	type pair struct {
		parent, child actor.KubeDetail
		action        actor.KubeAction
	}
	gen := rapid.Custom(func(t *rapid.T) pair {
		parent := drawKube(t)
		return pair{parent, nearKube(t, parent, drawKube(t)), drawKubeAction(t)}
	})
	r := rand.New(rand.NewPCG(20261126, 3))
	for range 2000 {
		q := gen.Example(r.IntN(1 << 30))
		o := q.action.Object
		second.ask(q.parent, q.child, q.action, map[string]any{
			"type": "deputy_kube", "target": q.action.Target.String(), "verb": q.action.Verb, "path": q.action.Path, "group": o.Group, "resource": o.Resource,
			"subresource": o.Subresource, "namespace": o.Namespace, "name": o.Name, "container": o.Container, "command": o.Command,
		})
	}
	second.enough(50)
}

func TestMalformedKubeCapabilitiesAreRefused(t *testing.T) {
	second := compare(t)
	capability := func(actions strs, member string, values strs) map[string]any {
		m := map[string]any{"type": "deputy_kube", "locations": strs{target.String()}, "actions": actions}
		if member != "" {
			m[member] = values
		}
		return m
	}
	good := capability(strs{"get"}, "", nil)
	bad := map[string]any{"unknown action": capability(strs{"discover"}, "", nil), "unknown member": capability(strs{"get"}, "tables", strs{"a.b"})}
	for member, values := range map[string]strs{
		"resources":  {"", "Pods", "pods/", "/log", "pods.", ".apps", "pods.apps.", "pods..apps", "po*", "pods/lo*", "pods/log/x", "*.", "pods.app*", "a_b", "-a", "pods/a.b", strings.Repeat("a", 64), "a." + strings.Repeat("a.", 130) + "a"},
		"namespaces": {"", "Shop", "a.b", "-a", "a-", "a*b", "a**", "_*", strings.Repeat("a", 64)},
		"names":      {"", ".", "..", ".a", "a.", "a/b", "a%2fb", "a b", "a*b", "a**", ".*", "a;b", "a?b", "é", "a\nb", strings.Repeat("a", 254)},
		"containers": {"", "*", "A", "a_b"},
		"commands":   {"", " ", "a  b", "a b ", " a", "a;b", "'a'", "'a", "a'b'", "''a", "'a b''c d'", "'a\nb'", `'a b'\'`, "'a b' ", strings.Repeat("a", 4097)},
		"programs":   {"", "a b", "'a b'", "a;b", strings.Repeat("a", 257)},
		"paths":      {"", "*", "healthz", "/a/../b", "/a//b", "/a*", "/*/a", "/a?b", "/%61", strings.Repeat("/a", 513)},
	} {
		for _, v := range values {
			bad[member+" "+v] = capability(strs{"get"}, member, strs{v})
		}
		bad[member+" empty"] = capability(strs{"get"}, member, strs{})
	}
	second.judge(good, bad, true)
	fine := map[string]any{}
	for member, values := range map[string]strs{
		"resources":  append(kubePatterns, "a1.b2.c3/d4", "1pods"),
		"namespaces": append(kubeNamespaces, "a-*", "0"),
		"names":      append(kubeNames, "a-", "v1.metrics.k8s.io", "_a", "https:web:443", "a..b", "a.*"),
		"commands":   append(kubeCommands, `'a'\''b'`, `''\'''`, "'é'", "a=b", "=", "'a b' c"),
		"programs":   {"/bin/sh", "a=b", "-"},
		"paths":      append(kubePaths, "/", "/a/"),
	} {
		for _, v := range values {
			fine[member+" "+v] = capability(strs{"get"}, member, strs{v})
		}
	}
	second.judge(good, fine, false)
}

// Two lists of words never have one text, so a command that was decided is the command that runs.
func TestACommandsTextIsItsWordsAlone(t *testing.T) {
	seen := map[string][]string{}
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[a'\\ ;=]{0,4}`), 1, 4).Draw(t, "words")
		text, err := actor.JoinKubeCommand(words)
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[text]; ok && strings.Join(before, "\x00") != strings.Join(words, "\x00") {
			t.Fatalf("%q and %q are both %q", before, words, text)
		}
		seen[text] = words
		if p := actor.KubeProgram(text); p != "" && p != words[0] {
			t.Fatalf("%q is the program of %q", p, words)
		}
	})
	for _, words := range [][]string{nil, {"a\xffb"}, {strings.Repeat("a", 65537)}} {
		if text, err := actor.JoinKubeCommand(words); err == nil {
			t.Errorf("%.20q became %.20q", words, text)
		}
	}
}
