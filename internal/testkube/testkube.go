// Package testkube starts a real Kubernetes API server for tests, on free loopback ports and in a temporary folder: etcd, kube-apiserver
// with RBAC and an audit log, and a stand-in for a kubelet (integration/kube/kubelet) on whose one node pods run as processes of this host.
// There is no scheduler and no controller: pods name their node ([Cluster.Pod] does so), and there are no default service accounts and no
// aggregated roles. scripts/setup builds the programs once.
package testkube

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// Node is the one node.
	Node = "node-1"
	// ProxyUser is whom the proxy's certificate and token name. It may impersonate, and nothing else.
	ProxyUser = "deputy-proxy"
	// ProxyToken is the proxy's bearer token.
	ProxyToken = "the-api-servers-own-token"

	patience = 2 * time.Minute
)

// Cluster is a running cluster.
type Cluster struct {
	t   testing.TB
	dir string
	// URL is the API server's, https://127.0.0.1:port; CAFile has the authority of its certificate.
	URL, CAFile string
	// AdminConfig is a kubeconfig of an administrator, AdminCertFile and AdminKeyFile what it shows.
	AdminConfig, AdminCertFile, AdminKeyFile string
	// ProxyCertFile, ProxyKeyFile and ProxyTokenFile are the proxy's account, by certificate or by token; ProxyConfig is a kubeconfig of it.
	ProxyCertFile, ProxyKeyFile, ProxyTokenFile, ProxyConfig string

	auditLog string
}

// Start starts a cluster whose proxy may act as any user of any groups, with these keys of extra facts (Impersonate-Extra-KEY), and do
// nothing else. The test's end stops it.
func Start(t testing.TB, extras ...string) *Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "testkube")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &Cluster{t: t, dir: dir, auditLog: filepath.Join(dir, "audit.log")}
	k := c.makeKeys()
	etcd := c.startEtcd(k)
	c.startServer(k, etcd)
	c.allowProxy(extras)
	c.startNode(k)
	return c
}

// Kubectl is the path of kubectl.
func Kubectl(t testing.TB) string { return program(t, "kubectl") }

// PublicKubectl is the path of a copy of kubectl that every uid may run.
func PublicKubectl(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	from, err := os.ReadFile(Kubectl(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kubectl")
	if err := os.WriteFile(path, from, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// program is one of those that scripts/setup builds.
func program(t testing.TB, name string) string {
	t.Helper()
	cache := os.Getenv("DEPUTY_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "deputy")
	}
	path := filepath.Join(cache, "kube", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("testkube: no %s; scripts/setup test builds it: %v", name, err)
	}
	return path
}

// Admin runs kubectl as the administrator and returns what it prints.
func (c *Cluster) Admin(args ...string) string {
	c.t.Helper()
	out, err := c.admin("", args...)
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Failing runs kubectl as the administrator, whether it fails or not, and returns what it prints.
func (c *Cluster) Failing(args ...string) string {
	out, _ := c.admin("", args...)
	return out
}

// Apply makes objects from YAML or JSON, as the administrator.
func (c *Cluster) Apply(objects string) {
	c.t.Helper()
	if out, err := c.admin(objects, "apply", "-f", "-"); err != nil {
		c.t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

func (c *Cluster) admin(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, Kubectl(c.t), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "KUBECONFIG=" + c.AdminConfig}
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// Namespace makes a namespace.
func (c *Cluster) Namespace(name string) {
	c.t.Helper()
	c.Admin("create", "namespace", name)
}

// Pod makes a pod with one container, "main", that runs a command on the node (none: it sleeps), and waits until it runs.
// Its folder is the command's own, its ports are this host's.
func (c *Cluster) Pod(namespace, name string, command ...string) {
	c.t.Helper()
	main := map[string]any{"name": "main", "image": "none", "stdin": true}
	if len(command) > 0 {
		main["command"] = command
	}
	c.apply(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": namespace, "labels": map[string]any{"app": name}},
		"spec":     map[string]any{"nodeName": Node, "containers": []any{main}, "terminationGracePeriodSeconds": 0},
	})
	c.Admin("wait", "--namespace", namespace, "--for=jsonpath={.status.containerStatuses[0].state}", "--timeout=60s", "pod/"+name)
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) write(name, text string) string {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c.path(name)
}

// allowProxy gives the proxy's account what it needs to act as others, key by key: RBAC knows no wildcard for extras.
func (c *Cluster) allowProxy(extras []string) {
	c.t.Helper()
	facts := []string{"uids"}
	for _, key := range extras {
		facts = append(facts, "userextras/"+key)
	}
	const rbac = "rbac.authorization.k8s.io"
	rule := func(group string, resources ...string) any {
		return map[string]any{"apiGroups": []string{group}, "resources": resources, "verbs": []string{"impersonate"}}
	}
	c.apply(map[string]any{
		"apiVersion": rbac + "/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": ProxyUser},
		"rules": []any{rule("", "users", "groups"), rule("authentication.k8s.io", facts...)},
	})
	c.apply(map[string]any{
		"apiVersion": rbac + "/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": ProxyUser},
		"roleRef":  map[string]any{"apiGroup": rbac, "kind": "ClusterRole", "name": ProxyUser},
		"subjects": []any{map[string]any{"apiGroup": rbac, "kind": "User", "name": ProxyUser}},
	})
}

func (c *Cluster) apply(object map[string]any) {
	c.t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		c.t.Fatal(err)
	}
	c.Apply(string(text))
}

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
