//go:build bench

package load_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/internal/testkube"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// What the measurements of a cluster read.
const (
	configMaps = "/api/v1/namespaces/shop/configmaps"
	objects    = 200 // in a list
	watchers   = 32
	updates    = 200 // that each watcher is told
)

// measureKube is requests to an API server through Deputy with everything on, beside nginx as the plainest relay that is trusted with TLS and with an
// administrator's certificate, and direct with that certificate. The client is the same Go program in all three.
func measureKube(b *bench) {
	cluster := testkube.Start(b.t, "deputy-user", "deputy-actors", "deputy-grade", "deputy-task", "deputy-chain", "deputy-record")
	cluster.Namespace("shop")
	cluster.Admin("create", "role", "reader", "-n", "shop", "--verb=get,list,watch", "--resource=configmaps")
	cluster.Admin("create", "rolebinding", "reader", "-n", "shop", "--role=reader", "--group="+testmesh.ClusterGroup)
	var all strings.Builder
	for i := range objects {
		fmt.Fprintf(&all, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c%d, namespace: shop}\ndata: {text: %q}\n", i, strings.Repeat("some text ", 30))
	}
	cluster.Apply(all.String())
	m := b.mesh(testmesh.Shop(b.t), "", testmesh.Kube(cluster), testmesh.Policy(testdata(b, "cluster")))
	alice := m.Login(b.t, "alice")
	direct := web{name: "direct", url: cluster.URL, tls: b.adminTLS(cluster)}
	// nginx has the API server's own certificate, and goes on as the administrator.
	pki := filepath.Dir(cluster.CAFile)
	relay := web{name: "nginx", tls: b.adminTLS(cluster), url: b.nginxBefore(cluster.URL, filepath.Join(pki, "server.crt"), filepath.Join(pki, "server.key"),
		fmt.Sprintf("proxy_buffering off; proxy_read_timeout 1h; proxy_ssl_certificate %s; proxy_ssl_certificate_key %s;", cluster.AdminCertFile, cluster.AdminKeyFile))}
	ways := func() []web {
		id := b.identityFor(m, alice, testmesh.ClusterTarget) // it lives five minutes
		return []web{{"Deputy", "https://" + m.Address("prod"), id.Credential, b.clientTLS(id)}, relay, direct}
	}
	for _, q := range []struct{ name, path string }{{"get", configMaps + "/c0"}, {"list", configMaps}} {
		for _, clients := range []int{1, 8} {
			var subjects []subject
			for _, w := range ways() {
				c := w.client(b)
				subjects = append(subjects, subject{w.name, func() float64 {
					defer b.profiled(route{name: w.name, pid: m.Proxy.Pid(), ours: w.name == "Deputy"}, fmt.Sprintf("kube-%s-%d", q.name, clients))()
					return b.rate(w, c, clients, q.path)
				}})
			}
			got := b.sideBySide(fmt.Sprintf("kube, %s, %d clients, requests/s", q.name, clients), subjects)
			b.compare(result{Name: "kube, " + q.name, Unit: "/s", Params: map[string]string{"clients": strconv.Itoa(clients)}}, got, "Deputy", "nginx", "direct")
		}
	}
	b.kubectl(alice, cluster)
	var subjects []subject
	for _, w := range ways() {
		subjects = append(subjects, subject{w.name, func() float64 { return b.watched(w, direct) }})
	}
	got := b.sideBySide(fmt.Sprintf("kube, %d watches, events/s", watchers), subjects)
	b.compare(result{Name: "kube, watch", Unit: "events/s", Params: map[string]string{"watches": strconv.Itoa(watchers)}}, got, "Deputy", "nginx", "direct")
}

// kubectl is how many objects kubectl itself gets in a second, starting anew for each, by a run's KUBECONFIG and by an administrator's.
func (b *bench) kubectl(alice *testmesh.Session, cluster *testkube.Cluster) {
	if !b.wants("kube", "kubectl get") {
		return
	}
	const times = 10
	script := timed(fmt.Sprintf(`for i in $(seq %d); do %s --cache-dir "$d" get configmap c0 -n shop -o name >/dev/null || exit 1; done`, times, testkube.PublicKubectl(b.t)))
	got := b.sideBySide("kube, kubectl get", []subject{
		{"Deputy", func() float64 {
			return times / b.took(script, alice.Run(b.t, []string{"planner --target " + testmesh.ClusterTarget + " --no-isolate", "researcher --no-isolate"}, "sh", "-c", script))
		}},
		{"direct", func() float64 {
			return times / b.took(script, testmesh.Exec(b.t, testmesh.Command{Args: []string{"sh", "-c", script}, Env: []string{"KUBECONFIG=" + cluster.AdminConfig}}))
		}},
	})
	b.compare(result{Name: "kube, kubectl get", Unit: "a second"}, got, "Deputy", "direct")
}

func (b *bench) adminTLS(c *testkube.Cluster) *tls.Config {
	b.t.Helper()
	pair, err := tls.LoadX509KeyPair(c.AdminCertFile, c.AdminKeyFile)
	b.try(err)
	raw, err := os.ReadFile(c.CAFile)
	b.try(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}}
}

// watched is events per second that watches of one object are told, while somebody changes it at the API server itself, until all have heard all.
func (b *bench) watched(w, writer web) float64 {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t := &http.Transport{TLSClientConfig: w.tls, MaxIdleConnsPerHost: watchers, DisableCompression: true}
	defer t.CloseIdleConnections()
	var ready, told sync.WaitGroup
	ready.Add(watchers)
	for range watchers {
		told.Go(func() { b.watch(ctx, w, t, ready.Done) })
	}
	ready.Wait()
	began := time.Now()
	c := writer.client(b)
	for i := range updates {
		q, err := http.NewRequestWithContext(ctx, http.MethodPatch, writer.url+configMaps+"/c0", strings.NewReader(fmt.Sprintf(`{"data":{"n":"%d-%d"}}`, began.UnixNano(), i)))
		b.try(err)
		q.Header.Set("Content-Type", "application/merge-patch+json")
		a, err := c.Do(q)
		b.try(err)
		_, _ = io.Copy(io.Discard, a.Body)
		_ = a.Body.Close()
		if a.StatusCode != http.StatusOK {
			b.t.Fatalf("the API server answers %d", a.StatusCode)
		}
	}
	told.Wait()
	return watchers * updates / time.Since(began).Seconds()
}

// watch hears of the object as it is, and of so many updates.
func (b *bench) watch(ctx context.Context, w web, t *http.Transport, ready func()) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+configMaps+"?watch=true&fieldSelector=metadata.name%3Dc0", nil)
	if err == nil && w.bearer != "" {
		q.Header.Set("Authorization", "Bearer "+w.bearer)
	}
	var a *http.Response
	if err == nil {
		a, err = t.RoundTrip(q)
	}
	if err != nil {
		b.t.Errorf("%s: %v", w.name, err)
		ready()
		return
	}
	defer a.Body.Close()
	lines := bufio.NewScanner(a.Body)
	lines.Buffer(nil, 1<<20)
	for n := 0; n <= updates; n++ {
		var e struct{ Type string }
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Type != "ADDED" && e.Type != "MODIFIED" {
			b.t.Errorf("%s: %d after %d events: %v %.200s", w.name, a.StatusCode, n, lines.Err(), lines.Bytes())
			if n == 0 {
				ready()
			}
			return
		}
		if n == 0 {
			ready()
		}
	}
}
