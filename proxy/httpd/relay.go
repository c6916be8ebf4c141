package httpd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

const relayBuffer = 32 << 10

func itoa(n int) string { return strconv.Itoa(n) }

// exchange is one allowed request on its way.
type exchange struct {
	ctx     context.Context // ends with the agent's interest or the session, whichever is first
	request request
	account *hop.Account
	core    Session
	pass    hop.Pass
	chain   string // what the service is told about the chain

	status   int
	bytes    atomic.Int64 // to the agent
	sent     atomic.Int64 // to the target
	received atomic.Int64 // of a masked answer, from the target
	masked   []audit.MaskedCount
	masking  chan struct{} // closed when nothing more is masked; nil where nothing is
	failed   error         // there is no answer of the target's
	end      atomic.Int32  // of what left HTTP: which came first
}

// How what left HTTP comes to its end.
const (
	endMeant = 1 + iota // by a side
	endBroken
)

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// ServeHTTP takes one request from its credential to its outcome.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// 1. Who asks.
	core, account, ok := e.hop.Admit(w, r)
	if !ok {
		return
	}

	// 2. What is asked.
	req, objection := e.parse(w, r)
	req.cmd.Account = account.Name
	refuse := func(err error) {
		if req.verb == "graphql" {
			e.hop.RefuseWith(w, r, err, writeGraphQLError)
			return
		}
		e.hop.Refuse(w, r, err)
	}
	if objection != nil {
		refuse(core.Refuse(r.Context(), req.cmd, *objection))
		return
	}

	// 3. Whether it may be. The decision is durable when Authorize returns: no request is known to be without effect.
	pass, err := core.Authorize(r.Context(), req.cmd)
	if err != nil {
		refuse(err)
		return
	}
	x := &exchange{request: req, account: account, core: core, pass: pass}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), exchangeKey{}, x))
	defer cancel()
	stop := context.AfterFunc(core.Context(), cancel)
	defer stop()
	x.ctx = ctx
	if x.chain, err = e.hop.StateChain(core, pass.RecordID(), req.method, req.path); err == nil {
		err = pass.Use()
	}
	if err != nil {
		_ = e.complete(ctx, x, "not_sent")
		refuse(err)
		return
	}

	// 4. The effect, and its outcome: "cut" unless the answer went through to its end.
	status := "cut"
	defer func() {
		if x.masking != nil {
			cancel()
			<-x.masking
		}
		_ = e.complete(ctx, x, status)
	}()
	w.Header().Set("Deputy-Record", pass.RecordID().String())
	e.relay.ServeHTTP(w, r.WithContext(ctx))
	switch {
	case core.Context().Err() != nil || e.hop.Ending(): // the session is over, or will be in a moment, and with it what ran
	case x.failed != nil && r.Context().Err() != nil: // the agent is gone, and nobody knows what the target would have said
	case x.failed != nil || x.status >= 400:
		status = "error"
	case x.status == http.StatusSwitchingProtocols && x.end.Load() != endMeant:
	default:
		status = "ok"
	}
}

func (e *Engine) complete(ctx context.Context, x *exchange, status string) error {
	o := proxy.Outcome{Status: status, Sent: x.sent.Load(), Bytes: x.bytes.Load(), Masked: x.masked}
	if x.status != 0 {
		o.Command, o.Code = "HTTP "+itoa(x.status), itoa(x.status)
	}
	err := x.pass.Completed(context.WithoutCancel(ctx), o)
	if err != nil {
		e.cfg.Logger.ErrorContext(ctx, "an outcome couldn't be recorded", "error", err)
	}
	return err
}

// newRelay makes what sends allowed requests on.
func newRelay(e *Engine) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        e.rewrite,
		Transport:      roundTripper{e},
		ModifyResponse: e.answered,
		ErrorHandler:   e.unanswered,
		BufferPool:     &buffers{},
		ErrorLog:       slog.NewLogLogger(e.cfg.Logger.Handler(), slog.LevelDebug),
	}
}

// rewrite makes the target's request: the canonical form, the account's credential, and nothing that an agent may not say.
func (e *Engine) rewrite(p *httputil.ProxyRequest) {
	x := exchangeOf(p.In.Context())
	p.Out.Method = x.request.method
	p.Out.URL = &url.URL{Scheme: e.cfg.Upstream.URL.Scheme, Host: e.cfg.Upstream.URL.Host, Path: x.request.path, RawQuery: x.request.query}
	p.Out.Host = e.cfg.Upstream.URL.Host
	p.Out.Trailer = nil
	e.hop.Clean(p.Out.Header, x.account)
	p.Out.Header.Set(hop.ChainHeader, x.chain)
	if len(x.pass.Obligations().Masks) > 0 {
		unmasked(p.Out.Header)
	}
	if body := x.request.body; body != nil {
		p.Out.Body, p.Out.ContentLength, p.Out.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		p.Out.Header.Set("Content-Type", "application/json")
	}
	if p.Out.Body != nil && p.Out.Body != http.NoBody {
		p.Out.Body = hop.Counted{ReadCloser: p.Out.Body, N: &x.sent}
	}
}

type roundTripper struct{ e *Engine }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r.Context())
	x.pass.Forwarded(0) // the body is counted as it goes
	// Without the trace by which ReverseProxy passes interim answers (1xx) on: nobody has cleaned or masked their headers, and afterwards
	// it forgets the headers that are set already. Whoever waits for 100 hears it of the proxy's own server.
	a, err := x.account.RoundTrip(r.WithContext(x.ctx))
	if err == nil && len(x.pass.Obligations().Masks) > 0 {
		// The transport puts the trailer into the answer that it returned once the body is read: not into this one, which is masked.
		detached := *a
		detached.Trailer = nil
		a = &detached
	}
	return a, err
}

// errSignIn is an answer that is about the proxy's own credential.
var errSignIn = errors.New("the target didn't accept the proxy's credential")

// answered looks at the head of an answer.
func (e *Engine) answered(r *http.Response) error {
	x := exchangeOf(r.Request.Context())
	x.status = r.StatusCode
	if r.StatusCode == http.StatusUnauthorized || r.StatusCode == http.StatusProxyAuthRequired {
		return errSignIn
	}
	e.hop.CleanAnswer(r.Header)
	e.hop.CleanAnswer(r.Trailer) // the names that are announced
	if rw, ok := r.Body.(io.ReadWriteCloser); ok && r.StatusCode == http.StatusSwitchingProtocols {
		if x.request.verb != "upgrade" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			return errors.New("the target left HTTP though nobody asked it to")
		}
		r.Body = countedBoth{rw, x}
		return nil
	}
	if len(x.pass.Obligations().Masks) > 0 {
		if err := e.maskAnswer(r, x); err != nil {
			return err
		}
	}
	n := &x.bytes
	if x.masking != nil {
		n = new(atomic.Int64) // counted where it is masked
	}
	r.Body = &answerBody{ReadCloser: r.Body, end: func() { e.hop.CleanAnswer(r.Trailer) }, n: n}
	return nil
}

// answerBody counts what is read of an answer, and says when all is: the transport fills the trailer then, whether it was announced or not.
type answerBody struct {
	io.ReadCloser
	end func()
	n   *atomic.Int64
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	if err != nil {
		b.end()
	}
	return n, err
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}

// unanswered tells the agent that there is no answer.
func (e *Engine) unanswered(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	x.failed = err
	if x.core.Context().Err() != nil {
		e.hop.Refuse(w, r, hop.Over(x.core, x.pass.RecordID()))
		return
	}
	if r.Context().Err() == nil {
		e.cfg.Logger.ErrorContext(r.Context(), "the target gave no answer", "target", e.hop.Name(), "account", x.account.Name, "error", err)
	}
	reason := "the target can't be reached, or broke off; if it stays so, tell the operator of this proxy"
	if errors.Is(err, errWithheld) {
		reason = err.Error()
	}
	if errors.Is(err, errSignIn) {
		reason = "the target didn't accept the proxy's own credential; tell the operator of this proxy"
	}
	no := &proxy.Refusal{Class: "target", Reason: reason, RecordID: x.pass.RecordID()}
	if x.request.verb == "grpc" {
		hop.RefuseGRPC(w, http.StatusBadGateway, no)
		return
	}
	hop.WriteProblem(w, http.StatusBadGateway, no)
}

// countedBoth counts what goes both ways once HTTP is left.
type countedBoth struct {
	io.ReadWriteCloser
	x *exchange
}

func (c countedBoth) Read(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(b)
	c.x.bytes.Add(int64(n))
	switch {
	case err == io.EOF: //nolint:errorlint // an end, and nothing that wraps one
		c.x.end.CompareAndSwap(0, endMeant)
	case err != nil:
		c.x.end.CompareAndSwap(0, endBroken)
	}
	return n, err
}

func (c countedBoth) Write(b []byte) (int, error) { return countFirst(c.ReadWriteCloser, b, &c.x.sent) }

// countFirst writes b, and counts it before: what somebody has got is never missing from an outcome that is written meanwhile.
func countFirst(to io.Writer, b []byte, n *atomic.Int64) (int, error) {
	n.Add(int64(len(b)))
	done, err := to.Write(b)
	n.Add(int64(done - len(b)))
	return done, err
}

// CloseWrite passes a half-close on.
func (c countedBoth) CloseWrite() error {
	c.x.end.CompareAndSwap(0, endMeant)
	if half, ok := c.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

type buffers struct{ pool sync.Pool }

func (p *buffers) Get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, relayBuffer)
}

func (p *buffers) Put(b []byte) { p.pool.Put(&b) }
