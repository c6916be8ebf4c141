package actor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const httpType = "deputy_http"

// HTTPVerbs are the actions of a deputy_http capability, in sync with the policy actions http:<verb>: the methods, grpc for a
// call with gRPC's content type whatever it does, upgrade for what leaves HTTP, such as a WebSocket, and for GraphQL the types of operations, with each
// field of a root type as a segment below the endpoint's path, and persisted, with the hash of a document that the service knows.
func HTTPVerbs() []string {
	return []string{"get", "head", "options", "post", "put", "patch", "delete", "grpc", "upgrade", "query", "mutation", "subscription", "persisted"}
}

// HTTPDetail is a capability on web services:
//
//	{"type":"deputy_http","locations":["spiffe://…/target/billing"],"actions":["get","post"],
//	 "paths":["/v1/invoices/{id}","/v1/reports/*"],"query":["page","limit"]}
//
// An absent (nil) list is no constraint. Query names the only keys that a query may have.
type HTTPDetail struct {
	Locations []spiffeid.ID // targets; at least one
	Actions   []string      // of HTTPVerbs; at least one
	Paths     []string      // templates, see CheckHTTPTemplate
	Query     []string      // exact keys
}

// HTTPAction is one request to a web service.
type HTTPAction struct {
	Target spiffeid.ID
	Verb   string
	// Path in its one canonical form, see CheckHTTPPath.
	Path string
	// Query is the query's distinct keys, see JoinQueryKeys.
	Query string
}

func (a HTTPAction) Name() string { return "http:" + a.Verb }
func (HTTPAction) action()        {}

type httpJSON struct {
	Type      string    `json:"type"`
	Locations locations `json:"locations"`
	Actions   []string  `json:"actions"`
	Paths     []string  `json:"paths,omitempty"`
	Query     []string  `json:"query,omitempty"`
}

func parseHTTP(data []byte) (Detail, error) {
	var j httpJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	return HTTPDetail{Locations: j.Locations, Actions: j.Actions, Paths: j.Paths, Query: j.Query}, nil
}

func (d HTTPDetail) MarshalJSON() ([]byte, error) {
	return json.Marshal(httpJSON{Type: httpType, Locations: d.Locations, Actions: d.Actions, Paths: d.Paths, Query: d.Query})
}

func (HTTPDetail) Type() string             { return httpType }
func (d HTTPDetail) Targets() []spiffeid.ID { return d.Locations }

func (d HTTPDetail) validate() error {
	return cmp.Or(checkPlace(d.Locations, d.Actions, HTTPVerbs()), checkEntries([]entries{{"paths", d.Paths, CheckHTTPTemplate}, {"query", d.Query, checkQueryKey}}))
}

func (d HTTPDetail) within(parent Detail) error {
	p, ok := parent.(HTTPDetail)
	if !ok {
		return fmt.Errorf("%s is not %s", d.Type(), parent.Type())
	}
	switch {
	case !covers(p.Locations, d.Locations):
		return errors.New("locations are wider")
	case !covers(p.Actions, d.Actions):
		return errors.New("actions are wider")
	case p.Query != nil && d.Query == nil:
		return errors.New("query is missing")
	case p.Query != nil && !covers(p.Query, d.Query):
		return errors.New("query is wider")
	case p.Paths != nil && d.Paths == nil:
		return errors.New("paths is missing")
	}
	if p.Paths != nil {
		for _, c := range d.Paths {
			if !anyTemplate(p.Paths, c) {
				return fmt.Errorf("paths: %q is wider", c)
			}
		}
	}
	return nil
}

func (d HTTPDetail) match(a Action) (Limits, error) {
	ha, ok := a.(HTTPAction)
	if !ok {
		return Limits{}, fmt.Errorf("%s is about HTTP", d.Type())
	}
	switch {
	case ha.Target.IsZero() || !contains(d.Locations, ha.Target):
		return Limits{}, fmt.Errorf("target %q is not among the locations", ha.Target)
	case !contains(d.Actions, ha.Verb):
		return Limits{}, fmt.Errorf("%q is not among the actions", ha.Verb)
	}
	if err := CheckHTTPPath(ha.Path); err != nil {
		return Limits{}, err
	}
	if d.Paths != nil && !anyTemplate(d.Paths, ha.Path) {
		return Limits{}, fmt.Errorf("%q is under none of the paths", ha.Path)
	}
	if d.Query != nil {
		for _, k := range SplitQueryKeys(ha.Query) {
			if !contains(d.Query, k) {
				return Limits{}, fmt.Errorf("%q is not among the keys of the query", k)
			}
		}
	}
	return Limits{}, nil
}

func (d HTTPDetail) at(target spiffeid.ID) (Detail, bool) {
	if !contains(d.Locations, target) {
		return nil, false
	}
	d.Locations = []spiffeid.ID{target}
	return d, true
}

// Limits of what an HTTP action is about.
const (
	MaxHTTPPath  = 4096 // bytes
	maxQueryKey  = 128  // bytes
	MaxQueryKeys = 64
)

// CheckHTTPPath takes the decoded path of a request in its one canonical form (RFC 3986 §6.2.2): absolute, with no empty segment but
// the last, none that is or ends in a dot or a space, and without what servers read in different ways: \ ; % ? # and control
// characters.
func CheckHTTPPath(s string) error {
	rest, ok := strings.CutPrefix(s, "/")
	if !ok || len(s) > MaxHTTPPath {
		return fmt.Errorf("%q is not an absolute path of at most %d bytes", s, MaxHTTPPath)
	}
	if i := strings.IndexAny(s, `\;%?#`); i >= 0 {
		return fmt.Errorf("path %q holds %q once it is decoded, which servers read in different ways", s, s[i])
	}
	segments := strings.Split(rest, "/")
	for i, seg := range segments {
		if seg == "" && i < len(segments)-1 {
			return fmt.Errorf("path %q has an empty segment", s)
		}
		if strings.HasSuffix(seg, ".") || strings.HasSuffix(seg, " ") {
			return fmt.Errorf("path %q has a segment that ends in a dot or a space", s)
		}
	}
	return checkPrintable(s)
}

// CheckHTTPTemplate takes a path as CheckHTTPPath does, in which a segment {name} stands for any one segment, and a last segment * for
// all that lies below.
func CheckHTTPTemplate(s string) error {
	if len(s) > maxCapPath {
		return fmt.Errorf("a path of %d bytes, want at most %d", len(s), maxCapPath)
	}
	if err := CheckHTTPPath(s); err != nil {
		return err
	}
	segments := strings.Split(s, "/")
	for i, seg := range segments {
		if isAny(seg) || seg == "*" && i == len(segments)-1 {
			continue
		}
		if strings.ContainsAny(seg, "*{}") {
			return fmt.Errorf("path %q: * stands only as the whole last segment, and braces only around a whole one, as in {id}", s)
		}
	}
	return nil
}

func isAny(segment string) bool {
	name, ok := strings.CutPrefix(segment, "{")
	if !ok {
		return false
	}
	name, ok = strings.CutSuffix(name, "}")
	return ok && isWord(name, 64, "_-")
}

// anyTemplate says whether some template covers a path, or a template of a child. A segment of a path that looks like a wildcard is
// covered as the text it is.
func anyTemplate(templates []string, path string) bool {
	have := strings.Split(path, "/")
	return slices.ContainsFunc(templates, func(t string) bool { return covered(strings.Split(t, "/"), have) })
}

func covered(template, path []string) bool {
	for i, t := range template {
		last := i == len(template)-1
		switch {
		case i >= len(path):
			return false
		case last && t == "*":
			return path[i] != "" || len(path) > i+1
		case path[i] == t:
		case isAny(t) && path[i] != "" && path[i] != "*":
		default:
			return false
		}
	}
	return len(path) == len(template)
}

func checkQueryKey(k string) error {
	if k == "" || len(k) > maxQueryKey {
		return fmt.Errorf("a key of %d bytes, want 1 to %d", len(k), maxQueryKey)
	}
	if strings.ContainsAny(k, "&;=#%+ ") {
		return fmt.Errorf("key %q holds a character that servers read in different ways", k)
	}
	return checkPrintable(k)
}

// JoinQueryKeys is the distinct keys of a query, sorted, with & between them. It refuses what servers read in different ways.
func JoinQueryKeys(keys []string) (string, error) {
	keys = slices.Clone(keys)
	slices.Sort(keys)
	keys = slices.Compact(keys)
	if len(keys) > MaxQueryKeys {
		return "", fmt.Errorf("the query has %d keys; at most %d can be decided", len(keys), MaxQueryKeys)
	}
	for _, k := range keys {
		if err := checkQueryKey(k); err != nil {
			return "", fmt.Errorf("the query: %w", err)
		}
	}
	return strings.Join(keys, "&"), nil
}

// SplitQueryKeys is the other way round.
func SplitQueryKeys(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "&")
}
