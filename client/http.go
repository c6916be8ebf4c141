package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// httpIdle is shorter than what the proxy allows, so that no request meets a connection that is being closed.
	httpIdle       = 90 * time.Second
	maxSessionName = 128
	sessionHeader  = "Deputy-Session"
)

// HTTPRelay brings the requests of unmodified HTTP clients to a target's proxy: over connections with the agent's SVID, each request with a
// credential as its bearer token. It holds no secret of the target and decides nothing; what a client sends as Authorization is
// replaced. It keeps sessions alive as long as something runs on them. Close it.
type HTTPRelay struct {
	target     Target
	source     Source
	credential func(ctx context.Context) (Credential, error)
	log        *slog.Logger
	proxy      *httputil.ReverseProxy
	life       context.Context
	end        context.CancelFunc
	renewals   sync.WaitGroup

	mu        sync.Mutex // guards what follows
	transport *http.Transport
	upgrades  *http.Transport // speaks HTTP/1.1 alone: HTTP/2 has no upgrades
	leaf      []byte          // of the SVID that they connect with
	sessions  map[string]*httpSession
}

// httpSession is a session at the proxy that requests run on.
type httpSession struct {
	requests int
	cancel   context.CancelFunc
	idle     *time.Timer
}

// NewHTTPRelay makes a relay. credential returns one for the target, with life left. log may be nil.
func NewHTTPRelay(t Target, source Source, credential func(ctx context.Context) (Credential, error), log *slog.Logger) *HTTPRelay {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &HTTPRelay{target: t, source: source, credential: credential, log: log, sessions: map[string]*httpSession{}}
	r.life, r.end = context.WithCancel(context.Background())
	r.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "https", t.Address, t.Name
			p.Out.Header.Set("Authorization", "Bearer "+credentialOf(p.In.Context()).value)
		},
		Transport:      httpTripper{r},
		ModifyResponse: r.answered,
		ErrorHandler: func(w http.ResponseWriter, q *http.Request, err error) {
			r.fail(w, q, fmt.Errorf("reaching the proxy of %s: %w", t.Name, err))
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return r
}

// Close ends what the relay keeps alive. Requests under way are their server's to end.
func (r *HTTPRelay) Close() {
	r.end()
	r.mu.Lock()
	r.closeIdle()
	r.mu.Unlock()
	r.renewals.Wait()
}

type httpCredentialKey struct{}

func credentialOf(ctx context.Context) Credential {
	c, _ := ctx.Value(httpCredentialKey{}).(Credential)
	return c
}

func (r *HTTPRelay) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	cred, err := r.credential(q.Context())
	if err != nil {
		r.fail(w, q, fmt.Errorf("no credential for %s: %w", r.target.Name, err))
		return
	}
	r.proxy.ServeHTTP(w, q.WithContext(context.WithValue(q.Context(), httpCredentialKey{}, cred)))
}

func (r *HTTPRelay) fail(w http.ResponseWriter, q *http.Request, err error) {
	if q.Context().Err() == nil {
		r.log.WarnContext(q.Context(), "a request was not sent", "target", r.target.Name, "error", err)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusBadGateway)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(http.StatusBadGateway), "status": http.StatusBadGateway, "detail": printable(err.Error())})
}

// httpTripper sends a request over connections of the current SVID: credentials are bound to it.
type httpTripper struct{ r *HTTPRelay }

func (t httpTripper) RoundTrip(q *http.Request) (*http.Response, error) {
	svid, err := t.r.source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("this agent has no identity now: %w", err)
	}
	return t.r.over(svid, q.Header.Get("Upgrade") != "").RoundTrip(q)
}

func (r *HTTPRelay) over(svid *x509svid.SVID, upgrade bool) *http.Transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leaf := svid.Certificates[0].Raw; r.transport == nil || !bytes.Equal(leaf, r.leaf) {
		r.closeIdle() // what runs goes on
		r.leaf = leaf
		r.transport, r.upgrades = r.connectAs(svid), r.connectAs(svid)
		r.transport.ForceAttemptHTTP2 = true
		r.upgrades.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	if upgrade {
		return r.upgrades
	}
	return r.transport
}

// closeIdle needs the lock.
func (r *HTTPRelay) closeIdle() {
	if r.transport != nil {
		r.transport.CloseIdleConnections()
		r.upgrades.CloseIdleConnections()
	}
}

func (r *HTTPRelay) connectAs(svid *x509svid.SVID) *http.Transport {
	return &http.Transport{
		TLSClientConfig: meshTLS(svid, r.source, r.target.Proxy), DisableCompression: true,
		DialContext:         (&net.Dialer{Timeout: upstreamTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: upstreamTimeout, IdleConnTimeout: httpIdle, MaxIdleConnsPerHost: 32,
	}
}

// answered keeps the session of an answer alive until the answer is read.
func (r *HTTPRelay) answered(a *http.Response) error {
	session := a.Header.Get(sessionHeader)
	if session == "" || len(session) > maxSessionName || r.target.RenewalURL == "" {
		return nil
	}
	release := r.hold(session, credentialOf(a.Request.Context()))
	if rw, ok := a.Body.(io.ReadWriteCloser); ok {
		a.Body = &heldBoth{rw, release}
	} else {
		a.Body = &held{a.Body, release}
	}
	return nil
}

func (r *HTTPRelay) hold(session string, cred Credential) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[session]
	if s == nil {
		ctx, cancel := context.WithCancel(r.life)
		s = &httpSession{cancel: cancel}
		r.sessions[session] = s
		again := &renewal{target: r.target, source: r.source, credential: r.credential, log: r.log}
		r.renewals.Go(func() {
			again.run(ctx, session, cred.ExpiresAt)
			cancel()
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.sessions[session] == s {
				delete(r.sessions, session)
			}
		})
	}
	s.requests++
	if s.idle != nil {
		s.idle.Stop()
	}
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.requests--; s.requests == 0 {
			// Its connection may be used again; the proxy closes it later than that.
			s.idle = time.AfterFunc(httpIdle, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				if s.requests == 0 && r.sessions[session] == s {
					s.cancel()
					delete(r.sessions, session) // at once: a request that comes now needs a renewal that goes on
				}
			})
		}
	})
}

type held struct {
	io.ReadCloser
	release func()
}

func (h *held) Close() error {
	h.release()
	return h.ReadCloser.Close()
}

type heldBoth struct {
	io.ReadWriteCloser
	release func()
}

func (h *heldBoth) Close() error {
	h.release()
	return h.ReadWriteCloser.Close()
}

func (h *heldBoth) CloseWrite() error {
	if half, ok := h.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// HTTPRelay is the relay to a web service or a Kubernetes cluster under this agent's identity.
func (a *Agent) HTTPRelay(ctx context.Context, target string) (*HTTPRelay, error) {
	d, err := a.Describe(ctx)
	if err != nil {
		return nil, err
	}
	t, err := findTarget(d.Targets, target)
	if err != nil {
		return nil, err
	}
	if t.Kind != "http" && t.Kind != "kube" {
		return nil, fmt.Errorf("%s is a %s target, not a web service or a cluster", target, t.Kind)
	}
	source, err := a.Source(ctx)
	if err != nil {
		return nil, err
	}
	return NewHTTPRelay(t, source, func(ctx context.Context) (Credential, error) { return a.Credential(ctx, target) }, nil), nil
}

var _ http.Handler = (*HTTPRelay)(nil)
