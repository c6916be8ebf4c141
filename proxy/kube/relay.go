package kube

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// fromAgent are the headers that an agent says to an API server.
var fromAgent = []string{"Accept", "Accept-Encoding", "Content-Type", "User-Agent", "If-None-Match", "Kubectl-Command", "Kubectl-Session"}

// relay sends the request on and passes the answer back.
func (x *exchange) relay(ctx context.Context, r *http.Request) error {
	q, err := x.outgoing(ctx, r)
	if err != nil {
		return err
	}
	x.pass.Forwarded(int64(len(x.content.text)))
	x.sent.Store(int64(len(x.content.text)))
	a, err := x.account.RoundTrip(q)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	x.status = a.StatusCode
	switch {
	case a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusProxyAuthRequired:
		return errSignIn
	case a.StatusCode < 200:
		return errors.New("the cluster left HTTP though nobody asked it to")
	case x.masks != nil:
		return x.masked(ctx, r, a)
	}
	x.head(a)
	if err := x.flush(); err != nil { // a watch may say nothing for long
		return err
	}
	return x.stream(a.Body)
}

// outgoing is the request that the cluster gets: the canonical form, the account's credential, and who asks.
func (x *exchange) outgoing(ctx context.Context, r *http.Request) (*http.Request, error) {
	up := x.e.cfg.Upstream.URL
	u := url.URL{Scheme: up.Scheme, Host: up.Host, Path: x.request.path, RawQuery: x.request.query.Encode()}
	var body io.Reader
	proxied := actor.KubeVerbFor(x.request.object) == "proxy"
	switch {
	case proxied && r.Body != http.NoBody:
		body = hop.Counted{ReadCloser: r.Body, N: &x.sent} // it is held nowhere
	case len(x.content.text) > 0:
		body = bytes.NewReader(x.content.text) // which the transport may send again on another connection
	}
	q, err := http.NewRequestWithContext(ctx, x.request.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if proxied {
		q.ContentLength = r.ContentLength
		q.Header = r.Header.Clone()
		x.e.hop.Clean(q.Header, x.account)
		for _, name := range []string{"Audit-Id", "Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
			q.Header.Del(name)
		}
	} else {
		for _, name := range fromAgent {
			if values := r.Header.Values(name); len(values) > 0 {
				q.Header[name] = slices.Clone(values)
			}
		}
		if len(x.content.text) > 0 {
			q.Header.Set("Content-Type", x.content.kind)
		}
	}
	if q.Header.Get("User-Agent") == "" {
		q.Header.Set("User-Agent", "deputy")
	}
	if x.masks != nil {
		acceptMasked(q.Header, x.masks.tables)
	}
	return q, impersonate(q.Header, x.user, x.groups, x.core.Chain(), x.pass.RecordID())
}

// ofHop are headers between two ends of a connection.
var ofHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// head passes the head of an answer on.
func (x *exchange) head(a *http.Response) {
	x.e.hop.CleanAnswer(a.Header)
	h := x.w.Header()
	h.Del("Content-Type") // a refusal's; an answer without content has none
	for name, values := range a.Header {
		if !contains(ofHop, name) {
			h[name] = values
		}
	}
	x.begun = true
	x.w.WriteHeader(a.StatusCode)
}

// Write passes a piece of an answer on, and waits until it has left.
func (x *exchange) Write(b []byte) (n int, err error) {
	err = x.inTime(func(out *http.ResponseController) error {
		n, err := x.w.Write(b)
		x.bytes += int64(n)
		if err != nil {
			return err
		}
		return out.Flush()
	})
	if err == nil {
		n = len(b)
	}
	return n, err
}

func (x *exchange) flush() error { return x.inTime((*http.ResponseController).Flush) }

// inTime bounds how long an agent may take to take something. The deadline is for that alone: in HTTP/2 one that passes while nothing is said
// ends the stream all the same.
func (x *exchange) inTime(do func(*http.ResponseController) error) error {
	out := http.NewResponseController(x.w)
	_ = out.SetWriteDeadline(time.Now().Add(writeTime)) // what can't set one isn't http.Server's
	defer func() { _ = out.SetWriteDeadline(time.Time{}) }()
	return do(out)
}

// stream passes a body on as it comes: a watch and a log that is followed say something now and then.
func (x *exchange) stream(from io.Reader) error {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := x.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			x.whole = true
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// masked passes an answer on with its masks.
func (x *exchange) masked(ctx context.Context, r *http.Request, a *http.Response) error {
	// Warnings are admission's words about the object, which it may quote.
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Accept-Ranges", "Warning"} {
		a.Header.Del(name)
	}
	if r.Method == http.MethodHead || a.StatusCode == http.StatusNoContent || a.StatusCode == http.StatusNotModified || a.ContentLength == 0 {
		x.head(a)
		x.whole = true
		return nil
	}
	if !isJSON(a.Header) || a.StatusCode == http.StatusPartialContent {
		return errWithheld
	}
	if x.cmd.verb == "watch" && a.StatusCode == http.StatusOK {
		return x.maskedWatch(a)
	}
	// The head leaves with the first piece, so that an answer that can't be masked is a refusal.
	to := bufio.NewWriterSize(&lateHead{x, a}, 32<<10)
	if err := x.masks.copy(to, a.Body); err != nil {
		return err
	}
	// The end of the answer waits for the record of what was masked in it.
	x.whole = true
	status := "ok"
	if a.StatusCode >= 400 {
		status = "error"
	}
	if err := x.complete(ctx, status); err != nil {
		return err
	}
	return to.Flush()
}

// lateHead sends the head of an answer before its first piece.
type lateHead struct {
	x *exchange
	a *http.Response
}

func (l *lateHead) Write(b []byte) (int, error) {
	if !l.x.begun {
		l.x.head(l.a)
	}
	return l.x.Write(b)
}

// maskedWatch passes the events of a watch on, one by one.
func (x *exchange) maskedWatch(a *http.Response) error {
	x.head(a)
	if err := x.flush(); err != nil {
		return err
	}
	r := newReader(a.Body)
	for {
		line, err := x.masks.frame(r)
		if errors.Is(err, io.EOF) {
			x.whole = true
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := x.Write(line); err != nil {
			return err
		}
	}
}
