package actor_test

import (
	"encoding/json"
	"maps"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
)

// KubeVector is what an action of deputy_kube has beside target and verb.
type KubeVector struct {
	Path        string `json:"path,omitempty"`
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource,omitempty"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	Container   string `json:"container,omitempty"`
	Command     string `json:"command,omitempty"`
}

func (v KubeVector) kube(target spiffeid.ID, verb string) actor.KubeAction {
	return actor.KubeAction{Target: target, Verb: verb, Path: v.Path, Object: actor.KubeObject{
		Group: v.Group, Resource: v.Resource, Subresource: v.Subresource, Namespace: v.Namespace, Name: v.Name, Container: v.Container, Command: v.Command,
	}}
}

func kubeCap(actions strs, members map[string]strs) map[string]any {
	d := map[string]any{"type": "deputy_kube", "locations": strs{target.String()}, "actions": actions}
	for name, list := range members {
		d[name] = list
	}
	return d
}

type kubeNarrowingCase struct {
	name          string
	parent, child map[string]any
	class         actor.Class
}

func kubeNarrowing() []kubeNarrowingCase {
	members := map[string]strs{
		"resources": {"pods", "pods/exec", "*.apps", "*.apps/scale"}, "namespaces": {"shop", "shop-*"}, "names": {"web", "api-*"}, "containers": {"app", "side"},
		"commands": {"ls -l", "sh -c 'id; ls'"}, "programs": {"cat"}, "paths": {"/healthz/*", "/metrics"},
	}
	actions := strs{"get", "exec", "nonresource"}
	parent := kubeCap(actions, members)
	with := func(name string, values ...string) map[string]any {
		m := maps.Clone(members)
		m[name] = values
		if values == nil {
			delete(m, name)
		}
		return kubeCap(actions, m)
	}
	cases := []kubeNarrowingCase{
		{"kube: the same", parent, parent, ""},
		{"kube: constraints where there were none", kubeCap(actions, nil), parent, ""},
		{"kube: one verb", parent, kubeCap(strs{"get"}, members), ""},
		{"kube: one resource of a group", parent, with("resources", "deployments.apps"), ""},
		{"kube: a namespace of a pattern", parent, with("namespaces", "shop-eu"), ""},
		{"kube: a pattern below a pattern", parent, with("namespaces", "shop-eu-*"), ""},
		{"kube: a command of a program", parent, with("commands", "cat /etc/hosts"), ""},
		{"kube: no commands, the programs", parent, with("commands"), ""},
		{"kube: a path below", parent, with("paths", "/healthz/ready"), ""},
		{"kube: no constraint any more", parent, kubeCap(actions, nil), actor.ClassWider},
		{"kube: another verb", parent, kubeCap(strs{"delete"}, members), actor.ClassWider},
		{"kube: another resource", parent, with("resources", "secrets"), actor.ClassWider},
		{"kube: the same resource of another group", parent, with("resources", "pods.metrics.k8s.io"), actor.ClassWider},
		{"kube: another subresource", parent, with("resources", "pods/log"), actor.ClassWider},
		{"kube: all subresources", parent, with("resources", "pods/*"), actor.ClassWider},
		{"kube: the resource of a subresource", kubeCap(actions, map[string]strs{"resources": {"pods/*"}}), kubeCap(actions, map[string]strs{"resources": {"pods"}}), actor.ClassWider},
		{"kube: all resources of the core", parent, with("resources", "*"), actor.ClassWider},
		{"kube: all groups", parent, with("resources", "deployments.*"), actor.ClassWider},
		{"kube: another namespace", parent, with("namespaces", "kube-system"), actor.ClassWider},
		{"kube: a namespace with the same beginning", parent, with("namespaces", "shopping"), actor.ClassWider},
		{"kube: all namespaces", parent, with("namespaces", "*"), actor.ClassWider},
		{"kube: a shorter pattern", parent, with("names", "api*"), actor.ClassWider},
		{"kube: another container", parent, with("containers", "other"), actor.ClassWider},
		{"kube: another command", parent, with("commands", "ls -la"), actor.ClassWider},
		{"kube: a command whose program is quoted", parent, with("commands", "'cat x'"), actor.ClassWider},
		{"kube: another program", parent, with("programs", "sh"), actor.ClassWider},
		{"kube: the folder above", parent, with("paths", "/*"), actor.ClassWider},
	}
	for _, name := range []string{"resources", "namespaces", "names", "containers", "paths"} {
		cases = append(cases, kubeNarrowingCase{"kube: " + name + " missing", parent, with(name), actor.ClassWider})
	}
	return cases
}

func kubeMatching() ([]namedDetails, []namedAction) {
	details := func(name string, d any) namedDetails { return namedDetails{name, must(json.Marshal([]any{d}))} }
	act := func(name, verb string, v KubeVector) namedAction {
		return namedAction{name, vectorAction{Type: "deputy_kube", Target: target.String(), Verb: verb, KubeVector: &v}}
	}
	exec := func(name, container, command string) namedAction {
		return act(name, "exec", KubeVector{Resource: "pods", Subresource: "exec", Namespace: "shop", Name: "web-1", Container: container, Command: command})
	}
	return []namedDetails{
			details("kube: anything", kubeCap(actor.KubeVerbs(), nil)),
			details("kube: reading in a namespace", kubeCap(strs{"get", "list", "watch"}, map[string]strs{"namespaces": {"shop"}})),
			details("kube: web", kubeCap(actor.KubeVerbs(), map[string]strs{"names": {"web-*"}, "resources": {"pods", "pods/*"}})),
			details("kube: some commands", kubeCap(strs{"exec", "attach", "debug"}, map[string]strs{"commands": {"ls -l"}, "programs": {"cat"}, "containers": {"app"}})),
			details("kube: health", kubeCap(strs{"nonresource"}, map[string]strs{"paths": {"/healthz", "/livez/*"}, "resources": {"pods"}})),
		}, []namedAction{
			act("kube: get a pod", "get", KubeVector{Resource: "pods", Namespace: "shop", Name: "web-1"}),
			act("kube: list pods", "list", KubeVector{Resource: "pods", Namespace: "shop"}),
			act("kube: list pods everywhere", "list", KubeVector{Resource: "pods"}),
			act("kube: watch deployments", "watch", KubeVector{Group: "apps", Resource: "deployments", Namespace: "shop"}),
			act("kube: create a pod whose name is made up", "create", KubeVector{Resource: "pods", Namespace: "shop", Name: "web-*"}),
			act("kube: delete a node", "delete", KubeVector{Resource: "nodes", Name: "n1"}),
			act("kube: a role with a colon", "get", KubeVector{Group: rbacGroup, Resource: "clusterroles", Name: "system:node"}),
			act("kube: bind", "bind", KubeVector{Group: rbacGroup, Resource: "rolebindings", Namespace: "shop", Name: "b"}),
			act("kube: bind a pod", "bind", KubeVector{Resource: "pods", Namespace: "shop", Name: "b"}),
			exec("kube: exec ls", "app", "ls -l"),
			exec("kube: exec cat", "app", "cat '/a b'"),
			exec("kube: exec cat elsewhere", "side", "cat x"),
			exec("kube: exec in the default container", "", "ls -l"),
			exec("kube: exec sh", "app", "sh -c 'ls -l'"),
			exec("kube: exec nothing", "app", ""),
			exec("kube: exec in another spelling", "app", "'ls' -l"),
			act("kube: exec as create", "create", KubeVector{Resource: "pods", Subresource: "exec", Namespace: "shop", Name: "web-1"}),
			act("kube: get of exec", "get", KubeVector{Resource: "pods", Subresource: "exec", Namespace: "shop", Name: "web-1"}),
			act("kube: attach", "attach", KubeVector{Resource: "pods", Subresource: "attach", Namespace: "shop", Name: "web-1", Container: "app"}),
			act("kube: ephemeral containers patched", "patch", KubeVector{Resource: "pods", Subresource: "ephemeralcontainers", Namespace: "shop", Name: "web-1"}),
			act("kube: ephemeral containers read", "get", KubeVector{Resource: "pods", Subresource: "ephemeralcontainers", Namespace: "shop", Name: "web-1"}),
			act("kube: a dotted namespace", "list", KubeVector{Resource: "pods", Namespace: "shop.eu"}),
			act("kube: a slash in a name", "get", KubeVector{Resource: "pods", Namespace: "shop", Name: "web-1/log"}),
			act("kube: health", "nonresource", KubeVector{Path: "/healthz"}),
			act("kube: below health", "nonresource", KubeVector{Path: "/healthz/ready"}),
			act("kube: below livez", "nonresource", KubeVector{Path: "/livez/ready"}),
			act("kube: livez and nothing", "nonresource", KubeVector{Path: "/livez/"}),
			act("kube: a path out of livez", "nonresource", KubeVector{Path: "/livez/../metrics"}),
			act("kube: a path and a resource", "nonresource", KubeVector{Path: "/healthz", Resource: "pods"}),
			act("kube: discovery", "discover", KubeVector{}),
		}
}

// insideKube is written down by hand, as inside is.
var insideKube = map[string]string{
	"kube: anything": "kube: get a pod|kube: list pods|kube: list pods everywhere|kube: watch deployments|kube: create a pod whose name is made up|kube: delete a node|kube: a role with a colon|" +
		"kube: bind|kube: exec ls|kube: exec cat|kube: exec cat elsewhere|kube: exec in the default container|kube: exec sh|kube: attach|kube: ephemeral containers read|" +
		"kube: health|kube: below health|kube: below livez|kube: livez and nothing",
	"kube: reading in a namespace": "kube: get a pod|kube: list pods|kube: watch deployments|kube: ephemeral containers read",
	"kube: web": "kube: get a pod|kube: create a pod whose name is made up|kube: exec ls|kube: exec cat|kube: exec cat elsewhere|kube: exec in the default container|kube: exec sh|" +
		"kube: attach|kube: ephemeral containers read|kube: health|kube: below health|kube: below livez|kube: livez and nothing",
	"kube: some commands": "kube: exec ls|kube: exec cat",
	"kube: health":        "kube: health|kube: below livez",
}
