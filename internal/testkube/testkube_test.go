package testkube_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testkube"
)

// kubectl runs it as the administrator and returns what it printed, and its exit code.
func kubectl(t *testing.T, c *testkube.Cluster, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testkube.Kubectl(t), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "KUBECONFIG=" + c.AdminConfig}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("kubectl %v: %v\n%s%s", args, err, &out, &errs)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestBed: the test bed does what tests of Kubernetes build on, with kubectl and nothing in between.
func TestBed(t *testing.T) {
	c := testkube.Start(t, "example.com/chain")
	c.Namespace("shop")
	c.Pod("shop", "web", "sh", "-c", "echo first; echo second; exec cat")

	for name, env := range map[string][]string{"WebSocket": nil, "SPDY": {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"}} {
		t.Run(name, func(t *testing.T) {
			out, errs, code := kubectl(t, c, env, "exec", "-n", "shop", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
			if out != "out\n" || !strings.HasPrefix(errs, "err\n") || code != 7 {
				t.Errorf("exec: %q, %q, exit code %d", out, errs, code)
			}
			into, back := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "back")
			if err := os.WriteFile(into, []byte("copied"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, errs, code := kubectl(t, c, env, "cp", into, "shop/web:there"); code != 0 {
				t.Errorf("cp: %s", errs)
			}
			if _, errs, code := kubectl(t, c, env, "cp", "shop/web:there", back); code != 0 {
				t.Errorf("cp: %s", errs)
			}
			if text, _ := os.ReadFile(back); string(text) != "copied" {
				t.Errorf("came back as %q", text)
			}
			if got := forwarded(t, c, env); got != "behind the pod" {
				t.Errorf("port-forward: %q", got)
			}
		})
	}
	if out, _, code := kubectl(t, c, nil, "logs", "-n", "shop", "web", "--tail=1"); out != "second\n" || code != 0 {
		t.Errorf("logs: %q, exit code %d", out, code)
	}
	e := c.AwaitAudit("an exec", func(e testkube.Event) bool { return e.ObjectRef.Subresource == "exec" && e.Stage == "ResponseComplete" })
	if e.User.Username != "admin" || e.ObjectRef.Name != "web" || e.ResponseStatus.Code != http.StatusSwitchingProtocols {
		t.Errorf("the audit log says %+v", e)
	}
	// The proxy's account acts as others and has no rights of its own.
	as := []string{"--kubeconfig=" + c.ProxyConfig, "-n", "shop", "auth", "can-i", "get", "pods"}
	if out, _, _ := kubectl(t, c, nil, as...); out != "no\n" {
		t.Errorf("may the proxy's account read pods? %q", out)
	}
	if out, errs, _ := kubectl(t, c, nil, append(as, "--as=u", "--as-group=system:masters", "--as-user-extra=example.com/chain=x")...); out != "yes\n" {
		t.Errorf("may an administrator that it acts as? %q %s", out, errs)
	}
}

// forwarded is what a service of this host says through kubectl port-forward.
func forwarded(t *testing.T, c *testkube.Cluster, env []string) string {
	t.Helper()
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "behind the pod") }))
	defer behind.Close()
	_, port, err := net.SplitHostPort(behind.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testkube.Kubectl(t), "port-forward", "-n", "shop", "pod/web", ":"+port)
	cmd.Env = append([]string{"HOME=" + t.TempDir(), "KUBECONFIG=" + c.AdminConfig}, env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	line := make([]byte, 256)
	n, err := out.Read(line)
	local := regexp.MustCompile(`127\.0\.0\.1:\d+`).Find(line[:n])
	if local == nil {
		t.Fatalf("port-forward says %q: %v", line[:n], err)
	}
	response, err := http.Get("http://" + string(local))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body := make([]byte, 64)
	n, _ = response.Body.Read(body)
	return string(body[:n])
}
