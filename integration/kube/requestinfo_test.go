// Package kube_test holds what is recorded of Kubernetes' own code against it.
package kube_test

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

var update = flag.Bool("update", false, "write the vectors again")

// vectors are what proxy/kube is tested with.
const vectors = "../../proxy/kube/testdata/requestinfo.json"

// reading is how the API server reads a request.
type reading struct {
	Method      string `json:"method"`
	URI         string `json:"uri"`
	IsResource  bool   `json:"is_resource,omitempty"`
	Verb        string `json:"verb,omitempty"`
	Group       string `json:"group,omitempty"`
	Version     string `json:"version,omitempty"`
	Resource    string `json:"resource,omitempty"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	Error       bool   `json:"error,omitempty"`
}

func read(method, uri string) (reading, bool) {
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		return reading{}, false
	}
	factory := request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	i, err := factory.NewRequestInfo(&http.Request{Method: method, URL: u})
	return reading{method, uri, i.IsResourceRequest, i.Verb, i.APIGroup, i.APIVersion, i.Resource, i.Subresource, i.Namespace, i.Name, err != nil}, true
}

func requests() [][2]string {
	var out [][2]string
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
	queries := []string{
		"", "?watch=true", "?watch=1", "?watch=0", "?watch=false", "?watch=", "?watch", "?watch=FALSE", "?watch=true&watch=false", "?Watch=true", "?timeoutSeconds=x&watch=true",
		"?fieldSelector=metadata.name%3Dweb", "?fieldSelector=metadata.name%3D%3Dweb", "?fieldSelector=metadata.name!%3Dweb", "?fieldSelector=a%3Db,metadata.name%3Dweb", "?fieldSelector=metadata.name%3Dweb%5C,x",
		"?fieldSelector=metadata.name%3Da%2Fb", "?fieldSelector=metadata.name%3Dweb,metadata.name%3Dapi", "?fieldSelector=metadata.name%3Dweb&timeoutSeconds=x", "?fieldSelector=%20metadata.name%3Dweb", "?fieldSelector=metadata.name%3D", "?fieldSelector=x&watch=1",
		"?fieldSelector=metadata.name%3Dweb&limit=99999999999999999999", "?fieldSelector=metadata.name%3Dweb&timeoutSeconds=9&limit=5",
	}
	paths := []string{
		"/api/v1/pods", "/api/v1/namespaces/shop/pods", "/api/v1/namespaces/shop/pods/web", "/api/v1/namespaces/shop/pods/web/log", "/api/v1/namespaces", "/api/v1/namespaces/shop", "/api/v1/namespaces/shop/status", "/api/v1/namespaces/shop/finalize",
		"/apis/apps/v1/deployments", "/apis/apps/v1/namespaces/shop/deployments/web/scale", "/api/v1/watch/pods", "/api/v1/watch/namespaces/shop/pods/web", "/apis/apps/v1/watch/namespaces/shop/deployments", "/apis/a.b.c/v1beta1/things/x", "/api/v1/nodes/n/proxy/a/b",
	}
	for _, m := range methods {
		for _, p := range paths {
			for i, q := range queries {
				if i == 0 || m == "GET" || m == "DELETE" && i%4 == 1 {
					out = append(out, [2]string{m, p + q})
				}
			}
		}
	}
	segments := []string{"api", "apis", "v1", "apps", "namespaces", "namespaces", "shop", "pods", "web", "status", "finalize", "log", "exec", "proxy", "watch", "secrets", "", ".", "..", "%2e", "a%2Fb", "Pods", "w%65b", "web;x", "a:b"}
	r := rand.New(rand.NewPCG(20261126, 4))
	for range 1500 {
		var parts []string
		if r.IntN(4) > 0 {
			parts = [][]string{{"api", "v1"}, {"apis", "apps", "v1"}}[r.IntN(2)]
		}
		for range r.IntN(6) {
			parts = append(parts[:len(parts):len(parts)], segments[r.IntN(len(segments))])
		}
		out = append(out, [2]string{methods[r.IntN(len(methods))], "/" + strings.Join(parts, "/")})
	}
	return out
}

func TestTheVectorsAreTheAPIServers(t *testing.T) {
	var now []reading
	for _, q := range requests() {
		if one, ok := read(q[0], q[1]); ok {
			now = append(now, one)
		}
	}
	if *update {
		var b strings.Builder
		b.WriteString("[\n")
		for i, one := range now {
			line, err := json.Marshal(one)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(line)
			if i < len(now)-1 {
				b.WriteByte(',')
			}
			b.WriteByte('\n')
		}
		b.WriteString("]\n")
		if err := os.WriteFile(vectors, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(vectors)
	if err != nil {
		t.Fatal(err)
	}
	var then []reading
	if err := json.Unmarshal(text, &then); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(now, then) {
		t.Error("the API server reads requests otherwise than when the vectors were written: look at why, and write them again with -update")
	}
}
