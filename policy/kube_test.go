package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
)

const kubePolicies = `
@id("discover") permit (principal, action == Deputy::Action::"kube:discover", resource == Deputy::Service::"prod");
@id("read-shop") permit (principal, action in Deputy::Action::"read", resource in Deputy::KubeNamespace::"prod/shop") unless { resource.resource == "secrets" };
@id("health") permit (principal, action == Deputy::Action::"kube:nonresource", resource == Deputy::KubePath::"prod/%2Fhealthz");
@id("scale") permit (principal, action == Deputy::Action::"kube:patch", resource == Deputy::KubeResource::"prod/shop/deployments.apps/web/scale");
@id("ls") permit (principal, action == Deputy::Action::"kube:exec", resource in Deputy::KubeNamespace::"prod/shop")
  when { resource.container == "app" && (resource.program == "ls" || resource.command == "sh -c 'id; ls'") };
@id("everything") permit (principal, action, resource in Deputy::KubeNamespace::"prod/lab");
@id("all-of-admin") permit (principal, action in [Deputy::Action::"admin", Deputy::Action::"named"], resource in Deputy::KubeNamespace::"prod/lab");
@id("show") permit (principal, action in [Deputy::Action::"kube:reveal", Deputy::Action::"kube:get"], resource == Deputy::KubeResource::"prod/lab/secrets/db");
@id("token") permit (principal, action == Deputy::Action::"kube:token", resource is Deputy::KubeResource in Deputy::KubeNamespace::"prod/lab") when { resource.name == "ci" };
`

func kubeSource(text string) policy.Source {
	return policy.Source{
		Version: 1, Schema: policy.SchemaID, IssuedAt: 1, Files: map[string]string{"kube.cedar": text},
		Targets: map[string]policy.Target{"prod": {Kind: "kube"}, "other": {Kind: "kube"}},
	}
}

func TestClustersAreDecidedByObject(t *testing.T) {
	set := load(t, kubeSource(kubePolicies))
	on := func(namespace, resource, name string) policy.Resource {
		o := actor.KubeObject{Namespace: namespace, Name: name}
		resource, o.Subresource, _ = strings.Cut(resource, "/")
		o.Resource, o.Group, _ = strings.Cut(resource, ".")
		return policy.KubeResource("prod", o)
	}
	exec := func(container, command string) policy.Resource {
		r := on("shop", "pods/exec", "web")
		r.Kube.Container, r.Kube.Command = container, command
		return r
	}
	for _, c := range []struct {
		action string
		on     policy.Resource
		by     string // "" for a refusal
	}{
		{"discover", policy.Service("prod"), "discover"},
		{"discover", policy.Service("other"), ""},
		{"get", on("shop", "pods", "web"), "read-shop"},
		{"list", on("shop", "deployments.apps", ""), "read-shop"},
		{"get", on("shop", "secrets", "db"), ""},
		{"list", on("", "pods", ""), ""},
		{"list", on("shop2", "pods", ""), ""},
		{"delete", on("shop", "pods", "web"), ""},
		{"nonresource", policy.KubePath("prod", "/healthz"), "health"},
		{"nonresource", policy.KubePath("prod", "/metrics"), ""},
		{"patch", on("shop", "deployments.apps/scale", "web"), "scale"},
		{"patch", on("shop", "deployments.apps", "web"), ""},
		{"patch", on("shop", "deployments/scale", "web"), ""},
		{"exec", exec("app", "ls -l"), "ls"},
		{"exec", exec("app", "sh -c 'id; ls'"), "ls"},
		{"exec", exec("app", "sh -c 'id; ls '"), ""},
		{"exec", exec("app", "'ls -l'"), ""},
		{"exec", exec("side", "ls"), ""},
		{"exec", exec("", "ls"), ""},
		{"delete", on("lab", "pods", "x"), "everything"},
		{"exec", on("lab", "pods/exec", "x"), "all-of-admin,everything"},
		{"proxy", on("lab", "services/proxy", "x"), ""},
		{"approve", on("lab", "certificatesigningrequests.certificates.k8s.io/approval", "x"), ""},
		{"bind", on("lab", "rolebindings.rbac.authorization.k8s.io", "x"), ""},
		{"escalate", on("lab", "roles.rbac.authorization.k8s.io", "x"), ""},
		{"token", on("lab", "serviceaccounts/token", "ci"), "all-of-admin,everything,token"},
		{"token", on("lab", "serviceaccounts/token", "root"), ""},
		{"reveal", on("lab", "secrets", "db"), "all-of-admin,everything,show"},
		{"reveal", on("lab", "secrets", "other"), ""},
		{"get", on("lab", "secrets", "db"), "everything,show"},
	} {
		d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "kube:" + c.action, Resource: c.on})
		if d.Err != nil || d.Allow != (c.by != "") || d.Allow && strings.Join(d.Policies, ",") != c.by {
			t.Errorf("%s on %s %q: %+v, want %q", c.action, c.on, c.on.Kube.Command, d, c.by)
		}
	}
}

func TestWhatIsNoObjectOfAClusterIsUndecided(t *testing.T) {
	set := load(t, kubeSource(kubePolicies))
	pod := func(change func(*policy.Resource)) policy.Resource {
		r := policy.KubeResource("prod", actor.KubeObject{Resource: "pods", Namespace: "lab", Name: "web"})
		change(&r)
		return r
	}
	for name, r := range map[string]policy.Resource{
		"no resource":         pod(func(r *policy.Resource) { r.Kube.Resource = "" }),
		"a slash":             pod(func(r *policy.Resource) { r.Kube.Name = "web/log" }),
		"dots":                pod(func(r *policy.Resource) { r.Kube.Name = ".." }),
		"capitals":            pod(func(r *policy.Resource) { r.Kube.Resource = "Pods" }),
		"a namespace's dot":   pod(func(r *policy.Resource) { r.Kube.Namespace = "lab.x" }),
		"a name of its own":   pod(func(r *policy.Resource) { r.Name = "web" }),
		"a database":          pod(func(r *policy.Resource) { r.Database = "shop" }),
		"a query":             pod(func(r *policy.Resource) { r.Query = "a" }),
		"a command in quotes": pod(func(r *policy.Resource) { r.Kube.Command = "'ls'" }),
		"a path's object":     {Kind: policy.KindKubePath, Target: "prod", Name: "/healthz", Kube: actor.KubeObject{Resource: "pods"}},
		"a path around":       policy.KubePath("prod", "/healthz/../metrics"),
		"an object elsewhere": {Kind: policy.KindService, Target: "prod", Kube: actor.KubeObject{Resource: "pods"}},
	} {
		for _, action := range []string{"kube:get", "kube:nonresource", "kube:discover"} {
			if d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: action, Resource: r}); d.Allow || d.Err == nil {
				t.Errorf("%s, %s: %+v", name, action, d)
			}
		}
	}
}

func TestPoliciesAboutClustersMustBeSpelledRight(t *testing.T) {
	for name, c := range map[string]struct{ resource, says string }{
		"a target that isn't there":  {`in Deputy::KubeNamespace::"prd/shop"`, "not among the set's targets"},
		"a namespace without target": {`in Deputy::KubeNamespace::"shop"`, "should read"},
		"a namespace in capitals":    {`in Deputy::KubeNamespace::"prod/Shop"`, "should read"},
		"an object without a name":   {`== Deputy::KubeResource::"prod/shop/pods"`, "should read"},
		"an object in capitals":      {`== Deputy::KubeResource::"prod/shop/Pods/web"`, "lower-case"},
		"an object too long":         {`== Deputy::KubeResource::"prod/shop/pods/web/log/x"`, "should read"},
		"a subresource left empty":   {`== Deputy::KubeResource::"prod/shop/pods/web/"`, "should be written"},
		"a group left empty":         {`== Deputy::KubeResource::"prod/shop/pods./web"`, "should be written"},
	} {
		err := policy.Check(kubeSource(`@id("x") permit (principal, action == Deputy::Action::"kube:get", resource ` + c.resource + ");"))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	if err := policy.Check(kubeSource(`@id("x") permit (principal, action == Deputy::Action::"kube:get", resource == Deputy::KubeResource::"prod//nodes/n1");`)); err != nil {
		t.Error(err)
	}
}

// TestIDsOfDifferentClusterObjectsDiffer: nothing but container and command is left out of an id.
func TestIDsOfDifferentClusterObjectsDiffer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(l string) policy.Resource {
			name := func(part string) string {
				return rapid.SampledFrom([]string{"", "a", "b", "a.b", "a:b"}).Draw(rt, l+part)
			}
			label := func(part string) string { return rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, l+part) }
			return policy.KubeResource("prod", actor.KubeObject{
				Group: rapid.SampledFrom([]string{"", "a", "a.b"}).Draw(rt, l+"group"), Resource: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, l+"resource"), Subresource: label("sub"), Namespace: label("ns"), Name: name("name"),
			})
		}
		a, b := draw("a"), draw("b")
		if a != b && a.ID() == b.ID() {
			rt.Fatalf("%+v and %+v share the id %s", a, b, a.ID())
		}
		back, err := policy.ParseResourceForTest(a)
		if err != nil || back != a {
			rt.Fatalf("%+v came back as %+v (%v)", a, back, err)
		}
	})
}

// A forbid about a namespace or an object isn't gone around by asking for more than that.
func TestWhatIsForbiddenIsntHadByAskingForAll(t *testing.T) {
	const permit = `@id("all") permit (principal, action, resource in Deputy::Target::"prod");`
	list := func(namespace, resource, name string) policy.Resource {
		o := actor.KubeObject{Namespace: namespace, Name: name}
		o.Resource, o.Group, _ = strings.Cut(resource, ".")
		return policy.KubeResource("prod", o)
	}
	for _, c := range []struct {
		forbid          string
		allowed, refuse []policy.Resource
	}{
		{`action, resource in Deputy::KubeNamespace::"prod/kube-system")`,
			[]policy.Resource{list("shop", "pods", ""), list("shop", "secrets", "db"), list("", "nodes", ""), list("", "clusterroles.rbac.authorization.k8s.io", "")},
			[]policy.Resource{list("", "pods", ""), list("", "pods", "web"), list("kube-system", "pods", ""), list("", "namespaces", ""), list("", "things.example.com", "")}},
		{`action in Deputy::Action::"read", resource == Deputy::KubeResource::"prod/shop/secrets/db")`,
			[]policy.Resource{list("shop", "configmaps", ""), list("other", "secrets", ""), list("shop", "secrets", "x"), list("", "pods", "")},
			[]policy.Resource{list("shop", "secrets", ""), list("", "secrets", ""), list("", "secrets", "db")}},
		{`action, resource) when { resource is Deputy::KubeResource && resource.resource == "secrets" && resource.name == "root-ca" }`,
			[]policy.Resource{list("", "pods", ""), list("shop", "secrets", "x"), list("shop", "configmaps", "")},
			[]policy.Resource{list("", "secrets", ""), list("shop", "secrets", ""), list("shop", "secrets", "root-ca")}},
		{`action, resource is Deputy::KubeResource) unless { resource.namespace == "shop" || resource.namespace like "shop-*" }`,
			[]policy.Resource{list("shop", "pods", ""), list("shop-eu", "pods", "")},
			[]policy.Resource{list("", "pods", ""), list("other", "pods", ""), list("", "nodes", "")}},
		{`action, resource is Deputy::KubeResource) unless { resource.name != "prod" }`,
			[]policy.Resource{list("shop", "pods", "x")}, []policy.Resource{list("shop", "pods", ""), list("", "pods", "")}},
		{`action, resource is Deputy::KubeResource) when { if resource.name == "a" then false else resource.group == "apps" }`,
			[]policy.Resource{list("shop", "pods", "x"), list("shop", "deployments.apps", "a")}, []policy.Resource{list("shop", "deployments.apps", "")}},
		{`action, resource is Deputy::KubeResource) when { resource in Deputy::KubeNamespace::"prod/a" || [Deputy::KubeResource::"prod/b/pods/x"].contains(resource) }`,
			[]policy.Resource{list("c", "pods", "y")}, []policy.Resource{list("", "pods", ""), list("b", "pods", "")}},
		{`action in [Deputy::Action::"write", Deputy::Action::"admin"], resource in Deputy::KubeNamespace::"prod/kube-system")`,
			[]policy.Resource{list("", "pods", ""), list("kube-system", "pods", "")}, nil},
		{`action, resource in Deputy::KubeNamespace::"other/kube-system")`, []policy.Resource{list("", "pods", "")}, nil},
		{`action, resource is Deputy::KubeResource in Deputy::Target::"prod") when { context.chain.depth > 5 && resource.name == "x" }`, []policy.Resource{list("", "pods", "")}, nil},
		{`action, resource in Deputy::Target::"prod") when { resource in Deputy::Target::"other" }`, []policy.Resource{list("", "pods", "")}, nil},
	} {
		set, err := policy.Compile(kubeSource(permit + "\n@id(\"no\") forbid (principal, " + c.forbid + ";"))
		if err != nil {
			t.Fatalf("%s: %v", c.forbid, err)
		}
		for _, verb := range []string{"list", "watch"} {
			for i, r := range append(c.allowed, c.refuse...) {
				d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "kube:" + verb, Resource: r})
				if want := i < len(c.allowed); d.Err != nil || d.Allow != want || !want && strings.Join(d.Policies, ",") != "no" {
					t.Errorf("%s\n%s of %s: %+v", c.forbid, verb, r, d)
				}
			}
		}
		// What names its object is decided as it was.
		if d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "kube:get", Resource: list("zzz", "endpoints", "zzz")}); d.Err != nil {
			t.Errorf("%s: %+v", c.forbid, d)
		}
	}
}

// A permit about some objects, or about some namespaces, doesn't give all of them.
func TestAPermitOfSomeIsNoneOfAll(t *testing.T) {
	on := func(subresource, namespace, name, container string) policy.Resource {
		o := actor.KubeObject{Resource: "pods", Subresource: subresource, Namespace: namespace, Name: name, Container: container}
		if subresource == "exec" {
			o.Command = "ls"
		}
		return policy.KubeResource("prod", o)
	}
	for _, c := range []struct {
		permit  string
		action  string
		refused []policy.Resource
		allowed []policy.Resource
	}{
		{`action in Deputy::Action::"read", resource is Deputy::KubeResource) when { resource.namespace != "kube-system" }`, "list",
			[]policy.Resource{on("", "", "", ""), on("", "", "x", ""), on("", "kube-system", "", "")}, []policy.Resource{on("", "shop", "", "")}},
		{`action, resource in Deputy::Target::"prod") unless { resource in Deputy::KubeNamespace::"prod/kube-system" }`, "watch",
			[]policy.Resource{on("", "", "", ""), on("", "kube-system", "x", "")}, []policy.Resource{on("", "shop", "", "")}},
		{`action == Deputy::Action::"kube:deletecollection", resource in Deputy::KubeNamespace::"prod/shop") unless { resource.name like "db*" }`, "deletecollection",
			[]policy.Resource{on("", "shop", "", "")}, nil},
		{`action == Deputy::Action::"kube:exec", resource in Deputy::KubeNamespace::"prod/shop") when { resource.container != "vault" }`, "exec",
			[]policy.Resource{on("exec", "shop", "web", ""), on("exec", "shop", "web", "vault")}, []policy.Resource{on("exec", "shop", "web", "main")}},
		{`action == Deputy::Action::"kube:get", resource in Deputy::KubeNamespace::"prod/shop") unless { resource.container == "vault" }`, "get",
			[]policy.Resource{on("log", "shop", "web", "")}, []policy.Resource{on("log", "shop", "web", "main"), on("", "shop", "web", "")}},
	} {
		set, err := policy.Compile(kubeSource(`@id("some") permit (principal, ` + c.permit + ";"))
		if err != nil {
			t.Fatalf("%s: %v", c.permit, err)
		}
		for i, r := range append(c.refused, c.allowed...) {
			d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "kube:" + c.action, Resource: r})
			if d.Err != nil || d.Allow != (i >= len(c.refused)) {
				t.Errorf("%s\n%s of %s: %+v", c.permit, c.action, r, d)
			}
		}
	}
}

// What a request for all is given is what each of its objects would be given by itself, and no demand on one of them is left out.
func TestAllIsNoMoreThanEach(t *testing.T) {
	names, namespaces, containers := []string{"a", "ab", "b"}, []string{"x", "y"}, []string{"c", "d"}
	allowed, demanded := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		pick := func(from ...string) string { return rapid.SampledFrom(from).Draw(rt, "pick") }
		var condition func(depth int) string
		condition = func(depth int) string {
			if depth == 0 {
				return pick(`resource.name == "a"`, `resource.name != "ab"`, `resource.name like "a*"`, `resource.namespace == "x"`, `resource.namespace != "x"`, `resource.container == "c"`, `resource.resource == "pods"`, `resource.name == resource.namespace`,
					`resource in Deputy::KubeNamespace::"prod/x"`, `resource == Deputy::KubeResource::"prod/x/pods/a"`, `resource in [Deputy::KubeNamespace::"prod/y"]`, `[Deputy::KubeResource::"prod/y/pods/b"].contains(resource)`, `resource has name`, "true", "false")
			}
			one, two := condition(depth-1), condition(depth-1)
			return pick("("+one+") && ("+two+")", "("+one+") || ("+two+")", "!("+one+")", "if "+one+" then "+two+" else "+condition(depth-1))
		}
		var text strings.Builder
		for i := range rapid.IntRange(1, 4).Draw(rt, "policies") {
			effect := pick("permit", "permit", "forbid")
			if effect == "permit" && rapid.Bool().Draw(rt, "demands") {
				fmt.Fprintf(&text, "@mask(\"$.m%d=redact\") ", i)
			}
			head := pick("is Deputy::KubeResource", `is Deputy::KubeResource in Deputy::Target::"prod"`, `in Deputy::KubeNamespace::"prod/x"`, `is Deputy::KubeResource in Deputy::KubeNamespace::"prod/y"`, `== Deputy::KubeResource::"prod/x/pods/a"`)
			fmt.Fprintf(&text, "@id(\"p%d\") %s (principal, action in [Deputy::Action::\"kube:list\", Deputy::Action::\"kube:get\"], resource %s) %s { %s };\n", i, effect, head, pick("when", "unless"), condition(rapid.IntRange(0, 2).Draw(rt, "depth")))
		}
		set, err := policy.Compile(kubeSource(text.String()))
		if err != nil {
			rt.Fatalf("%s%v", text.String(), err)
		}
		decide := func(action string, o actor.KubeObject) policy.Decision {
			return set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: action, Resource: policy.KubeResource("prod", o)})
		}
		ask := func(action string, all actor.KubeObject, each []actor.KubeObject) {
			d := decide(action, all)
			if d.Allow {
				allowed++
				demanded += len(d.Obligations.Masks)
			}
			for _, o := range each {
				one := decide(action, o)
				if d.Allow && !one.Allow {
					rt.Fatalf("%s%s of %+v is allowed by %v, and not of %+v: %+v", text.String(), action, all, d.Policies, o, one)
				}
				for _, m := range one.Obligations.Masks {
					if d.Allow && !slices.Contains(d.Obligations.Masks, m) {
						rt.Fatalf("%s%s of %+v is allowed without %s, and of %+v with it", text.String(), action, all, m, o)
					}
				}
			}
		}
		for _, all := range []actor.KubeObject{{}, {Name: "a"}, {Namespace: "x"}} {
			all.Resource = "pods"
			var each []actor.KubeObject
			for _, namespace := range namespaces {
				for _, name := range names {
					if (all.Namespace == "" || all.Namespace == namespace) && (all.Name == "" || all.Name == name) {
						each = append(each, actor.KubeObject{Resource: "pods", Namespace: namespace, Name: name})
					}
				}
			}
			ask("kube:list", all, each)
		}
		for _, name := range names {
			log := actor.KubeObject{Resource: "pods", Subresource: "log", Namespace: "x", Name: name}
			var each []actor.KubeObject
			for _, c := range containers {
				o := log
				o.Container = c
				each = append(each, o)
			}
			ask("kube:get", log, each)
		}
	})
	if allowed < 20 || demanded < 10 {
		t.Errorf("%d were allowed with %d masks: the draw proves little", allowed, demanded)
	}
}

// The cluster chooses where a request doesn't: a forbid about a container isn't gone around by naming none.
func TestAForbiddenContainerIsntHadByNamingNone(t *testing.T) {
	const permit = `@id("all") permit (principal, action, resource in Deputy::Target::"prod");`
	for _, c := range []struct{ forbid, allowed, refused string }{
		{`action, resource is Deputy::KubeResource) when { resource.container == "vault" }`, "get:: get:log:main exec:exec:main list:: attach:attach:main", "exec:exec: exec:exec:vault attach:attach: get:log: get:log:vault debug:ephemeralcontainers:"},
		{`action == Deputy::Action::"kube:exec", resource in Deputy::KubeNamespace::"prod/shop") when { resource.container like "v*" && resource.name == "web" }`, "get:log: attach:attach: exec:exec:main", "exec:exec: exec:exec:vault"},
		{`action == Deputy::Action::"kube:exec", resource in Deputy::KubeNamespace::"prod/other") when { resource.container == "vault" }`, "exec:exec:", ""},
		{`action == Deputy::Action::"kube:exec", resource is Deputy::KubeResource) when { resource.container == "vault" && resource.name == "db" }`, "exec:exec:", ""},
		{`action, resource is Deputy::KubeResource) when { resource in Deputy::KubeNamespace::"prod/kube-system" || [Deputy::KubeResource::"prod/b/pods/x"].contains(resource) }`, "exec:exec: get:log:", ""},
	} {
		set, err := policy.Compile(kubeSource(permit + "\n@id(\"no\") forbid (principal, " + c.forbid + ";"))
		if err != nil {
			t.Fatalf("%s: %v", c.forbid, err)
		}
		for want, all := range map[bool]string{true: c.allowed, false: c.refused} {
			for one := range strings.FieldsSeq(all) {
				parts := strings.Split(one, ":")
				o := actor.KubeObject{Resource: "pods", Namespace: "shop", Name: "web", Subresource: parts[1], Container: parts[2]}
				if parts[0] == "exec" {
					o.Command = "ls"
				}
				d := set.Decide(policy.Request{Subject: subject(t, facts(nil, planner)), Now: now, Action: "kube:" + parts[0], Resource: policy.KubeResource("prod", o)})
				if d.Err != nil || d.Allow != want {
					t.Errorf("%s\n%s: %+v", c.forbid, one, d)
				}
			}
		}
	}
}
