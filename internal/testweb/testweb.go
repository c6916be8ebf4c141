// Package testweb starts real web services for tests, on free loopback ports: nginx with TLS, which demands a token of its own, and a
// gRPC server without TLS.
package testweb

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/deputymesh/deputy/internal/testca"
)

// Token is what nginx demands as bearer token. Only the proxy has it.
const Token = "the-services-own-token"

// Site is nginx with its files.
type Site struct {
	t   testing.TB
	dir string
	// URL and CAFile are how the proxy reaches nginx. GRPC is the address of the gRPC server.
	URL, CAFile, GRPC string
	// Files is what nginx serves.
	Files string
}

// Start starts both. The test's end stops them.
func Start(t testing.TB) *Site {
	t.Helper()
	dir, err := os.MkdirTemp("", "testweb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Site{t: t, dir: dir, Files: filepath.Join(dir, "files")}
	for _, d := range []string{s.Files, filepath.Join(dir, "tmp")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key, ca := testca.New(t, "web.test").Server(dir, "127.0.0.1", "localhost")
	s.CAFile = ca
	address := free(t)
	s.URL = "https://" + address
	config := filepath.Join(dir, "nginx.conf")
	text := strings.NewReplacer("@DIR@", dir, "@ADDRESS@", address, "@CERT@", cert, "@KEY@", key, "@TOKEN@", Token).Replace(nginxConfig)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.start(config, address)
	s.startGRPC()
	return s
}

const nginxConfig = `
daemon off;
master_process off;
pid @DIR@/nginx.pid;
error_log @DIR@/error.log;
events { worker_connections 512; }
http {
  log_format seen '$request_method $request_uri host=$host auth=$http_authorization forwarded=$http_x_forwarded_for chain=$http_deputy_chain status=$status';
  access_log @DIR@/access.log seen;
  client_body_temp_path @DIR@/tmp;
  proxy_temp_path @DIR@/tmp;
  fastcgi_temp_path @DIR@/tmp;
  uwsgi_temp_path @DIR@/tmp;
  scgi_temp_path @DIR@/tmp;
  client_max_body_size 1g;
  client_header_timeout 10m;
  keepalive_requests 100000;
  default_type application/octet-stream;
  server {
    listen @ADDRESS@ ssl http2;
    ssl_certificate @CERT@;
    ssl_certificate_key @KEY@;
    if ($http_authorization != "Bearer @TOKEN@") { return 401; }
    location / { root @DIR@/files; types { application/json json; text/plain txt; } }
    location /v1/ {
      default_type application/json;
      return 200 '{"method":"$request_method","uri":"$request_uri"}\n';
    }
  }
}
`

func (s *Site) start(config, address string) {
	s.t.Helper()
	cmd := exec.Command("/usr/sbin/nginx", "-e", filepath.Join(s.dir, "error.log"), "-p", s.dir, "-c", config)
	out, err := os.Create(filepath.Join(s.dir, "output"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("starting nginx (scripts/setup test installs it): %v", err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = out.Close()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(s.dir, "error.log"))
			s.t.Fatalf("nginx doesn't listen: %s", text)
		}
	}
}

func (s *Site) startGRPC() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)
	go func() { _ = server.Serve(l) }()
	s.t.Cleanup(server.Stop)
	s.GRPC = l.Addr().String()
}

// AwaitLog waits for a line of nginx's log that holds the text.
func (s *Site) AwaitLog(text string) string {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, line := range strings.Split(s.Log(), "\n") {
			if strings.Contains(line, text) {
				return line
			}
		}
	}
	s.t.Fatalf("nginx saw nothing of %q:\n%s", text, s.Log())
	return ""
}

// Log is what nginx has seen.
func (s *Site) Log() string {
	raw, err := os.ReadFile(filepath.Join(s.dir, "access.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(raw)
}

// Write puts a file where nginx serves it.
func (s *Site) Write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.Files, name), data, 0o644); err != nil {
		s.t.Fatal(fmt.Errorf("testweb: %w", err))
	}
}

func free(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
