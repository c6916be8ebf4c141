package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// rule is one compiled policy.
type rule struct {
	id   cedar.PolicyID
	name string // @id, or file:line
	file string
	pos  cedar.Position
	text *cedar.Policy
	// actions are those that the scope can match; nil is every action.
	actions     []types.EntityUID
	permit      bool
	obligations Obligations
	forms       forms // for requests that leave something open; see kubereach.go
}

// Check compiles a source and returns every fault it finds, in the order of the files; nil means that
// the set would load. The error, if any, joins [*Problem] values.
func Check(s Source) error {
	_, err := Compile(s)
	return err
}

// Compile loads a source that nobody signed, for checking and explaining it. What enforces loads signed
// sets only, with [Open].
func Compile(s Source) (*Set, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	v, err := loadVocabulary()
	if err != nil {
		return nil, err
	}
	set := &Set{source: s, vocabulary: v, entities: targetEntities(s.Targets)}
	var errs []error
	names := map[string]*rule{}
	for _, file := range sortedKeys(s.Files) {
		list, err := cedar.NewPolicyListFromBytes(file, []byte(s.Files[file]))
		if err != nil {
			errs = append(errs, syntaxProblem(file, err))
			continue
		}
		for _, p := range list {
			r, problems := set.compileRule(file, p)
			errs = append(errs, problems...)
			if first := names[r.name]; first != nil {
				errs = append(errs, r.problem("the id is taken already, at %s:%d; ids name policies in records and must be unique", first.file, first.pos.Line))
			}
			names[r.name] = r
			set.rules = append(set.rules, r)
		}
	}
	if len(set.rules) > maxPolicies {
		errs = append(errs, fmt.Errorf("the set holds %d policies; at most %d", len(set.rules), maxPolicies))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	set.index()
	return set, nil
}

func (s *Set) compileRule(file string, p *cedar.Policy) (*rule, []error) {
	r := &rule{file: file, pos: p.Position(), text: p, permit: p.Effect() == cedar.Permit}
	annotations := map[string]string{}
	for k, v := range p.Annotations() {
		annotations[string(k)] = string(v)
	}
	r.name = annotations["id"]
	if r.name == "" {
		r.name = file + ":" + strconv.Itoa(r.pos.Line)
	}
	r.id = cedar.PolicyID(r.name)

	var errs []error
	var problems []error
	r.obligations, problems = compileAnnotations(r.permit, annotations)
	for _, e := range problems {
		errs = append(errs, r.problem("%v", e))
	}
	tree := (*ast.Policy)(p.AST())
	if err := s.vocabulary.validator.Policy("", tree); err != nil {
		for _, e := range flatten(err) {
			errs = append(errs, r.problem("%v", e))
		}
	}
	for _, what := range s.lint(tree) {
		errs = append(errs, r.problem("%s", what))
	}
	r.actions = s.vocabulary.scopeActions(tree.Action)
	if len(errs) == 0 {
		r.makeForms()
	}
	return r, errs
}

func (r *rule) problem(format string, args ...any) *Problem {
	return &Problem{
		File: r.file, Line: r.pos.Line, Column: r.pos.Column, Policy: r.name, What: fmt.Sprintf(format, args...),
	}
}

// scopeActions expands the action part of a policy's head. nil means that every action is meant.
func (v *vocabulary) scopeActions(scope ast.IsActionScopeNode) []types.EntityUID {
	var named []types.EntityUID
	switch sc := scope.(type) {
	case ast.ScopeTypeEq:
		return []types.EntityUID{sc.Entity}
	case ast.ScopeTypeIn:
		named = []types.EntityUID{sc.Entity}
	case ast.ScopeTypeInSet:
		named = sc.Entities
	default:
		return nil
	}
	out := []types.EntityUID{}
	for _, g := range named {
		for _, a := range v.members(g) {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

func targetEntities(targets map[string]Target) types.EntityMap {
	out := types.EntityMap{}
	for name, t := range targets {
		uid := types.NewEntityUID(typeTarget, types.String(name))
		var groups []types.EntityUID
		for _, g := range t.Groups {
			group := types.NewEntityUID(typeTargetGroup, types.String(g))
			groups = append(groups, group)
			out[group] = types.Entity{UID: group}
		}
		out[uid] = types.Entity{
			UID: uid, Parents: types.NewEntityUIDSet(groups...),
			Attributes: types.NewRecord(types.RecordMap{"name": types.String(name), "kind": types.String(t.Kind)}),
		}
	}
	return out
}

// cedarPlace is the position in Cedar's messages: `parse error at <input>:3:7 "x": …`.
var cedarPlace = regexp.MustCompile(`(?:parse error at )?(?:<input>:)?(\d+):(\d+):? ?`)

// cedarToken is how Cedar's parser says that another token is expected.
var cedarToken = regexp.MustCompile(`^after .*: exact got (.*) want (.*)$`)

func syntaxProblem(file string, err error) *Problem {
	p := &Problem{File: file, What: strings.TrimPrefix(err.Error(), "parser error: ")}
	if m := cedarPlace.FindStringSubmatch(p.What); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Column, _ = strconv.Atoi(m[2])
		p.What = "after " + strings.Replace(p.What, m[0], "", 1)
	}
	// The place is that of the token behind the one that is wrong.
	if m := cedarToken.FindStringSubmatch(p.What); m != nil {
		if p.What = fmt.Sprintf("%q is expected before this place, not %q", m[2], m[1]); m[1] == "" {
			p.What = fmt.Sprintf("the file ends where %q is expected", m[2])
		}
	}
	return p
}

func flatten(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range j.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}
