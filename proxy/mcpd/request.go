package mcpd

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// Headers of the protocol.
const (
	versionHeader = "Mcp-Protocol-Version"
	sessionHeader = "Mcp-Session-Id"
	methodHeader  = "Mcp-Method"
	nameHeader    = "Mcp-Name"
	paramPrefix   = "Mcp-Param-"
)

// stateless is the first version without sessions. versionMeta is where its requests name their version, too.
const (
	stateless   = "2026-07-28"
	versionMeta = "io.modelcontextprotocol/protocolVersion"
)

// withSessions are the versions before it.
var withSessions = []string{"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"}

// fault is why a request isn't even decided.
type fault struct {
	status, code int
	class        string
	reason       string
	data         map[string]any // of the error, beside reason, class and record
}

func malformed(format string, args ...any) *fault {
	return &fault{status: http.StatusBadRequest, code: codeInvalid, class: hop.ClassMalformed, reason: fmt.Sprintf(format, args...)}
}

func differs(format string, args ...any) *fault {
	f := malformed(format, args...)
	f.code = codeHeaderMismatch
	return f
}

// checkRequest looks at what is around the message.
func checkRequest(r *http.Request) *fault {
	switch {
	case len(r.Header.Values("Origin")) > 0:
		// An agent has none. Pages in a browser do, whatever host they believe to talk to.
		return &fault{status: http.StatusForbidden, code: codeInvalid, class: hop.ClassUnsupported, reason: "the request comes from a page in a browser"}
	case r.URL.Path != Path || r.URL.RawQuery != "" || r.RequestURI != Path:
		return &fault{status: http.StatusNotFound, code: codeInvalid, class: hop.ClassUnsupported, reason: "tool servers are at " + Path + " here, without a query"}
	}
	for _, name := range []string{versionHeader, sessionHeader, methodHeader, nameHeader, "Content-Type"} {
		if len(r.Header.Values(name)) > 1 {
			return malformed("the header %s stands there twice", name)
		}
	}
	if r.Method != http.MethodPost {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" || r.Header.Get("Content-Encoding") != "" {
		return &fault{status: http.StatusUnsupportedMediaType, code: codeInvalid, class: hop.ClassMalformed, reason: "application/json is expected, and no content encoding"}
	}
	return nil
}

// bodyTime is how long an agent may take for one message.
const bodyTime = 30 * time.Second

// readMessage reads the one message of a POST.
func (x *exchange) readMessage(r *http.Request) ([]byte, message, *fault) {
	slow := http.NewResponseController(x.w)
	if err := slow.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return nil, message{}, malformed("the message can't be read")
	}
	body, err := x.readAll(r.Body, maxRequest)
	x.asked = x.large
	if errors.Is(err, errLarge) {
		return nil, message{}, &fault{status: http.StatusServiceUnavailable, code: codeInternal, class: proxy.ClassQuota, reason: "too many large messages are under way; try again in a moment"}
	}
	if err = errors.Join(err, slow.SetReadDeadline(time.Time{})); err != nil {
		return nil, message{}, malformed("the message can't be read to its end")
	}
	if len(body) > maxRequest {
		return nil, message{}, &fault{status: http.StatusRequestEntityTooLarge, code: codeInvalid, class: hop.ClassMalformed, reason: fmt.Sprintf("the message has more than %d bytes", maxRequest)}
	}
	m, err := parseMessage(body)
	if err != nil {
		f := malformed("the message can't be decided: %v", err)
		if !json.Valid(body) {
			f.code = codeParse
		}
		return body, message{}, f
	}
	return body, m, nil
}

// gone are the methods that the stateless protocol doesn't have any more.
var gone = []string{"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "notifications/initialized", "notifications/roots/list_changed"}

// checkHeaders holds the headers against the message: whoever decides by one and acts by the other could be told two things. It says whether
// the request is one of the stateless protocol.
func checkHeaders(h http.Header, m message) (bool, *fault) {
	version := h.Get(versionHeader)
	if version != "" && version != stateless && !slices.Contains(withSessions, version) {
		f := malformed("the protocol version %.32q isn't known here", version)
		f.code, f.data = codeVersion, map[string]any{"supported": append([]string{stateless}, withSessions...), "requested": hop.Clip(hop.Printable(version), 64)}
		return false, f
	}
	modern := version == stateless
	meta, err := m.params.object("_meta")
	if err != nil {
		return false, malformed("params: %v", err)
	}
	if _, there := meta[versionMeta]; there {
		if said, err := meta.text(versionMeta); err != nil || said != version {
			return false, differs("the header %s says %q, and the message another version", versionHeader, version)
		}
	} else if modern && m.kind == isRequest {
		f := malformed("params: _meta has no %q", versionMeta)
		f.code = codeParams
		return modern, f
	}
	if modern && slices.Contains(gone, m.method) {
		f := malformed("version %s has no %s", stateless, m.method)
		f.status, f.code = http.StatusNotFound, codeNoMethod
		return modern, f
	}
	if got, there := header(h, methodHeader); there && got != m.method || modern && !there && m.kind != isResponse {
		return false, differs("the header %s isn't the message's method", methodHeader)
	}
	name := ""
	if slices.Contains(named, m.method) {
		name, _ = m.params.text(map[bool]string{true: "uri", false: "name"}[m.method == "resources/read"])
	}
	if got, there := header(h, nameHeader); there && got != name || modern && name != "" && !there {
		return false, differs("the header %s isn't what the message names", nameHeader)
	}
	return modern, checkParams(h, m)
}

// checkParams looks for the value of each Mcp-Param header among the arguments. Which of them it stands for only the server knows, which has
// to hold it against the right one.
func checkParams(h http.Header, m message) *fault {
	var values []string
	for name := range h {
		if !strings.HasPrefix(name, paramPrefix) {
			continue
		}
		got, _ := header(h, name)
		if m.method != "tools/call" || len(h.Values(name)) != 1 {
			return differs("the header %s stands there twice, or for no argument", name)
		}
		if values == nil {
			values = scalars(m.params["arguments"])
		}
		if !slices.Contains(values, got) {
			return differs("the header %s says what no argument does", name)
		}
	}
	return nil
}

// scalars are all values, at any depth, as text.
func scalars(raw json.RawMessage) []string {
	text, err := policy.Arguments(raw)
	if err != nil {
		return nil
	}
	var all map[string]*string
	_ = json.Unmarshal([]byte(text), &all) // our own spelling
	var out []string
	for _, v := range all {
		if v != nil {
			out = append(out, *v)
		}
	}
	return out
}

// header is a header's value, decoded where it isn't plain ASCII (SEP-2243).
func header(h http.Header, name string) (string, bool) {
	all := h.Values(name)
	if len(all) == 0 {
		return "", false
	}
	v := all[0]
	if in, ok := strings.CutPrefix(v, "=?base64?"); ok {
		if in, ok = strings.CutSuffix(in, "?="); ok {
			if decoded, err := base64.StdEncoding.DecodeString(in); err == nil {
				return string(decoded), true
			}
		}
	}
	return v, true
}

// upstreamHeader makes the headers of the target's request: what the protocol has, and nothing else of the agent's.
func (e *Engine) upstreamHeader(in http.Header, s *mcpSession, modern bool) http.Header {
	out := http.Header{"Accept": {"application/json, text/event-stream"}, "User-Agent": {"deputy"}}
	for name, values := range in {
		if name == versionHeader || name == methodHeader || name == nameHeader || strings.HasPrefix(name, paramPrefix) || name == "Traceparent" || name == "Tracestate" {
			out[name] = values
		}
	}
	if s != nil && !modern {
		out.Set(sessionHeader, s.upstream)
	}
	return out
}
