// Package claims maps what an identity provider says about a user to roles, by configuration. A claim
// that isn't mapped gives nothing.
package claims

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/strictjson"
)

const maxValues = 1024 // entries of a claim

// Operator is a role in the operators' calls.
type Operator string

// The operators' roles that some call needs.
const (
	Admin Operator = "admin" // revoke anything, publish policy
)

// ParseOperator reads an operator's role as it stands in configuration.
func ParseOperator(s string) (Operator, error) {
	if Operator(s) == Admin {
		return Admin, nil
	}
	return "", fmt.Errorf("operator role %q is not known: want %q", s, Admin)
}

// Mapping is how one provider's claim becomes roles.
type Mapping struct {
	Claim     string // name of the member, at the top level; its value is a string or a list of them
	Roles     map[string]string
	Operators map[string]Operator
}

// Mappings are all mappings, by the provider's issuer.
type Mappings map[string]Mapping

// Roles are the user's roles in the mesh, sorted.
func (m Mappings) Roles(c actor.IdentityClaims) ([]string, error) {
	values, err := m[c.Issuer].values(c)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, v := range values {
		if r, ok := m[c.Issuer].Roles[v]; ok {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// IsOperator says whether the user has an operator's role.
func (m Mappings) IsOperator(c actor.IdentityClaims, want Operator) (bool, error) {
	values, err := m[c.Issuer].values(c)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(values, func(v string) bool { return m[c.Issuer].Operators[v] == want }), nil
}

func (m Mapping) values(c actor.IdentityClaims) ([]string, error) {
	if m.Claim == "" || !strictjson.HasMember(c.Payload, m.Claim) {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(c.Payload, &members); err != nil {
		return nil, fmt.Errorf("reading the ID token's members: %w", err)
	}
	raw := members[m.Claim]
	var one string
	if err := json.Unmarshal(raw, &one); err == nil && raw[0] == '"' {
		return []string{one}, nil
	}
	var many []*string
	if err := json.Unmarshal(raw, &many); err != nil || many == nil || len(many) > maxValues {
		return nil, fmt.Errorf("the ID token's %s is neither a string nor a list of at most %d strings", m.Claim, maxValues)
	}
	out := make([]string, 0, len(many))
	for _, v := range many {
		if v == nil {
			return nil, fmt.Errorf("the ID token's %s holds null", m.Claim)
		}
		out = append(out, *v)
	}
	return out, nil
}
