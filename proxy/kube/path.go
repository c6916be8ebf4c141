package kube

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// Limits of a request's target.
const (
	maxRequestURI = 16 << 10 // bytes
	maxQueryKeys  = 64
	maxDigits     = 18 // of a number, which then fits into 64 bits
)

// request is a request in its one canonical form, read as the API server's RequestInfo is (k8s.io/apiserver/pkg/endpoints/request): what is
// decided, and what the cluster gets. Where two readings are possible the request is refused, so there is no third one.
type request struct {
	method string
	path   string // decoded
	query  url.Values
	// verb is RBAC's; for a path of no resource it is "".
	verb    string
	object  actor.KubeObject
	version string
}

// uri is the request's target as it is sent on.
func (r request) uri() string {
	u := url.URL{Path: r.path, RawQuery: r.query.Encode()}
	return u.RequestURI()
}

// watchPrefix are the paths of the old form of a watch: /api/v1/watch/pods.
const watchPrefix = "watch"

// verbs by method, before it is known whether there is a name.
var verbs = map[string]string{
	http.MethodGet: "get", http.MethodHead: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
}

// parse reads method and target of a request.
func parse(method, requestURI string) (request, error) {
	r := request{method: method}
	if verbs[method] == "" {
		return r, fmt.Errorf("the method %q can't be decided here", hop.Clip(hop.Printable(method), 32))
	}
	if len(requestURI) > maxRequestURI || !strings.HasPrefix(requestURI, "/") {
		return r, fmt.Errorf("a path and a query of at most %d bytes are expected", maxRequestURI)
	}
	raw, query, _ := strings.Cut(requestURI, "?")
	var err error
	if r.path, err = decodePath(raw); err != nil {
		return r, fmt.Errorf("the path can't be decided: %w", err)
	}
	if r.query, err = decodeQuery(query); err != nil {
		return r, fmt.Errorf("the query can't be decided: %w", err)
	}
	if err := r.readPath(); err != nil {
		return r, fmt.Errorf("the path can't be decided: %w", err)
	}
	if err := r.readQuery(); err != nil {
		return r, fmt.Errorf("the query can't be decided: %w", err)
	}
	return r, nil
}

// decodePath decodes a path once, segment by segment: a slash that was encoded is refused, not decoded.
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
	path := strings.Join(segments, "/")
	return path, actor.CheckHTTPPath(path)
}

// manyTimes are the keys that may stand in a query more than once. Of the others servers take the first or the last.
var manyTimes = []string{"command", "ports", "dryRun"}

// deciding are keys that decide what a request is, which must stand there as they are spelt.
var deciding = []string{"watch", "fieldSelector", "labelSelector", "container", "command", "dryRun"}

func decodeQuery(raw string) (url.Values, error) {
	values, err := url.ParseQuery(raw) // refuses semicolons
	if err != nil {
		return nil, err
	}
	if len(values) > maxQueryKeys {
		return nil, fmt.Errorf("it has %d keys; at most %d can be decided", len(values), maxQueryKeys)
	}
	for key, list := range values {
		if len(list) > 1 && !slices.Contains(manyTimes, key) {
			return nil, fmt.Errorf("%q stands there more than once", hop.Clip(hop.Printable(key), 64))
		}
		if slices.ContainsFunc(deciding, func(d string) bool { return d != key && strings.EqualFold(d, key) }) {
			return nil, fmt.Errorf("%q is spelt otherwise", hop.Clip(hop.Printable(key), 64))
		}
		for _, v := range append(list, key) {
			if !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
				return nil, errors.New("it isn't UTF-8 text")
			}
		}
	}
	return values, nil
}

// readPath reads what the path names: /api/<version>/… or /apis/<group>/<version>/…, and below it [namespaces/<namespace>/]<resource>[/<name>[/<subresource>]].
func (r *request) readPath() error {
	if r.path == "/" {
		return nil
	}
	parts := strings.Split(r.path[1:], "/")
	prefix := parts[0]
	parts = parts[1:]
	n := len(parts)
	if n > 0 && parts[n-1] == "" {
		n-- // as the API server counts
	}
	if (prefix != "api" || n < 2) && (prefix != "apis" || n < 3) {
		if n < len(parts) && !isDiscovery(r.path) { // clients ask for /version/ and /apis/
			return errors.New("it ends in a slash")
		}
		return nil
	}
	r.verb = verbs[r.method]
	if prefix == "apis" {
		r.object.Group, parts = parts[0], parts[1:]
		if r.object.Group == "" {
			return errors.New("the API group is empty")
		}
	}
	r.version, parts = parts[0], parts[1:]
	if err := actor.CheckKubeLabel(r.version); err != nil {
		return fmt.Errorf("version: %w", err)
	}

	// 1. The two words that stand where a resource does and are none.
	switch parts[0] {
	case "proxy":
		return errors.New("the old form of proxying through the API server is gone")
	case watchPrefix:
		if r.method != http.MethodGet {
			return errors.New("a watch is a GET")
		}
		r.verb, parts = "watch", parts[1:]
		if len(parts) == 0 {
			return errors.New("it watches nothing")
		}
	}

	// 2. The namespace. One of a namespace's own subresources is none of its resources.
	if parts[0] == "namespaces" && len(parts) > 1 {
		r.object.Namespace = parts[1]
		if len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
			parts = parts[2:]
		}
	}

	// 3. The object.
	r.object.Resource = parts[0]
	if len(parts) > 1 {
		if r.object.Name = parts[1]; actor.CheckKubeName(parts[1]) != nil {
			return actor.CheckKubeName(parts[1])
		}
	}
	if len(parts) > 2 {
		if r.object.Subresource = parts[2]; parts[2] == "" {
			return errors.New("it ends in a slash")
		}
	}
	if err := r.object.Check(); err != nil {
		return err
	}
	if len(parts) > 3 && r.object.Subresource != "proxy" {
		return errors.New("it goes on behind the subresource")
	}
	return nil
}

// readQuery reads what the query says about the object, and makes the verb final.
func (r *request) readQuery() error {
	if r.verb == "" {
		return nil
	}
	watch := false
	if values, there := r.query["watch"]; there {
		switch strings.ToLower(values[0]) {
		case "true", "1":
			watch = true
		case "false", "0":
		default:
			return errors.New("watch is true or false")
		}
	}
	// With one that can't be read the API server forgets the selector.
	for _, key := range []string{"timeoutSeconds", "limit"} {
		if v := r.query.Get(key); strings.Trim(v, "0123456789") != "" || len(v) > maxDigits {
			return fmt.Errorf("%s is a number", key)
		}
	}
	switch {
	case r.verb == "watch":
		return nil // the old form; a selector narrows it all the same
	case r.verb == "get" && r.object.Name == "":
		r.verb = "list"
		if watch {
			r.verb = "watch"
		}
		r.object.Name = selectedName(r.query.Get("fieldSelector"))
	case watch:
		return errors.New("watch goes with a list; of one object, a list with the field selector metadata.name")
	case r.verb == "delete" && r.object.Name == "":
		r.verb = "deletecollection"
	case r.verb == "create" && r.object.Name != "" && r.object.Subresource == "":
		return errors.New("an object is created in its collection")
	case (r.verb == "update" || r.verb == "patch") && r.object.Name == "":
		return errors.New("an update names its object")
	}
	return nil
}

// selectedName is the one name that a field selector lets through; "" if it isn't plain which.
func selectedName(selector string) string {
	if strings.ContainsRune(selector, '\\') {
		return ""
	}
	name := ""
	for _, term := range strings.Split(selector, ",") {
		rest, ok := strings.CutPrefix(term, "metadata.name=")
		rest = strings.TrimPrefix(rest, "=")
		if ok && (name != "" || actor.CheckKubeName(rest) != nil || strings.ContainsAny(rest, "=!")) {
			return ""
		}
		if ok {
			name = rest
		}
	}
	return name
}
