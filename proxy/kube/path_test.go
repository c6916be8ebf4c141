package kube_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/kube"
)

func TestARequestIsReadInOneWay(t *testing.T) {
	for _, c := range []struct{ method, uri, verbs, object string }{
		{"GET", "/api/v1/pods", "list", "/pods"},
		{"GET", "/api/v1/namespaces/shop/pods?watch=true&allowWatchBookmarks=true", "watch", "shop/pods"},
		{"GET", "/api/v1/namespaces/shop/pods?watch=1", "watch", "shop/pods"},
		{"GET", "/api/v1/namespaces/shop/pods?watch=false", "list", "shop/pods"},
		{"GET", "/api/v1/namespaces/shop/pods?watch=True", "watch", "shop/pods"},
		{"GET", "/api/v1/watch/namespaces/shop/pods", "watch", "shop/pods"},
		{"GET", "/api/v1/watch/namespaces/shop/pods/web", "watch", "shop/pods/web"},
		{"GET", "/api/v1/watch/pods", "watch", "/pods"},
		{"GET", "/api/v1/namespaces/shop/pods/web", "get", "shop/pods/web"},
		{"HEAD", "/api/v1/namespaces/shop/pods/web", "get", "shop/pods/web"},
		{"GET", "/api/v1/namespaces/shop/pods?fieldSelector=metadata.name%3Dweb", "list", "shop/pods/web"},
		{"GET", "/api/v1/namespaces/shop/pods?fieldSelector=status.phase%3DRunning,metadata.name%3D%3Dweb", "list", "shop/pods/web"},
		{"GET", "/api/v1/namespaces/shop/pods?fieldSelector=metadata.name!%3Dweb", "list", "shop/pods"},
		{"GET", "/api/v1/namespaces/shop/pods?fieldSelector=xmetadata.name%3Dweb", "list", "shop/pods"},
		{"POST", "/api/v1/namespaces/shop/pods", "create", "shop/pods"},
		{"PUT", "/apis/apps/v1/namespaces/shop/deployments/web", "update,create", "shop/deployments.apps/web"},
		{"PUT", "/apis/apps/v1/namespaces/shop/deployments/web/scale", "update,create", "shop/deployments.apps/web/scale"},
		{"PATCH", "/apis/apps/v1/namespaces/shop/deployments/web", "patch", "shop/deployments.apps/web"},
		{"DELETE", "/api/v1/namespaces/shop/pods/web", "delete", "shop/pods/web"},
		{"DELETE", "/api/v1/namespaces/shop/pods", "deletecollection", "shop/pods"},
		{"DELETE", "/api/v1/namespaces/shop/pods?fieldSelector=metadata.name%3Dweb", "deletecollection", "shop/pods"},
		{"GET", "/api/v1/namespaces", "list", "/namespaces"},
		{"GET", "/api/v1/namespaces/shop", "get", "shop/namespaces/shop"},
		{"PUT", "/api/v1/namespaces/shop/finalize", "update,create", "shop/namespaces/shop/finalize"},
		{"GET", "/api/v1/namespaces/shop/status", "get", "shop/namespaces/shop/status"},
		{"GET", "/api/v1/namespaces/shop/pods/web/log?container=app&follow=true", "get", "shop/pods/web/log[app]"},
		{"GET", "/api/v1/namespaces/shop/pods/web/exec?command=ls&command=-l&command=a%20b&container=app", "exec", "shop/pods/web/exec[app]{ls -l 'a b'}"},
		{"POST", "/api/v1/namespaces/shop/pods/web/exec?command=ls", "exec", "shop/pods/web/exec{ls}"},
		{"POST", "/api/v1/namespaces/shop/pods/web/attach?container=app", "attach", "shop/pods/web/attach[app]"},
		{"GET", "/api/v1/namespaces/shop/pods/web/portforward?ports=80", "portforward", "shop/pods/web/portforward"},
		{"PATCH", "/api/v1/namespaces/shop/pods/web/ephemeralcontainers", "debug", "shop/pods/web/ephemeralcontainers"},
		{"GET", "/api/v1/namespaces/shop/pods/web/ephemeralcontainers", "get", "shop/pods/web/ephemeralcontainers"},
		{"POST", "/api/v1/namespaces/shop/serviceaccounts/ci/token", "token", "shop/serviceaccounts/ci/token"},
		{"DELETE", "/api/v1/namespaces/shop/services/https:web:443/proxy/a/b/", "proxy", "shop/services/https:web:443/proxy"},
		{"GET", "/api/v1/nodes/n1/proxy", "proxy", "/nodes/n1/proxy"},
		{"PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval", "approve", "/certificatesigningrequests.certificates.k8s.io/x/approval"},
		{"PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/status", "approve", "/certificatesigningrequests.certificates.k8s.io/x/status"},
		{"GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/status", "get", "/certificatesigningrequests.certificates.k8s.io/x/status"},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "create,escalate", "/clusterroles.rbac.authorization.k8s.io"},
		{"PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/x", "patch,bind", "shop/rolebindings.rbac.authorization.k8s.io/x"},
		{"DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", "delete", "/clusterroles.rbac.authorization.k8s.io/system:node"},
		{"POST", "/api/v1/namespaces/shop/pods/web/eviction", "create", "shop/pods/web/eviction"},
		{"GET", "/api/v1/%70ods", "list", "/pods"},
		{"GET", "/apis/apps/v1", "", ""},
		{"GET", "/healthz", "", ""},
		{"GET", "/version/", "", ""},
		{"GET", "/api/v1/", "", ""},
		{"GET", "/apis/", "", ""},
		{"GET", "/apis/apps/v1/", "", ""},
		{"GET", "/", "", ""},
	} {
		verbs, o, err := kube.Verbs(c.method, c.uri)
		if got := spell(o); err != nil || strings.Join(verbs, ",") != c.verbs || (c.verbs != "" && got != c.object) {
			t.Errorf("%s %s: %v of %s (%v), want %s of %s", c.method, c.uri, verbs, got, err, c.verbs, c.object)
		}
	}
}

func spell(o actor.KubeObject) string {
	s := o.Namespace + "/" + o.Resource
	if o.Group != "" {
		s += "." + o.Group
	}
	for _, part := range []string{o.Name, o.Subresource} {
		if part != "" {
			s += "/" + part
		}
	}
	if o.Container != "" {
		s += "[" + o.Container + "]"
	}
	if o.Command != "" {
		s += "{" + o.Command + "}"
	}
	return s
}

func TestWhatServersReadInDifferentWaysIsRefused(t *testing.T) {
	for _, c := range []struct{ method, uri string }{
		{"GET", "/api/v1/namespaces/shop/pods/"}, {"GET", "/api/v1/namespaces/shop/"}, {"GET", "/healthz/"}, {"GET", "/version/x/"}, {"GET", "/versions/"}, {"GET", "/api/v1/pods//"},
		{"GET", "//api/v1/pods"}, {"GET", "/api//v1/pods"}, {"GET", "/api/v1//pods"}, {"GET", "/api/v1/./pods"}, {"GET", "/api/v1/x/../pods"},
		{"GET", "/api/v1/namespaces/shop%2Fpods"}, {"GET", "/api/v1/namespaces/shop/pods%2fweb"}, {"GET", "/api/v1/namespaces/shop/pods/web%252flog"},
		{"GET", "/api/v1/namespaces/shop/pods/%2e%2e/secrets"}, {"GET", "/api/v1/namespaces/shop/pods/.."}, {"GET", "/api/v1/namespaces/../pods"},
		{"GET", "/api/v1/pods;v=1"}, {"GET", "/api/v1/pods%3Bv=1"}, {"GET", `/api/v1\pods`}, {"GET", "/api/v1/pods%00"}, {"GET", "/api/v1/pods%0a"}, {"GET", "/api/v1/pods%3Fwatch=true"},
		{"GET", "/api/v1/Pods"}, {"GET", "/api/V1/pods"}, {"GET", "/apis/Apps/v1/deployments"}, {"GET", "/api/v1/namespaces/Shop/pods"}, {"GET", "/api/v1/namespaces/shop/pods/web/Log"},
		{"GET", "/api/v1/namespaces/shop/pods/a%20b"}, {"GET", "/api/v1/namespaces/shop/pods/web*"}, {"GET", "/api/v1/namespaces/shop/pods/é"},
		{"GET", "/api/v1/namespaces/shop/pods/web/log/x"}, {"POST", "/api/v1/namespaces/shop/pods/web/exec/?command=ls"}, {"POST", "/api/v1/namespaces/shop/pods/web/exec/x?command=ls"},
		{"POST", "/api/v1/namespaces/shop/pods/web"}, {"PUT", "/api/v1/namespaces/shop/pods"}, {"PATCH", "/api/v1/namespaces/shop/pods"}, {"PUT", "/api/v1/namespaces"},
		{"OPTIONS", "/api/v1/pods"}, {"CONNECT", "/api/v1/pods"}, {"get", "/api/v1/pods"}, {"LIST", "/api/v1/pods"},
		{"GET", "/api/v1/proxy/namespaces/shop/services/web"}, {"POST", "/api/v1/watch/pods"}, {"GET", "/api/v1/watch"}, {"GET", "/api/v1/watch/"},
		{"GET", "/api/v1/pods?watch=true&watch=false"}, {"GET", "/api/v1/pods?watch"}, {"GET", "/api/v1/pods?watch="}, {"GET", "/api/v1/pods?watch=yes"}, {"GET", "/api/v1/pods?Watch=true"},
		{"GET", "/api/v1/pods?watch=false;watch=true"}, {"GET", "/api/v1/pods?fieldSelector=a&fieldSelector=b"}, {"GET", "/api/v1/pods?FieldSelector=a"}, {"GET", "/api/v1/pods?a=%zz"}, {"GET", "/api/v1/pods?a=%ff"},
		{"GET", "/api/v1/namespaces/shop/pods/web?watch=true"}, {"DELETE", "/api/v1/namespaces/shop/pods?watch=true"},
		{"GET", "/api/v1/namespaces/shop/pods/web/exec"}, {"GET", "/api/v1/namespaces/shop/pods/web/exec?command=ls&container=a&container=b"}, {"GET", "/api/v1/namespaces/shop/pods/web/exec?command=ls&Container=b"},
		{"GET", "/api/v1/namespaces/shop/pods/web/exec?command=ls&container=A"}, {"PUT", "/api/v1/namespaces/shop/pods/web/exec?command=ls"}, {"DELETE", "/api/v1/namespaces/shop/pods/web/attach"},
		{"PUT", "/api/v1/namespaces/shop/serviceaccounts/ci/token"}, {"GET", "/api/v1/namespaces/shop/serviceaccounts/ci/token"}, {"POST", "/api/v1/namespaces/shop/pods/web/ephemeralcontainers"},
		{"GET", "/api/v1/namespaces/shop/pods/web/log?container=a&container=b"}, {"GET", "http://x/api/v1/pods"}, {"GET", "*"}, {"GET", "/" + strings.Repeat("a", 17000)},
	} {
		if verbs, o, err := kube.Verbs(c.method, c.uri); err == nil {
			t.Errorf("%s %s is read as %v of %s", c.method, c.uri, verbs, spell(o))
		}
	}
}

// FuzzParse: what is read comes out the same when its canonical form is read again, and every part of it can be decided.
func FuzzParse(f *testing.F) {
	for _, uri := range []string{
		"/api/v1/namespaces/shop/pods/web/exec?command=ls&command=%27", "/apis/apps/v1/watch/namespaces/x/deployments", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "/a%2fb", "/api/v1/nodes/n/proxy//x", "/", "/healthz?verbose",
	} {
		f.Add("GET", uri)
		f.Add("POST", uri)
	}
	f.Fuzz(func(t *testing.T, method, uri string) {
		verb, version, o, canonical, err := kube.Parse(method, uri)
		if err != nil {
			return
		}
		verb2, version2, o2, again, err := kube.Parse(method, canonical)
		if err != nil || verb2 != verb || version2 != version || o2 != o || again != canonical {
			t.Fatalf("%s %q is %s of %+v, and again %s of %+v (%v)", method, uri, verb, o, verb2, o2, err)
		}
		u, err := url.ParseRequestURI(canonical)
		if err != nil {
			t.Fatal(err)
		}
		if verb == "" {
			return
		}
		if o.Check() != nil || strings.ContainsAny(o.Name, "*/") {
			t.Fatalf("%q has an object that can't be decided: %+v", uri, o)
		}
		// Every part stands in the path as it is, one segment each.
		if p := strings.Split(u.EscapedPath(), "/"); o.Name != "" && !strings.Contains(u.RawQuery, "fieldSelector") && !inside(p, o.Name) || !inside(p, o.Resource) {
			t.Fatalf("%q is read as %+v", canonical, o)
		}
	})
}

func inside(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func TestABodyIsReadInOneWay(t *testing.T) {
	for text, want := range map[string]string{
		`{"metadata":{"name":"web","namespace":"shop"}}`:                  "web shop",
		`{"spec":{"metadata":{"name":"x"}},"metadata":{"name":"web"}}`:    "web ",
		`{"metadata":{"labels":{"name":"x"},"annotations":{"name":"y"}}}`: " ",
		`{"metadata":{"name":null}}`:                                      " ",
		`[{"op":"add","path":"/metadata/name","value":"x"}]`:              " ",
		`{"items":[{"metadata":{"name":"x"}}]}`:                           " ",
		"{\"metadata\":{\"\\u006eame\":\"w\\u0065b\"}}":                   "web ",
		`{"data":{"A":"1","a":"2"},"metadata":{"name":"web"}}`:            "web ",
		`{"metadata":["name"],"x":{"metadata":{"name":"x","name2":"y"}}}`: " ",
		` {"metadata":{"name":"web"}}` + "\n":                             "web ",
		`"text"`:                                                          " ",
	} {
		name, namespace, err := kube.ReadMetadata([]byte(text))
		if got := name + " " + namespace; err != nil || got != want {
			t.Errorf("%s: %q (%v), want %q", text, got, err, want)
		}
	}
	for _, text := range []string{
		`{"metadata":{"name":"a"},"metadata":{"name":"b"}}`, `{"metadata":{"name":"a","name":"b"}}`, `{"metadata":{"name":"a","Name":"b"}}`, `{"Metadata":{"name":"a"}}`,
		`{"metadata":{"name":1}}`, `{"metadata":{"name":["a"]}}`, `{"metadata":{"namespace":{}}}`, `{"a":1}{"b":2}`, `{"a":1`, `{"a":1,}`, "metadata:\n  name: a\n", "",
		`{"<<":{"metadata":{"name":"a"}}}`, `{"metadata":{"<<":{"name":"b"}}}`, strings.Repeat("[", 300) + strings.Repeat("]", 300), `{"a":{"b":1,"b":2}}`, "{\"metadata\":{\"name\":\"a\",\"n\\u0061me\":\"b\"}}",
	} {
		if name, namespace, err := kube.ReadMetadata([]byte(text)); err == nil {
			t.Errorf("%.60s: %q %q", text, name, namespace)
		}
	}
}
