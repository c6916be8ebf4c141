//go:build bench

package load_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testweb"
)

// bulk is how much a download moves.
const bulk = 256 << 20

// testdata is a folder of the integration tests.
func testdata(b *bench, name string) string {
	return filepath.Join(root(b.t), "integration", "testdata", name)
}

// identityFor is an agent's, for clients that reach the proxy without the run's listener.
func (b *bench) identityFor(m *testmesh.Mesh, s *testmesh.Session, target string) identity {
	b.t.Helper()
	agents := []string{"planner --target " + target, "researcher", "worker"}
	if target == testmesh.RawTarget {
		agents = agents[:1] // its policy
	}
	h := &holder{b: b, m: m, live: testmesh.Begin(b.t, s.Agents(b.t, agents, testmesh.Program(b.t, "agentprobe"), "identity", target))}
	return h.identity()
}

func (b *bench) clientTLS(id identity) *tls.Config {
	b.t.Helper()
	svid, err := x509svid.Parse([]byte(id.SVID), []byte(id.Key))
	b.try(err)
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), []byte(id.Bundle))
	b.try(err)
	cfg := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeAny())
	cfg.MinVersion = tls.VersionTLS13
	return cfg
}

// siteTLS trusts the site's own certificate.
func (b *bench) siteTLS(site *testweb.Site) *tls.Config {
	b.t.Helper()
	raw, err := os.ReadFile(site.CAFile)
	b.try(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
}

// web is one way to the site.
type web struct {
	name, url, bearer string
	tls               *tls.Config
}

func (w web) client(b *bench) *http.Client {
	t := &http.Transport{TLSClientConfig: w.tls, MaxIdleConnsPerHost: 64, DisableCompression: true}
	b.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: time.Minute}
}

func (w web) get(c *http.Client, path string) (int64, error) {
	q, err := http.NewRequest(http.MethodGet, w.url+path, nil)
	if err != nil {
		return 0, err
	}
	if w.bearer != "" {
		q.Header.Set("Authorization", "Bearer "+w.bearer)
	}
	a, err := c.Do(q)
	if err != nil {
		return 0, err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(a.Body, 512))
		return 0, fmt.Errorf("%s answers %d: %s", w.name, a.StatusCode, text)
	}
	return io.Copy(io.Discard, a.Body)
}

// rate is requests per second of so many clients with a connection each.
func (b *bench) rate(w web, c *http.Client, clients int, path string) float64 {
	return b.perSecond(clients, func() error {
		_, err := w.get(c, path)
		return err
	})
}

// measureHTTP is requests through Deputy with everything on, beside nginx as the plainest relay that is trusted with TLS, and direct. The client is the
// same Go program in all three.
func measureHTTP(b *bench) {
	site := testweb.Start(b.t)
	b.try(os.Mkdir(filepath.Join(site.Files, "public"), 0o755))
	site.Write("public/bulk", make([]byte, bulk))
	b.try(os.Mkdir(filepath.Join(site.Files, "customers"), 0o755))
	site.Write("customers/some.json", []byte("["+strings.TrimSuffix(strings.Repeat(`{"name":"Ada","email":"ada@example.com","accounts":[{"iban":"DE0012345678"}]},`, 100), ",")+"]"))
	m := b.mesh(testmesh.Shop(b.t), "", testmesh.Web(site), testmesh.Policy(testdata(b, "services")))
	id := b.identityFor(m, m.Login(b.t, "alice"), testmesh.ServiceTarget)
	pki := filepath.Dir(site.CAFile)
	relay := b.nginxBefore(site.URL, filepath.Join(pki, "server.crt"), filepath.Join(pki, "server.key"), "")
	ways := []web{
		{"Deputy", "https://" + m.Address("service"), id.Credential, b.clientTLS(id)},
		{"nginx", relay, testweb.Token, b.siteTLS(site)},
		{"direct", site.URL, testweb.Token, b.siteTLS(site)},
	}
	for _, clients := range []int{1, 8, 32} {
		var subjects []subject
		for _, w := range ways {
			c := w.client(b)
			subjects = append(subjects, subject{w.name, func() float64 {
				defer b.profiled(route{name: w.name, pid: m.Proxy.Pid(), ours: w.name == "Deputy"}, fmt.Sprintf("http-%d", clients))()
				return b.rate(w, c, clients, "/v1/invoices/1")
			}})
		}
		got := b.sideBySide(fmt.Sprintf("http, %d clients, requests/s", clients), subjects)
		b.compare(result{Name: "http, requests", Unit: "/s", Params: map[string]string{"clients": strconv.Itoa(clients)}}, got, "Deputy", "nginx", "direct")
	}
	var subjects []subject
	c := ways[0].client(b)
	for _, path := range []string{"/customers/some.json", "/public/some.json"} {
		if path == "/public/some.json" {
			raw, err := os.ReadFile(filepath.Join(site.Files, "customers", "some.json"))
			b.try(err)
			site.Write("public/some.json", raw)
		}
		subjects = append(subjects, subject{path, func() float64 { return b.rate(ways[0], c, 8, path) }})
	}
	got := b.sideBySide("http, 8 clients, 8 KB of JSON, requests/s", subjects)
	b.compare(result{Name: "http, masked JSON", Unit: "/s", Params: map[string]string{"clients": "8", "bytes": "8 KB"}}, got, "/customers/some.json", "/public/some.json")
	b.download("http, download", ways)
}

// download is one bulk transfer at a time.
func (b *bench) download(name string, ways []web) {
	var subjects []subject
	for _, w := range ways {
		c := w.client(b)
		subjects = append(subjects, subject{w.name, func() float64 {
			began := time.Now()
			n, err := w.get(c, "/public/bulk")
			b.try(err)
			return float64(n) / 1e6 / time.Since(began).Seconds()
		}})
	}
	got := b.sideBySide(name+", MB/s", subjects)
	for _, peer := range ways[1:] {
		b.compare(result{Name: name, Unit: "MB/s", Params: map[string]string{"bytes": "256 MB"}}, got, ways[0].name, peer.name)
	}
}

// measureTCP is a bulk transfer over TLS inside a connection through Deputy, beside HAProxy, which passes bytes through, and direct.
func measureTCP(b *bench) {
	site := testweb.Start(b.t)
	b.try(os.Mkdir(filepath.Join(site.Files, "public"), 0o755))
	site.Write("public/bulk", make([]byte, bulk))
	m := b.mesh(testmesh.Shop(b.t), "", testmesh.Web(site), testmesh.Policy(testdata(b, "services")))
	id := b.identityFor(m, m.Login(b.t, "alice"), testmesh.RawTarget)
	outer := b.clientTLS(id)
	outer.NextProtos = []string{"deputy-tcp/1"}
	port := testmesh.FreePorts(b.t, 1)
	conf := b.file("haproxy-tcp.cfg", fmt.Sprintf("defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\nlisten site\n  bind 127.0.0.1:%d\n  server target %s\n",
		port, strings.TrimPrefix(site.URL, "https://")))
	b.serve(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "/usr/sbin/haproxy", "-db", "-q", "-f", conf)
	inner := b.siteTLS(site)
	inner.ServerName = "127.0.0.1"
	through := func(ctx context.Context, network, _ string) (net.Conn, error) {
		c, err := (&tls.Dialer{Config: outer}).DialContext(ctx, network, m.Address("raw"))
		if err != nil {
			return nil, err
		}
		frame := binary.BigEndian.AppendUint32([]byte("deputy-tcp/1"), uint32(len(id.Credential)))
		if _, err := c.Write(append(frame, id.Credential...)); err != nil {
			return nil, err
		}
		head := make([]byte, 12+5)
		if _, err := io.ReadFull(c, head); err != nil {
			return nil, err
		}
		text := make([]byte, binary.BigEndian.Uint32(head[13:]))
		if _, err := io.ReadFull(c, text); err != nil || head[12] != 0 {
			return nil, fmt.Errorf("refused: %s %v", text, err)
		}
		return c, nil
	}
	get := func(w web, dial func(context.Context, string, string) (net.Conn, error)) func() float64 {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: inner, DialContext: dial, DisableCompression: true, DisableKeepAlives: true}, Timeout: time.Minute}
		return func() float64 {
			began := time.Now()
			n, err := w.get(c, "/public/bulk")
			b.try(err)
			return float64(n) / 1e6 / time.Since(began).Seconds()
		}
	}
	got := b.sideBySide("tcp, download, MB/s", []subject{
		{"Deputy", get(web{name: "Deputy", url: site.URL, bearer: testweb.Token}, through)},
		{"HAProxy", get(web{name: "HAProxy", url: "https://127.0.0.1:" + strconv.Itoa(port), bearer: testweb.Token}, nil)},
		{"direct", get(web{name: "direct", url: site.URL, bearer: testweb.Token}, nil)},
	})
	b.compare(result{Name: "tcp, download", Unit: "MB/s", Params: map[string]string{"bytes": "256 MB"}}, got, "Deputy", "HAProxy", "direct")
}
