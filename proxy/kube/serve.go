package kube

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
	"github.com/deputymesh/deputy/proxy/kube/streams"
)

// writeTime is how long an agent may take to take a piece of an answer.
const writeTime = time.Minute

// exchange is one request on its way.
type exchange struct {
	e       *Engine
	w       http.ResponseWriter
	core    Session
	account *hop.Account
	user    string // in the cluster
	groups  []string
	request request
	content content
	cmd     command
	pass    hop.Pass
	reading policy.Obligations // masks that reading the object has, on an answer to a write
	masks   *masker            // nil without

	release func()       // of its place for a large body
	status  int          // of the cluster's answer
	bytes   int64        // to the agent
	sent    atomic.Int64 // to the cluster, of the content or into a pod
	exit    string       // how a command ended
	failed  bool         // it ended badly
	begun   bool         // the answer's head has left
	whole   bool         // the answer went through to its end
}

// ServeHTTP takes one request from its credential to its outcome.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// 1. Who asks.
	core, account, ok := e.hop.Admit(w, r)
	if !ok {
		return
	}
	x := &exchange{e: e, w: w, core: core, account: account, release: func() {}}
	defer func() { x.release() }()

	// 2. What is asked.
	if err := x.read(r); err != nil {
		x.refuse(r, err)
		return
	}

	// 3. Whether it may be. The decision is durable when Authorize returns: no request is known to be without effect.
	x.revealed()
	x.asRead()
	pass, err := core.Authorize(r.Context(), x.cmd.Command)
	if err != nil {
		e.hop.Refuse(w, r, err)
		return
	}
	x.pass = pass
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	stop := context.AfterFunc(core.Context(), func() { cancel(context.Cause(core.Context())) })
	defer stop()
	if err := pass.Use(); err != nil {
		_ = x.complete(ctx, "not_sent")
		e.hop.Refuse(w, r, err)
		return
	}

	// 4. The effect, and its outcome: "cut" unless the answer went through to its end.
	status := "cut"
	defer func() { _ = x.complete(ctx, status) }()
	w.Header().Set("Deputy-Record", pass.RecordID().String())
	if rules := pass.Obligations().And(x.reading).Masks; x.cmd.masked || len(rules) > 0 {
		x.masks = newMasker(x.cmd.masked, rules, e.keyed)
		x.masks.tables = len(rules) == 0 && x.request.object.Group == ""
		x.masks.one = !x.cmd.masked && !contains([]string{"list", "watch", "deletecollection"}, x.request.verb)
		if x.mayReveal() && !isOne(x.cmd.Ops[0].Resource.Kube) {
			x.masks.reveal = func(namespace, name string) bool { return x.reveals(ctx, namespace, name) }
		}
	}
	if x.cmd.upgrade {
		err = x.bridge(ctx, r)
	} else {
		err = x.relay(ctx, r)
	}
	status = x.outcome(err)
	if err != nil && !(x.cmd.upgrade && x.begun) {
		x.unanswered(r, err)
	}
}

// outcome is how it ended: "cut" unless the answer went through to its end.
func (x *exchange) outcome(err error) string {
	switch {
	case x.whole && x.status < 400 && !x.failed:
		return "ok"
	case x.whole || x.failed: // how it ended is known, whether the session goes on or not
		return "error"
	case x.core.Context().Err() == nil && err != nil && !errors.Is(err, streams.ErrEnded) && !errors.Is(err, context.Canceled): // the last is an agent that is gone
		return "error"
	}
	return "cut"
}

// read reads a request: its target, its content, and what it is decided as.
func (x *exchange) read(r *http.Request) error {
	x.cmd = command{Command: proxy.Command{Kind: "request", Account: x.account.Name}}
	var err error
	if x.user, x.groups, err = x.e.cfg.Identities.of(x.core.Chain().User, x.core.Roles()); err != nil {
		return &fault{http.StatusForbidden, proxy.ClassPolicy, err.Error()}
	}
	if r.URL.Scheme != "" || r.URL.Opaque != "" {
		return malformed("the request names more than a path of this cluster")
	}
	if x.request, err = parse(r.Method, r.RequestURI); err != nil {
		return malformed("%v", err)
	}
	x.cmd.Scrubbed = r.Method + " " + x.request.path
	if x.request.verb == "" && isDiscovery(x.request.path) {
		asText(x.w.Header())
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			return unsupported("nobody acts as somebody else here: the proxy says to the cluster who asks")
		}
	}
	if actor.KubeVerbFor(x.request.object) != "proxy" {
		if x.content, err = readContent(x.w, r, x.takeLarge); err != nil {
			return err
		}
	}
	x.cmd, err = x.e.command(x.request, x.content, r.Header, x.account.Name)
	return err
}

// takeLarge takes a place for a large body, if there is one.
func (x *exchange) takeLarge() bool {
	user := x.core.Chain().User
	if !x.e.large.take(user) {
		return false
	}
	x.release = sync.OnceFunc(func() { x.e.large.leave(user) })
	return true
}

// mayReveal says whether the answer may have values of Secrets that a policy shows to some.
func (x *exchange) mayReveal() bool {
	o := x.request.object
	return x.cmd.masked && o.Group == "" && o.Subresource == ""
}

// isOne says whether a request names the one object that it is about.
func isOne(o actor.KubeObject) bool {
	return o.Namespace != "" && o.Name != "" && !strings.HasSuffix(o.Name, "*")
}

// revealed asks for the values of a Secret, too, where a policy shows them to this chain. Of many, each is asked about when it comes: who may see some of
// them may not see all.
func (x *exchange) revealed() {
	if !x.mayReveal() || !isOne(x.cmd.Ops[0].Resource.Kube) {
		return
	}
	o := x.cmd.Ops[0].Resource.Kube
	shown := x.cmd.Command
	shown.Ops = append(slices.Clone(x.cmd.Ops), x.e.op("reveal", o))
	shown.Check = nil
	if x.core.Would(shown) {
		r, c := x.request, x.content
		shown.Check = func(ob policy.Obligations) error { return carriedOut(ob, r, o, c, false) }
		x.cmd.Command, x.cmd.masked = shown, false
	}
}

// asRead puts on the answer to a write, which shows the object, the masks that policy puts on reading it: what is masked isn't had by a patch that
// changes nothing.
func (x *exchange) asRead() {
	if x.request.verb == "" || len(x.cmd.Ops) == 0 || !x.cmd.Ops[0].Write {
		return
	}
	o := x.cmd.Ops[0].Resource.Kube
	if own := actor.KubeVerbFor(o); contains(connects, own) || own == "proxy" || own == "token" {
		return // its answer is another thing
	}
	whole := o
	whole.Subresource = ""
	for _, verb := range []string{"get", "list", "watch"} {
		for _, read := range []actor.KubeObject{o, whole} {
			cmd := proxy.Command{Kind: verb, Account: x.account.Name, Ops: []proxy.Op{x.e.op(verb, read)}}
			x.reading.Masks = x.reading.And(x.core.Demands(cmd)).Masks
		}
	}
	check := x.cmd.Check
	x.cmd.Check = func(ob policy.Obligations) error { return check(ob.And(x.reading)) }
}

// reveals says whether one Secret of an answer about many is shown, and puts that on record before it is.
func (x *exchange) reveals(ctx context.Context, namespace, name string) bool {
	o := actor.KubeObject{Resource: "secrets", Namespace: namespace, Name: name}
	if actor.CheckKubeName(name) != nil || o.Check() != nil || x.request.object.Namespace != "" && x.request.object.Namespace != namespace {
		return false
	}
	text := "reveal " + namespace + "/" + name
	cmd := proxy.Command{Kind: "reveal", Text: text, Scrubbed: text, Account: x.account.Name, Ops: []proxy.Op{x.e.op("reveal", o)}, Check: plain}
	if !x.core.Would(cmd) {
		return false
	}
	pass, err := x.core.Authorize(ctx, cmd)
	if err != nil {
		return false
	}
	status := "ok"
	if pass.Use() != nil {
		status = "not_sent"
	}
	return pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: status}) == nil && status == "ok"
}

// refuse records why a request isn't even decided, and says so.
func (x *exchange) refuse(r *http.Request, err error) {
	f := &fault{}
	if !errors.As(err, &f) {
		f = &fault{http.StatusForbidden, hop.ClassUnsupported, err.Error()}
	}
	x.cmd.Scrubbed = hop.Clip(hop.Printable(x.cmd.Scrubbed), 2048)
	if x.cmd.Scrubbed == "" {
		x.cmd.Scrubbed = hop.Clip(hop.Printable(r.Method), 32)
	}
	no := x.core.Refuse(r.Context(), x.cmd.Command, proxy.Objection{Class: f.class, Reason: f.reason})
	x.w.Header().Set("Deputy-Record", no.RecordID.String())
	if f.status == http.StatusTooManyRequests {
		x.w.Header().Set("Retry-After", "1")
	}
	writeStatus(x.w, f.status, no)
}

func (x *exchange) complete(ctx context.Context, status string) error {
	o := proxy.Outcome{Status: status, Bytes: x.bytes, Sent: x.sent.Load()}
	if x.masks != nil {
		o.Masked = x.masks.counts()
	}
	if x.status != 0 {
		o.Code = strconv.Itoa(x.status)
		o.Command = "HTTP " + o.Code
	}
	if x.exit != "" {
		o.Command = x.exit
	}
	err := x.pass.Completed(context.WithoutCancel(ctx), o)
	if err != nil {
		x.e.cfg.Logger.ErrorContext(ctx, "an outcome couldn't be recorded", "error", err)
	}
	return err
}

// errSignIn is an answer that is about the proxy's own credential.
var errSignIn = errors.New("the cluster didn't accept the proxy's credential")

// unanswered tells the agent that there is no answer, where it hasn't got a part of one; otherwise it cuts it off.
func (x *exchange) unanswered(r *http.Request, err error) {
	if x.begun {
		panic(http.ErrAbortHandler)
	}
	if x.core.Context().Err() != nil {
		x.e.hop.Refuse(x.w, r, hop.Over(x.core, x.pass.RecordID()))
		return
	}
	if r.Context().Err() == nil {
		x.e.cfg.Logger.ErrorContext(r.Context(), "the cluster gave no answer", "target", x.e.hop.Name(), "account", x.account.Name, "error", err)
	}
	reason := "the cluster can't be reached, or broke off; if it stays so, tell the operator of this proxy"
	switch {
	case errors.Is(err, errWithheld):
		reason = err.Error()
	case errors.Is(err, errSignIn):
		reason = "the cluster didn't accept the proxy's own credential; tell the operator of this proxy"
	case x.masks != nil && x.status != 0:
		reason = "the cluster's answer can't be read, so nothing of it is shown: values in it are masked"
	}
	writeStatus(x.w, http.StatusBadGateway, &proxy.Refusal{Class: "target", Reason: reason, RecordID: x.pass.RecordID()})
}
