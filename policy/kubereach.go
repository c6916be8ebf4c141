package policy

import (
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	cedarast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/deputymesh/deputy/actor"
)

// A request for a list, a watch or a deletecollection reaches objects that it doesn't name, and a request that names no container reaches the one that the
// cluster chooses. A policy about one of them, or about a namespace, is no policy about such a request. So each policy has further forms, by what a request
// leaves open: one that matches where the policy may meet some of what is reached, and one that matches where it meets all of it. A forbid counts
// where it may meet some. A permit counts where it meets all; what it demands, such as masks, is demanded where it may meet some. Where a form
// can't be exact it errs towards a refusal.

// open is what a request leaves open.
type open uint8

const (
	openName open = 1 << iota
	openNamespace
	openContainer
	opens // how many combinations there are
)

// manyActions are those that reach objects which they don't name.
var manyActions = []types.String{"kube:list", "kube:watch", "kube:deletecollection", "kube:reveal"}

// inContainer are those that happen in a container; get does where it is about a log.
var inContainer = []types.String{"kube:exec", "kube:attach", "kube:debug", "kube:get"}

// openIn is what a request about a resource leaves open.
func openIn(action types.EntityUID, r Resource) open {
	var o open
	switch {
	case r.Kind != KindKubeResource:
	case slices.Contains(manyActions, action.ID) || action.ID == "kube:get" && r.Kube.Name == "": // as the answer to a write may be about many
		if r.Kube.Name == "" {
			o |= openName
		}
		if r.Kube.Namespace == "" && !clusterScoped(r.Kube) {
			o |= openNamespace
		}
	case slices.Contains(inContainer, action.ID):
		if r.Kube.Container == "" && (action.ID != "kube:get" || r.Kube.Subresource == "log") {
			o = openContainer
		}
	}
	return o
}

// outsideNamespaces are the API server's own resources whose objects stand in no namespace. Those of others may stand in one.
var outsideNamespaces = map[string]string{
	"": "nodes persistentvolumes componentstatuses", "rbac.authorization.k8s.io": "clusterroles clusterrolebindings",
	"storage.k8s.io": "storageclasses csinodes csidrivers volumeattachments volumeattributesclasses", "apiextensions.k8s.io": "customresourcedefinitions",
	"apiregistration.k8s.io": "apiservices", "certificates.k8s.io": "certificatesigningrequests clustertrustbundles", "scheduling.k8s.io": "priorityclasses",
	"node.k8s.io": "runtimeclasses", "networking.k8s.io": "ingressclasses ipaddresses servicecidrs", "flowcontrol.apiserver.k8s.io": "flowschemas prioritylevelconfigurations",
	"admissionregistration.k8s.io": "validatingwebhookconfigurations mutatingwebhookconfigurations validatingadmissionpolicies validatingadmissionpolicybindings mutatingadmissionpolicies mutatingadmissionpolicybindings",
	"metrics.k8s.io":               "nodes", "resource.k8s.io": "deviceclasses resourceslices",
}

func clusterScoped(o actor.KubeObject) bool {
	return slices.Contains(strings.Fields(outsideNamespaces[o.Group]), o.Resource)
}

// forms are those of a policy, by what is open. One that is nil is the policy itself.
type forms struct{ some, all [opens]*cedar.Policy }

// makeForms makes the forms of a policy that can be about what a request leaves open.
func (r *rule) makeForms() {
	if r.actions != nil && !slices.ContainsFunc(r.actions, func(a types.EntityUID) bool {
		return slices.Contains(manyActions, a.ID) || slices.Contains(inContainer, a.ID)
	}) {
		return
	}
	for _, o := range []open{openName, openNamespace, openName | openNamespace, openContainer} {
		r.forms.some[o] = r.form(o, true)
		if r.permit {
			r.forms.all[o] = r.form(o, false)
		}
	}
}

// form makes the one that matches what may meet some, or else what meets all.
func (r *rule) form(o open, some bool) *cedar.Policy {
	p := *(*ast.Policy)(r.text.AST())
	conditions := p.Conditions
	p.Conditions = nil
	if some {
		p.Resource, p.Conditions = widenScope(p.Resource, o)
	}
	for _, c := range conditions {
		c.Body = read(c.Body, o, bool(c.Condition) == some)
		p.Conditions = append(p.Conditions, c)
	}
	return cedar.NewPolicyFromAST((*cedarast.Policy)(&p))
}

// widenScope lets the head's resource be any that a request may reach.
func widenScope(scope ast.IsResourceScopeNode, o open) (ast.IsResourceScopeNode, []ast.ConditionType) {
	inTarget := func(target string) ast.IsResourceScopeNode {
		return ast.ScopeTypeIn{Entity: types.NewEntityUID(typeTarget, types.String(target))}
	}
	switch sc := scope.(type) {
	case ast.ScopeTypeIn:
		if sc.Entity.Type == typeKubeNamespace && o&openNamespace != 0 {
			target, _, _ := strings.Cut(string(sc.Entity.ID), "/")
			return inTarget(unescape(target)), nil
		}
	case ast.ScopeTypeIsIn:
		if sc.Entity.Type == typeKubeNamespace && o&openNamespace != 0 {
			target, _, _ := strings.Cut(string(sc.Entity.ID), "/")
			return inTarget(unescape(target)), nil // nothing else in a namespace has these actions
		}
	case ast.ScopeTypeEq:
		one, err := parseResource(sc.Entity)
		if err != nil || one.Kind != KindKubeResource {
			break
		}
		var more []ast.ConditionType
		for name, value := range map[types.String]string{"group": one.Kube.Group, "resource": one.Kube.Resource, "subresource": one.Kube.Subresource, "namespace": one.Kube.Namespace, "name": one.Kube.Name} {
			if asksAttribute(name, o) {
				continue
			}
			more = append(more, ast.ConditionType{Condition: ast.ConditionWhen, Body: ast.NodeTypeEquals{BinaryNode: ast.BinaryNode{
				Left: ast.NodeTypeAccess{StrOpNode: ast.StrOpNode{Arg: ast.NewResourceNode(), Value: name}}, Right: ast.NodeValue{Value: types.String(value)},
			}}})
		}
		return inTarget(one.Target), more
	}
	return scope, nil
}

// read gives what a condition says about open parts the value that makes the whole so.
func read(n ast.IsNode, o open, value bool) ast.IsNode {
	both := func(b ast.BinaryNode) ast.BinaryNode {
		return ast.BinaryNode{Left: read(b.Left, o, value), Right: read(b.Right, o, value)}
	}
	switch n := n.(type) {
	case ast.NodeTypeAnd:
		return ast.NodeTypeAnd{BinaryNode: both(n.BinaryNode)}
	case ast.NodeTypeOr:
		return ast.NodeTypeOr{BinaryNode: both(n.BinaryNode)}
	case ast.NodeTypeNot:
		return ast.NodeTypeNot{UnaryNode: ast.UnaryNode{Arg: read(n.Arg, o, !value)}}
	}
	if asksAbout(n, o) {
		return ast.NodeValue{Value: types.Boolean(value)}
	}
	return n
}

func asksAttribute(name types.String, o open) bool {
	return name == "name" && o&openName != 0 || name == "namespace" && o&openNamespace != 0 || name == "container" && o&openContainer != 0
}

// asksAbout says whether an expression depends on an open part. The container is no part of what an object is.
func asksAbout(n ast.IsNode, o open) bool {
	found := false
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeAccess:
			if isResource(n.Arg) {
				found = found || asksAttribute(n.Value, o)
				return false
			}
		case ast.NodeTypeHas:
			return !isResource(n.Arg)
		case ast.NodeTypeIs:
			return !isResource(n.Left)
		case ast.NodeTypeIn:
			if v, ok := n.Right.(ast.NodeValue); ok && isResource(n.Left) {
				switch uid, _ := v.Value.(types.EntityUID); uid.Type {
				case typeTarget, typeTargetGroup:
				case typeKubeNamespace:
					found = found || o&openNamespace != 0
				default:
					found = found || o != openContainer
				}
				return false
			}
		case ast.NodeTypeVariable:
			found = found || o != openContainer && n.Name == "resource"
		}
		return !found
	})
	return found
}

func isResource(n ast.IsNode) bool {
	v, ok := n.(ast.NodeTypeVariable)
	return ok && v.Name == "resource"
}

// matching are the rules of which a form matches; failed are those that couldn't be evaluated.
func (s *Set) matching(rules []*rule, form func(*rule) *cedar.Policy, req cedar.Request, entities types.EntityGetter) (matched, failed []*rule) {
	policies := cedar.PolicyMap{}
	for _, r := range rules {
		if policies[r.id] = form(r); policies[r.id] == nil {
			policies[r.id] = r.text
		}
	}
	_, diag := cedar.Authorize(policies, entities, req)
	for _, reason := range diag.Reasons {
		matched = append(matched, s.byID[reason.PolicyID])
	}
	for _, e := range diag.Errors {
		failed = append(failed, s.byID[e.PolicyID])
	}
	return matched, failed
}

// reached are the policies that count for a request that leaves something open: of the permits that match it those that give all of it, permits that it may
// meet and that demand something, and forbids that it may meet. One that can't be evaluated counts as a forbid.
func (s *Set) reached(o open, permits []*rule, req cedar.Request, entities types.EntityGetter) (give, demanding, forbid []*rule) {
	var demands, forbids []*rule
	for _, r := range s.byAction[req.Action] {
		switch {
		case !r.permit:
			forbids = append(forbids, r)
		case r.obligations.any():
			demands = append(demands, r)
		}
	}
	some := func(r *rule) *cedar.Policy { return r.forms.some[o] }
	give, failed := s.matching(permits, func(r *rule) *cedar.Policy { return r.forms.all[o] }, req, entities)
	demanding, more := s.matching(demands, some, req, entities)
	forbid, last := s.matching(forbids, some, req, entities)
	return give, demanding, slices.Concat(forbid, failed, more, last)
}
