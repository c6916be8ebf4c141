package claims_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/claims"
)

func TestOnlyMappedClaimsGiveRoles(t *testing.T) {
	m := claims.Mappings{"https://a.example": {
		Claim: "groups", Roles: map[string]string{"analysts": "analyst", "dba-team": "dba", "old-dbas": "dba"},
		Operators: map[string]claims.Operator{"platform": claims.Admin},
	}, "https://none.example": {}}
	for name, tc := range map[string]struct {
		issuer, payload string
		want            []string
		admin, fails    bool
	}{
		"list":               {"https://a.example", `{"groups":["dba-team","analysts","old-dbas","other"]}`, []string{"analyst", "dba"}, false, false},
		"string":             {"https://a.example", `{"groups":"analysts"}`, []string{"analyst"}, false, false},
		"admin":              {"https://a.example", `{"groups":["platform"]}`, nil, true, false},
		"a role isn't taken": {"https://a.example", `{"groups":["analyst","admin"],"roles":["admin"]}`, nil, false, false},
		"missing":            {"https://a.example", `{}`, nil, false, false},
		"another case":       {"https://a.example", `{"Groups":["platform","dba-team"]}`, nil, false, false},
		"empty":              {"https://a.example", `{"groups":[]}`, nil, false, false},
		"unmapped provider":  {"https://b.example", `{"groups":["platform","dba-team"]}`, nil, false, false},
		"no claim":           {"https://none.example", `{"":"x"}`, nil, false, false},
		"number":             {"https://a.example", `{"groups":5}`, nil, false, true},
		"object":             {"https://a.example", `{"groups":{"platform":true}}`, nil, false, true},
		"mixed":              {"https://a.example", `{"groups":["platform",5]}`, nil, false, true},
		"null inside":        {"https://a.example", `{"groups":["platform",null]}`, nil, false, true},
		"null":               {"https://a.example", `{"groups":null}`, nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := actor.IdentityClaims{Issuer: tc.issuer, Payload: json.RawMessage(tc.payload)}
			got, err := m.Roles(c)
			admin, errAdmin := m.IsOperator(c, claims.Admin)
			if (err != nil) != tc.fails || (errAdmin != nil) != tc.fails || admin != tc.admin || cmp.Diff(tc.want, got) != "" {
				t.Errorf("roles %v (%v), admin %v (%v)", got, err, admin, errAdmin)
			}
		})
	}
	if _, err := claims.ParseOperator("root"); err == nil {
		t.Error("an unknown operator's role was taken")
	}
}
