package tokenapi

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
)

// narrow is what the token will allow: what was asked for, within ceiling, at this target alone.
func narrow(req exchangeRequest, ceiling actor.Details, at spiffeid.ID) (actor.Details, error) {
	have := ceiling.ForTarget(at)
	if len(have) == 0 {
		return nil, bad(codeTarget, "target.capability", "what was granted does not cover target "+req.target.String())
	}
	if req.details != nil {
		for _, d := range req.details {
			if targets := d.Targets(); len(targets) != 1 || targets[0] != at {
				return nil, bad(codeDetails, "details.target", "authorization_details must have the target of this exchange as their only location")
			}
		}
		if err := req.details.Within(have); err != nil {
			return nil, bad(codeDetails, string(actor.ClassWider), "authorization_details are wider than what was granted: "+err.Error())
		}
		have = req.details
	}
	if req.scopes == nil {
		return have, nil
	}
	return withinScopes(have, req.scopes)
}

// withinScopes keeps the actions that scope names, spelled as in policy (postgres:select).
func withinScopes(have actor.Details, scopes []string) (actor.Details, error) {
	used := make(map[string]bool, len(scopes))
	keep := func(kind string, actions []string) []string {
		var out []string
		for _, s := range scopes {
			verb, ok := strings.CutPrefix(s, kind)
			if ok && slices.Contains(actions, verb) && !slices.Contains(out, verb) {
				out, used[s] = append(out, verb), true
			}
		}
		return out
	}
	var out actor.Details
	for _, d := range have {
		switch d := d.(type) {
		case actor.PostgresDetail:
			if d.Actions = keep("postgres:", d.Actions); len(d.Actions) > 0 {
				out = append(out, d)
			}
		case actor.SSHDetail:
			if d.Actions = keep("ssh:", d.Actions); len(d.Actions) > 0 {
				out = append(out, d)
			}
		case actor.HTTPDetail:
			if d.Actions = keep("http:", d.Actions); len(d.Actions) > 0 {
				out = append(out, d)
			}
		case actor.TCPDetail:
			if d.Actions = keep("tcp:", d.Actions); len(d.Actions) > 0 {
				out = append(out, d)
			}
		case actor.MCPDetail:
			if d.Actions = keep("mcp:", d.Actions); len(d.Actions) > 0 {
				out = append(out, d)
			}
		case actor.KubeDetail:
			if d.Actions = keep("kube:", d.Actions); len(d.Actions) > 0 {
				out = append(out, d)
			}
		default:
			return nil, bad(codeScope, "request.scope", "scope can't be used with "+d.Type())
		}
	}
	for _, s := range scopes {
		if !used[s] {
			return nil, bad(codeScope, "request.scope", "scope is wider than what was granted: "+s)
		}
	}
	return out, nil
}
