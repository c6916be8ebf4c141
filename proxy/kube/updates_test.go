package kube_test

import (
	"fmt"
	"strings"
	"testing"
)

// updates are of objects that aren't there. What creates one is decided as a creation, too.
func (r *realRig) updates(t *testing.T) {
	for _, kind := range []struct{ path, version, kind, more string }{
		{"/api/v1/namespaces/shop/services", "v1", "Service", `,"spec":{"ports":[{"port":80}]}`},
		{"/api/v1/namespaces/shop/limitranges", "v1", "LimitRange", ""},
		{"/apis/coordination.k8s.io/v1/namespaces/shop/leases", "coordination.k8s.io/v1", "Lease", ""},
		{"/api/v1/namespaces/shop/configmaps", "v1", "ConfigMap", ""},
	} {
		for i, c := range []struct {
			meta, sub, says string
			creates         bool
		}{
			{`"resourceVersion":"5"`, "", "", kind.kind != "ConfigMap"},
			{`"resourceVersion":"5","uid":"0f"`, "", "made-1", false},
			{`"uid":"0f"`, "", "made-2", false},
			{`"resourceVersion":"5"`, "/status", "", kind.kind == "Service"},
			{`"uid":"0f"`, "/status", "", false},
		} {
			name := fmt.Sprintf("made-%d", i)
			object := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,%s}%s}`, kind.version, kind.kind, name, c.meta, kind.more)
			out, code := r.run(t, object, "replace", "--raw", kind.path+"/"+name+c.sub, "-f", "-")
			if (code == 0) != c.creates || !strings.Contains(out, c.says) {
				t.Errorf("%s: %d %s", object+c.sub, code, out)
			}
			all := r.All("decided")
			if ops := spellOps(all[len(all)-1].Cmd); code == 0 && !strings.Contains(ops, "create ") {
				t.Errorf("%s is created, and was decided as %q", name, ops)
			}
		}
	}
}
