package mcpd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// exchange is one request on its way.
type exchange struct {
	e       *Engine
	w       http.ResponseWriter
	core    Session
	account *hop.Account
	owner   [32]byte
	modern  bool
	session *mcpSession // nil without
	found   *mcpSession // the same, if the request named it: it is in use
	m       message     // what the agent sent; empty for GET and DELETE
	pass    hop.Pass
	large   bool   // it has a place for large messages
	asked   bool   // for what the agent sent
	masks   *masks // of the answer; masksOf makes them

	// What beside makes, by which rules, and what was masked before these.
	around   *masks
	aroundBy []policy.MaskRule
	counted  []audit.MaskedCount

	status    int   // of the target's answer
	bytes     int64 // to the agent
	streaming bool  // an event stream has begun
	denied    bool  // the answer was replaced by a refusal
	whole     bool  // the answer went through to its end
	open      bool  // the session knows the request's id
	sent      bool  // the target may have the request
	settled   bool  // and will say nothing of it any more
	refusals  int   // of what the target asked
}

// ServeHTTP takes one request from its credential to its outcome.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	core, account, ok := e.hop.Admit(w, r)
	if !ok {
		return
	}
	x := &exchange{e: e, w: w, core: core, account: account, owner: ownerOf(core, account.Name)}
	defer x.leaveLarge()
	defer x.leaveSession()
	defer x.settle()
	if f := checkRequest(r); f != nil {
		x.refuse(r.Context(), r.Method, nil, f)
		return
	}
	var body []byte
	var known method
	cmd := proxy.Command{Kind: r.Method, Text: r.Method, Scrubbed: r.Method, Account: account.Name, Check: demands(""), Ops: []proxy.Op{e.op(proxy.VerbConnect, "", "", "", false)}}
	var f *fault
	switch r.Method {
	case http.MethodPost:
		if body, x.m, f = x.readMessage(r); f == nil {
			x.modern, f = checkHeaders(r.Header, x.m)
		}
	case http.MethodGet, http.MethodDelete:
		if r.Header.Get(sessionHeader) == "" || r.Header.Get("Last-Event-Id") != "" || r.ContentLength != 0 {
			f = malformed("a session is expected, no body, and no stream to be resumed: this version resumes none")
		}
	default:
		w.Header().Set("Allow", "POST, GET, DELETE")
		f = &fault{status: http.StatusMethodNotAllowed, code: codeInvalid, class: hop.ClassUnsupported, reason: "POST, GET and DELETE are expected"}
	}
	if f == nil {
		f = x.findSession(r)
	}
	if f == nil && r.Method == http.MethodPost {
		cmd, known, f = x.what(body)
	}
	if f == nil {
		f = x.openRequest()
	}
	if f != nil {
		x.refuse(r.Context(), cmd.Scrubbed, body, f)
		return
	}
	x.decide(r, cmd, known, body)
}

// findSession finds the session that a request names.
func (x *exchange) findSession(r *http.Request) *fault {
	id := r.Header.Get(sessionHeader)
	if id == "" || x.modern { // the stateless protocol has none, and servers ignore it
		return nil
	}
	if x.m.method == "initialize" {
		return malformed("initialize begins a session, and can't be in one")
	}
	if x.session = x.e.sessions.find(id, x.owner); x.session == nil {
		return &fault{status: http.StatusNotFound, code: codeInvalid, class: hop.ClassUnsupported, reason: "there is no such session; begin one with initialize"}
	}
	x.found = x.session
	x.e.watch(x.session, x.core)
	if v := r.Header.Get(versionHeader); v != "" && v != x.session.speaks() {
		return malformed("the session speaks version %s", x.session.speaks())
	}
	return nil
}

// openRequest notes the request's id, so that its answer is taken for no other's: many a server finds an answer's stream by the id alone.
func (x *exchange) openRequest() *fault {
	if x.session == nil || x.m.id == nil || x.m.kind != isRequest {
		return nil
	}
	if why := x.session.open(x.m.key); why != "" {
		return malformed("%s", why)
	}
	x.open = true
	return nil
}

// settle gives the id back, unless an answer may still come.
func (x *exchange) settle() {
	if x.open && (x.settled || !x.sent) {
		x.session.settle(x.m.key)
	}
}

func (x *exchange) leaveSession() {
	if x.found != nil {
		x.found.use(x.e.sessions.now(), -1)
	}
}

// what says what a message asks for.
func (x *exchange) what(body []byte) (proxy.Command, method, *fault) {
	if x.m.kind == isResponse {
		if x.session != nil && x.m.key != "" {
			if asked, ok := x.session.answer(x.m.key); ok {
				known := fromServer[asked]
				return proxy.Command{
					Kind: "answer", Text: string(body), Scrubbed: "answer to " + asked, Account: x.account.Name, Check: nothing,
					Ops: []proxy.Op{x.e.op(known.verb, "", "", "", known.write)},
				}, known, nil
			}
		}
		return proxy.Command{Scrubbed: "answer"}, method{}, malformed("the server asked nothing that this answers")
	}
	known, ok := fromClient[x.m.method]
	if !ok || known.notice != (x.m.kind == isNotification) {
		f := &fault{status: http.StatusOK, code: codeNoMethod, class: hop.ClassUnsupported, reason: "the method " + hop.Clip(hop.Printable(x.m.method), 64) + " can't be decided here"}
		if x.modern || x.m.kind == isNotification {
			f.status = http.StatusNotFound
		}
		return proxy.Command{Scrubbed: hop.Printable(x.m.method)}, known, f
	}
	cmd, err := x.e.command(x.m, known, body, x.account.Name)
	if err != nil {
		f := malformed("%v", err)
		f.code = codeParams
		if !x.modern {
			f.status = http.StatusOK
		}
		return cmd, known, f
	}
	if known.kind == actor.MCPTool {
		if name := cmd.Ops[0].Resource.Name; !x.e.pins.mayCall(x.account.Name, name) {
			return cmd, known, &fault{status: http.StatusOK, code: codeRefused, class: classHeld, reason: "the tool isn't what somebody reviewed, or what it was at first: it is held until the operator of this proxy has looked at it"}
		}
	}
	return cmd, known, nil
}

// decide decides, and does what is allowed.
func (x *exchange) decide(r *http.Request, cmd proxy.Command, known method, body []byte) {
	e := x.e
	// 1. Whether it may be. The decision is durable when Authorize returns: no message is known to be without effect.
	pass, err := x.core.Authorize(r.Context(), cmd)
	if err != nil {
		x.deny(r, err)
		return
	}
	x.pass = pass
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(x.core.Context(), cancel)
	defer stop()
	chain, err := e.hop.StateChain(x.core, pass.RecordID(), r.Method, e.cfg.Endpoint)
	if err == nil {
		err = pass.Use()
	}
	if err != nil {
		_ = x.complete(ctx, "not_sent") // it is logged
		x.deny(r, err)
		return
	}
	if rules := pass.Obligations().Masks; x.session != nil && len(rules) > 0 {
		x.session.mask(rules)
	}
	// 2. The effect, and its outcome: "cut" unless the answer went through to its end.
	status := "cut"
	defer func() { _ = x.complete(ctx, status) }()
	x.w.Header().Set("Deputy-Record", pass.RecordID().String())
	header := e.upstreamHeader(r.Header, x.session, x.modern)
	header.Set(hop.ChainHeader, chain)
	pass.Forwarded(int64(len(body)))
	x.sent = true
	a, err := e.send(ctx, x.account, r.Method, header, body)
	if err == nil {
		defer a.Body.Close()
		err = x.answered(ctx, a)
	}
	if err != nil {
		x.unanswered(r, err)
	}
	switch {
	case x.core.Context().Err() != nil || e.hop.Ending(): // the session is over, or will be in a moment, and with it what ran
	case err != nil || x.denied || x.status >= 400:
		status = "error"
	case x.whole:
		status = "ok"
	}
}

// send sends a request to the target under an account.
func (e *Engine) send(ctx context.Context, account *hop.Account, httpMethod string, header http.Header, body []byte) (*http.Response, error) {
	up := e.cfg.Upstream.URL
	u := url.URL{Scheme: up.Scheme, Host: up.Host, Path: e.cfg.Endpoint}
	q, err := http.NewRequestWithContext(ctx, httpMethod, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	q.Header = header
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	} else {
		q.Body = nil
	}
	return account.RoundTrip(q)
}

// complete records the outcome; all calls but the first do nothing. The error matters where masks acted.
func (x *exchange) complete(ctx context.Context, status string) error {
	o := proxy.Outcome{Status: status, Bytes: x.bytes, Masked: x.maskedCounts()}
	if x.status != 0 {
		o.Code = strconv.Itoa(x.status)
		o.Command = "HTTP " + o.Code
	}
	err := x.pass.Completed(context.WithoutCancel(ctx), o)
	if err != nil {
		x.e.cfg.Logger.ErrorContext(ctx, "an outcome couldn't be recorded", "error", err)
	}
	return err
}

// Reasons that there is no answer.
var (
	errSignIn  = errors.New("the target didn't accept the proxy's credential")
	errUnclear = errors.New("the target's answer can't be read")
	errBroken  = errors.New("the stream has ended without the answer")
	errLarge   = errors.New("too many large messages are under way")
	errGone    = errors.New("the agent is gone")
)

// unanswered tells the agent that there is no answer, where it hasn't got a part of one. It panics where the agent is gone: nobody knows what the target would have said.
func (x *exchange) unanswered(r *http.Request, err error) {
	if x.core.Context().Err() != nil {
		x.deny(r, hop.Over(x.core, x.pass.RecordID()))
		return
	}
	if r.Context().Err() != nil || errors.Is(err, errGone) {
		panic(http.ErrAbortHandler) // should it hear anything, then of no end
	}
	x.e.cfg.Logger.ErrorContext(r.Context(), "the target gave no answer", "target", x.e.hop.Name(), "account", x.account.Name, "error", err)
	reason := "the target can't be reached, or broke off; if it stays so, tell the operator of this proxy"
	switch {
	case errors.Is(err, errSignIn):
		reason = "the target didn't accept the proxy's own credential; tell the operator of this proxy"
	case errors.Is(err, errLarge):
		reason = "too many large answers are under way; try again in a moment"
	case errors.Is(err, errUnclear):
		reason = "the target's answer can't be read in one way only, so it isn't passed on"
	}
	x.say(http.StatusBadGateway, codeInternal, &proxy.Refusal{Class: "target", Reason: reason, RecordID: x.pass.RecordID()})
}

func drain(r io.Reader) { _, _ = io.Copy(io.Discard, io.LimitReader(r, 64<<10)) }
