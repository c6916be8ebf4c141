package httpd

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// maxRequestURI bounds path and query together, in bytes.
const maxRequestURI = 16 << 10

// methods are those that can be decided.
var methods = map[string]string{
	"GET": "get", "HEAD": "head", "OPTIONS": "options", "POST": "post", "PUT": "put", "PATCH": "patch", "DELETE": "delete",
}

// overrides are headers by which some servers take another method than the request's.
var overrides = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}

// request is a request in its one canonical form: what is decided, and what the target gets.
type request struct {
	method string
	path   string // decoded
	query  string // encoded
	keys   string // of the query, see actor.JoinQueryKeys
	body   []byte // to send instead of the agent's; nil sends that
	verb   string
	cmd    proxy.Command
}

// uri is the request's target as it is sent on (RFC 9112 §3.2.1).
func (r request) uri() string {
	u := url.URL{Path: r.path, RawQuery: r.query}
	return u.RequestURI()
}

// parse brings a request into its canonical form. The objection, if any, refuses it before it is decided.
func (e *Engine) parse(w http.ResponseWriter, r *http.Request) (request, *proxy.Objection) {
	out := request{method: r.Method, cmd: proxy.Command{Kind: "request"}}
	malformed := func(format string, args ...any) (request, *proxy.Objection) {
		return out, &proxy.Objection{Class: hop.ClassMalformed, Reason: fmt.Sprintf(format, args...)}
	}
	unsupported := func(format string, args ...any) (request, *proxy.Objection) {
		return out, &proxy.Objection{Class: hop.ClassUnsupported, Reason: fmt.Sprintf(format, args...)}
	}
	verb, known := methods[r.Method]
	if !known {
		return unsupported("the method %q can't be decided here", hop.Clip(hop.Printable(r.Method), 32))
	}
	out.verb, out.cmd.Kind = verb, verb
	if len(r.RequestURI) > maxRequestURI {
		return malformed("path and query have %d bytes; at most %d can be decided", len(r.RequestURI), maxRequestURI)
	}
	if r.URL.Scheme != "" || r.URL.Opaque != "" || !strings.HasPrefix(r.RequestURI, "/") {
		return malformed("the request names more than a path of this target")
	}
	for _, name := range overrides {
		if len(r.Header.Values(name)) > 0 {
			return malformed("the header %s asks for another method than the request's", name)
		}
	}

	// 1. The path.
	raw, query, _ := strings.Cut(r.RequestURI, "?")
	path, err := decodePath(raw)
	if err == nil && e.cfg.FoldCase {
		if path = strings.ToLower(path); path != foldCase(path) {
			err = errors.New("it holds a letter that some servers take for one of ASCII where case doesn't count")
		}
	}
	if err == nil {
		err = actor.CheckHTTPPath(path)
	}
	if err != nil {
		return malformed("the path can't be decided: %v", err)
	}
	out.path = path

	// 2. The query.
	keys, canonical, err := decodeQuery(query)
	if err != nil {
		return malformed("the query can't be decided: %v", err)
	}
	joined, err := actor.JoinQueryKeys(keys)
	if err != nil {
		return malformed("the query can't be decided: %v", err)
	}
	out.query, out.keys = canonical, joined

	// 3. What is more than a method.
	if len(r.Header.Values("Content-Type")) > 1 {
		return malformed("the content has more than one type")
	}
	if endpoint, exact := e.graphQL(path); endpoint != "" {
		out.verb = "graphql"
		if !exact {
			return malformed("a server may take this path for its GraphQL endpoint; ask %s itself", endpoint)
		}
		if is, objection := e.parseGraphQL(w, r, endpoint, &out); is {
			return out, objection
		}
		out.verb = verb
	}
	check := answersOnly
	if upgrade := r.Header.Values("Upgrade"); len(upgrade) > 0 {
		if len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket") || r.Method != http.MethodGet || r.ContentLength != 0 {
			return unsupported("a request can leave HTTP for a WebSocket only")
		}
		out.verb, check = "upgrade", opaque
	} else if isGRPC(r.Header.Get("Content-Type")) {
		if r.Method != http.MethodPost || r.ProtoMajor != 2 {
			return malformed("gRPC is POST over HTTP/2")
		}
		out.verb, check = "grpc", bytesOnly
	}
	out.cmd.Kind = out.verb
	out.cmd.Text, out.cmd.Scrubbed = r.Method+" "+out.uri(), r.Method+" "+out.path
	if joined != "" {
		out.cmd.Scrubbed += "?" + strings.ReplaceAll(joined, "&", "=…&") + "=…"
	}
	out.cmd.Check = check
	out.cmd.Ops = []proxy.Op{{
		Action:   actor.HTTPAction{Target: e.cfg.Target, Verb: out.verb, Path: path, Query: joined},
		Resource: policy.Endpoint(e.hop.Name(), path, joined),
		Write:    out.verb != "get" && out.verb != "head" && out.verb != "options",
	}}
	return out, nil
}

// otherCases are letters beyond ASCII that are another case of one within it, to some servers.
var otherCases = strings.NewReplacer("\u017f", "s", "\u212a", "k", "\u0131", "i", "\u0130", "i")

// foldCase is a path as a server has it to which case doesn't count.
func foldCase(path string) string { return strings.ToLower(otherCases.Replace(path)) }

// isGRPC says whether any server could take a type of content for gRPC's: most of them look no further than its beginning.
func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(contentType)), "application/grpc")
	return ok && (rest == "" || rest[0] != '-' && (rest[0] < 'a' || rest[0] > 'z') && (rest[0] < '0' || rest[0] > '9'))
}

// decodePath decodes a path once, segment by segment: a slash or a backslash that was encoded is refused, not decoded.
func decodePath(raw string) (string, error) {
	segments := strings.Split(raw, "/")
	for i, s := range segments {
		decoded, err := url.PathUnescape(s)
		if err != nil {
			return "", err
		}
		if strings.Contains(decoded, "/") {
			return "", fmt.Errorf("segment %q holds an encoded slash", hop.Clip(s, 64))
		}
		segments[i] = decoded
	}
	return strings.Join(segments, "/"), nil
}

// decodeQuery gives the keys of a query, and the query with its keys in one spelling. Values are left as they are, but for what must be encoded.
func decodeQuery(raw string) (keys []string, canonical string, err error) {
	if raw == "" {
		return nil, "", nil
	}
	if strings.ContainsAny(raw, ";#") {
		return nil, "", fmt.Errorf("it holds a semicolon or a number sign that isn't encoded, which servers read in different ways")
	}
	var parts []string
	for _, p := range strings.Split(raw, "&") {
		if p == "" {
			continue
		}
		rawKey, value, hasValue := strings.Cut(p, "=")
		key, err := url.QueryUnescape(rawKey)
		if err != nil {
			return nil, "", err
		}
		if _, err := url.QueryUnescape(value); err != nil {
			return nil, "", err
		}
		if asksForMethod(key) {
			return nil, "", fmt.Errorf("the key %q asks some servers for another method than the request's", key)
		}
		part := url.QueryEscape(key)
		if hasValue {
			part += "=" + spell(value)
		}
		keys, parts = append(keys, key), append(parts, part)
	}
	return keys, strings.Join(parts, "&"), nil
}

// asksForMethod says whether some server takes a key for _method or X-HTTP-Method-Override: PHP takes more than one character for an underscore.
func asksForMethod(key string) bool {
	name, _, _ := strings.Cut(key[min(len(key), 1):], "[")
	name = strings.ToLower(key[:min(len(key), 1)] + name)
	name = strings.NewReplacer(".", "_", " ", "_", "[", "_", "-", "_").Replace(name)
	switch name {
	case "_method", "x_http_method_override", "x_http_method", "x_method_override":
		return true
	}
	return false
}

// spell encodes the bytes of a value that may not stand in a target (RFC 3986 §3.4): a space would end it in HTTP/1.1. Brackets are common.
func spell(value string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}", c) >= 0 {
			b.WriteString("%" + string(hex[c>>4]) + string(hex[c&15]))
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// bytesOnly refuses obligations that nothing here can carry out.
func bytesOnly(o policy.Obligations) error {
	if len(o.Masks) > 0 || o.MaxRows > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for masks or a limit of rows, and what is said in gRPC or on a WebSocket has neither members nor rows here"}
	}
	return nil
}

// opaque refuses, beyond that, a full recording of what isn't looked at.
func opaque(o policy.Obligations) error {
	if o.Record == policy.RecordFull {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: `the policy asks for @record("full"), and what is said on a WebSocket can't be recorded here`}
	}
	return bytesOnly(o)
}
