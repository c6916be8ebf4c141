package kube_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// streams is what leaves HTTP, as kubectl does it with this environment.
func (r *realRig) streams(t *testing.T, env []string) {
	r.env = env
	defer func() { r.env = nil }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	t.Run("exec", func(t *testing.T) {
		out, code := r.run(t, "", "exec", "pod", "-c", "main", "--", "sh", "-c", "echo out; exit 7")
		if code != 7 || !strings.HasPrefix(out, "out\n") {
			t.Errorf("%d: %s", code, out)
		}
		e := r.Await(t, "completed", "program \"sh\"")
		if spellOps(e.Cmd) != "exec shop/pods/pod/exec[main]{sh -c 'echo out; exit 7'}" || e.Out.Command != "exit 7" || e.Out.Status != "error" || e.Out.Code != "101" {
			t.Errorf("%s: %+v", spellOps(e.Cmd), e.Out)
		}
		if strings.Contains(e.Cmd.Scrubbed, "echo") {
			t.Errorf("the record would say %q", e.Cmd.Scrubbed)
		}
	})
	t.Run("exec with input", func(t *testing.T) {
		if out, code := r.run(t, "typed", "exec", "-i", "pod", "--", "cat"); code != 0 || out != "typed" {
			t.Errorf("%d: %s", code, out)
		}
	})
	t.Run("exec that isn't allowed", func(t *testing.T) {
		if out, code := r.run(t, "", "exec", "pod", "--", "id"); code != 1 || !strings.Contains(out, "no policy permits it (record: rec-refused)") {
			t.Errorf("%d: %s", code, out)
		}
	})
	t.Run("exec of nothing that is there", func(t *testing.T) {
		if out, code := r.run(t, "", "exec", "nopod", "--", "true"); code != 1 || !strings.Contains(out, `pods "nopod" not found`) {
			t.Errorf("%d: %s", code, out)
		}
	})
	t.Run("exec on record", func(t *testing.T) {
		r.Set(func() { r.Ob.Record = policy.RecordFull })
		defer r.Set(func() { r.Ob = policy.Obligations{} })
		if out, code := r.run(t, "", "exec", "pod", "--", "echo", "remembered"); code != 0 || out != "remembered\n" {
			t.Errorf("%d: %s", code, out)
		}
		r.Await(t, "kept", "remembered")
		if out, code := r.run(t, "", "port-forward", "pod/pod", ":80"); code == 0 || !strings.Contains(out, "can't be recorded here") {
			t.Errorf("port-forward on record: %d: %s", code, out)
		}
	})
	t.Run("cp", func(t *testing.T) {
		into, back := r.file("in", "copied"), filepath.Join(t.TempDir(), "back")
		if out, code := r.run(t, "", "cp", into, "shop/pod:there"); code != 0 {
			t.Errorf("%d: %s", code, out)
		}
		if out, code := r.run(t, "", "cp", "shop/pod:there", back); code != 0 {
			t.Errorf("%d: %s", code, out)
		}
		if text, _ := os.ReadFile(back); string(text) != "copied" {
			t.Errorf("came back as %q", text)
		}
	})
	t.Run("attach", func(t *testing.T) {
		if out, code := r.run(t, "hello\n", "attach", "-i", "cat"); code != 0 || !strings.Contains(out, "got hello") {
			t.Errorf("%d: %s", code, out)
		}
		if e := r.Await(t, "decided", "/attach"); !strings.HasPrefix(spellOps(e.Cmd), "attach shop/pods/cat/attach") {
			t.Error(spellOps(e.Cmd))
		}
		r.cluster.Admin("delete", "pod", "-n", "shop", "cat", "--wait=true")
	})
	t.Run("port-forward", func(t *testing.T) {
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "behind the pod") }))
		defer web.Close()
		_, port, _ := net.SplitHostPort(strings.TrimPrefix(web.URL, "http://"))
		locals := r.forward(ctx, t, port, "1")
		for _, to := range []string{port, "1"} { // kubectl forwards no more once one was refused
			ask, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+locals[to], nil)
			if err != nil {
				t.Fatal(err)
			}
			a, err := http.DefaultClient.Do(ask)
			if to == "1" {
				if err == nil {
					t.Errorf("a port that isn't allowed answers %d", a.StatusCode)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(a.Body)
			_ = a.Body.Close()
			if string(body) != "behind the pod" {
				t.Errorf("%q", body)
			}
		}
		r.Await(t, "decided", "portforward shop/pod port "+port)
		r.Await(t, "refused", "portforward shop/pod port 1")
		http.DefaultClient.CloseIdleConnections()
		r.Await(t, "completed", "portforward shop/pod port "+port)
	})
	t.Run("a revoked exec", func(t *testing.T) {
		cmd := r.kubectl(ctx, "", "exec", "pod", "--", "env", "sh", "-c", "echo begun; exec sleep 1000")
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		r.Last().Revoke()
		_, _ = io.Copy(io.Discard, out)
		// kubectl takes an end that nobody explains for a success, over SPDY.
		if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "this session has ended: the session was ended: revoked") {
			t.Errorf("%v: %s", err, &said)
		}
		if time.Since(begin) > 10*time.Second {
			t.Errorf("it ended after %s", time.Since(begin))
		}
		if e := r.Await(t, "completed", "program \"env\""); e.Out.Status != "cut" {
			t.Errorf("%+v", e.Out)
		}
	})
}

// forward starts kubectl's port-forward to ports of a pod, until the test's end, and gives its own address for each.
func (r *realRig) forward(ctx context.Context, t *testing.T, ports ...string) map[string]string {
	t.Helper()
	args := []string{"port-forward", "pod/pod", "--address", "127.0.0.1"}
	for _, p := range ports {
		args = append(args, ":"+p)
	}
	cmd := r.kubectl(ctx, "", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said, locals := regexp.MustCompile(`(127\.0\.0\.1:\d+) -> (\d+)`), map[string]string{}
	for lines := bufio.NewScanner(out); len(locals) < len(ports); {
		if !lines.Scan() {
			t.Fatalf("kubectl forwards %v of %v: %v", locals, ports, lines.Err())
		}
		if l := said.FindStringSubmatch(lines.Text()); l != nil {
			locals[l[2]] = l[1]
		}
	}
	return locals
}

// stopped ends the engine under a forwarded connection, which hasn't ended by itself then.
func (r *realRig) stopped(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	near, err := net.DialTimeout("tcp", r.forward(ctx, t, port)[port], 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	if _, err := io.WriteString(near, "x"); err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if e := r.Await(t, "completed", "portforward shop/pod port "+port); e.Out.Status != "cut" {
		t.Errorf("%+v", e.Out)
	}
}

// mayRun is what of exec and port-forward the test's policy lets through.
func mayRun(op proxy.Op) bool {
	o := op.Resource.Kube
	return !strings.HasPrefix(o.Command, "id") && o.Port != 1
}
