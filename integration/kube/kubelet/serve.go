package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	idle     = time.Hour
	creation = 30 * time.Second
)

func (k *kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", k.exec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", k.exec)
	mux.HandleFunc("/portForward/{namespace}/{pod}", k.portForward)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.logs)
	return mux
}

func (k *kubelet) container(w http.ResponseWriter, r *http.Request) *process {
	p := k.find(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if p == nil {
		http.Error(w, "no such container runs here", http.StatusNotFound)
	}
	return p
}

func (k *kubelet) exec(w http.ResponseWriter, r *http.Request) {
	p := k.container(w, r)
	if p == nil {
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if argv := r.Form["command"]; len(argv) > 0 {
		remotecommand.ServeExec(w, r, streamer{p}, "", "", "", argv, options, idle, creation, remotecommand.SupportedStreamingProtocols)
		return
	}
	options.TTY = p.tty
	remotecommand.ServeAttach(w, r, streamer{p}, "", "", "", options, idle, creation, remotecommand.SupportedStreamingProtocols)
}

func (k *kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, streamer{}, "", "", options, idle, creation, portforward.SupportedProtocols)
}

func (k *kubelet) logs(w http.ResponseWriter, r *http.Request) {
	p := k.container(w, r)
	if p == nil {
		return
	}
	q := r.URL.Query()
	p.log.mu.Lock()
	text := p.log.data
	p.log.mu.Unlock()
	at := 0
	if n, err := strconv.Atoi(q.Get("tailLines")); err == nil {
		at = tail(text, n)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	flush := flusher{w, http.NewResponseController(w)}
	_ = flush.c.Flush()
	if q.Get("follow") != "true" {
		_, _ = flush.Write(text[at:])
		return
	}
	_ = p.log.copyTo(flush, at, r.Context().Done())
}

// tail is where the last n lines begin.
func tail(text []byte, n int) int {
	if n == 0 {
		return len(text)
	}
	for at := len(text) - 1; at > 0; at-- {
		if text[at-1] == '\n' {
			if n--; n == 0 {
				return at
			}
		}
	}
	return 0
}

type flusher struct {
	io.Writer
	c *http.ResponseController
}

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.Writer.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.c.Flush()
}

// streamer is what Kubernetes' streaming library calls back.
type streamer struct{ p *process }

func (s streamer) ExecInContainer(_ context.Context, _, _, _ string, argv []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return s.p.runIn(argv, in, out, errs, tty, resize)
}

func (s streamer) AttachContainer(_ context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	s.p.attach(in, out, errs, resize)
	return nil
}

func (s streamer) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer func() { _ = stream.Close() }()
	to, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	go func() {
		_, _ = io.Copy(to, stream)
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, to)
	return err
}
