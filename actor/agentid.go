package actor

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxSPIFFEID    = 2048
	maxTrustDomain = 255
)

// AgentID is the identity of one agent instance:
//
//	spiffe://<trust domain>/agent/<name>/<instance>[/<name>/<instance>]…
//
// Each pair is an agent started by the pair before it. A name is
// [a-z][a-z0-9-]{0,31}, an instance 32 lower-case hexadecimal digits. AgentID is
// comparable; its zero value is no agent.
type AgentID struct{ id spiffeid.ID }

// Segment is one name and instance of an agent's path.
type Segment struct {
	Name     string
	Instance string
}

// ParseAgentID refuses whatever is not an agent: roles under /deputy/, targets,
// and paths outside the grammar. The error has the class [ClassNotAgent].
func ParseAgentID(id spiffeid.ID) (AgentID, error) {
	if id.IsZero() {
		return AgentID{}, refuse(ClassNotAgent, "empty SPIFFE ID")
	}
	// SPIFFE-ID §2.3; the library has no limit.
	if len(id.String()) > maxSPIFFEID || len(id.TrustDomain().Name()) > maxTrustDomain {
		return AgentID{}, refuse(ClassNotAgent, "SPIFFE ID of %d bytes, want at most %d", len(id.String()), maxSPIFFEID)
	}
	rest, ok := strings.CutPrefix(id.Path(), "/agent/")
	if !ok {
		return AgentID{}, refuse(ClassNotAgent, "%q does not lie under /agent/", id)
	}
	parts := strings.Split(rest, "/")
	if len(parts)%2 != 0 {
		return AgentID{}, refuse(ClassNotAgent, "%q has a name without an instance", id)
	}
	for i := 0; i < len(parts); i += 2 {
		if !isName(parts[i]) {
			return AgentID{}, refuse(ClassNotAgent, "%q is not the name of an agent", parts[i])
		}
		if !IsHexID(parts[i+1]) {
			return AgentID{}, refuse(ClassNotAgent, "%q is not the instance of an agent", parts[i+1])
		}
	}
	return AgentID{id}, nil
}

// AgentIDFromString parses a SPIFFE ID and then the agent's path.
func AgentIDFromString(s string) (AgentID, error) {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return AgentID{}, wrap(ClassNotAgent, err)
	}
	return ParseAgentID(id)
}

// NewAgentID is the identity of a first-level agent.
func NewAgentID(td spiffeid.TrustDomain, name, instance string) (AgentID, error) {
	id, err := spiffeid.FromSegments(td, "agent", name, instance)
	if err != nil {
		return AgentID{}, wrap(ClassNotAgent, err)
	}
	return ParseAgentID(id)
}

// Child is the identity of an agent that a starts.
func (a AgentID) Child(name, instance string) (AgentID, error) {
	id, err := a.id.AppendSegments(name, instance)
	if err != nil {
		return AgentID{}, wrap(ClassNotAgent, err)
	}
	return ParseAgentID(id)
}

func (a AgentID) ID() spiffeid.ID                   { return a.id }
func (a AgentID) String() string                    { return a.id.String() }
func (a AgentID) IsZero() bool                      { return a.id.IsZero() }
func (a AgentID) Path() string                      { return a.id.Path() }
func (a AgentID) TrustDomain() spiffeid.TrustDomain { return a.id.TrustDomain() }

// Segments are the names and instances from the first level down.
func (a AgentID) Segments() []Segment {
	if a.IsZero() {
		return nil
	}
	parts := strings.Split(strings.TrimPrefix(a.id.Path(), "/agent/"), "/")
	out := make([]Segment, 0, len(parts)/2)
	for i := 0; i+1 < len(parts); i += 2 {
		out = append(out, Segment{parts[i], parts[i+1]})
	}
	return out
}

// Name is the name of the innermost segment.
func (a AgentID) Name() string {
	if s := a.Segments(); len(s) > 0 {
		return s[len(s)-1].Name
	}
	return ""
}

// Depth is the number of segments: 1 for a first-level agent.
func (a AgentID) Depth() int {
	if a.IsZero() {
		return 0
	}
	return (strings.Count(a.id.Path(), "/") - 1) / 2
}

// Parent is the agent one level up, if there is one.
func (a AgentID) Parent() (AgentID, bool) {
	if a.Depth() < 2 {
		return AgentID{}, false
	}
	path := a.id.Path()
	for range 2 {
		path = path[:strings.LastIndexByte(path, '/')]
	}
	id, err := spiffeid.FromPath(a.id.TrustDomain(), path)
	return AgentID{id}, err == nil
}

// IsDirectChildOf says whether parent is the agent one level up.
func (a AgentID) IsDirectChildOf(parent AgentID) bool {
	p, ok := a.Parent()
	return ok && p == parent
}

func (a AgentID) MarshalText() ([]byte, error) { return a.id.MarshalText() }

func (a *AgentID) UnmarshalText(text []byte) error {
	parsed, err := AgentIDFromString(string(text))
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}

// TargetID is the identity of a target: spiffe://<td>/target/<name>, with a name
// as agents have it.
func TargetID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	if !isName(name) {
		return spiffeid.ID{}, fmt.Errorf("%q is not the name of a target: want [a-z][a-z0-9-]{0,31}", name)
	}
	return spiffeid.FromSegments(td, "target", name)
}

// TargetName is the name in a target's identity.
func TargetName(id spiffeid.ID) (string, error) {
	name, ok := strings.CutPrefix(id.Path(), "/target/")
	if !ok || !isName(name) {
		return "", fmt.Errorf("%q is not the identity of a target", id)
	}
	return name, nil
}

func isName(s string) bool {
	if len(s) == 0 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}
