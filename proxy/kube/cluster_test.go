package kube_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testkube"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop/hoptest"
	"github.com/deputymesh/deputy/proxy/kube"
)

// realRig is the engine in front of a real API server, and kubectl as an agent runs it.
type realRig struct {
	*hoptest.Ledger
	t       *testing.T
	cluster *testkube.Cluster
	config  string // kubeconfig
	home    string
	env     []string
	stop    func() // ends the engine and waits for it
}

// rights are those of the agent's user in the cluster; what the engine lets through is the test's own.
const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: shop}
rules:
- {apiGroups: ["*"], resources: ["*"], verbs: ["*"]}
- {nonResourceURLs: ["*"], verbs: ["get"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: shop}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: shop}]
`

func newRealRig(t *testing.T) *realRig {
	t.Helper()
	c := testkube.Start(t, kube.Extras()...)
	c.Apply(rights)
	c.Namespace("shop")
	c.Namespace("other")
	r := &realRig{t: t, Ledger: hoptest.NewLedger(), cluster: c, home: t.TempDir()}
	ca := testca.New(t, "test.example")
	server := ca.SVID(ca.ID("/deputy/proxy/main"), testca.Hosts("localhost"))
	authority, err := os.ReadFile(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	u, err := url.Parse(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	e, err := kube.New(kube.Config{
		Core: r.Ledger, Target: spiffeid.RequireFromString(hoptest.Target), Mesh: "https://broker.test", SVID: server, TLS: proxy.ServerTLS(server, ca.Bundle(), ca.TrustDomain()),
		Upstream: kube.Upstream{URL: u, RootCAs: roots}, Accounts: []kube.Account{{Name: "deputy", Bearer: testkube.ProxyToken}},
		Identities: kube.Identities{Groups: map[string][]string{"analyst": {"shop"}}}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	address, stop := hoptest.Serve(t, e)
	r.stop = stop
	pair := hoptest.AgentTLS(ca, hoptest.Agent).Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range pair.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	r.file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw})))
	r.file("agent.pem", string(chain))
	r.file("agent.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	r.config = r.file("config", fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"prod",
		"clusters":[{"name":"prod","cluster":{"server":"https://%s","certificate-authority":"ca.pem","tls-server-name":"localhost"}}],
		"users":[{"name":"agent","user":{"client-certificate":"agent.pem","client-key":"agent.key","token":%q}}],
		"contexts":[{"name":"prod","context":{"cluster":"prod","user":"agent","namespace":"shop"}}]}`, address, hoptest.Credential))
	r.Set(func() { r.Allow = r.allow })
	return r
}

// allow lets everything through in the namespace shop but what needs a policy that names it, reading of kinds without a namespace, and reviews of oneself.
func (r *realRig) allow(cmd proxy.Command) bool {
	return len(cmd.Ops) > 0 && !slices.ContainsFunc(cmd.Ops, func(op proxy.Op) bool {
		verb := strings.TrimPrefix(op.Action.Name(), "kube:")
		o := op.Resource.Kube
		switch {
		case verb == "discover" || verb == "nonresource":
			return false
		case slices.Contains([]string{"proxy", "token", "approve", "escalate", "bind", "reveal"}, verb):
			return true
		case !mayRun(op):
			return true
		case o.Namespace == "shop" || strings.HasPrefix(o.Resource, "self"):
			return false
		}
		return o.Namespace != "" || op.Write
	})
}

func (r *realRig) file(name, text string) string {
	path := filepath.Join(r.home, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *realRig) kubectl(ctx context.Context, input string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, testkube.Kubectl(r.t), args...)
	cmd.Dir, cmd.Stdin = r.home, strings.NewReader(input)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.home, "KUBECONFIG=" + r.config, "EDITOR=sed -i s/blue/green/"}
	cmd.Env = append(cmd.Env, r.env...)
	return cmd
}

// run gives what kubectl prints, and its exit code.
func (r *realRig) run(t *testing.T, input string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := r.kubectl(ctx, input, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if exit := (*exec.ExitError)(nil); cmd.Run() != nil && !errors.As(cmd.Err, &exit) && cmd.ProcessState == nil {
		t.Fatalf("kubectl %v: %v", args, cmd.Err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

const (
	configMap  = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"color":"blue"}}`
	deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":1,"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"main","image":"none"}]}}}}`
	secret     = `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"db"},"stringData":{"password":"` + value + `"}}`
)

// quoting are policies of the cluster that say what a Secret has.
var quoting = fmt.Sprintf(admission, "denied", "Deny") + fmt.Sprintf(admission, "warned", "Warn")

const admission = `---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: %[1]s}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [secrets]}]}
  validations: [{expression: "!('%[1]s' in object.data)", reason: Forbidden, messageExpression: "'says ' + string(object.data.password)"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: %[1]s}
spec: {policyName: %[1]s, validationActions: [%[2]s]}
`

// awaitWatch waits until a watch was decided.
func (r *realRig) awaitWatch(t *testing.T, resource string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, e := range r.All("decided") {
			if e.Cmd.Kind == "watch" && strings.Contains(e.Cmd.Scrubbed, "/"+resource+"?") {
				return
			}
		}
	}
	t.Fatalf("nobody watches %s", resource)
}

// signingRequest is somebody's request for a certificate.
func signingRequest(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return fmt.Sprintf(`{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"name":"ours"},"spec":{"request":%q,"signerName":"example.com/one","usages":["client auth"]}}`, base64.StdEncoding.EncodeToString(text))
}

// decidedAs are the operations of TestKubectl by the verbs, beside discover, that are allowed for them. Others are discover alone, or refused.
var decidedAs = map[string][]string{
	"create":            {"auth whoami", "auth can-i", "create -f", "create a secret", "create", "create again"},
	"nonresource":       {"get --raw"},
	"list":              {"get", "get by selector", "get of all namespaces", "get with chunks", "get secrets", "get secrets, JSON", "get secrets, columns", "get secrets, raw"},
	"get":               {"get -o yaml", "apply again", "edited", "logs", "logs of a container", "get a secret", "describe a secret", "test a secret's value", "certificate"},
	"get,patch":         {"apply", "apply --dry-run=server", "diff", "patch, strategic", "patch, merge", "patch, JSON", "edit", "label", "annotate", "scale", "set image", "rollout restart", "apply a secret again", "patch a secret", "label a secret", "break a secret", "break a secret, strategic"},
	"create,patch":      {"apply --server-side", "apply a secret server-side"},
	"create,get,update": {"replace"},
	"create,get":        {"create deployment", "apply a secret"},
	"get,list":          {"rollout history", "describe deployment", "describe pod"},
	"get,watch":         {"wait"},
	"delete,get":        {"delete a secret", "delete"},
	"delete,get,list":   {"delete --all"},
	"deletecollection":  {"delete all at once"},
}

// TestKubectl is the table of docs/targets/kubernetes.md: each operation of kubectl through the engine to a real API server, in this order.
func TestKubectl(t *testing.T) {
	r := newRealRig(t)
	r.cluster.Pod("shop", "pod", "sh", "-c", "echo first; echo second; exec sleep 1000")
	r.cluster.Apply(signingRequest(t))
	never := []string{value, value64} // in nothing that is printed
	for _, c := range []struct {
		name, args, input string
		code              int
		says              string
	}{
		{"api-resources", "api-resources", "", 0, "deployments"},
		{"api-versions", "api-versions", "", 0, "apps/v1"},
		{"version", "version", "", 0, "Server Version"},
		{"explain", "explain pods.spec", "", 0, "PodSpec"},
		{"auth whoami", "auth whoami", "", 0, "https://idp.test#ada"},
		{"auth can-i", "auth can-i get pods", "", 0, "yes"},
		{"get --raw", "get --raw /readyz", "", 0, "ok"},
		{"create -f", "create -f -", configMap, 0, "configmap/c created"},
		{"get", "get configmaps", "", 0, "c "},
		{"get -o yaml", "get configmap c -o yaml", "", 0, "color: blue"},
		{"get by selector", "get configmaps --field-selector=metadata.name=c", "", 0, "c "},
		{"get of all namespaces", "get pods -A", "", 0, "pod "},
		{"get with chunks", "get configmaps --chunk-size=1", "", 0, "c "},
		{"apply", "apply -f -", strings.Replace(configMap, "blue", "red", 1), 0, "configmap/c configured"},
		{"apply again", "apply -f -", strings.Replace(configMap, "blue", "red", 1), 0, "configmap/c unchanged"},
		{"apply --server-side", "apply --server-side --force-conflicts -f -", configMap, 0, "configmap/c serverside-applied"},
		{"apply --dry-run=server", "apply --dry-run=server -f -", strings.Replace(configMap, "blue", "pink", 1), 0, "server dry run"},
		{"diff", "diff -f -", strings.Replace(configMap, "blue", "pink", 1), 1, "pink"},
		{"patch, strategic", `patch configmap c -p {"data":{"a":"b"}}`, "", 0, "patched"},
		{"patch, merge", `patch configmap c --type=merge -p {"data":{"a":"c"}}`, "", 0, "patched"},
		{"patch, JSON", `patch configmap c --type=json -p [{"op":"test","path":"/data/a","value":"c"},{"op":"remove","path":"/data/a"}]`, "", 0, "patched"},
		{"edit", "edit configmap c", "", 0, "edited"},
		{"edited", "get configmap c -o jsonpath={.data.color}", "", 0, "green"},
		{"label", "label configmap c a=b", "", 0, "labeled"},
		{"annotate", "annotate configmap c a=b", "", 0, "annotated"},
		{"replace", "replace -f -", configMap, 0, "replaced"},
		{"create deployment", "apply -f -", deployment, 0, "deployment.apps/web created"},
		{"scale", "scale deployment web --replicas=3", "", 0, "scaled"},
		{"set image", "set image deployment/web main=other", "", 0, "image updated"},
		{"rollout restart", "rollout restart deployment/web", "", 0, "restarted"},
		{"rollout history", "rollout history deployment/web", "", 0, "deployment.apps/web"},
		{"describe deployment", "describe deployment web", "", 0, "Replicas:"},
		{"describe pod", "describe pod pod", "", 0, "Node:"},
		{"logs", "logs pod", "", 0, "second"},
		{"logs of a container", "logs pod -c main --tail=1", "", 0, "second"},
		{"wait", "wait --for=jsonpath={.metadata.name}=pod pod/pod --timeout=20s", "", 0, "condition met"},
		{"create a secret", "create secret generic made --from-literal=password=" + value, "", 0, "created"},
		{"apply a secret", "apply -f -", secret, 0, "secret/db created"},
		{"apply a secret again", "apply -f -", secret, 0, "secret/db"},
		{"apply a secret server-side", "apply --server-side --force-conflicts -f -", secret, 0, "serverside-applied"},
		{"get secrets", "get secrets", "", 0, "Opaque   1"},
		{"get a secret", "get secret db -o yaml", "", 0, "password: bWFza2VkIGJ5IGRlcHV0eQ=="},
		{"get secrets, JSON", "get secrets -o json --show-managed-fields", "", 0, "bWFza2VkIGJ5IGRlcHV0eQ=="},
		{"get secrets, columns", "get secrets -o custom-columns=V:.data.password", "", 0, "bWFza2VkIGJ5IGRlcHV0eQ=="},
		{"get secrets, raw", "get --raw /api/v1/namespaces/shop/secrets", "", 0, "SecretList"},
		{"describe a secret", "describe secret db", "", 0, "password:  16 bytes"},
		{"patch a secret", `patch secret db -p {"stringData":{"other":"x"}} -o yaml`, "", 0, "other: bWFza2VkIGJ5IGRlcHV0eQ=="},
		{"label a secret", "label secret db a=b", "", 0, "labeled"},
		{"test a secret's value", `patch secret db --type=json -p [{"op":"test","path":"/data/password","value":"` + value64 + `"}]`, "", 1, "would tell what they are"},
		{"break a secret", `patch secret db --type=merge -p {"data":{"a":"@@"}}`, "", 1, "words are withheld"},
		{"break a secret, strategic", `patch secret db -p {"data":{"a":["b"]}}`, "", 1, "words are withheld"},
		{"delete a secret", "delete secret made", "", 0, "deleted"},
		{"delete", "delete configmap c", "", 0, "deleted"},
		{"create", "create configmap one --from-literal=a=b", "", 0, "configmap/one created"},
		{"delete --all", "delete configmaps --all", "", 0, `configmap "one" deleted`},
		{"create again", "create configmap two --from-literal=a=b", "", 0, "configmap/two created"},
		{"delete all at once", "delete --raw /api/v1/namespaces/shop/configmaps", "", 0, `"name":"two"`},
		{"top", "top pods", "", 1, "Metrics API not available"},
		{"a namespace without rights", "get pods -n other", "", 1, "Forbidden"},
		{"a write without rights", "create namespace evil", "", 1, "no policy permits it (record: rec-refused)"},
		{"proxy", "get --raw /api/v1/namespaces/shop/services/web/proxy/", "", 1, "record: rec-refused"},
		{"token", "create token default", "", 1, "record: rec-refused"},
		{"role", "create role r --verb=get --resource=pods", "", 1, "record: rec-refused"},
		{"binding", "create rolebinding b --role=r --user=x", "", 1, "record: rec-refused"},
		{"certificate", "certificate approve ours", "", 1, "record: rec-refused"},
		{"--as", "get pods --as=system:admin", "", 1, "nobody acts as somebody else here"},
		{"YAML over the wire", "replace --raw /api/v1/namespaces/shop/configmaps/c -f -", "a: b\n", 1, "can't be read in one way"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			before := len(r.All("decided"))
			out, code := r.run(t, c.input, strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(out, c.says) {
				t.Errorf("exit code %d, want %d and %q:\n%s", code, c.code, c.says, out)
			}
			var verbs []string
			wanted := ""
			for v, names := range decidedAs {
				if slices.Contains(names, c.name) {
					wanted = v
				}
			}
			for _, e := range r.All("decided")[before:] {
				for _, op := range e.Cmd.Ops {
					if verb := strings.TrimPrefix(op.Action.Name(), "kube:"); verb != "discover" && !slices.Contains(verbs, verb) {
						verbs = append(verbs, verb)
					}
				}
			}
			if slices.Sort(verbs); strings.Join(verbs, ",") != wanted {
				t.Errorf("it was decided as %v, want %s", verbs, wanted)
			}
			for _, n := range never {
				if strings.Contains(out, n) && !strings.Contains(c.args, n) {
					t.Errorf("it prints a value:\n%s", out)
				}
			}
		})
	}
	t.Run("masks_written_back", func(t *testing.T) {
		masked, _ := r.run(t, "", "get", "secret", "db", "-o", "json")
		if out, code := r.run(t, masked, "replace", "-f", "-"); code == 0 || !strings.Contains(out, "put the mask in the place of the real one") {
			t.Errorf("%d: %s", code, out)
		}
		if got := r.cluster.Admin("get", "secret", "-n", "shop", "db", "-o", "jsonpath={.data.password}"); got != value64 {
			t.Errorf("the value has become %q", got)
		}
	})
	t.Run("update", r.updates)
	t.Run("admission_quotes_a_secret", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r.cluster.Apply(quoting)
		for !strings.Contains(r.cluster.Failing("patch", "secret", "-n", "shop", "db", "--dry-run=server", "-p", `{"data":{"denied":""}}`), "says "+value64) {
			if ctx.Err() != nil {
				t.Fatal("the admission policy never began")
			}
		}
		for key, want := range map[string]string{"denied": "denied request: the cluster's words are withheld", "warned": "patched"} {
			if out, _ := r.run(t, "", "patch", "secret", "db", "-p", `{"data":{"`+key+`":""}}`); strings.Contains(out, value64) || !strings.Contains(out, want) {
				t.Errorf("%s: %s", key, out)
			}
		}
	})
	t.Run("watch", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for kind, object := range map[string]string{"configmaps": configMap, "secrets": secret} {
			cmd := r.kubectl(ctx, "", "get", kind, "--watch", "-o", "json")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Once it watches: what it lists before is another request, and so may be another session's.
			r.awaitWatch(t, kind)
			r.cluster.Apply(strings.NewReplacer(`"name":"db"`, `"name":"seen","namespace":"shop"`, `"name":"c"`, `"name":"seen","namespace":"shop"`).Replace(object))
			var got []byte
			for !bytes.Contains(got, []byte(`"seen"`)) {
				buffer := make([]byte, 4096)
				n, err := out.Read(buffer)
				if got = append(got, buffer[:n]...); err != nil {
					t.Fatalf("%v: %s", err, got)
				}
			}
			r.Last().Revoke()
			begin := time.Now()
			rest := new(bytes.Buffer)
			_, _ = rest.ReadFrom(out)
			_ = cmd.Wait()
			if strings.Contains(string(got)+rest.String(), value) || time.Since(begin) > 10*time.Second {
				t.Errorf("%s: %s%s", kind, got, rest)
			}
		}
	})
	for _, c := range []struct{ name, env string }{{"WebSocket", ""}, {"SPDY", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false,KUBECTL_PORT_FORWARD_WEBSOCKETS=false"}} {
		r.cluster.Pod("shop", "cat", "sh", "-c", "read line; echo got $line; sleep 1")
		t.Run(c.name, func(t *testing.T) { r.streams(t, strings.Split(c.env, ",")) })
	}
	t.Run("debug", func(t *testing.T) {
		if out, code := r.run(t, "", "debug", "pod", "--image=none", "--container=looking", "--", "sleep", "1"); code != 0 {
			t.Errorf("%d: %s", code, out)
		}
		if got := r.cluster.Admin("get", "pod", "-n", "shop", "pod", "-o", "jsonpath={.spec.ephemeralContainers[0].name}"); got != "looking" {
			t.Errorf("the pod has %q", got)
		}
		if e := r.Await(t, "completed", "ephemeralcontainers"); spellOps(e.Cmd) != "debug shop/pods/pod/ephemeralcontainers" {
			t.Errorf("decided as %s", spellOps(e.Cmd))
		}
	})
	t.Run("audit_log", func(t *testing.T) {
		e := r.cluster.AwaitAudit("the scaling", func(e testkube.Event) bool { return e.ObjectRef.Subresource == "scale" && e.Impersonated != nil })
		if e.User.Username != testkube.ProxyUser || e.Impersonated.Username != "https://idp.test#ada" || !slices.Contains(e.Impersonated.Groups, "shop") {
			t.Errorf("%+v", e)
		}
		for key, want := range map[string]string{"deputy-user": "https://idp.test#ada", "deputy-actors": hoptest.Agent, "deputy-record": "rec-decided", "deputy-chain": "sha256-of-the-chain", "deputy-task": strings.Repeat("0f", 16)} {
			if got := e.Impersonated.Extra[key]; len(got) != 1 || got[0] != want {
				t.Errorf("%s: %v", key, got)
			}
		}
		for _, e := range r.cluster.Audit() {
			if e.Impersonated != nil && e.ObjectRef.Namespace == "other" {
				t.Errorf("the refused reached the cluster: %+v", e)
			}
		}
	})
	t.Run("the end", r.stopped) // of the engine
}
