package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// lint finds references to targets that the set doesn't list and ids that could never match. Cedar
// takes any string as an id, so a misspelt name would make a forbid silently empty.
func (s *Set) lint(p *ast.Policy) []string {
	var out []string
	say := func(what string) {
		if what != "" && !slices.Contains(out, what) {
			out = append(out, what)
		}
	}
	see := func(uid types.EntityUID) { say(s.lintEntity(uid)) }
	for _, scope := range []ast.IsScopeNode{p.Principal, p.Action, p.Resource} {
		for _, uid := range scopeEntities(scope) {
			see(uid)
		}
	}
	for _, c := range p.Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			switch n := n.(type) {
			case ast.NodeValue:
				if uid, ok := n.Value.(types.EntityUID); ok {
					see(uid)
				}
			case ast.NodeTypeEquals:
				say(s.lintEquality(n.Left, n.Right))
			case ast.NodeTypeNotEquals:
				say(s.lintEquality(n.Left, n.Right))
			}
			return true
		})
	}
	return out
}

func (s *Set) lintEntity(uid types.EntityUID) string {
	switch uid.Type {
	case typeTarget:
		if _, ok := s.source.Targets[string(uid.ID)]; !ok {
			return fmt.Sprintf("%s is not among the set's targets (%s)", uid, strings.Join(sortedKeys(s.source.Targets), ", "))
		}
	case typeTargetGroup:
		for _, t := range s.source.Targets {
			if slices.Contains(t.Groups, string(uid.ID)) {
				return ""
			}
		}
		return fmt.Sprintf("%s: no target of the set stands in that group", uid)
	case typeKubeNamespace:
		target, err := lintNamespace(uid)
		if err != nil {
			return err.Error()
		}
		return s.lintTarget(uid, target)
	case typeDatabase, typeTable, typeFunction, typeSetting, typeChannel, typeAccount, typeExec, typeSubsystem, typePath, typeForward,
		typeService, typeEndpoint, typeTool, typeMCPResource, typePrompt, typeKubeResource, typeKubePath:
		r, err := parseResource(uid)
		if err != nil {
			return err.Error()
		}
		return s.lintTarget(uid, r.Target)
	case typeGrade, typeEvidence:
		if values := s.vocabulary.enums[uid.Type]; !slices.Contains(values, uid) {
			return fmt.Sprintf("%s is none of the values %v", uid, values)
		}
	case typeUser:
		if iss, sub, ok := strings.Cut(string(uid.ID), "#"); !ok || iss == "" || sub == "" {
			return fmt.Sprintf("%s should read <issuer>#<subject>", uid)
		}
	}
	return ""
}

func (s *Set) lintTarget(uid types.EntityUID, target string) string {
	if _, ok := s.source.Targets[target]; !ok {
		return fmt.Sprintf("%s: %q is not among the set's targets (%s)", uid, target, strings.Join(sortedKeys(s.source.Targets), ", "))
	}
	return ""
}

// lintEquality finds a variable compared with something that it can never be, which Cedar's validator
// lets pass in conditions.
func (s *Set) lintEquality(a, b ast.IsNode) string {
	variable, ok := a.(ast.NodeTypeVariable)
	if !ok {
		a, b = b, a
		if variable, ok = a.(ast.NodeTypeVariable); !ok {
			return ""
		}
	}
	value, ok := b.(ast.NodeValue)
	if !ok {
		return ""
	}
	uid, ok := value.Value.(types.EntityUID)
	if !ok {
		return ""
	}
	possible := true
	switch variable.Name {
	case "action":
		_, possible = s.vocabulary.applies[uid]
	case "principal":
		possible = uid.Type == typeUser
	case "resource":
		possible = !slices.Contains([]types.EntityType{typeTarget, typeTargetGroup, typeKubeNamespace, typeUser, typeRole, typeAction, typeGrade, typeEvidence}, uid.Type)
	}
	if possible {
		return ""
	}
	return fmt.Sprintf("%s is never %s itself; write `%s in %s` to mean what stands in it", variable.Name, uid, variable.Name, uid)
}

func scopeEntities(scope ast.IsScopeNode) []types.EntityUID {
	switch sc := scope.(type) {
	case ast.ScopeTypeEq:
		return []types.EntityUID{sc.Entity}
	case ast.ScopeTypeIn:
		return []types.EntityUID{sc.Entity}
	case ast.ScopeTypeInSet:
		return sc.Entities
	case ast.ScopeTypeIsIn:
		return []types.EntityUID{sc.Entity}
	}
	return nil
}
