package kube_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/deputymesh/deputy/proxy/kube"
)

// The vectors are written by the API server's own parser (integration/kube/requestinfo_test.go). What the engine takes at all, it reads the same way.
func TestRequestsAreReadAsTheAPIServerReadsThem(t *testing.T) {
	text, err := os.ReadFile("testdata/requestinfo.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Method, URI, Verb, Group, Version, Resource, Subresource, Namespace, Name string
		IsResource                                                                bool `json:"is_resource"`
		Error                                                                     bool
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	taken, resources := 0, 0
	for _, v := range vectors {
		verb, version, o, _, err := kube.Parse(v.Method, v.URI)
		if err != nil {
			continue
		}
		taken++
		if v.Error || v.IsResource != (verb != "") {
			t.Errorf("%s %s: read as %q of %+v, by the API server as %+v", v.Method, v.URI, verb, o, v)
			continue
		}
		if !v.IsResource {
			continue
		}
		resources++
		// A name that stands in a selector in an odd way is left out: then the request is about all.
		sameName := o.Name == v.Name || o.Name == "" && (verb == "list" || verb == "watch")
		if verb != v.Verb || version != v.Version || o.Group != v.Group || o.Resource != v.Resource || o.Subresource != v.Subresource || o.Namespace != v.Namespace || !sameName {
			t.Errorf("%s %s: read as %q of %+v, by the API server as %+v", v.Method, v.URI, verb, o, v)
		}
	}
	if taken < 400 || resources < 200 || taken == len(vectors) {
		t.Errorf("%d of %d were taken, %d of resources: the vectors say little", taken, len(vectors), resources)
	}
}
