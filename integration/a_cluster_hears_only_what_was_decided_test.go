package integration_test

import (
	"encoding/base64"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testkube"
	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/proxy/kube"
)

// decidedCluster is a cluster of which nearly everything is allowed in the namespace shop, by a rule as wide as can be.
func decidedCluster(t *testing.T) (m *testmesh.Mesh, c *testkube.Cluster, kubectl string) {
	t.Helper()
	c = testkube.Start(t, kube.Extras()...)
	for _, namespace := range []string{"shop", "other"} {
		c.Namespace(namespace)
	}
	c.Apply(clusterRights)
	m = testmesh.Start(t, testmesh.Kube(c), testmesh.Policy(filepath.Join("testdata", "cluster-rules")))
	return m, c, testkube.PublicKubectl(t)
}

// Each refusal is a Status that kubectl shows, names its record with the whole chain, and nothing of it reaches the cluster.
func TestAClusterHearsOnlyWhatWasDecided(t *testing.T) {
	m, c, kubectl := decidedCluster(t)
	c.Admin("create", "serviceaccount", "-n", "shop", "builder")
	c.Pod("shop", "web")
	alice := m.Login(t, "alice")
	for _, row := range []struct{ name, script, class string }{
		{"another namespace", "kubectl get pods -n other", "policy"},
		{"all namespaces", "kubectl get pods -A", "policy"},
		{"what has no namespace", "kubectl get nodes", "policy"},
		{"a write elsewhere", "kubectl create configmap c -n other", "policy"},
		{"a new namespace", "kubectl create namespace evil", "policy"},
		{"a shell", "kubectl exec -n shop web -- sh -c id", "policy"},
		{"a program in quotes", "kubectl exec -n shop web -- 'a b'", "policy"},
		{"a service's inside", "kubectl get --raw /api/v1/namespaces/shop/services/web:80/proxy/", "policy"},
		{"a pod's inside", "kubectl get --raw /api/v1/namespaces/shop/pods/web/proxy/", "policy"},
		{"a node's inside", "kubectl get --raw /api/v1/nodes/node-1/proxy/pods", "policy"},
		{"another's token", "kubectl create token -n shop other", "policy"},
		{"a role", "kubectl create role -n shop r --verb=get --resource=pods", "policy"},
		{"a binding", "kubectl create rolebinding -n shop b --role=team --user=mallory", "policy"},
		{"a binding, applied", `echo '{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"b","namespace":"shop"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"team"}}' | kubectl apply --server-side -f -`, "policy"},
		{"metrics", "kubectl get --raw /metrics", "policy"},
		{"as somebody else", "kubectl get pods -n shop --as=admin", "unsupported"},
		{"as a group, in a header", `curl -sS "$DEPUTY_URL_PROD/api/v1/namespaces/shop/pods" -H 'Impersonate-Group: system:masters' >&2; false`, "unsupported"},
		{"an encoded slash", `curl -sS --path-as-is "$DEPUTY_URL_PROD/api/v1/namespaces/shop%2F..%2Fother/pods" >&2; false`, "malformed"},
		{"dots", `curl -sS --path-as-is "$DEPUTY_URL_PROD/api/v1/namespaces/shop/../other/pods" >&2; false`, "malformed"},
		{"a body about another namespace", `curl -sS "$DEPUTY_URL_PROD/api/v1/namespaces/shop/configmaps" -H 'Content-Type: application/json' -d '{"metadata":{"name":"c","namespace":"other"}}' >&2; false`, "malformed"},
		{"a body in YAML", `curl -sS "$DEPUTY_URL_PROD/api/v1/namespaces/shop/configmaps" -H 'Content-Type: application/yaml' -d 'metadata: {name: c}' >&2; false`, "media_type"},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "_"), func(t *testing.T) {
			before := len(c.Audit())
			r := alice.Run(t, inCluster, "sh", "-c", strings.ReplaceAll(row.script, "kubectl ", kubectl+" "))
			if r.Code == 0 {
				t.Fatalf("%s", r)
			}
			rec := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr))
			if d, ok := rec.Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != row.class || len(rec.Chain.Hops) != 3 || !strings.Contains(rec.Chain.User.Subject, "alice") {
				t.Errorf("record %s: %+v of %+v", rec.ID, rec.Event, rec.Chain)
			}
			for _, e := range c.Audit()[before:] {
				// kubectl asks for discovery, and which Pod it would enter, before what is refused.
				if e.Impersonated != nil && e.ObjectRef.Resource != "" && (e.Verb != "get" || e.ObjectRef.Name != "web" || e.ObjectRef.Subresource != "") {
					t.Errorf("the cluster heard %s %s", e.Verb, e.RequestURI)
				}
			}
		})
	}
	t.Run("what a policy names", func(t *testing.T) {
		r := alice.Run(t, inCluster, "sh", "-c", kubectl+" create token -n shop builder")
		if r.Code != 0 || strings.Count(r.Stdout, ".") != 2 {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "kube:token" && d.Effect == audit.Allow
		})
		if d := rec.Event.(*audit.Decision); !slices.Contains(d.Policies, "the-builders-token") || d.Objects[0].Name != "shop/serviceaccounts/builder/token" {
			t.Errorf("%+v", d)
		}
	})
	t.Run("a sub-agent that may less", func(t *testing.T) {
		less := []string{inCluster[0], inCluster[1] + " --allow prod:get,list,exec:shop:pods"}
		if r := alice.Run(t, less, "sh", "-c", kubectl+" get pods -n shop -o name"); r.Code != 0 || r.Stdout != "pod/web\n" {
			t.Errorf("%s", r)
		}
		for _, script := range []string{"delete pod -n shop web", "get configmaps -n shop", "exec -n shop web -- id"} {
			if r := alice.Run(t, less, "sh", "-c", kubectl+" "+script); r.Code == 0 || !strings.Contains(r.Stderr, "doesn't reach that far") {
				t.Errorf("%s: %s", script, r)
			}
		}
	})
	t.Run("what the cluster's own rules refuse", func(t *testing.T) {
		c.Admin("delete", "rolebinding", "-n", "shop", "team")
		r := alice.Run(t, inCluster, "sh", "-c", kubectl+" get pods -n shop")
		if r.Code == 0 || !strings.Contains(r.Stderr, `cannot list resource "pods"`) || !strings.Contains(r.Stderr, "alice") {
			t.Errorf("%s", r)
		}
	})
}

const patchNothing = `curl -sS -X PATCH "$DEPUTY_URL_PROD/api/v1/namespaces/shop/configmaps/settings" -H 'Content-Type: application/merge-patch+json' -d '{}'`

// The value of a Secret is in nothing that an agent sees, whatever it asks by, unless a policy shows that very Secret.
func TestSecretsOfAClusterStayMasked(t *testing.T) {
	m, c, kubectl := decidedCluster(t)
	const value, public = "correct-horse-battery", "everybody-may-know"
	value64, public64 := base64.StdEncoding.EncodeToString([]byte(value)), base64.StdEncoding.EncodeToString([]byte(public))
	for name, v := range map[string]string{"db": value, "public-key": public} {
		c.Apply(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"` + name + `","namespace":"shop","annotations":{"copied":"` + v + `"}},"stringData":{"password":"` + v + `"}}`)
	}
	c.Apply(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"settings","namespace":"shop"},"data":{"token":"` + value + `","owner":"ada@example.com","color":"blue"}}`)
	alice := m.Login(t, "alice")
	masked := base64.StdEncoding.EncodeToString([]byte(kube.Placeholder))
	for _, row := range []struct{ name, script, says string }{
		{"yaml", "kubectl get secret -n shop db -o yaml --show-managed-fields", masked},
		{"json", "kubectl get secrets -n shop -o json", masked},
		{"table", "kubectl get secrets -n shop -o wide", "Opaque"},
		{"describe", "kubectl describe secret -n shop db", "16 bytes"},
		{"watch", "timeout 5 kubectl get secrets -n shop --watch -o json --request-timeout=3s || true", masked},
		{"protobuf", `curl -sS "$DEPUTY_URL_PROD/api/v1/namespaces/shop/secrets" -H 'Accept: application/vnd.kubernetes.protobuf'`, masked},
		{"a table of objects", `curl -sS "$DEPUTY_URL_PROD/api/v1/namespaces/shop/secrets?includeObject=Object" -H 'Accept: application/json;as=Table;v=v1;g=meta.k8s.io'`, masked},
		{"metadata", `curl -sS "$DEPUTY_URL_PROD/api/v1/namespaces/shop/secrets/db" -H 'Accept: application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io'`, "last-applied-configuration"},
		{"a label's answer", "kubectl label secret -n shop db a=b -o yaml", masked},
		{"a copy", `kubectl patch secret -n shop db --type=json -p '[{"op":"copy","from":"/data/password","path":"/metadata/annotations/x"}]' 2>&1`, "would tell what they are"},
		{"written back", "kubectl get secret -n shop db -o json | kubectl replace -f - 2>&1", "put the mask in the place of the real one"},
		{"a dry run", "kubectl create secret generic new -n shop --from-literal=a=b --dry-run=server -o yaml", masked},
		{"settings", "kubectl get configmap -n shop settings -o yaml", "color: blue"},
		{"settings, listed", "kubectl get configmaps -n shop -o json", `"owner": "a***@example.com"`},
		{"settings, patched with nothing", patchNothing, `"color":"blue"`},
		{"settings, all deleted for show", `curl -sS -X DELETE "$DEPUTY_URL_PROD/api/v1/namespaces/shop/configmaps?dryRun=All"`, `"color":"blue"`},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "_"), func(t *testing.T) {
			r := alice.Run(t, inCluster, "sh", "-c", strings.ReplaceAll(row.script, "kubectl ", kubectl+" "))
			all := r.Stdout + r.Stderr
			if !strings.Contains(all, row.says) {
				t.Errorf("%q isn't in %s", row.says, r)
			}
			for _, v := range []string{value, value64} {
				if strings.Contains(all, v) {
					t.Errorf("%s", r)
				}
			}
		})
	}
	t.Run("through a sub-agent that may not read", func(t *testing.T) {
		writes := []string{inCluster[0], inCluster[1] + " --allow prod:patch:shop:configmaps"}
		r := alice.Run(t, writes, "sh", "-c", patchNothing)
		if !strings.Contains(r.Stdout, `"color":"blue"`) || strings.Contains(r.Stdout, value) {
			t.Errorf("%s", r)
		}
	})
	t.Run("recorded", func(t *testing.T) {
		rec := m.AwaitRecord(t, "proxy", "the list", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "kube:list" && d.Objects[0].Name == "shop/secrets" && d.Effect == audit.Allow
		})
		if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); len(out.Masked) != 1 || out.Masked[0].Column != "secrets" || out.Masked[0].Values < 2 {
			t.Errorf("%+v", out)
		}
	})
	t.Run("the one that is shown", func(t *testing.T) {
		r := alice.Run(t, inCluster, "sh", "-c", kubectl+" get secret -n shop public-key -o jsonpath={.data.password}")
		if r.Code != 0 || r.Stdout != public64 {
			t.Errorf("%s", r)
		}
		r = alice.Run(t, inCluster, "sh", "-c", kubectl+` get secrets -n shop -o custom-columns=V:.data.password --no-headers`)
		if r.Code != 0 || r.Stdout != masked+"\n"+public64+"\n" {
			t.Errorf("in a list: %s", r)
		}
		m.AwaitRecord(t, "proxy", "the reveal out of a list", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "kube:reveal" && d.Objects[0].Name == "shop/secrets/public-key"
		})
		m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "kube:get,kube:reveal" && slices.Contains(d.Policies, "the-public-key-is-shown")
		})
	})
}

// A watch of a task that is revoked ends within a second of the revocation, at both ends.
func TestARevokedWatchEnds(t *testing.T) {
	m, c, kubectl := decidedCluster(t)
	c.Apply(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"db","namespace":"shop"},"stringData":{"a":"b"}}`)
	alice, oscar := m.Login(t, "alice"), m.Login(t, "oscar")
	live := testmesh.Begin(t, alice.Agents(t, inCluster, "sh", "-c", kubectl+" get secrets -n shop --watch -o name"))
	live.Await("secret/db", 1)
	rec := m.AwaitRecord(t, "proxy", "the watch", func(r *audit.Record) bool {
		d, ok := r.Event.(*audit.Decision)
		return ok && d.Action == "kube:watch"
	})
	if r := oscar.Deputy(t, "revoke", "--task", rec.Chain.Txn, "--reason", "it went astray"); r.Code != 0 {
		t.Fatalf("revoke: %s", r)
	}
	live.Wait(patience)
	revoked := m.AwaitRecord(t, "broker", "the revocation", func(r *audit.Record) bool { _, ok := r.Event.(*audit.Revoked); return ok })
	out := m.Outcome(t, rec.ID)
	if o := out.Event.(*audit.Completed); o.Status != "cut" {
		t.Errorf("%+v", o)
	}
	if took := out.Time.Sub(revoked.Time); took > time.Second {
		t.Errorf("the watch ended %s after the revocation", took)
	}
	c.AwaitAudit("the end of the watch", func(e testkube.Event) bool {
		return e.Verb == "watch" && e.ObjectRef.Resource == "secrets" && e.Stage == "ResponseComplete" && e.Impersonated != nil
	})
}
