package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testkube"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// clusterRights are what analysts may do in the cluster, by its own RBAC: everything in the namespace shop.
const clusterRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: team, namespace: shop}
rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: team, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: team}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: ` + testmesh.ClusterGroup + `}]
`

// clusterMesh is a mesh with a Kubernetes cluster behind its proxy, and a kubectl that agents may run.
func clusterMesh(t *testing.T, more ...testmesh.Option) (*testmesh.Mesh, *testkube.Cluster, string) {
	t.Helper()
	c := testkube.Start(t, "deputy-user", "deputy-actors", "deputy-grade", "deputy-task", "deputy-chain", "deputy-record")
	c.Namespace("shop")
	c.Namespace("other")
	c.Apply(clusterRights)
	c.Pod("shop", "web")
	m := testmesh.Start(t, append(more, testmesh.Kube(c), testmesh.Policy(filepath.Join("testdata", "cluster")))...)
	return m, c, testkube.PublicKubectl(t)
}

// inCluster are the agents of most tests: two, that reach the cluster.
var inCluster = []string{"planner --target prod", "researcher"}

// A run's KUBECONFIG leads kubectl to the cluster as it is; the chain stands in the proxy's record and in the cluster's own audit log.
func TestKubectlWorksUnmodified(t *testing.T) {
	m, c, kubectl := clusterMesh(t)
	alice := m.Login(t, "alice")
	t.Run("a run's kubeconfig", func(t *testing.T) {
		r := alice.Run(t, inCluster, "sh", "-c", `stat -c %a "$KUBECONFIG" && `+kubectl+` config current-context && `+kubectl+` get pods -n shop -o name`)
		if r.Code != 0 || r.Stdout != "600\nprod\npod/web\n" {
			t.Fatalf("%s", r)
		}
		rec := m.AwaitRecord(t, "proxy", "the decision", func(r *audit.Record) bool {
			d, ok := r.Event.(*audit.Decision)
			return ok && d.Action == "kube:list"
		})
		if n := len(rec.Chain.Hops); n != 3 || !strings.Contains(rec.Chain.Hops[2].ID, "/researcher/") {
			t.Errorf("the chain: %+v", rec.Chain)
		}
		e := c.AwaitAudit("the list", func(e testkube.Event) bool {
			return e.Verb == "list" && e.ObjectRef.Resource == "pods" && e.User.Username == testkube.ProxyUser
		})
		if e.Impersonated == nil || !strings.Contains(e.Impersonated.Username, "alice") || !strings.Contains(fmt.Sprint(e.Impersonated.Extra["deputy-actors"]), rec.Chain.Hops[2].ID) ||
			fmt.Sprint(e.Impersonated.Extra["deputy-record"]) != fmt.Sprintf("[%s]", rec.ID) {
			t.Errorf("the cluster heard %+v of record %s", e.Impersonated, rec.ID)
		}
	})
	t.Run("what isn't allowed", func(t *testing.T) {
		r := alice.Run(t, inCluster, "sh", "-c", kubectl+` get pods -n other < /dev/null`)
		if r.Code == 0 || !strings.Contains(r.Stderr, "Forbidden") {
			t.Fatalf("%s", r)
		}
		if d, ok := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stderr)).Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "policy" {
			t.Errorf("%+v", d)
		}
	})
	t.Run("an outer run's variables", func(t *testing.T) {
		inner := `echo "[${KUBECONFIG#"$1"}] [$KUBERNETES_SERVICE_HOST] ${DEPUTY_AGENT_SOCKET%/*} ${KUBECONFIG%/*/*}"`
		r := alice.Run(t, inCluster[:1], "sh", "-c", `KUBERNETES_SERVICE_HOST=10.0.0.1 `+testmesh.Deputy(t)+` run --as researcher -- sh -c '`+inner+`' sh "$KUBECONFIG"`)
		var own, place string
		if _, err := fmt.Sscanf(strings.TrimSpace(r.Stdout), "[%s [] %s %s", new(string), &own, &place); err != nil || own != "unix://"+place || strings.HasPrefix(r.Stdout, "[]") {
			t.Errorf("%s", r)
		}
	})
	t.Run("an exec plugin", func(t *testing.T) {
		bundle, err := os.ReadFile(filepath.Join(m.Dir, "public", "bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		script := strings.NewReplacer("@ADDRESS@", m.Address("prod"), "@DEPUTY@", testmesh.Deputy(t), "@KUBECTL@", kubectl, "@BUNDLE@", strings.TrimSpace(string(bundle))).Replace(execPlugin)
		r := alice.Run(t, inCluster, "sh", "-c", script)
		if r.Stdout != "pod/web\n" || !strings.Contains(r.Stderr, "elsewhere is no Kubernetes cluster of this run") {
			t.Errorf("%s", r)
		}
	})
}

const execPlugin = `
d=$(mktemp -d) && cd "$d" && trap 'rm -r "$d"' EXIT
cat >bundle.pem <<'END'
@BUNDLE@
END
cat >config <<'END'
apiVersion: v1
kind: Config
current-context: a
clusters: [{name: a, cluster: {server: "https://@ADDRESS@", certificate-authority: bundle.pem}}]
users: [{name: a, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: @DEPUTY@, args: [kube-credential, prod], interactiveMode: Never}}}]
contexts: [{name: a, context: {cluster: a, user: a, namespace: shop}}]
END
@KUBECTL@ --kubeconfig=config get pods -o name
@DEPUTY@ kube-credential elsewhere | cat
`
