package httpd_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/proxy"
)

// git is git's own client, as an agent of a rig, with a work tree.
type git struct {
	t   *testing.T
	dir string
	env []string
}

func newGit(r *rig, t *testing.T) *git {
	t.Helper()
	g := &git{t: t, dir: t.TempDir()}
	pair := r.tls.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain bytes.Buffer
	for _, c := range pair.Certificate {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c}))
	}
	for name, text := range map[string][]byte{
		"cert.pem": chain.Bytes(), "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.ca.Certificate().Raw}),
	} {
		if err := os.WriteFile(filepath.Join(g.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_SSL_CERT=" + filepath.Join(g.dir, "cert.pem"), "GIT_SSL_KEY=" + filepath.Join(g.dir, "key.pem"), "GIT_SSL_CAINFO=" + filepath.Join(g.dir, "ca.pem"),
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t.test", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t.test",
		"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Bearer " + goodCredential,
		// As git speaks at a run's listener. Over HTTP/2 its libcurl (7.88) was seen to stop in the middle of an upload.
		"GIT_CONFIG_KEY_1=http.version", "GIT_CONFIG_VALUE_1=HTTP/1.1",
	}
	return g
}

// run gives what a command says, and whether it worked.
func (g *git) run(args ...string) (string, bool) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = g.dir, g.env, time.Second
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err == nil
}

func (g *git) must(args ...string) string {
	g.t.Helper()
	out, ok := g.run(args...)
	if !ok {
		g.t.Fatalf("git %s: %s", strings.Join(args, " "), out)
	}
	return out
}

// A push is a post to the repository's git-receive-pack, whatever its size, and what only reads is one to git-upload-pack.
func TestGitPushesAndClonesByItsOwnProtocol(t *testing.T) {
	programs, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	repository := filepath.Join(root, "repo.git")
	r := newRig(t, &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(programs)), "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=reader", "HOME=" + root},
	})
	g := newGit(r, t)
	g.must("init", "-q", "--bare", "-b", "main", repository)
	_, port, err := net.SplitHostPort(r.address)
	if err != nil {
		t.Fatal(err)
	}
	url := "https://localhost:" + port + "/repo.git"
	g.must("init", "-q", "-b", "main", "w")
	g.must("-C", "w", "commit", "-q", "--allow-empty", "-m", "the first")
	g.must("-C", "w", "push", "-q", url, "main")
	big := make([]byte, 4<<20) // more than git sends in one piece
	rand.Read(big)
	if err := os.WriteFile(filepath.Join(g.dir, "w", "big"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	g.must("-C", "w", "add", "big")
	g.must("-C", "w", "commit", "-q", "-m", "the second")
	g.must("-C", "w", "push", "-q", url, "main")
	if got := g.must("-C", repository, "log", "--format=%s", "main"); got != "the second\nthe first" {
		t.Errorf("the repository has %q", got)
	}
	d := r.Await(t, "decided", "POST /repo.git/git-receive-pack")
	if d.Cmd.Ops[0].Action.Name() != "http:post" || !d.Cmd.Ops[0].Write || ops(d.Cmd) != "post /repo.git/git-receive-pack (writes)" {
		t.Errorf("decided: %s", ops(d.Cmd))
	}
	if out := r.Await(t, "completed", "POST /repo.git/git-receive-pack").Out; out.Status != "ok" || out.Sent < int64(len(big)) {
		t.Errorf("the outcome: %+v", out)
	}

	// Who may clone but not push.
	r.Set(func() { r.Allow = func(c proxy.Command) bool { return !strings.Contains(ops(c), "git-receive-pack") } })
	g.must("-C", "w", "commit", "-q", "--allow-empty", "-m", "the third")
	if out, ok := g.run("-C", "w", "push", url, "main"); ok || !strings.Contains(out, "403") {
		t.Errorf("the push: %t %s", ok, out)
	}
	r.Set(func() { // the listing of what is there is a get, which tells nothing that a clone doesn't
		r.Allow = func(c proxy.Command) bool { return ops(c) != "post /repo.git/git-receive-pack (writes)" }
	})
	if out, ok := g.run("-C", "w", "push", url, "main"); ok || !strings.Contains(out, "403") {
		t.Errorf("the push: %t %s", ok, out)
	}
	r.Await(t, "refused", "POST /repo.git/git-receive-pack")
	g.must("clone", "-q", url, "c")
	if got := g.must("-C", "c", "log", "-1", "--format=%s"); got != "the second" {
		t.Errorf("cloned: %q", got)
	}
}
