package httpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/httpd/graphql"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// A request to a GraphQL endpoint is held whole until it is decided. Small ones are bounded by the number of requests; large ones by the places for them.
const (
	bodyTime     = 30 * time.Second
	smallRequest = 64 << 10
	maxLarge     = 32
)

// checkGraphQL takes the paths of GraphQL endpoints.
func checkGraphQL(paths []string) error {
	for _, p := range paths {
		if err := actor.CheckHTTPPath(p); err != nil || strings.HasSuffix(p, "/") {
			return fmt.Errorf("the GraphQL endpoint %q is no canonical path such as /graphql, without a slash at its end", p)
		}
	}
	return nil
}

// graphQL says at which GraphQL endpoint a path is; exact is false for what a server may take for it: another case, a path below, or one that names a
// format, as /graphql.json.
func (e *Engine) graphQL(path string) (endpoint string, exact bool) {
	lower := foldCase(path)
	for _, p := range e.cfg.GraphQL {
		if e.cfg.FoldCase {
			p = strings.ToLower(p)
		}
		if path == p {
			return p, true
		}
		if rest, ok := strings.CutPrefix(lower, foldCase(p)); ok && (rest == "" || rest[0] == '/' || rest[0] == '.') {
			endpoint = p
		}
	}
	return endpoint, false
}

// parseGraphQL reads the operations of a request to an endpoint into its command. false says that the request has none and is decided as others are.
func (e *Engine) parseGraphQL(w http.ResponseWriter, r *http.Request, endpoint string, out *request) (bool, *proxy.Objection) {
	malformed := func(format string, args ...any) (bool, *proxy.Objection) {
		return true, &proxy.Objection{Class: hop.ClassMalformed, Reason: fmt.Sprintf(format, args...)}
	}
	unsupported := func(format string, args ...any) (bool, *proxy.Objection) {
		return true, &proxy.Objection{Class: hop.ClassUnsupported, Reason: fmt.Sprintf(format, args...)}
	}
	if len(r.Header.Values("Upgrade")) > 0 {
		return unsupported("operations on a WebSocket can't be decided; send them to %s one by one", endpoint)
	}
	var (
		q   graphql.Request
		err error
	)
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		if r.ContentLength != 0 {
			return malformed("%s with a body is read by some servers as another request", r.Method)
		}
		if !asksGraphQL(out.query) {
			return false, nil
		}
		if r.Method == http.MethodOptions {
			return malformed("OPTIONS asks for no operation")
		}
		if q, out.query, err = graphql.FromQuery(out.query); err != nil {
			return malformed("the operation can't be decided: %v", err)
		}
		for _, o := range q.Operations {
			if o.Type != "query" {
				return malformed("GET can ask for a query only, not for a %s", o.Type)
			}
		}
		// No key of the others is one of GraphQL's.
		others, _, err := decodeQuery(out.query)
		if err == nil {
			out.keys, err = actor.JoinQueryKeys(others)
		}
		if err != nil {
			return malformed("the query can't be decided: %v", err)
		}
		out.query = strings.Trim(out.query+"&"+q.Query(), "&")
	case http.MethodPost:
		if asksGraphQL(out.query) {
			return malformed("the query of the URL names what stands in the body, and servers believe one or the other")
		}
		body, objection := e.readGraphQL(w, r)
		if objection != nil {
			return true, objection
		}
		if q, err = graphql.FromBody(body); err != nil {
			return malformed("the operation can't be decided: %v", err)
		}
		out.body = q.Body()
	default:
		return unsupported("a GraphQL endpoint takes GET and POST")
	}
	e.commandOf(q, endpoint, out)
	return true, nil
}

// commandOf says what a GraphQL request does: an op on each field of a root type, as if it lay below the endpoint.
func (e *Engine) commandOf(q graphql.Request, endpoint string, out *request) {
	op := func(verb, name string, exact bool) {
		path := endpoint + "/" + name
		out.cmd.Ops = append(out.cmd.Ops, proxy.Op{
			Action:   actor.HTTPAction{Target: e.cfg.Target, Verb: verb, Path: path, Query: out.keys},
			Resource: policy.Endpoint(e.hop.Name(), path, out.keys), Write: verb == "mutation" || verb == "persisted", Exact: exact,
		})
		out.cmd.Kind = verb
	}
	if q.Hash != "" {
		op("persisted", q.Hash, true)
	}
	for _, o := range q.Operations {
		for _, f := range o.Fields {
			op(o.Type, f, false)
		}
	}
	for _, o := range q.Operations {
		if o.Name == q.Name {
			out.cmd.Kind = o.Type
		}
	}
	out.verb = "graphql"
	out.cmd.Scrubbed = out.method + " " + endpoint + " " + q.Summary()
	out.cmd.Text = out.method + " " + out.uri()
	if out.body != nil {
		out.cmd.Text += " " + string(out.body)
	}
	out.cmd.Check = func(o policy.Obligations) error {
		for _, m := range o.Masks {
			if m.Path != "" && (q.Reshaped || q.Hash != "") {
				return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks members of the answer by name, and the operation may give fields another name or place; leave out aliases, and directives other than @skip and @include"}
			}
		}
		return answersOnly(o)
	}
}

// asksGraphQL says whether a query's keys name an operation to some server.
func asksGraphQL(query string) bool {
	keys, _, err := decodeQuery(query)
	for _, k := range keys {
		if graphql.IsMember(k) {
			return true
		}
	}
	return err != nil
}

// readGraphQL reads the body of a POST.
func (e *Engine) readGraphQL(w http.ResponseWriter, r *http.Request) ([]byte, *proxy.Objection) {
	malformed := func(format string, args ...any) ([]byte, *proxy.Objection) {
		return nil, &proxy.Objection{Class: hop.ClassMalformed, Reason: fmt.Sprintf(format, args...)}
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") || r.Header.Get("Content-Encoding") != "" {
		return malformed("a GraphQL endpoint takes application/json in UTF-8, and no content encoding")
	}
	slow := http.NewResponseController(w)
	if err := slow.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return malformed("the operation can't be read")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, smallRequest))
	if err == nil && len(body) == smallRequest {
		select {
		case e.large <- struct{}{}:
			defer func() { <-e.large }()
		default:
			return nil, &proxy.Objection{Class: proxy.ClassQuota, Reason: "too many large operations are under way; try again in a moment"}
		}
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(r.Body, graphql.MaxRequest-smallRequest+1))
		body = append(body, rest...)
	}
	if err = errors.Join(err, slow.SetReadDeadline(time.Time{})); err != nil {
		return malformed("the operation can't be read to its end")
	}
	if len(body) > graphql.MaxRequest {
		return malformed("the operation has more than %d bytes", graphql.MaxRequest)
	}
	return body, nil
}

// writeGraphQLError says what a refusal is in GraphQL's words (GraphQL over HTTP, "application/graphql-response+json").
func writeGraphQLError(w http.ResponseWriter, status int, no *proxy.Refusal) {
	w.Header().Set("Content-Type", "application/graphql-response+json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	code := map[int]string{http.StatusUnauthorized: "UNAUTHENTICATED", http.StatusForbidden: "FORBIDDEN", http.StatusBadRequest: "BAD_REQUEST"}[status]
	if code == "" {
		code = "INTERNAL_SERVER_ERROR"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{ // the status says it all if this fails
		"errors": []any{map[string]any{"message": no.Error(), "extensions": map[string]any{"code": code, "class": no.Class, "record": no.RecordID.String()}}},
	})
}
