package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/deputymesh/deputy/actor"
)

// serviceTypes are the entity types of what stands in a target itself, not in a database or an account.
var serviceTypes = map[Kind]types.EntityType{KindService: typeService, KindEndpoint: typeEndpoint, KindTool: typeTool, KindMCPResource: typeMCPResource, KindPrompt: typePrompt}

// Service is the resource of a service as a whole: of a connection of which nothing else is decided.
func Service(target string) Resource {
	return Resource{Kind: KindService, Target: target}
}

// Endpoint is the resource of a request to a web service: its canonical path and its query's keys ([actor.JoinQueryKeys]).
func Endpoint(target, path, query string) Resource {
	return Resource{Kind: KindEndpoint, Target: target, Name: path, Query: query}
}

func (r Resource) inService() bool { return serviceTypes[r.Kind] != "" }

func (r Resource) serviceID() string {
	if r.Kind == KindService {
		return escape(r.Target, false)
	}
	return escape(r.Target, false) + "/" + escape(r.Name, false)
}

func (r Resource) serviceString() string {
	if r.Kind == KindService {
		return "service " + r.Target
	}
	return fmt.Sprintf("%q of %s", clip(r.Name, 200), r.Target)
}

func (r Resource) checkService() error {
	switch {
	case r.Database != "" || r.Schema != "" || r.Account != "":
		return fmt.Errorf("a resource of the kind %s stands in a target, not in a database or an account", r.Kind)
	case r.Target == "" || len(r.Target) > maxName:
		return fmt.Errorf("the target of the %s is missing or too long", r.Kind)
	case r.Kind == KindService && (r.Name != "" || r.Query != "" || r.Arguments != ""):
		return errors.New("a service has no name but its target's")
	case r.Kind == KindService:
		return nil
	case r.Kind != KindEndpoint:
		return r.checkMCP()
	case r.Arguments != "":
		return errors.New("an endpoint has no arguments")
	}
	if keys := actor.SplitQueryKeys(r.Query); keys != nil {
		if joined, err := actor.JoinQueryKeys(keys); err != nil || joined != r.Query {
			return errors.New("the query's keys are not in their canonical form")
		}
	}
	return actor.CheckHTTPPath(r.Name)
}

func (r Resource) serviceEntities(into types.EntityMap) {
	target := types.NewEntityUIDSet(types.NewEntityUID(typeTarget, types.String(r.Target)))
	attrs := types.RecordMap{"target": types.String(r.Target)}
	if r.Kind == KindEndpoint {
		var keys []types.Value
		for _, k := range actor.SplitQueryKeys(r.Query) {
			keys = append(keys, types.String(k))
		}
		attrs["path"], attrs["query"] = types.String(r.Name), types.NewSet(keys...)
	}
	var tags types.RecordMap
	if r.Kind != KindEndpoint && r.Kind != KindService {
		tags = r.mcpAttributes(attrs)
	}
	into[r.uid()] = types.Entity{UID: r.uid(), Parents: target, Attributes: types.NewRecord(attrs), Tags: types.NewRecord(tags)}
}

// parseServiceResource reads an entity of a policy back. It accepts the one spelling that ID writes.
func parseServiceResource(uid types.EntityUID) (Resource, error) {
	r := Resource{Kind: KindService}
	target, path, named := strings.Cut(string(uid.ID), "/")
	r.Target = unescape(target)
	for kind, t := range serviceTypes {
		if t == uid.Type && kind != KindService {
			if !named {
				return Resource{}, fmt.Errorf("%s should read <target>/<name>, with %%2F for a slash in the name", uid)
			}
			r.Kind, r.Name = kind, unescape(path)
		}
	}
	if err := r.check(); err != nil {
		return Resource{}, fmt.Errorf("%s: %w", uid, err)
	}
	if r.ID() != string(uid.ID) {
		return Resource{}, fmt.Errorf("%s should be written %q", uid, r.ID())
	}
	return r, nil
}
