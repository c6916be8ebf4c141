package streams_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/internal/testkube"
	"github.com/deputymesh/deputy/proxy/kube/streams"
)

// kubectlRig is kubectl in front of a bridge in front of a real API server; what isn't a stream passes as it is.
type kubectlRig struct {
	t      *testing.T
	config string
	k      tape
	ended  chan ending
}

func newKubectlRig(t *testing.T, c *testkube.Cluster, port uint16) *kubectlRig {
	t.Helper()
	r := &kubectlRig{t: t, ended: make(chan ending, 10)}
	upstream, err := url.Parse(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(c.AdminCertFile, c.AdminKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	t.Cleanup(transport.CloseIdleConnections)
	rest := &httputil.ReverseProxy{Transport: transport, Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(upstream) }}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !streams.Requested(q) {
			rest.ServeHTTP(w, q)
			return
		}
		out, err := http.NewRequest(http.MethodGet, c.URL+q.URL.Path+"?"+q.URL.RawQuery, nil)
		if err != nil {
			t.Error(err)
			return
		}
		cfg := streams.Config{Request: out, RoundTrip: transport.RoundTrip, Recorder: r.k.recorder()}
		if strings.HasSuffix(q.URL.Path, "/portforward") {
			cfg.Kind = streams.PortForward
			cfg.AllowPort = func(_ context.Context, asked uint16) (func(int64, int64), error) {
				if asked != port {
					return nil, fmt.Errorf("port %d isn't allowed", asked)
				}
				return nil, nil
			}
		}
		result, err := streams.Bridge(w, q, cfg)
		if no := (*streams.NotBegun)(nil); errors.As(err, &no) {
			t.Errorf("not begun: %v", err)
			http.Error(w, no.Reason, no.Status)
		}
		r.ended <- ending{result, err}
	}))
	t.Cleanup(front.Close)
	r.config = filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: %q}}]\ncontexts: [{name: a, context: {cluster: a, namespace: shop}}]\n", front.URL)
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *kubectlRig) command(env []string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	r.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, testkube.Kubectl(r.t), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.t.TempDir(), "KUBECONFIG=" + r.config}, env...)
	return cmd
}

func TestKubectlWorksThroughABridge(t *testing.T) {
	c := testkube.Start(t)
	c.Namespace("shop")
	c.Pod("shop", "web")
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "behind the pod") }))
	defer behind.Close()
	port := uint16(behind.Listener.Addr().(*net.TCPAddr).Port)
	for name, env := range map[string][]string{"WebSocket": nil, "SPDY": {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"}} {
		t.Run(name, func(t *testing.T) {
			r := newKubectlRig(t, c, port)
			cmd := r.command(env, "exec", "-i", "web", "--", "sh", "-c", "cat; echo err >&2; exit 7")
			var out, errs bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("typed\n"), &out, &errs
			_ = cmd.Run()
			if out.String() != "typed\n" || !strings.HasPrefix(errs.String(), "err\n") || cmd.ProcessState.ExitCode() != 7 {
				t.Errorf("exec: %q, %q, %v", &out, &errs, cmd.ProcessState)
			}
			if e := <-r.ended; e.Exit == nil || e.Exit.Code != 7 || e.Sent != 6 || e.Received != 10 {
				t.Errorf("exec: %+v, exit %+v", e, e.Exit)
			}
			if r.k.said("i") != "typed\n" || !strings.Contains(r.k.said("o"), "typed\n") || !strings.Contains(r.k.said("o"), "err\n") {
				t.Errorf("recorded: %q, %q", r.k.said("i"), r.k.said("o"))
			}

			big := filepath.Join(t.TempDir(), "big")
			if err := os.WriteFile(big, bytes.Repeat([]byte("0123456789abcdef"), 1<<15), 0o600); err != nil {
				t.Fatal(err)
			}
			if text, err := r.command(env, "cp", big, "web:there").CombinedOutput(); err != nil {
				t.Errorf("cp: %v %s", err, text)
			}
			if text, err := r.command(env, "cp", "web:there", big+".back").CombinedOutput(); err != nil {
				t.Errorf("cp: %v %s", err, text)
			}
			sent, _ := os.ReadFile(big)
			if back, _ := os.ReadFile(big + ".back"); !bytes.Equal(back, sent) {
				t.Errorf("%d bytes came back of %d", len(back), len(sent))
			}

			r.forward(env, port, "behind the pod")
			r.forward(env, 9, "")
		})
	}
}

// forward asks for something through a port, and expects an answer, or "" where the port isn't allowed.
func (r *kubectlRig) forward(env []string, port uint16, want string) {
	r.t.Helper()
	cmd := r.command(env, "port-forward", "pod/web", ":"+strconv.Itoa(int(port)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	line := make([]byte, 256)
	n, err := out.Read(line)
	local := regexp.MustCompile(`127\.0\.0\.1:\d+`).Find(line[:n])
	if local == nil {
		r.t.Fatalf("port-forward says %q: %v", line[:n], err)
	}
	text := make([]byte, 64)
	if response, err := http.Get("http://" + string(local)); err == nil {
		n, _ = response.Body.Read(text)
		_ = response.Body.Close()
		text = text[:n]
	} else {
		text = nil
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if string(text) != want || want == "" && !strings.Contains(errs.String(), "isn't allowed") {
		r.t.Errorf("port %d: %q; kubectl says %q", port, text, &errs)
	}
}
