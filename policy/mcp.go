package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/deputymesh/deputy/actor"
)

// Tool is the resource of a call of a tool, with what it is called with ([Arguments]).
func Tool(target, name, arguments string) Resource {
	return Resource{Kind: KindTool, Target: target, Name: name, Arguments: arguments}
}

// MCPResource is a resource of a tool server, by its canonical URI ([actor.CheckMCPURI]).
func MCPResource(target, uri string) Resource {
	return Resource{Kind: KindMCPResource, Target: target, Name: uri}
}

// Prompt is a prompt of a tool server.
func Prompt(target, name, arguments string) Resource {
	return Resource{Kind: KindPrompt, Target: target, Name: name, Arguments: arguments}
}

// What arguments may hold below the top level. Every pointer repeats the names above it, so a small text could become a large one.
const (
	maxNested      = 16 << 10
	maxNestedBytes = 2 << 20
	maxNestedDepth = 16
)

// Arguments spells the arguments of a call for a [Resource]: by their names those at the top level, and by their JSON Pointers (RFC 6901) the values
// inside of them, each as text if it is a text, a number or a truth value, and null otherwise. Below the top level only what has nothing inside
// stands for itself. A pointer spells "*" in a name as "~2", and puts "~3" before a name of digits alone: all
// other digits are places in arrays. A name that begins with a slash stands under its pointer, so that no name looks like one.
// Nothing is left out for its size, since a rule that forbids a value must see it; what holds too much is an error.
func Arguments(object []byte) (string, error) {
	if len(object) == 0 {
		return "", nil
	}
	var in map[string]json.RawMessage
	if err := json.Unmarshal(object, &in); err != nil {
		return "", errors.New("the arguments are no object")
	}
	if len(in) == 0 {
		return "", nil
	}
	f := flattened{out: make(map[string]*string, len(in))}
	for name, raw := range in {
		pointer := "/" + escapeName(name)
		f.out[topName(name)] = scalar(raw)
		if err := f.inside(pointer, raw, 1); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(f.out)
	return string(text), err
}

func topName(name string) string {
	if strings.HasPrefix(name, "/") {
		return "/" + escapeName(name)
	}
	return name
}

var (
	escapes   = strings.NewReplacer("~", "~0", "/", "~1", "*", "~2")
	unescapes = strings.NewReplacer("~0", "~", "~1", "/", "~2", "*")
)

func escapeName(name string) string {
	if isIndex(name) {
		return "~3" + name
	}
	return escapes.Replace(name)
}

func isIndex(segment string) bool { return segment != "" && strings.Trim(segment, "0123456789") == "" }

// anyIndex is a pointer with "*" in the place of each place in an array.
func anyIndex(pointer string) string {
	segments := strings.Split(pointer, "/")
	for i, s := range segments {
		if isIndex(s) {
			segments[i] = "*"
		}
	}
	return strings.Join(segments, "/")
}

// flattened are arguments by name and pointer.
type flattened struct {
	out      map[string]*string
	n, bytes int
}

// inside adds what is inside a value.
func (f *flattened) inside(pointer string, raw json.RawMessage, depth int) error {
	switch raw[0] {
	case '{':
		var in map[string]json.RawMessage
		if err := json.Unmarshal(raw, &in); err != nil {
			return err
		}
		for name, value := range in {
			if err := f.add(pointer+"/"+escapeName(name), value, depth); err != nil {
				return err
			}
		}
	case '[':
		var in []json.RawMessage
		if err := json.Unmarshal(raw, &in); err != nil {
			return err
		}
		for i, value := range in {
			if err := f.add(pointer+"/"+strconv.Itoa(i), value, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *flattened) add(pointer string, raw json.RawMessage, depth int) error {
	f.n++
	f.bytes += len(pointer)
	if f.n > maxNested || f.bytes > maxNestedBytes || depth > maxNestedDepth {
		return fmt.Errorf("the arguments hold more inside each other than can be decided: %d values, %d deep, with names of %d bytes in all", maxNested, maxNestedDepth, maxNestedBytes)
	}
	if value := scalar(raw); value != nil || string(raw) == "null" || len(bytes.TrimSpace(raw[1:len(raw)-1])) == 0 {
		f.out[pointer] = value
		return nil
	}
	return f.inside(pointer, raw, depth+1)
}

func scalar(raw json.RawMessage) *string {
	switch c := raw[0]; {
	case c == '"':
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return nil
		}
		return &s
	case c == 't' || c == 'f':
		s := string(raw)
		return &s
	case c == '-' || c >= '0' && c <= '9':
		s := string(raw)
		// 1e3, 1000.0 and 1000 are one number.
		if f, err := strconv.ParseFloat(s, 64); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			s = strconv.FormatInt(int64(f), 10)
		}
		return &s
	}
	return nil
}

func (r Resource) checkMCP() error {
	if r.Query != "" {
		return fmt.Errorf("a %s has no query", r.Kind)
	}
	if r.Kind == KindMCPResource {
		if r.Arguments != "" {
			return errors.New("a resource has no arguments")
		}
		return actor.CheckMCPURI(r.Name)
	}
	if r.Arguments != "" {
		var in map[string]*string
		err := json.Unmarshal([]byte(r.Arguments), &in)
		again, errAgain := json.Marshal(in)
		if err != nil || errAgain != nil || len(in) == 0 || string(again) != r.Arguments {
			return errors.New("the arguments are not in their canonical form")
		}
	}
	return actor.CheckMCPName(r.Name)
}

// mcpAttributes puts what policies see into attrs, and gives the tags.
func (r Resource) mcpAttributes(attrs types.RecordMap) types.RecordMap {
	if r.Kind == KindMCPResource {
		attrs["uri"] = types.String(r.Name)
		return nil
	}
	var arguments map[string]*string
	_ = json.Unmarshal([]byte(r.Arguments), &arguments) // checked before
	var names []types.Value
	nested := map[types.String]bool{}
	tags := types.RecordMap{}
	for name, value := range arguments {
		switch pointer, is := strings.CutPrefix(name, "/"); {
		case !is:
			names = append(names, types.String(name))
		case !strings.Contains(pointer, "/"):
			names = append(names, types.String(unescapes.Replace(pointer)))
		default:
			nested[types.String(anyIndex(name))] = true
		}
		if value != nil {
			tags[types.String(name)] = types.String(*value)
		}
	}
	var pointers []types.Value
	for pointer := range nested {
		pointers = append(pointers, pointer)
	}
	attrs["name"], attrs["arguments"], attrs["nested"] = types.String(r.Name), types.NewSet(names...), types.NewSet(pointers...)
	return tags
}
