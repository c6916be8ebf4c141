package policy

import (
	"fmt"
	"time"

	"github.com/cedar-policy/cedar-go"
	cedarast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Question is a request written out by hand, for [Set.Explain].
type Question struct {
	Facts    Facts    `json:"facts"`
	Action   string   `json:"action"`
	Resource Resource `json:"resource"`
	Command  Command  `json:"command"`
	// Exact as in [Request].
	Exact bool      `json:"exact,omitempty"`
	Now   time.Time `json:"now"`
}

// ParseQuestion reads a question from strict JSON.
func ParseQuestion(data []byte) (Question, error) {
	var q Question
	if err := strictjson.Unmarshal(data, &q); err != nil {
		return Question{}, fmt.Errorf("reading the question: %w", err)
	}
	return q, nil
}

// Explanation is a decision with what each policy contributed.
type Explanation struct {
	Decision Decision
	Rules    []RuleExplanation
}

// RuleExplanation says for one policy whether it matched, and which parts of it did.
type RuleExplanation struct {
	Policy  string
	File    string
	Line    int
	Permit  bool
	Matched bool
	Err     error
	// Parts are the head's three parts and every condition, in the order of the text.
	Parts       []PartExplanation
	Obligations Obligations
}

// PartExplanation is one part of a policy on its own.
type PartExplanation struct {
	// Part is "principal", "action", "resource", or "condition 1" and so on.
	Part    string
	Matched bool
	Err     error
}

// Explain decides a question and says for every policy of the set why it matched or didn't. Parts are
// evaluated one by one, also those that Cedar itself would not reach.
func (s *Set) Explain(q Question) (Explanation, error) {
	subject, err := NewSubjectFromFacts(q.Facts)
	if err != nil {
		return Explanation{}, fmt.Errorf("reading the question: %w", err)
	}
	r := Request{
		Subject: subject, Now: q.Now, Action: q.Action, Resource: q.Resource, Command: q.Command, Exact: q.Exact,
	}
	req, entities, err := s.request(r)
	if err != nil {
		return Explanation{}, fmt.Errorf("reading the question: %w", err)
	}
	match := func(p *cedar.Policy) (bool, error) {
		_, diag := cedar.Authorize(cedar.PolicyMap{"part": p}, entities, req)
		if len(diag.Errors) > 0 {
			return false, fmt.Errorf("%s", diag.Errors[0].Message)
		}
		return len(diag.Reasons) > 0, nil
	}
	out := Explanation{Decision: s.Decide(r)}
	for _, rule := range s.rules {
		e := RuleExplanation{
			Policy: rule.name, File: rule.file, Line: rule.pos.Line, Permit: rule.permit, Obligations: rule.obligations,
		}
		e.Matched, e.Err = match(rule.text)
		for _, part := range parts((*ast.Policy)(rule.text.AST())) {
			matched, err := match(cedar.NewPolicyFromAST((*cedarast.Policy)(part.policy)))
			e.Parts = append(e.Parts, PartExplanation{Part: part.name, Matched: matched, Err: err})
		}
		out.Rules = append(out.Rules, e)
	}
	return out, nil
}

type part struct {
	name   string
	policy *ast.Policy
}

// parts takes a policy apart into permits that each test one part of it.
func parts(p *ast.Policy) []part {
	principal, action, resource := ast.Permit(), ast.Permit(), ast.Permit()
	principal.Principal, action.Action, resource.Resource = p.Principal, p.Action, p.Resource
	out := []part{{"principal", principal}, {"action", action}, {"resource", resource}}
	for i, c := range p.Conditions {
		one := ast.Permit()
		one.Conditions = []ast.ConditionType{c}
		out = append(out, part{fmt.Sprintf("condition %d", i+1), one})
	}
	return out
}
