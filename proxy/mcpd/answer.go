package mcpd

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// answered passes an answer on. An error means that there is none that may be passed on.
func (x *exchange) answered(ctx context.Context, a *http.Response) error {
	x.status = a.StatusCode
	if a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusProxyAuthRequired {
		return errSignIn
	}
	if a.Header.Get("Content-Encoding") != "" || a.StatusCode < 200 || a.StatusCode >= 300 && a.StatusCode < 400 {
		return fmt.Errorf("%w: status %d", errUnclear, a.StatusCode)
	}
	if a.StatusCode >= 400 && a.StatusCode < 500 {
		x.settled = true // it wasn't taken
	}
	if a.Request.Method == http.MethodDelete && x.session != nil {
		x.e.sessions.forget(x.session)
	}
	if a.StatusCode == http.StatusNotFound && x.session != nil && !x.modern {
		x.e.sessions.forget(x.session) // the target has; the agent begins anew
	}
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	switch {
	case a.StatusCode == http.StatusOK && kind == "text/event-stream" && a.Request.Method != http.MethodDelete && x.m.kind == isRequest:
		return x.stream(ctx, a)
	case x.m.kind == isRequest && a.Request.Method == http.MethodPost && kind == "application/json":
		return x.single(ctx, a)
	}
	// Nothing that is a part of the protocol: the status is the answer.
	drain(a.Body)
	if a.Request.Method == http.MethodGet && a.StatusCode < 400 {
		return fmt.Errorf("%w: no event stream", errUnclear)
	}
	if x.m.kind == isRequest && a.Request.Method == http.MethodPost {
		if a.StatusCode < 400 {
			return fmt.Errorf("%w: %s", errUnclear, hop.Clip(kind, 64))
		}
		x.say(a.StatusCode, codeInternal, &proxy.Refusal{Class: "target", Reason: fmt.Sprintf("the target answered HTTP %d", a.StatusCode), RecordID: x.pass.RecordID()})
		return nil
	}
	x.w.WriteHeader(a.StatusCode)
	x.whole = true
	return nil
}

// single passes the one message of a JSON answer on.
func (x *exchange) single(ctx context.Context, a *http.Response) error {
	if id := a.Header.Get(sessionHeader); x.m.method == "initialize" && id != "" && len(id) <= maxUpstreamID {
		defer func() {
			if x.session == nil { // it hasn't begun
				x.e.endUnbegun(id, x.account)
			}
		}()
	}
	raw, err := x.readAll(a.Body, maxAnswer)
	if err != nil {
		return err
	}
	if len(raw) > maxAnswer {
		return fmt.Errorf("%w: more than %d bytes", errUnclear, maxAnswer)
	}
	m, raw, err := x.parseAnswer(raw)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnclear, err)
	}
	if m.kind != isResponse || m.key != x.m.key && (m.id != nil || a.StatusCode < 400) {
		return fmt.Errorf("%w: it answers another request", errUnclear)
	}
	x.settled = true
	out, err := x.final(ctx, m, raw)
	if err != nil {
		return err
	}
	if x.m.method == "initialize" && m.result != nil && !x.denied {
		if err := x.begin(a, m); err != nil {
			return err
		}
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(a.StatusCode)
	x.write(out)
	x.whole = true
	return nil
}

// begin keeps the session that an initialize has begun, and gives the agent an id of the proxy's own.
func (x *exchange) begin(a *http.Response, m message) error {
	upstream := a.Header.Get(sessionHeader)
	if upstream == "" || x.session != nil {
		return nil
	}
	version := ""
	if m.result != nil {
		result, err := parseObject(m.result)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnclear, err)
		}
		if version, err = result.text("protocolVersion"); err != nil || !slices.Contains(withSessions, version) {
			return fmt.Errorf("%w: it speaks version %.32q", errUnclear, version)
		}
	}
	if len(upstream) > maxUpstreamID {
		return fmt.Errorf("%w: the session's id is too long", errUnclear)
	}
	s := x.e.sessions.begin(upstream, x.owner, x.account, version)
	if s == nil {
		return fmt.Errorf("%w: too many sessions are open; end some, or try again later", errUnclear)
	}
	x.session = s
	x.e.watch(s, x.core)
	x.w.Header().Set(sessionHeader, s.id)
	return nil
}

// lists are the results that are cut, by which method an entry of each is used, and its name.
var lists = map[string]struct{ member, use, field string }{
	"tools/list":               {"tools", "tools/call", "name"},
	"resources/list":           {"resources", "resources/read", "uri"},
	"resources/templates/list": {"resourceTemplates", "resources/read", "uriTemplate"},
	"prompts/list":             {"prompts", "prompts/get", "name"},
}

// rewrite makes what the agent gets of a response: as it is, unless it is a list, asks the agent for something, or may be kept by caches that
// others use.
func (x *exchange) rewrite(ctx context.Context, m message, raw []byte) ([]byte, error) {
	if m.result == nil {
		if f, err := strconv.ParseFloat(string(m.fault["code"]), 64); err != nil || f == codeAskUser {
			if no := x.question(ctx, "elicitation/create", raw, true); no != nil {
				x.denied = true
				return refusalMessage(x.m.id, codeRefused, no), nil
			}
		}
		return x.put(m, raw)
	}
	result, err := parseObject(m.result)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnclear, err)
	}
	if err := checkResult(result); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnclear, err)
	}
	changed := false
	if l, is := lists[x.m.method]; is {
		if result[l.member], err = x.cut(result[l.member], l.use, l.field); err != nil {
			return nil, err
		}
		changed = true
	}
	// What one chain may see is no other's: no shared cache keeps it.
	if _, there := result["cacheScope"]; there || x.modern && changed {
		result["cacheScope"], changed = json.RawMessage(`"private"`), true
	}
	if questions, there := result["inputRequests"]; there {
		if no, err := x.questions(ctx, questions); err != nil {
			return nil, err
		} else if no != nil {
			x.denied = true
			return refusalMessage(x.m.id, codeRefused, no), nil
		}
	}
	if changed {
		if m.result, err = encode(result); err != nil {
			return nil, err
		}
		raw = nil
	}
	return x.put(m, raw)
}

// checkResult refuses what a result must not be: one that clients would read in two ways, or that says that the call goes on.
func checkResult(result object) error {
	if err := result.spelledAs(inResults); err != nil {
		return err
	}
	if _, there := result["resultType"]; there {
		if kind, err := result.text("resultType"); err != nil || kind != "complete" && kind != "input_required" {
			return fmt.Errorf("a result of the kind %.32q isn't known here", kind)
		}
	}
	return nil
}

// parseAnswer is parseMessage, and leaves out entries of a list that can be read in more ways than one: what the agent gets of it is spelled anew.
func (x *exchange) parseAnswer(raw []byte) (message, []byte, error) {
	m, err := parseMessage(raw)
	l, is := lists[x.m.method]
	if err == nil || !is || !fewValues(raw) || !utf8.Valid(raw) {
		return m, raw, err
	}
	var outer struct {
		ID     json.RawMessage            `json:"id"`
		Result map[string]json.RawMessage `json:"result"`
	}
	var entries, kept []json.RawMessage
	if json.Unmarshal(raw, &outer) != nil || json.Unmarshal(outer.Result[l.member], &entries) != nil {
		return m, raw, err
	}
	for _, entry := range entries {
		if strictjson.Check(slices.Concat([]byte(`{"result":{"list":[`), entry, []byte(`]}}`))) == nil {
			kept = append(kept, entry)
			continue
		}
		var o struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(entry, &o) == nil && x.m.method == "tools/list" && actor.CheckMCPName(o.Name) == nil {
			x.e.pins.hold(x.account.Name, o.Name) // nobody can say that it is what it was
		}
	}
	if len(kept) == len(entries) { // it wasn't one of them
		return m, raw, err
	}
	x.e.cfg.Logger.Warn("entries of a list are withheld: they can be read in more ways than one", "target", x.e.hop.Name(), "list", x.m.method, "entries", len(entries)-len(kept))
	list, errList := encode(slices.Concat([]json.RawMessage{}, kept))
	if errList != nil {
		return m, raw, err
	}
	outer.Result[l.member] = list
	again, errAgain := encode(map[string]any{"jsonrpc": "2.0", "id": outer.ID, "result": outer.Result})
	if errAgain != nil {
		return m, raw, err
	}
	m, err = parseMessage(again)
	return m, again, err
}

// cut leaves out what may not be used. An entry whose name can't be decided can't be used either.
func (x *exchange) cut(raw json.RawMessage, use, field string) (json.RawMessage, error) {
	var entries []json.RawMessage
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("%w: the list is none", errUnclear)
	}
	kept := make([]json.RawMessage, 0, len(entries))
	for _, entry := range entries {
		o, err := parseObject(entry)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnclear, err)
		}
		name, err := o.text(field)
		if err == nil && use == "tools/call" && actor.CheckMCPName(name) == nil && !x.e.pins.see(x.account.Name, name, entry) {
			x.e.cfg.Logger.Warn("a tool is held: it isn't what was reviewed, or what it was at first", "target", x.e.hop.Name(), "tool", hop.Printable(name))
			continue
		}
		if err == nil && x.shown(use, name) {
			kept = append(kept, entry)
		}
	}
	return encode(kept)
}

// shown says whether an entry may be in a list: if it can be used without a look at arguments, or if policy has it listed.
func (x *exchange) shown(use, name string) bool {
	kind := fromClient[use].kind
	if begin, _, template := strings.Cut(name, "{"); template && kind == actor.MCPResource {
		name = begin
	} else if kind == actor.MCPResource && checkURI(name) != nil {
		return false
	}
	for verb, check := range map[string]func(policy.Obligations) error{fromClient[use].verb: demands(use), "list": nil} {
		op := x.e.op(verb, kind, name, "", false)
		if a, ok := op.Action.(actor.MCPAction); !ok || a.CheckObject() != nil {
			return false
		}
		if x.core.Would(proxy.Command{Kind: x.m.method, Account: x.account.Name, Ops: []proxy.Op{op}, Check: check}) {
			return true
		}
	}
	return false
}

// questions decides what a result of the stateless protocol asks the agent for. The refusal, if any, is the answer.
func (x *exchange) questions(ctx context.Context, raw json.RawMessage) (*proxy.Refusal, error) {
	asked, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnclear, err)
	}
	if len(asked) > maxOpenQuestions {
		return nil, fmt.Errorf("%w: it asks for more than %d things at once", errUnclear, maxOpenQuestions)
	}
	for _, entry := range asked {
		o, err := parseObject(entry)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnclear, err)
		}
		name, err := o.text("method")
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnclear, err)
		}
		if no := x.question(ctx, name, entry, true); no != nil {
			return no, nil
		}
	}
	return nil, nil
}

// question decides one thing that the server asks of the agent; nil allows it. Without a place for it nobody could answer.
func (x *exchange) question(ctx context.Context, name string, text []byte, place bool) *proxy.Refusal {
	cmd := proxy.Command{Kind: name, Text: string(text), Scrubbed: "asked by the server: " + hop.Clip(hop.Printable(name), 64), Account: x.account.Name, Check: nothing}
	known, ok := fromServer[name]
	if ok && known.write && x.mayQuote() {
		return x.core.Refuse(ctx, cmd, proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks members of what is answered, and what the server asks meanwhile has none"})
	}
	if !ok {
		return x.core.Refuse(ctx, cmd, proxy.Objection{Class: hop.ClassUnsupported, Reason: "servers may not ask for that here"})
	}
	if !place {
		return x.core.Refuse(ctx, cmd, proxy.Objection{Class: proxy.ClassQuota, Reason: "too many requests of the server are open, one has this id, or they belong to no session"})
	}
	cmd.Ops = []proxy.Op{x.e.op(known.verb, "", "", "", known.write)}
	pass, err := x.core.Authorize(ctx, cmd)
	if err == nil {
		if err = pass.Use(); err == nil {
			pass.Forwarded(int64(len(text)))
		}
		status := "ok"
		if err != nil {
			status = "not_sent"
		}
		if lost := pass.Completed(context.WithoutCancel(ctx), proxy.Outcome{Status: status, Bytes: int64(len(text))}); lost != nil {
			x.e.cfg.Logger.ErrorContext(ctx, "an outcome couldn't be recorded", "error", lost)
		}
	}
	return refusalOf(err)
}

// answerTime is how long telling the target no may take.
const answerTime = 10 * time.Second

// tellServer answers a question of the server's in the agent's place.
func (x *exchange) tellServer(ctx context.Context, m message, no *proxy.Refusal) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	header := x.e.upstreamHeader(http.Header{}, x.session, x.modern)
	if x.session != nil && x.session.speaks() != "" {
		header.Set(versionHeader, x.session.speaks())
	}
	// Reasons and records are the mesh's own affair.
	text := "the agent's proxy refused the request"
	a, err := x.e.send(ctx, x.account, http.MethodPost, header, errorMessage(m.id, codeRefused, text, nil))
	if err != nil {
		x.e.cfg.Logger.WarnContext(ctx, "the target wasn't told that its request was refused", "target", x.e.hop.Name(), "record", no.RecordID.String(), "error", err)
		return
	}
	drain(a.Body)
	_ = a.Body.Close()
}
