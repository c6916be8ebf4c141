package actor

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// PathPattern is a pattern of agent paths, such as
// /agent/planner/*/researcher/*. A * stands for exactly one whole segment.
// Comparing by segment is what keeps /agent/a from meaning /agent/admin.
type PathPattern struct{ segments []string }

// ParsePathPattern takes a pattern that starts with /agent/ and whose other
// segments are names, instances or *.
func ParsePathPattern(s string) (PathPattern, error) {
	rest, ok := strings.CutPrefix(s, "/agent/")
	if !ok {
		return PathPattern{}, fmt.Errorf("pattern %q does not start with /agent/", s)
	}
	segments := strings.Split(rest, "/")
	if len(segments)%2 != 0 {
		return PathPattern{}, fmt.Errorf("pattern %q has a name without an instance: write * for any instance", s)
	}
	for i, seg := range segments {
		if seg != "*" && !(i%2 == 0 && isName(seg)) && !(i%2 == 1 && IsHexID(seg)) {
			return PathPattern{}, fmt.Errorf("pattern %q: %q is neither * nor a name or instance", s, seg)
		}
	}
	return PathPattern{segments}, nil
}

func (p PathPattern) String() string { return "/agent/" + strings.Join(p.segments, "/") }

// Match compares the whole path, segment by segment.
func (p PathPattern) Match(a AgentID) bool { return !a.IsZero() && p.MatchPath(a.Path()) }

// MatchID is Match for an identity that may be no agent, which never matches.
func (p PathPattern) MatchID(id spiffeid.ID) bool {
	a, err := ParseAgentID(id)
	return err == nil && p.Match(a)
}

// MatchPath compares a path such as /agent/planner/<instance>.
func (p PathPattern) MatchPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/agent/")
	if !ok {
		return false
	}
	segments := strings.Split(rest, "/")
	if len(segments) != len(p.segments) {
		return false
	}
	for i, seg := range segments {
		if p.segments[i] != "*" && p.segments[i] != seg {
			return false
		}
	}
	return true
}

func (p PathPattern) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p *PathPattern) UnmarshalText(text []byte) error {
	parsed, err := ParsePathPattern(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// DelegationPair allows a delegation to an agent that is not a direct child.
type DelegationPair struct {
	Delegator PathPattern
	Delegate  PathPattern
}
