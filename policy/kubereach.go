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

// A request for a list, a watch or a deletecollection reaches objects that it doesn't name. A forbid about one of them, or about a namespace,
// wouldn't match such a request, and what it forbids would be had by asking for more. So each forbid has wider forms, in which what the request leaves
// open may be anything, and one of them that matches is a refusal. A wider form may match where the forbid itself would match none of the
// objects; it is never the other way round.
//
// So it is with a request that names no container: the cluster takes the only one, or the pod's default.

// reach is what a request leaves open.
type reach struct{ name, namespace, container bool }

// inDefault leaves the container open, which is no part of what an object is.
var inDefault = reach{container: true}

func (r reach) index() int {
	n := 0
	if r.name {
		n++
	}
	if r.namespace {
		n += 2
	}
	if r.container {
		n += 4
	}
	return n
}

// manyActions are those that reach objects which they don't name.
var manyActions = []types.String{"kube:list", "kube:watch", "kube:deletecollection"}

// inContainer are those that happen in a container; get does where it is about a log.
var inContainer = []types.String{"kube:exec", "kube:attach", "kube:debug", "kube:get"}

// reachOf is what a request about a resource leaves open.
func reachOf(action types.EntityUID, r Resource) reach {
	switch {
	case r.Kind != KindKubeResource:
		return reach{}
	case slices.Contains(manyActions, action.ID):
		return reach{name: r.Kube.Name == "", namespace: r.Kube.Namespace == "" && !clusterScoped(r.Kube)}
	case slices.Contains(inContainer, action.ID):
		return reach{container: r.Kube.Container == "" && (action.ID != "kube:get" || r.Kube.Subresource == "log")}
	}
	return reach{}
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

// widen makes the wider forms of a forbid; nil where it can't be about many objects.
func (r *rule) widen() {
	if r.permit || r.actions != nil && !slices.ContainsFunc(r.actions, func(a types.EntityUID) bool {
		return slices.Contains(manyActions, a.ID) || slices.Contains(inContainer, a.ID)
	}) {
		return
	}
	for _, open := range []reach{{name: true}, {namespace: true}, {name: true, namespace: true}, inDefault} {
		p := *(*ast.Policy)(r.text.AST())
		p.Conditions = nil
		var more []ast.ConditionType
		p.Resource, more = widenScope(p.Resource, open)
		for _, c := range (*ast.Policy)(r.text.AST()).Conditions {
			c.Body = widenNode(c.Body, open, bool(c.Condition))
			p.Conditions = append(p.Conditions, c)
		}
		p.Conditions = append(p.Conditions, more...)
		r.wider[open.index()] = cedar.NewPolicyFromAST((*cedarast.Policy)(&p))
	}
}

// widenScope lets the head's resource be any that a request may reach.
func widenScope(scope ast.IsResourceScopeNode, open reach) (ast.IsResourceScopeNode, []ast.ConditionType) {
	inTarget := func(target string) ast.IsResourceScopeNode {
		return ast.ScopeTypeIn{Entity: types.NewEntityUID(typeTarget, types.String(target))}
	}
	switch sc := scope.(type) {
	case ast.ScopeTypeIn:
		if sc.Entity.Type == typeKubeNamespace && open.namespace {
			target, _, _ := strings.Cut(string(sc.Entity.ID), "/")
			return inTarget(unescape(target)), nil
		}
	case ast.ScopeTypeIsIn:
		if sc.Entity.Type == typeKubeNamespace && open.namespace {
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
			if name == "name" && open.name || name == "namespace" && open.namespace {
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

// widenNode lets what a condition says about open parts be true, or false where that makes the whole true.
func widenNode(n ast.IsNode, open reach, positive bool) ast.IsNode {
	both := func(b ast.BinaryNode) ast.BinaryNode {
		return ast.BinaryNode{Left: widenNode(b.Left, open, positive), Right: widenNode(b.Right, open, positive)}
	}
	switch n := n.(type) {
	case ast.NodeTypeAnd:
		return ast.NodeTypeAnd{BinaryNode: both(n.BinaryNode)}
	case ast.NodeTypeOr:
		return ast.NodeTypeOr{BinaryNode: both(n.BinaryNode)}
	case ast.NodeTypeNot:
		return ast.NodeTypeNot{UnaryNode: ast.UnaryNode{Arg: widenNode(n.Arg, open, !positive)}}
	}
	if asksAbout(n, open) {
		return ast.NodeValue{Value: types.Boolean(positive)}
	}
	return n
}

// asksAbout says whether an expression depends on an open part.
func asksAbout(n ast.IsNode, open reach) bool {
	found := false
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeAccess:
			if isResource(n.Arg) {
				found = found || open.name && n.Value == "name" || open.namespace && n.Value == "namespace" || open.container && n.Value == "container"
				return false
			}
		case ast.NodeTypeHas:
			return !isResource(n.Arg)
		case ast.NodeTypeIs:
			return !isResource(n.Left)
		case ast.NodeTypeIn:
			if v, ok := n.Right.(ast.NodeValue); ok && isResource(n.Left) {
				uid, ok := v.Value.(types.EntityUID)
				found = found || open != inDefault && (!ok || uid.Type != typeTarget && uid.Type != typeTargetGroup)
				return false
			}
		case ast.NodeTypeVariable:
			found = found || open != inDefault && n.Name == "resource"
		}
		return !found
	})
	return found
}

func isResource(n ast.IsNode) bool {
	v, ok := n.(ast.NodeTypeVariable)
	return ok && v.Name == "resource"
}

// forbiddenInside names, sorted, the forbids that may meet some of what a request about many reaches.
func (s *Set) forbiddenInside(req cedar.Request, r Resource, entities types.EntityGetter) []string {
	open := reachOf(req.Action, r)
	if open == (reach{}) {
		return nil
	}
	wider := cedar.PolicyMap{}
	for _, rule := range s.byAction[req.Action] {
		if p := rule.wider[open.index()]; p != nil {
			wider[rule.id] = p
		}
	}
	if len(wider) == 0 {
		return nil
	}
	_, diag := cedar.Authorize(wider, entities, req)
	var names []string
	for _, reason := range diag.Reasons {
		names = append(names, s.byID[reason.PolicyID].name)
	}
	for _, e := range diag.Errors {
		names = append(names, s.byID[e.PolicyID].name)
	}
	slices.Sort(names)
	return names
}
