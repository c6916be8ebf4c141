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

const mcpType = "deputy_mcp"

// MCPVerbs are the actions of a deputy_mcp capability, in sync with the policy actions mcp:<verb>. The last three are what a server may ask
// of the agent.
func MCPVerbs() []string {
	return []string{"call", "list", "read", "prompt", "complete", "subscribe", "sampling", "elicitation", "roots"}
}

// What an MCPAction is about.
const (
	MCPTool     = "tool"
	MCPResource = "resource"
	MCPPrompt   = "prompt"
)

// mcpKinds are the kinds of objects that a verb may be about; "" is the server itself.
var mcpKinds = map[string][]string{
	"call": {MCPTool}, "list": {"", MCPTool, MCPResource, MCPPrompt}, "read": {MCPResource}, "prompt": {MCPPrompt}, "complete": {MCPResource, MCPPrompt},
	"subscribe": {"", MCPResource}, "sampling": {""}, "elicitation": {""}, "roots": {""},
}

// MCPDetail is a capability on tool servers:
//
//	{"type":"deputy_mcp","locations":["spiffe://…/target/files"],"actions":["call","list","read"],
//	 "tools":["read_file"],"resources":["file:///public/*"],"prompts":["review"]}
//
// An absent (nil) list is no constraint.
type MCPDetail struct {
	Locations []spiffeid.ID // targets; at least one
	Actions   []string      // of MCPVerbs; at least one
	Tools     []string      // exact names
	Resources []string      // URIs, see CheckMCPURI; a last * stands for whatever follows
	Prompts   []string      // exact names
}

// MCPAction is one thing that is asked of a tool server, or that it asks.
type MCPAction struct {
	Target spiffeid.ID
	Verb   string
	// Kind and Object are what it is about: MCPTool, MCPResource or MCPPrompt, and its name or URI. Both are "" for the server itself.
	Kind, Object string
}

func (a MCPAction) Name() string { return "mcp:" + a.Verb }
func (MCPAction) action()        {}

type mcpJSON struct {
	Type      string    `json:"type"`
	Locations locations `json:"locations"`
	Actions   []string  `json:"actions"`
	Tools     []string  `json:"tools,omitempty"`
	Resources []string  `json:"resources,omitempty"`
	Prompts   []string  `json:"prompts,omitempty"`
}

func parseMCP(data []byte) (Detail, error) {
	var j mcpJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	return MCPDetail{Locations: j.Locations, Actions: j.Actions, Tools: j.Tools, Resources: j.Resources, Prompts: j.Prompts}, nil
}

func (d MCPDetail) MarshalJSON() ([]byte, error) {
	return json.Marshal(mcpJSON{Type: mcpType, Locations: d.Locations, Actions: d.Actions, Tools: d.Tools, Resources: d.Resources, Prompts: d.Prompts})
}

func (MCPDetail) Type() string             { return mcpType }
func (d MCPDetail) Targets() []spiffeid.ID { return d.Locations }

func (d MCPDetail) validate() error {
	return cmp.Or(checkPlace(d.Locations, d.Actions, MCPVerbs()), checkEntries([]entries{
		{"tools", d.Tools, CheckMCPName}, {"prompts", d.Prompts, CheckMCPName}, {"resources", d.Resources, checkMCPPattern},
	}))
}

// checkMCPPattern takes a URI, which may end in a *.
func checkMCPPattern(s string) error {
	if len(s) > maxCapPath {
		return fmt.Errorf("a URI of %d bytes, want at most %d", len(s), maxCapPath)
	}
	return CheckMCPURI(strings.TrimSuffix(s, "*"))
}

func (d MCPDetail) within(parent Detail) error {
	p, ok := parent.(MCPDetail)
	switch {
	case !ok:
		return fmt.Errorf("%s is not %s", d.Type(), parent.Type())
	case !covers(p.Locations, d.Locations):
		return errors.New("locations are wider")
	case !covers(p.Actions, d.Actions):
		return errors.New("actions are wider")
	case p.Tools != nil && (d.Tools == nil || !covers(p.Tools, d.Tools)):
		return errors.New("tools is missing or wider")
	case p.Prompts != nil && (d.Prompts == nil || !covers(p.Prompts, d.Prompts)):
		return errors.New("prompts is missing or wider")
	case p.Resources != nil && d.Resources == nil:
		return errors.New("resources is missing")
	}
	if p.Resources != nil {
		for _, r := range d.Resources {
			if !anyURI(p.Resources, r) {
				return fmt.Errorf("resources: %q is wider", r)
			}
		}
	}
	return nil
}

func (d MCPDetail) match(a Action) (Limits, error) {
	ma, ok := a.(MCPAction)
	switch {
	case !ok:
		return Limits{}, fmt.Errorf("%s is about MCP", d.Type())
	case ma.Target.IsZero() || !contains(d.Locations, ma.Target):
		return Limits{}, fmt.Errorf("target %q is not among the locations", ma.Target)
	case !contains(d.Actions, ma.Verb):
		return Limits{}, fmt.Errorf("%q is not among the actions", ma.Verb)
	case !slices.Contains(mcpKinds[ma.Verb], ma.Kind):
		return Limits{}, fmt.Errorf("%q is not about a %q", ma.Verb, ma.Kind)
	}
	return Limits{}, d.about(ma)
}

// about says whether an object is among those of the capability.
func (d MCPDetail) about(a MCPAction) error {
	if err := a.CheckObject(); err != nil {
		return err
	}
	switch a.Kind {
	case MCPTool:
		if d.Tools != nil && !contains(d.Tools, a.Object) {
			return fmt.Errorf("%q is not among the tools", a.Object)
		}
	case MCPPrompt:
		if d.Prompts != nil && !contains(d.Prompts, a.Object) {
			return fmt.Errorf("%q is not among the prompts", a.Object)
		}
	case MCPResource:
		if d.Resources != nil && !anyURI(d.Resources, a.Object) {
			return fmt.Errorf("%q is under none of the resources", a.Object)
		}
	}
	return nil
}

// CheckObject says whether the object is one that can be decided.
func (a MCPAction) CheckObject() error {
	switch a.Kind {
	case MCPTool, MCPPrompt:
		return CheckMCPName(a.Object)
	case MCPResource:
		if strings.HasSuffix(a.Object, "*") {
			return fmt.Errorf("URI %q ends in a *, which is a pattern's", a.Object)
		}
		return CheckMCPURI(a.Object)
	}
	if a.Object != "" {
		return errors.New("a server's own action names no object")
	}
	return nil
}

func (d MCPDetail) at(target spiffeid.ID) (Detail, bool) {
	if !contains(d.Locations, target) {
		return nil, false
	}
	d.Locations = []spiffeid.ID{target}
	return d, true
}

// Limits of what an MCP action is about, in bytes.
const (
	MaxMCPName = 128
	MaxMCPURI  = 4096
)

// CheckMCPName takes the name of a tool or prompt: 1 to 128 bytes without control characters.
func CheckMCPName(s string) error {
	if s == "" || len(s) > MaxMCPName {
		return fmt.Errorf("a name of %d bytes, want 1 to %d", len(s), MaxMCPName)
	}
	return checkPrintable(s)
}

// CheckMCPURI takes a resource's URI in its one canonical form (RFC 3986 §6.2.2): a scheme in lower case, and behind it no empty segment
// but the last, none of dots, no escape of what needs none or of a slash, a backslash, a percent sign or a control character, and no
// \ ? # or space. So a URI can't be spelt around a rule.
func CheckMCPURI(s string) error {
	if len(s) > MaxMCPURI {
		return fmt.Errorf("a URI of %d bytes, want at most %d", len(s), MaxMCPURI)
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !isScheme(scheme) {
		return fmt.Errorf("%q is no URI with a scheme in lower case", s)
	}
	for i := range len(rest) {
		if c := rest[i]; c <= ' ' || c > '~' || strings.IndexByte(`\?#"<>^`+"`", c) >= 0 {
			return fmt.Errorf("URI %q holds %q, which servers read in different ways", s, c)
		}
	}
	if err := checkEscapes(rest); err != nil {
		return fmt.Errorf("URI %q: %w", s, err)
	}
	rest, hasAuthority := strings.CutPrefix(rest, "//")
	segments := strings.Split(rest, "/")
	for i, seg := range segments {
		first, last := i == 0, i == len(segments)-1
		if seg == "." || seg == ".." || seg == "" && !last && !first {
			return fmt.Errorf("URI %q has an empty segment or one of dots", s)
		}
		if first && hasAuthority && seg != strings.ToLower(seg) {
			return fmt.Errorf("URI %q has a host that isn't in lower case", s)
		}
	}
	return nil
}

func isScheme(s string) bool {
	return s != "" && s[0] >= 'a' && s[0] <= 'z' && len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// checkEscapes refuses escapes that some servers decode and others don't.
func checkEscapes(s string) error {
	const upperHex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		if i+2 >= len(s) {
			return errors.New("an escape is cut off")
		}
		hi, lo := strings.IndexByte(upperHex, s[i+1]), strings.IndexByte(upperHex, s[i+2])
		if hi < 0 || lo < 0 {
			return errors.New("an escape isn't of two hexadecimal digits in capitals")
		}
		c := byte(hi<<4 | lo)
		if c < ' ' || c == 0x7f || strings.IndexByte(`/\%`, c) >= 0 || isUnreserved(c) {
			return fmt.Errorf("%s is another spelling, or hides a separator", s[i:i+3])
		}
		i += 2
	}
	return nil
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// anyURI says whether some pattern covers a URI, or a pattern of a child.
func anyURI(patterns []string, uri string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		begin, open := strings.CutSuffix(p, "*")
		return p == uri || open && strings.HasPrefix(strings.TrimSuffix(uri, "*"), begin)
	})
}
