package streams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/deputymesh/deputy/proxy/internal/recording"
)

// Kind is what a stream is for.
type Kind int

const (
	// Command is exec and attach.
	Command Kind = iota
	// PortForward is port-forward.
	PortForward
)

// Limits of what peers may send.
const (
	maxMessage = 1 << 20  // of a WebSocket, and data of a frame of SPDY
	maxStatus  = 64 << 10 // how a command ended, and an answer that isn't an upgrade
	// DefaultHandshakeTimeout is how long an API server may take to agree to the upgrade.
	DefaultHandshakeTimeout = 60 * time.Second
)

// Config is for one request that is decided already.
type Config struct {
	Kind Kind
	// Request is the one to the API server, with everything but what asks for the upgrade: URL (https, the command and its streams in the
	// query), the account's credential, the impersonated user. Bridge copies it.
	Request *http.Request
	// RoundTrip sends it and follows no redirect, as a transport does. It must speak HTTP/1.1 to the API server, since HTTP/2 has no
	// such upgrades, and return the connection as body of an answer 101, as [http.Transport] does.
	RoundTrip func(*http.Request) (*http.Response, error)
	// Recorder keeps what passes of a command. Nil keeps nothing.
	Recorder *recording.Recorder
	// AllowPort decides on one forwarded connection; it returns when the decision is durable. What its error says is told to the agent. Where it
	// returns a function, that is called once, when the connection is over, with the bytes that went to the pod and came from it.
	// Needed for PortForward. It is called by one goroutine, and ended perhaps by another.
	AllowPort func(ctx context.Context, port uint16) (ended func(sent, received int64), err error)
	// Ended, where it is set, is called once when a stream that began is over, while the agent's connection still stands: closing that ends the
	// agent's session, after which an outcome would be too late. The error is what Bridge returns.
	Ended func(Result, error)
	// HandshakeTimeout is DefaultHandshakeTimeout where it is 0.
	HandshakeTimeout time.Duration
}

// Result is what became of a stream.
type Result struct {
	// Status is what the API server answered: 101 when the stream began. Any other answer was passed to the agent. 0 when there was none.
	Status int
	// Exit is how a command ended; nil when nobody said.
	Exit *Exit
	// Sent are bytes that went to the pod, Received those that came from it.
	Sent, Received int64
}

// NotBegun is the error of a stream that didn't begin. Nothing was written to the agent: the caller answers, with Status of HTTP.
type NotBegun struct {
	Status int
	// Reason is for the agent; cause isn't.
	Reason string
	cause  error
}

func (e *NotBegun) Error() string {
	if e.cause != nil {
		return e.Reason + ": " + e.cause.Error()
	}
	return e.Reason
}

func (e *NotBegun) Unwrap() error { return e.cause }

// Errors of streams that began.
var (
	// ErrAgent and ErrTarget say who said what it may not say.
	ErrAgent  = errors.New("the agent broke the protocol of the stream")
	ErrTarget = errors.New("the API server broke the protocol of the stream")
	// ErrEnded says that the caller ended the stream.
	ErrEnded = errors.New("this session has ended")
	// ErrUnrecorded says that what passed couldn't be kept any more.
	ErrUnrecorded = errors.New("what passes can't be recorded")
)

// Requested says whether a request asks to leave HTTP.
func Requested(r *http.Request) bool { return r.Header.Get("Upgrade") != "" }

// Bridge serves one request that asks for a stream, from its upgrade to its end, and answers it, unless it returns a [*NotBegun].
// It ends when either end has, or with the request's context; the caller makes that end with the session, for a cause that the agent of a command is told. Headers that are set in
// w.Header() go with the answer. After it returns nothing of the stream is left, and w may not be used, but after a NotBegun.
//
// The caller decides the command, or the port-forward as such, beforehand: the API server starts a command as soon as it agrees to the
// upgrade. How it ended is in the result, for the outcome. A WebSocket is always asked for by GET: that says nothing about the verb.
func Bridge(w http.ResponseWriter, r *http.Request, cfg Config) (Result, error) {
	if cfg.Kind == PortForward && cfg.AllowPort == nil {
		return Result{}, errors.New("streams: nobody decides on ports")
	}
	offer, err := readOffer(r, cfg.Kind)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	b := &bridge{ctx: ctx, cfg: cfg, offer: offer}
	if offer.websocket {
		err = b.serveWebSocket(w, r)
	} else {
		err = b.serveSPDY(w, r)
	}
	return b.soFar(), err
}

// soFar is what became of the stream until now.
func (b *bridge) soFar() Result {
	r := b.result
	r.Sent, r.Received, r.Exit = b.sent.Load(), b.received.Load(), b.status.exit()
	return r
}

// bridge is one stream.
type bridge struct {
	ctx    context.Context
	cfg    Config
	offer  offer
	result Result

	sent, received atomic.Int64
	status         status
}

// offer is what an agent asks for, of what is carried.
type offer struct {
	websocket bool
	protocols []string // in the agent's order
}

const (
	spdyVersion    = "SPDY/3.1"
	protocolHeader = "X-Stream-Protocol-Version"
	tunnel         = "SPDY/3.1+portforward.k8s.io"
	v5             = "v5.channel.k8s.io"
	v4             = "v4.channel.k8s.io"
)

// carried are the protocols by kind, over WebSocket and over SPDY.
var carried = map[Kind]struct{ websocket, spdy []string }{
	Command:     {[]string{v5, v4}, []string{v4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"}},
	PortForward: {[]string{tunnel}, []string{"portforward.k8s.io"}},
}

func readOffer(r *http.Request, kind Kind) (offer, error) {
	bad := func(reason string) (offer, error) {
		return offer{}, &NotBegun{Status: http.StatusBadRequest, Reason: reason}
	}
	upgrade := r.Header.Values("Upgrade")
	if r.ProtoMajor != 1 || len(upgrade) != 1 || !tokenIn(r.Header.Values("Connection"), "upgrade") {
		return bad("this needs an upgrade of an HTTP/1.1 connection, to a WebSocket or SPDY/3.1")
	}
	if r.ContentLength != 0 {
		return bad("a request for an upgrade has no body")
	}
	var o offer
	var asked, known []string
	switch {
	case strings.EqualFold(upgrade[0], "websocket"):
		o.websocket, known = true, carried[kind].websocket
		asked = tokens(r.Header.Values("Sec-WebSocket-Protocol"))
		// All that the library asks of a request, before anything is started for it.
		if r.Method != http.MethodGet || r.Header.Get("Sec-WebSocket-Version") != "13" || !goodKey(r.Header.Values("Sec-WebSocket-Key")) {
			return bad("the request for a WebSocket isn't one of RFC 6455")
		}
		if r.Header.Get("Origin") != "" {
			return bad("web pages may not open streams")
		}
	case strings.EqualFold(upgrade[0], spdyVersion):
		known = carried[kind].spdy
		asked = tokens(r.Header.Values(protocolHeader))
		if r.Method != http.MethodPost && r.Method != http.MethodGet {
			return bad("SPDY is asked for by POST or GET")
		}
	default:
		return bad("the upgrade is neither to a WebSocket nor to SPDY/3.1")
	}
	for _, p := range asked {
		if slices.Contains(known, p) && !slices.Contains(o.protocols, p) {
			o.protocols = append(o.protocols, p)
		}
	}
	if len(o.protocols) == 0 {
		return bad("none of the protocols that are offered is carried; these are: " + strings.Join(known, ", "))
	}
	return o, nil
}

func tokens(values []string) []string {
	var all []string
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			all = append(all, strings.TrimSpace(t))
		}
	}
	return all
}

func tokenIn(values []string, want string) bool {
	return slices.ContainsFunc(tokens(values), func(t string) bool { return strings.EqualFold(t, want) })
}

// upgrade asks the API server. It returns nil when it answered something else than 101, which the agent has then. The handshake is bounded;
// what follows isn't.
func (b *bridge) upgrade(w http.ResponseWriter, dial func(context.Context, func(*http.Request) (*http.Response, error)) error) (bool, error) {
	var other *http.Response
	ctx, cancel := context.WithCancel(b.ctx)
	patience := b.cfg.HandshakeTimeout
	if patience <= 0 {
		patience = DefaultHandshakeTimeout
	}
	timer := time.AfterFunc(patience, cancel)
	send := func(r *http.Request) (*http.Response, error) {
		a, err := b.cfg.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		b.result.Status = a.StatusCode
		if a.StatusCode != http.StatusSwitchingProtocols {
			text, err := io.ReadAll(io.LimitReader(a.Body, maxStatus))
			_ = a.Body.Close()
			if err != nil {
				return nil, err
			}
			a.Body = io.NopCloser(bytes.NewReader(nil))
			other = &http.Response{StatusCode: a.StatusCode, Header: a.Header, Body: io.NopCloser(bytes.NewReader(text))}
		}
		return a, nil
	}
	err := dial(ctx, send)
	timer.Stop()
	switch {
	case other != nil:
		cancel()
		return false, answer(w, other)
	case err != nil:
		cancel()
		return false, &NotBegun{Status: http.StatusBadGateway, Reason: "the API server didn't agree to the stream", cause: err}
	}
	context.AfterFunc(b.ctx, cancel) // the transport ends the connection with the request's context
	return true, nil
}

// answer passes on what the API server said instead.
func answer(w http.ResponseWriter, a *http.Response) error {
	if a.StatusCode == http.StatusUnauthorized || a.StatusCode < 300 {
		// 401 is about the proxy's own credential, and there is no success but 101.
		return &NotBegun{Status: http.StatusBadGateway, Reason: "the API server didn't agree to the stream", cause: fmt.Errorf("it answered %d", a.StatusCode)}
	}
	if kind := a.Header.Get("Content-Type"); kind != "" {
		w.Header().Set("Content-Type", kind)
	}
	w.WriteHeader(a.StatusCode)
	_, err := io.Copy(w, a.Body)
	return err
}

// both runs the two directions. The first to end ends the stream: the API server's end at once, then the outcome is told, then the agent's end is
// closed for the reason.
func (b *bridge) both(toTarget, toAgent func() error, closeTarget func(), closeAgent func(error)) error {
	var once sync.Once
	var first error
	finish := func(err error) {
		once.Do(func() {
			if cause := context.Cause(b.ctx); cause != nil {
				err = fmt.Errorf("%w: %w", ErrEnded, cause)
			}
			closeTarget()
			if first = err; errors.Is(err, io.EOF) || websocket.CloseStatus(err) == websocket.StatusNormalClosure {
				first = nil
			}
			if b.cfg.Ended != nil {
				b.cfg.Ended(b.soFar(), first)
			}
			closeAgent(err)
		})
	}
	stop := context.AfterFunc(b.ctx, func() { finish(nil) })
	defer stop()
	var tasks sync.WaitGroup
	for _, f := range []func() error{toTarget, toAgent} {
		tasks.Go(func() { finish(f()) })
	}
	tasks.Wait()
	return first
}

// ours says whether a stream is cut off here: then the agent is told why.
func ours(err error) bool {
	return errors.Is(err, ErrEnded) || errors.Is(err, ErrUnrecorded) || errors.Is(err, ErrAgent) || errors.Is(err, ErrTarget)
}
