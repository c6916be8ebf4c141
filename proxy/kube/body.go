package kube

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

// Limits of a request's content: the API server's own, and how long it may take to come.
const (
	maxBody   = 3 << 20
	bodyTime  = time.Minute
	maxDepth  = 256
	largeBody = 256 << 10 // more takes a place
)

// Types of content that can be read in one way.
const (
	typeJSON      = "application/json"
	typeJSONPatch = "application/json-patch+json"
	typeApply     = "application/apply-patch+yaml" // JSON is what clients send
)

// patchTypes are those of a PATCH.
var patchTypes = []string{typeJSONPatch, "application/merge-patch+json", "application/strategic-merge-patch+json", typeApply}

// fault is why a request is refused before it is decided.
type fault struct {
	status int
	class  string
	reason string
}

func (f *fault) Error() string { return f.reason }

// content is what a request carries, read once.
type content struct {
	kind string // its media type; "" without any
	text []byte
	meta metadata
}

// record is the content as a record may keep it.
func (c content) record() string {
	if c.kind == typeProtobuf {
		return base64.StdEncoding.EncodeToString(c.text)
	}
	return string(c.text)
}

// metadata is what a body says about which object it is. Members are compared as the API server does: by every letter.
type metadata struct {
	name, generateName, namespace, uid string
}

// mediaType is the type of a request's content, without what may stand behind it.
func mediaType(h http.Header) (string, error) {
	values := h.Values("Content-Type")
	if len(values) == 0 {
		return "", nil
	}
	kind, params, err := mime.ParseMediaType(values[0])
	if err != nil || len(values) > 1 {
		return "", errors.New("the content has no one type")
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return "", errors.New("the type of the content has a parameter that isn't known here")
		}
	}
	return kind, nil
}

// readContent reads the body of a request whole.
func readContent(w http.ResponseWriter, r *http.Request, large func() bool) (content, error) {
	unsupported := func(format string, args ...any) (content, error) {
		return content{}, &fault{http.StatusUnsupportedMediaType, classMedia, fmt.Sprintf(format, args...)}
	}
	kind, err := mediaType(r.Header)
	if err != nil {
		return unsupported("%v", err)
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return unsupported("the content is compressed, and isn't read here so")
	}
	text, err := readBody(w, r, large)
	if err != nil || len(text) == 0 {
		return content{}, err
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return content{}, malformed("a %s has no content", r.Method)
	}
	c := content{kind: kind, text: text}
	switch {
	case r.Method == http.MethodPatch && !contains(patchTypes, kind):
		return unsupported("a patch of the type %q can't be read here; JSON is (%s)", short(kind), strings.Join(patchTypes, ", "))
	case r.Method != http.MethodPatch && kind != "" && kind != typeJSON && kind != typeProtobuf:
		return unsupported("content of the type %q can't be read here; send it as %s", short(kind), typeJSON)
	}
	if c.kind == "" {
		c.kind = typeJSON
	}
	if c.kind == typeProtobuf {
		c.meta, err = readProtobuf(text, r.Method == http.MethodDelete)
	} else {
		c.meta, err = readMetadata(text)
	}
	if err != nil {
		return content{}, malformed("the content can't be read in one way: %v", err)
	}
	return c, nil
}

func readBody(w http.ResponseWriter, r *http.Request, large func() bool) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	until := http.NewResponseController(w)
	_ = until.SetReadDeadline(time.Now().Add(bodyTime)) // what can't set one isn't http.Server's
	defer func() { _ = until.SetReadDeadline(time.Time{}) }()
	text, err := io.ReadAll(io.LimitReader(r.Body, largeBody+1))
	if err == nil && len(text) > largeBody {
		if !large() {
			return nil, &fault{http.StatusTooManyRequests, classBusy, "too many large requests are under way; try again in a moment"}
		}
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(r.Body, maxBody-largeBody))
		text = append(text, rest...)
	}
	switch {
	case err != nil:
		return nil, malformed("the content didn't come whole")
	case len(text) > maxBody:
		return nil, &fault{http.StatusRequestEntityTooLarge, classLarge, fmt.Sprintf("the content has more than %d bytes", maxBody)}
	}
	return text, nil
}

// readMetadata reads one JSON text. It refuses what parsers read in different ways: a member twice, a second text, deep nesting, and where an object says
// which one it is another spelling of a member's name.
func readMetadata(text []byte) (metadata, error) {
	m := metadata{}
	known := map[string]*string{"name": &m.name, "generateName": &m.generateName, "namespace": &m.namespace, "uid": &m.uid}
	type level struct {
		object bool
		keys   map[string]bool
		key    string
		named  bool
	}
	var open []level
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	for n := 0; n == 0 || len(open) > 0; n++ {
		token, err := d.Token()
		if err != nil {
			return m, errors.New("it isn't JSON")
		}
		top := len(open) - 1
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			open = open[:top]
			continue
		}
		if top >= 0 && open[top].object && !open[top].named {
			key, _ := token.(string)
			if open[top].keys[key] {
				return m, fmt.Errorf("the member %q stands there twice", short(key))
			}
			if key == "<<" { // YAML's way to put one mapping into another
				return m, errors.New("it has the member <<")
			}
			open[top].keys[key], open[top].key, open[top].named = true, key, true
			if top == 0 && key != "metadata" && strings.EqualFold(key, "metadata") {
				return m, fmt.Errorf("the member %q is spelt otherwise", short(key))
			}
			continue
		}
		inMetadata := top == 1 && open[0].object && open[0].key == "metadata" && open[1].object
		if inMetadata {
			for name, to := range known {
				switch value, isText := token.(string); {
				case open[1].key == name && isText:
					*to = value
				case open[1].key == name && token != nil || open[1].key != name && strings.EqualFold(open[1].key, name):
					return m, fmt.Errorf("the member %q of metadata is no text, or spelt otherwise", short(open[1].key))
				}
			}
		}
		if top >= 0 {
			open[top].named = false
		}
		if delim, ok := token.(json.Delim); ok {
			if len(open) >= maxDepth {
				return m, errors.New("it is nested too deep")
			}
			open = append(open, level{object: delim == '{', keys: map[string]bool{}})
		}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, errors.New("it goes on after its JSON text")
	}
	return m, nil
}
