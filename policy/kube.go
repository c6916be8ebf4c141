package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/deputymesh/deputy/actor"
)

// KubeResource is the resource of a request to a Kubernetes cluster about an object, or about all of a namespace or of the cluster.
func KubeResource(target string, o actor.KubeObject) Resource {
	return Resource{Kind: KindKubeResource, Target: target, Kube: o}
}

// KubePath is a path of no resource at a cluster, by its canonical form ([actor.CheckHTTPPath]).
func KubePath(target, path string) Resource {
	return Resource{Kind: KindKubePath, Target: target, Name: path}
}

func (r Resource) onCluster() bool { return r.Kind == KindKubeResource || r.Kind == KindKubePath }

// kubeID is <target>/<namespace>/<resource>[.<group>]/<name>[/<subresource>]. No part of it may hold a slash, so it needs no escapes.
func (r Resource) kubeID() string {
	if r.Kind == KindKubePath {
		return escape(r.Target, false) + "/" + escape(r.Name, false)
	}
	o := r.Kube
	id := escape(r.Target, false) + "/" + o.Namespace + "/" + o.Resource
	if o.Group != "" {
		id += "." + o.Group
	}
	id += "/" + o.Name
	if o.Subresource != "" {
		id += "/" + o.Subresource
	}
	return id
}

func (r Resource) kubeString() string {
	if r.Kind == KindKubePath {
		return fmt.Sprintf("%q of %s", clip(r.Name, 200), r.Target)
	}
	o := r.Kube
	s := o.Resource
	if o.Group != "" {
		s += "." + o.Group
	}
	if o.Subresource != "" {
		s += "/" + o.Subresource
	}
	if o.Name != "" {
		s += fmt.Sprintf(" %q", o.Name)
	}
	if o.Namespace != "" {
		s += fmt.Sprintf(" in namespace %q", o.Namespace)
	}
	return s + " of " + r.Target
}

func (r Resource) checkKube() error {
	switch {
	case r.Database != "" || r.Schema != "" || r.Account != "" || r.Query != "" || r.Arguments != "":
		return fmt.Errorf("a %s has a namespace and a name, and nothing of other kinds", r.Kind)
	case r.Target == "" || len(r.Target) > maxName:
		return fmt.Errorf("the target of the %s is missing or too long", r.Kind)
	case r.Kind == KindKubePath && r.Kube != (actor.KubeObject{}):
		return errors.New("a path of no resource is about no object")
	case r.Kind == KindKubePath:
		return actor.CheckHTTPPath(r.Name)
	case r.Name != "":
		return errors.New("the name of a Kubernetes object stands in the object")
	}
	return r.Kube.Check()
}

func (r Resource) kubeUID() types.EntityUID {
	t := typeKubeResource
	if r.Kind == KindKubePath {
		t = typeKubePath
	}
	return types.NewEntityUID(t, types.String(r.kubeID()))
}

func (r Resource) kubeEntities(into types.EntityMap) {
	parent := types.NewEntityUID(typeTarget, types.String(r.Target))
	if r.Kind == KindKubePath {
		into[r.kubeUID()] = types.Entity{
			UID: r.kubeUID(), Parents: types.NewEntityUIDSet(parent),
			Attributes: types.NewRecord(types.RecordMap{"target": types.String(r.Target), "path": types.String(r.Name)}),
		}
		return
	}
	o := r.Kube
	if o.Namespace != "" {
		namespace := types.NewEntityUID(typeKubeNamespace, types.String(escape(r.Target, false)+"/"+o.Namespace))
		into[namespace] = types.Entity{
			UID: namespace, Parents: types.NewEntityUIDSet(parent),
			Attributes: types.NewRecord(types.RecordMap{"target": types.String(r.Target), "name": types.String(o.Namespace)}),
		}
		parent = namespace
	}
	into[r.kubeUID()] = types.Entity{
		UID: r.kubeUID(), Parents: types.NewEntityUIDSet(parent),
		Attributes: types.NewRecord(types.RecordMap{
			"target": types.String(r.Target), "group": types.String(o.Group), "resource": types.String(o.Resource), "subresource": types.String(o.Subresource),
			"namespace": types.String(o.Namespace), "name": types.String(o.Name), "container": types.String(o.Container),
			"port": types.Long(o.Port), "command": types.String(o.Command), "program": types.String(actor.KubeProgram(o.Command)),
		}),
	}
}

// parseKubeResource reads an entity of a policy back. It accepts the one spelling that ID writes.
func parseKubeResource(uid types.EntityUID) (Resource, error) {
	target, rest, _ := strings.Cut(string(uid.ID), "/")
	r := KubePath(unescape(target), unescape(rest))
	if uid.Type == typeKubeResource {
		parts := strings.Split(rest, "/")
		if len(parts) != 3 && len(parts) != 4 {
			return Resource{}, fmt.Errorf("%s should read <target>/<namespace>/<resource>[.<group>]/<name>[/<subresource>]", uid)
		}
		o := actor.KubeObject{Namespace: parts[0], Name: parts[2]}
		o.Resource, o.Group, _ = strings.Cut(parts[1], ".")
		if len(parts) == 4 {
			o.Subresource = parts[3]
		}
		r = KubeResource(unescape(target), o)
	}
	if err := r.check(); err != nil {
		return Resource{}, fmt.Errorf("%s: %w", uid, err)
	}
	if r.ID() != string(uid.ID) {
		return Resource{}, fmt.Errorf("%s should be written %q", uid, r.ID())
	}
	return r, nil
}

// lintNamespace says what is wrong with a namespace that a policy names.
func lintNamespace(uid types.EntityUID) (target string, err error) {
	target, name, ok := strings.Cut(string(uid.ID), "/")
	if !ok || actor.CheckKubeLabel(name) != nil {
		return "", fmt.Errorf("%s should read <target>/<namespace>", uid)
	}
	return target, nil
}

// groupNamed holds the actions that no wide rule gives: a permit's head must name them.
var groupNamed = types.NewEntityUID(typeAction, "named")

// names reports whether the head of the policy names this very action, not a group that it stands in and not every action.
func (r *rule) names(action types.EntityUID) bool {
	switch sc := (*ast.Policy)(r.text.AST()).Action.(type) {
	case ast.ScopeTypeEq:
		return sc.Entity == action
	case ast.ScopeTypeIn:
		return sc.Entity == action
	case ast.ScopeTypeInSet:
		return slices.Contains(sc.Entities, action)
	}
	return false
}
