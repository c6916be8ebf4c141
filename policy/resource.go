package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/deputymesh/deputy/actor"
)

// Kind is the kind of object that a command touches.
type Kind string

// Kinds of objects inside a target.
const (
	KindDatabase Kind = "database"
	KindTable    Kind = "table"
	KindFunction Kind = "function"
	KindSetting  Kind = "setting"
	KindChannel  Kind = "channel"

	// These stand in an account at a host, not in a database; see ssh.go.
	KindAccount   Kind = "account"
	KindExec      Kind = "exec"
	KindSubsystem Kind = "subsystem"
	KindPath      Kind = "path"
	KindForward   Kind = "forward"

	// These stand in a target itself; see http.go.
	KindService  Kind = "service"
	KindEndpoint Kind = "endpoint"

	// These are what a tool server offers; see mcp.go.
	KindTool        Kind = "tool"
	KindMCPResource Kind = "resource"
	KindPrompt      Kind = "prompt"

	// These are at a Kubernetes cluster; see kube.go.
	KindKubeResource Kind = "kube_resource"
	KindKubePath     Kind = "kube_path"
)

// maxName bounds one name of a resource, in bytes. PostgreSQL's own limit is 63.
const maxName = 256

// Resource is the object of a request. Names are as the target's catalogue spells them, unquoted;
// Schema is used by tables and functions only, Name by everything but databases and accounts. What stands in
// an account has no database, and what stands in a database no account.
type Resource struct {
	Kind     Kind   `json:"kind"`
	Target   string `json:"target"`
	Database string `json:"database"`
	Account  string `json:"account,omitempty"`
	Schema   string `json:"schema,omitempty"`
	Name     string `json:"name,omitempty"`
	// Query is the keys of an endpoint's query. It says more about a request, and is no part of what the resource is called.
	Query string `json:"query,omitempty"`
	// Arguments are what a tool or prompt is called with, see [Arguments]. They are no part of its name either.
	Arguments string `json:"arguments,omitempty"`
	// Kube is the object of a request to a cluster. Container and command say more about it, and are no part of what it is called.
	Kube actor.KubeObject `json:"kube,omitzero"`
}

// Database is the resource of a whole database.
func Database(target, database string) Resource {
	return Resource{Kind: KindDatabase, Target: target, Database: database}
}

// Table is the resource of a table, view or any other relation.
func Table(target, database, schema, name string) Resource {
	return Resource{Kind: KindTable, Target: target, Database: database, Schema: schema, Name: name}
}

// Function is the resource of a function, procedure or aggregate.
func Function(target, database, schema, name string) Resource {
	return Resource{Kind: KindFunction, Target: target, Database: database, Schema: schema, Name: name}
}

// Setting is the resource of a run-time setting of a database session.
func Setting(target, database, name string) Resource {
	return Resource{Kind: KindSetting, Target: target, Database: database, Name: name}
}

// Channel is the resource of a channel that NOTIFY speaks on and LISTEN listens to.
func Channel(target, database, name string) Resource {
	return Resource{Kind: KindChannel, Target: target, Database: database, Name: name}
}

// ID is the entity id that a policy writes for the resource, such as "orders-db/shop/public.orders".
// In names, the characters '/', '.' and '%' are percent-encoded (in database names '.' stays), so that
// two different objects never share an id.
func (r Resource) ID() string {
	if r.onHost() {
		return r.hostID()
	}
	if r.inService() {
		return r.serviceID()
	}
	if r.onCluster() {
		return r.kubeID()
	}
	id := escape(r.Target, false) + "/" + escape(r.Database, false)
	switch r.Kind {
	case KindTable, KindFunction:
		return id + "/" + escape(r.Schema, true) + "." + escape(r.Name, true)
	case KindSetting, KindChannel:
		return id + "/" + escape(r.Name, false)
	default:
		return id
	}
}

// String is the resource for people: `table "public"."orders" in orders-db/shop`.
func (r Resource) String() string {
	if r.onHost() {
		return r.hostString()
	}
	if r.inService() {
		return r.serviceString()
	}
	if r.onCluster() {
		return r.kubeString()
	}
	place := r.Target + "/" + r.Database
	switch r.Kind {
	case KindTable, KindFunction:
		return fmt.Sprintf("%s %q.%q in %s", r.Kind, r.Schema, r.Name, place)
	case KindSetting, KindChannel:
		return fmt.Sprintf("%s %q in %s", r.Kind, r.Name, place)
	default:
		return fmt.Sprintf("%s %s", r.Kind, place)
	}
}

func (r Resource) check() error {
	if r.onCluster() {
		return r.checkKube()
	}
	if r.Kube != (actor.KubeObject{}) {
		return fmt.Errorf("a %s is no object of a cluster", r.Kind)
	}
	if r.inService() {
		return r.checkService()
	}
	if r.Query != "" || r.Arguments != "" {
		return fmt.Errorf("a %s has neither a query nor arguments", r.Kind)
	}
	if r.onHost() {
		return r.checkHost()
	}
	if r.Account != "" {
		return fmt.Errorf("a %s stands in a database, not in an account", r.Kind)
	}
	names := []string{r.Target, r.Database}
	switch r.Kind {
	case KindDatabase:
		if r.Schema != "" || r.Name != "" {
			return errors.New("a database has neither schema nor name of its own")
		}
	case KindTable, KindFunction:
		names = append(names, r.Schema, r.Name)
	case KindSetting, KindChannel:
		if r.Schema != "" {
			return fmt.Errorf("a %s has no schema", r.Kind)
		}
		names = append(names, r.Name)
	default:
		return fmt.Errorf("unknown kind of resource %q", r.Kind)
	}
	for _, n := range names {
		if n == "" || len(n) > maxName || !utf8.ValidString(n) {
			return fmt.Errorf("a name of the %s is empty, too long or not UTF-8", r.Kind)
		}
	}
	return nil
}

func (r Resource) uid() types.EntityUID {
	if r.onCluster() {
		return r.kubeUID()
	}
	t := typeDatabase
	switch r.Kind {
	case KindAccount, KindExec, KindSubsystem, KindPath, KindForward:
		t = hostTypes[r.Kind]
	case KindService, KindEndpoint, KindTool, KindMCPResource, KindPrompt:
		t = serviceTypes[r.Kind]
	case KindTable:
		t = typeTable
	case KindFunction:
		t = typeFunction
	case KindSetting:
		t = typeSetting
	case KindChannel:
		t = typeChannel
	}
	return types.NewEntityUID(t, types.String(r.ID()))
}

// entities adds the resource and the database it stands in; the target and its groups come from the set.
func (r Resource) entities(into types.EntityMap) {
	if r.onHost() {
		r.hostEntities(into)
		return
	}
	if r.inService() {
		r.serviceEntities(into)
		return
	}
	if r.onCluster() {
		r.kubeEntities(into)
		return
	}
	db := Database(r.Target, r.Database)
	target := types.NewEntityUID(typeTarget, types.String(r.Target))
	into[db.uid()] = types.Entity{
		UID:     db.uid(),
		Parents: types.NewEntityUIDSet(target),
		Attributes: types.NewRecord(types.RecordMap{
			"target": types.String(r.Target), "name": types.String(r.Database),
		}),
	}
	if r.Kind == KindDatabase {
		return
	}
	attrs := types.RecordMap{
		"target": types.String(r.Target), "database": types.String(r.Database), "name": types.String(r.Name),
	}
	if r.Kind != KindSetting && r.Kind != KindChannel {
		attrs["schema"] = types.String(r.Schema)
	}
	into[r.uid()] = types.Entity{
		UID: r.uid(), Parents: types.NewEntityUIDSet(db.uid()), Attributes: types.NewRecord(attrs),
	}
}

// resources remembers the entities of the objects that were asked about last. An entity says only what
// the object is called, so nothing in it can grow old. The zero value is ready for use.
type resources struct {
	mu   sync.RWMutex
	seen map[Resource]object
}

// object is a resource that can be asked about: its name in Cedar, itself and what it stands in.
type object struct {
	uid      types.EntityUID
	entities types.EntityMap
}

const maxResources = 4096

func (c *resources) of(r Resource) (object, error) {
	c.mu.RLock()
	o, ok := c.seen[r]
	c.mu.RUnlock()
	if ok {
		return o, nil
	}
	if err := r.check(); err != nil {
		return object{}, err
	}
	o = object{r.uid(), make(types.EntityMap, 2)}
	r.entities(o.entities)
	if len(r.Name)+len(r.Kube.Command)+len(r.Query)+len(r.Arguments) > maxName {
		return o, nil // a command or what a tool is called with may be long; those that are aren't asked for again and again
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil || len(c.seen) >= maxResources {
		c.seen = make(map[Resource]object)
	}
	c.seen[r] = o
	return o, nil
}

// parseResource reads an entity of a policy back. It accepts the one spelling that ID writes.
func parseResource(uid types.EntityUID) (Resource, error) {
	var r Resource
	switch uid.Type {
	case typeDatabase:
		r.Kind = KindDatabase
	case typeTable:
		r.Kind = KindTable
	case typeFunction:
		r.Kind = KindFunction
	case typeSetting:
		r.Kind = KindSetting
	case typeChannel:
		r.Kind = KindChannel
	case typeService, typeEndpoint, typeTool, typeMCPResource, typePrompt:
		return parseServiceResource(uid)
	case typeKubeResource, typeKubePath:
		return parseKubeResource(uid)
	default:
		return parseHostResource(uid)
	}
	want := map[Kind]string{
		KindDatabase: "<target>/<database>",
		KindTable:    "<target>/<database>/<schema>.<table>",
		KindFunction: "<target>/<database>/<schema>.<function>",
		KindSetting:  "<target>/<database>/<setting>",
		KindChannel:  "<target>/<database>/<channel>",
	}[r.Kind]
	parts := strings.Split(string(uid.ID), "/")
	if n := 3; (r.Kind == KindDatabase && len(parts) != 2) || (r.Kind != KindDatabase && len(parts) != n) {
		return Resource{}, fmt.Errorf("%s should read %s", uid, want)
	}
	r.Target, r.Database = unescape(parts[0]), unescape(parts[1])
	switch r.Kind {
	case KindTable, KindFunction:
		schema, name, ok := strings.Cut(parts[2], ".")
		if !ok {
			return Resource{}, fmt.Errorf("%s should read %s", uid, want)
		}
		r.Schema, r.Name = unescape(schema), unescape(name)
	case KindSetting, KindChannel:
		r.Name = unescape(parts[2])
	}
	if err := r.check(); err != nil {
		return Resource{}, fmt.Errorf("%s: %w", uid, err)
	}
	if r.ID() != string(uid.ID) {
		return Resource{}, fmt.Errorf("%s should be written %q", uid, r.ID())
	}
	return r, nil
}

func escape(s string, dots bool) string {
	if !strings.ContainsAny(s, "/.%") {
		return s
	}
	r := strings.NewReplacer("%", "%25", "/", "%2F")
	if dots {
		r = strings.NewReplacer("%", "%25", "/", "%2F", ".", "%2E")
	}
	return r.Replace(s)
}

func unescape(s string) string {
	return strings.NewReplacer("%2F", "/", "%2E", ".", "%25", "%").Replace(s)
}
