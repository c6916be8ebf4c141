// Package graphql reads requests to a GraphQL endpoint (October 2021, with the GraphQL over HTTP draft): which operations they hold, and which fields of
// the root types those ask for. It is the only package that knows the parser.
//
// Invariant: what is read is what is sent on. The document is written anew from its tokens, one space between them, every string quoted in one way, no comments;
// the operations are read from that text. So no server can find another token in it than was decided.
//
// Anything that servers read in different ways is an error: members twice or of unknown names, batches, unknown content.
package graphql

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Limits of a request.
const (
	MaxRequest = 1 << 20   // bytes of a body
	maxText    = 256 << 10 // bytes of a document
	maxTokens  = 20_000
	maxFields  = 100 // of root types
	maxName    = 256 // bytes of a name: those of operations and fields stand in the record
)

// Members of a request, in the order in which they are sent on.
var members = []string{"query", "operationName", "variables", "extensions"}

// A Request is one request in its one form.
type Request struct {
	// Text is the document; "" where only its hash is sent.
	Text string
	// Name is the operation that is to run, "" if the document has one without a name.
	Name string
	// Operations are all of the document, whichever is to run.
	Operations []Operation
	// Hash is the SHA-256 of a document that the server is to know already, in hex.
	Hash string
	// Reshaped says that some value may stand elsewhere in the answer than where the names of fields lead: by an alias, or by a directive other than
	// @skip and @include. @defer and @stream, for instance, send parts whose members begin somewhere below.
	Reshaped bool

	variables, extensions json.RawMessage
}

// An Operation is what one operation of a document asks for.
type Operation struct {
	Type string // query, mutation or subscription
	Name string
	// Fields of the root type by their own names, sorted, each once, also those in fragments.
	Fields []string
}

// FromBody reads the body of a POST, which is application/json.
func FromBody(body []byte) (Request, error) {
	if t := bytes.TrimSpace(body); len(t) > 0 && t[0] == '[' {
		return Request{}, errors.New("a batch isn't decided; send its operations one by one")
	}
	if err := strictjson.Check(body); err != nil {
		return Request{}, err
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(body, &got); err != nil {
		return Request{}, err
	}
	text := map[string]string{}
	for _, name := range []string{"query", "operationName"} {
		if raw, ok := got[name]; ok && string(raw) != "null" {
			var s *string
			if err := json.Unmarshal(raw, &s); err != nil {
				return Request{}, fmt.Errorf("%s is no string", name)
			}
			text[name] = *s
		}
	}
	for name := range got {
		if !slices.Contains(members, name) {
			return Request{}, fmt.Errorf("the member %.64q isn't known", name)
		}
	}
	return read(text["query"], text["operationName"], got["variables"], got["extensions"])
}

// FromQuery reads the query of a GET's URL. It gives the keys that aren't GraphQL's back.
func FromQuery(raw string) (r Request, others string, err error) {
	got := map[string]string{}
	var rest []string
	for _, part := range strings.Split(raw, "&") {
		key, value, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(key)
		if err != nil {
			return Request{}, "", err
		}
		if !IsMember(name) {
			rest = append(rest, part)
			continue
		}
		if _, twice := got[name]; twice || !slices.Contains(members, name) {
			return Request{}, "", fmt.Errorf("the key %.64q stands there twice, or in an unknown spelling", name)
		}
		if got[name], err = url.QueryUnescape(value); err != nil {
			return Request{}, "", err
		}
		if !utf8.ValidString(got[name]) {
			return Request{}, "", strictjson.ErrUTF8
		}
	}
	r, err = read(got["query"], got["operationName"], json.RawMessage(got["variables"]), json.RawMessage(got["extensions"]))
	return r, strings.Join(rest, "&"), err
}

// otherMembers are names by which some servers take a document, or its place among those they know, without what servers put between words.
var otherMembers = []string{"id", "doc", "docId", "document", "documentId", "documentHash", "queryId", "queryHash", "operationId", "hash", "sha256Hash", "persistedQuery", "operations", "map"}

// IsMember says whether some server could take a key of a URL, or an extension, for a member of a request.
func IsMember(key string) bool {
	name, _, _ := strings.Cut(key, "[")
	name = strings.NewReplacer("_", "", "-", "", ".", "").Replace(name)
	is := func(m string) bool { return strings.EqualFold(m, name) }
	return slices.ContainsFunc(members, is) || slices.ContainsFunc(otherMembers, is)
}

func read(text, name string, variables, extensions json.RawMessage) (Request, error) {
	r := Request{Name: name}
	var err error
	if r.variables, err = object("variables", variables); err != nil {
		return Request{}, err
	}
	if r.extensions, err = object("extensions", extensions); err != nil {
		return Request{}, err
	}
	if err := r.takePersisted(text); err != nil {
		return Request{}, err
	}
	if r.Hash != "" {
		return r, nil
	}
	if r.Text, r.Reshaped, err = canonical(text); err != nil {
		return Request{}, err
	}
	if err := r.parse(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// object is an object in its compact form; nil where there is none.
func object(what string, raw json.RawMessage) (json.RawMessage, error) {
	if s := strings.TrimSpace(string(raw)); s == "" || s == "null" {
		return nil, nil
	}
	if err := strictjson.Check(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return out.Bytes(), nil
}

// takePersisted takes the extension for documents that the server knows by their hash (automatic persisted queries) out of the request. With
// the document it isn't needed: the document is sent in another form, which has another hash.
func (r *Request) takePersisted(text string) error {
	var all map[string]json.RawMessage
	if r.extensions != nil {
		if err := json.Unmarshal(r.extensions, &all); err != nil {
			return err
		}
	}
	var raw json.RawMessage
	for name := range all {
		switch {
		case strings.EqualFold(name, "persistedQuery"):
			raw = all[name]
			delete(all, name)
		case IsMember(name):
			return fmt.Errorf("extensions.%.64s: some servers take it for the name of another document", name)
		}
	}
	if raw == nil {
		if text == "" {
			return errors.New("there is no query")
		}
		return nil
	}
	var p struct {
		Version    json.RawMessage `json:"version,omitempty"`
		Sha256Hash string          `json:"sha256Hash"`
	}
	if err := strictjson.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("extensions.persistedQuery: %w", err)
	}
	if sum, err := hex.DecodeString(p.Sha256Hash); err != nil || len(sum) != sha256.Size || strings.ToLower(p.Sha256Hash) != p.Sha256Hash {
		return errors.New("extensions.persistedQuery: a SHA-256 in hex is expected")
	}
	if text == "" {
		r.Hash = p.Sha256Hash
		return nil
	}
	if sum := sha256.Sum256([]byte(text)); hex.EncodeToString(sum[:]) != p.Sha256Hash {
		return errors.New("extensions.persistedQuery is the hash of another document")
	}
	r.extensions = nil
	if len(all) > 0 {
		r.extensions, _ = json.Marshal(all) // its own members
	}
	return nil
}

// Body is the request as a body.
func (r Request) Body() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for _, name := range members {
		if v := r.member(name); v != nil {
			if b.Len() > 1 {
				b.WriteByte(',')
			}
			b.WriteString(`"` + name + `":`)
			b.Write(v)
		}
	}
	b.WriteByte('}')
	return b.Bytes()
}

func (r Request) member(name string) []byte {
	text := map[string]string{"query": r.Text, "operationName": r.Name}[name]
	switch {
	case name == "variables":
		return r.variables
	case name == "extensions":
		return r.extensions
	case text == "":
		return nil
	}
	out, _ := json.Marshal(text) // a string
	return out
}

// Query is the request as the query of a URL.
func (r Request) Query() string {
	var parts []string
	for name, v := range map[string]string{"query": r.Text, "operationName": r.Name, "variables": string(r.variables), "extensions": string(r.extensions)} {
		if v != "" {
			parts = append(parts, name+"="+url.QueryEscape(v))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

// Summary says what is asked for, without arguments and what is below the root: "query Orders { customers orders }".
func (r Request) Summary() string {
	if r.Hash != "" {
		return "persisted " + r.Hash
	}
	var out []string
	for _, o := range r.Operations {
		s := o.Type
		if o.Name != "" {
			s += " " + o.Name
		}
		out = append(out, s+" { "+strings.Join(o.Fields, " ")+" }")
	}
	return strings.Join(out, ", ")
}
