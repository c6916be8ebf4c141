package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/client"
)

// urlPrefix begins the variables that name the run's listeners of web services: DEPUTY_URL_BILLING_API=http://127.0.0.1:port.
const urlPrefix = "DEPUTY_URL_"

// mcpPath is where a proxy has tool servers.
const mcpPath = "/mcp"

// localHeaderTime is how long a program may take for the header of a request.
const localHeaderTime = 30 * time.Second

// httpListener is the run's own way to one web service: a loopback port without TLS, for the run's own processes only.
type httpListener struct {
	s      *Supervisor
	target client.Target
	tcp    *net.TCPListener
	relay  *client.HTTPRelay
	server *http.Server
	ready  chan net.Conn
	done   chan struct{}
	once   sync.Once
}

// openHTTP opens one listener per web service, tool server and Kubernetes cluster.
func (s *Supervisor) openHTTP(ctx context.Context) error {
	for _, t := range s.mesh.Targets {
		if t.Kind != "http" && t.Kind != "mcp" && t.Kind != "kube" {
			continue
		}
		tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return fmt.Errorf("opening the listener of %s: %w", t.Name, err)
		}
		l := &httpListener{s: s, target: t, tcp: tcp, ready: make(chan net.Conn), done: make(chan struct{})}
		l.relay = client.NewHTTPRelay(t, s.id, func(ctx context.Context) (client.Credential, error) {
			return s.ex.Credential(ctx, t.Name, nil)
		}, s.log)
		handler := http.Handler(l.relay)
		if t.Kind == "mcp" || t.Kind == "kube" {
			handler = ofItself(handler)
		}
		l.server = localServer(handler, s.log)
		s.web = append(s.web, l)
		s.tasks.Go(func() { l.accept(ctx) })
		s.tasks.Go(func() { _ = l.server.Serve(l) })
	}
	return nil
}

// localServer speaks HTTP/1 and HTTP/2 without TLS.
func localServer(handler http.Handler, log *slog.Logger) *http.Server {
	srv := &http.Server{
		Handler: cutByReset(keepPagesOut(handler)), ReadHeaderTimeout: localHeaderTime, Protocols: new(http.Protocols),
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, localConnKey{}, c)
		},
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

type localConnKey struct{}

// cutByReset makes answers in HTTP/1.0 that break off end by a reset: nothing but the end of the connection says there that an answer is whole.
func cutByReset(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(localConnKey{}).(interface{ SetLinger(int) error })
		if !ok || r.ProtoAtLeast(1, 1) {
			handler.ServeHTTP(w, r)
			return
		}
		_ = c.SetLinger(0)
		handler.ServeHTTP(w, r) // which panics where an answer breaks off
		_ = c.SetLinger(-1)
	})
}

func (l *httpListener) close() {
	l.once.Do(func() { close(l.done) })
	_ = l.tcp.Close()
	_ = l.server.Close()
	l.relay.Close()
}

// accept hands admitted connections to the server.
func (l *httpListener) accept(ctx context.Context) {
	port := &loopbackPort{s: l.s, target: l.target.Name, tcp: l.tcp, refuse: refuseHTTP}
	port.accept(ctx, func(conn net.Conn) {
		select {
		case l.ready <- conn:
		case <-l.done:
			_ = conn.Close()
		}
	})
}

// refuseHTTP answers before there is a request, as servers may.
func refuseHTTP(conn net.Conn, busy bool, why string) {
	status := http.StatusForbidden
	if busy {
		status = http.StatusServiceUnavailable
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	text := "deputy: " + why + "\n"
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(text), text)
}

// Accept, Close and Addr are what http.Server takes admitted connections from.
func (l *httpListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *httpListener) Close() error   { return l.tcp.Close() }
func (l *httpListener) Addr() net.Addr { return l.tcp.Addr() }

// httpEnvironment names the listeners.
func (s *Supervisor) httpEnvironment() []string {
	var env []string
	for _, l := range s.web {
		path := ""
		if l.target.Kind == "mcp" {
			path = mcpPath
		}
		env = append(env, urlPrefix+variableOf(l.target.Name)+"=http://"+l.tcp.Addr().String()+path)
	}
	return env
}

// variableOf is a target's name as it stands in variables.
func variableOf(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }
