package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

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

// Arguments spells the arguments of a call for a [Resource]: the top-level names, each with its value as text if it is a text, a number
// or a truth value, and null otherwise. Nothing is left out for its size: a rule that forbids a value must see it.
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
	out := make(map[string]*string, len(in))
	for name, raw := range in {
		out[name] = scalar(raw)
	}
	text, err := json.Marshal(out)
	return string(text), err
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
	if again, err := Arguments([]byte(r.Arguments)); err != nil || again != r.Arguments {
		return errors.New("the arguments are not in their canonical form")
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
	tags := types.RecordMap{}
	for name, value := range arguments {
		names = append(names, types.String(name))
		if value != nil {
			tags[types.String(name)] = types.String(*value)
		}
	}
	attrs["name"], attrs["arguments"] = types.String(r.Name), types.NewSet(names...)
	return tags
}
