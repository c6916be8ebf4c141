package testkube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// startEtcd returns its URL.
func (c *Cluster) startEtcd(k keys) string {
	c.t.Helper()
	url, peer := "https://"+free(c.t), "http://"+free(c.t)
	c.start("etcd", "--data-dir="+c.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+url, "--advertise-client-urls="+url, "--cert-file="+k.etcd.cert, "--key-file="+k.etcd.key,
		"--trusted-ca-file="+k.etcdCA, "--client-cert-auth",
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	return url
}

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/readyz*", "/livez*", "/healthz*"]
- {level: Metadata, verbs: [list, watch]}
- level: RequestResponse
`

func (c *Cluster) startServer(k keys, etcd string) {
	c.t.Helper()
	address := free(c.t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		c.t.Fatal(err)
	}
	exited := c.start("kube-apiserver", "--bind-address=127.0.0.1", "--secure-port="+port, "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--tls-cert-file="+k.server.cert, "--tls-private-key-file="+k.server.key, "--client-ca-file="+k.clientCA,
		"--token-auth-file="+c.write("tokens.csv", fmt.Sprintf("%s,%s,%s\n", ProxyToken, ProxyUser, ProxyUser)),
		"--etcd-servers="+etcd, "--etcd-cafile="+k.etcdCA, "--etcd-certfile="+k.etcd.cert, "--etcd-keyfile="+k.etcd.key,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+k.accounts, "--service-account-signing-key-file="+k.accounts,
		"--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC", "--anonymous-auth=false",
		// Nothing makes default service accounts, and nothing clears a node's first taint.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority="+k.nodeCA,
		"--kubelet-client-certificate="+k.toNode.cert, "--kubelet-client-key="+k.toNode.key,
		"--audit-log-path="+c.auditLog, "--audit-policy-file="+c.write("audit-policy.yaml", auditPolicy))
	c.URL, c.CAFile = "https://"+address, k.serverCA
	c.AdminCertFile, c.AdminKeyFile = k.admin.cert, k.admin.key
	c.ProxyCertFile, c.ProxyKeyFile = k.proxy.cert, k.proxy.key
	c.ProxyTokenFile = c.write("proxy.token", ProxyToken+"\n")
	c.AdminConfig = c.write("admin.kubeconfig", fmt.Sprintf(kubeconfig, c.URL, c.CAFile, k.admin.cert, k.admin.key))
	c.ProxyConfig = c.write("proxy.kubeconfig", fmt.Sprintf(kubeconfig, c.URL, c.CAFile, k.proxy.cert, k.proxy.key))
	c.awaitReady(k, exited)
}

const kubeconfig = `
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: test, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`

func (c *Cluster) awaitReady(k keys, exited <-chan struct{}) {
	c.t.Helper()
	pair, err := tls.LoadX509KeyPair(k.admin.cert, k.admin.key)
	if err != nil {
		c.t.Fatal(err)
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		c.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	var last error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		response, err := client.Get(c.URL + "/readyz")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("/readyz says %s", response.Status)
		}
		last = err
		select {
		case <-exited:
			c.t.Fatalf("testkube: kube-apiserver ended at once:\n%s", c.tail("kube-apiserver"))
		default:
		}
	}
	c.t.Fatalf("testkube: kube-apiserver isn't ready: %v\n%s", last, c.tail("kube-apiserver"))
}

func (c *Cluster) startNode(k keys) {
	c.t.Helper()
	pods := c.path("pods")
	if err := os.Mkdir(pods, 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.start("kubelet", "--kubeconfig="+c.AdminConfig, "--name="+Node, "--dir="+pods, "--cert="+k.node.cert, "--key="+k.node.key, "--client-ca="+k.toNodeCA)
	c.Admin("wait", "--for=create", "--timeout=60s", "node/"+Node)
	c.Admin("wait", "--for=condition=Ready", "--timeout=60s", "node/"+Node)
}

// start runs a program until the test's end. What is started later ends earlier.
func (c *Cluster) start(name string, args ...string) (exited <-chan struct{}) {
	c.t.Helper()
	out, err := os.Create(c.path(name + ".log"))
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(program(c.t, name), args...)
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatalf("testkube: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		_ = out.Close()
	}()
	c.t.Cleanup(func() {
		// The node ends its processes itself; the others have nothing worth keeping.
		if name == "kubelet" {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-ended:
			case <-ctx.Done():
			}
		}
		_ = cmd.Process.Kill()
		<-ended
		if c.t.Failed() {
			c.t.Logf("testkube: the end of %s's log:\n%s", name, c.tail(name))
		}
	})
	return ended
}

func (c *Cluster) tail(name string) []byte {
	text, _ := os.ReadFile(filepath.Join(c.dir, name+".log"))
	return text[max(0, len(text)-4096):]
}
