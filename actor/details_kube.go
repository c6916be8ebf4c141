package actor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const kubeType = "deputy_kube"

// KubeVerbs are the actions of a deputy_kube capability, in sync with the policy actions kube:<verb>. The first eight are RBAC's. The others are
// what RBAC says by a subresource or beside a verb, and what deserves a rule of its own; nonresource is for paths of no resource.
func KubeVerbs() []string {
	return []string{
		"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
		"exec", "attach", "portforward", "debug", "proxy", "token", "approve", "escalate", "bind", "reveal", "nonresource",
	}
}

// KubeObject is what a request to a cluster is about. Empty members aren't there: the core group, a request that names no namespace or
// no object, a request without a subresource.
type KubeObject struct {
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	// Name ends in a * where the server makes the rest up (generateName).
	Name string `json:"name,omitempty"`
	// Container is the one that is named to exec, attach and log.
	Container string `json:"container,omitempty"`
	// Command is what exec runs, see JoinKubeCommand.
	Command string `json:"command,omitempty"`
	// Port is that of one forwarded connection. Capabilities don't bound it; policies may.
	Port uint16 `json:"port,omitempty"`
}

// kubeAbout are the objects that a verb of its own may be about; the other verbs are about any.
var kubeAbout = map[string][]KubeObject{
	"exec":        {{Resource: "pods", Subresource: "exec"}},
	"attach":      {{Resource: "pods", Subresource: "attach"}},
	"portforward": {{Resource: "pods", Subresource: "portforward"}},
	"debug":       {{Resource: "pods", Subresource: "ephemeralcontainers"}},
	"proxy":       {{Resource: "pods", Subresource: "proxy"}, {Resource: "services", Subresource: "proxy"}, {Resource: "nodes", Subresource: "proxy"}},
	"token":       {{Resource: "serviceaccounts", Subresource: "token"}},
	"approve": {
		{Group: "certificates.k8s.io", Resource: "certificatesigningrequests", Subresource: "approval"},
		{Group: "certificates.k8s.io", Resource: "certificatesigningrequests", Subresource: "status"},
	},
	"escalate": {{Group: "rbac.authorization.k8s.io", Resource: "roles"}, {Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}},
	"bind":     {{Group: "rbac.authorization.k8s.io", Resource: "rolebindings"}, {Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"}},
	"reveal":   {{Resource: "secrets"}},
}

// KubeVerbFor is the verb of its own that changing an object, or connecting to it, takes instead of RBAC's; "" for most objects.
func KubeVerbFor(o KubeObject) string {
	for _, verb := range []string{"exec", "attach", "portforward", "debug", "proxy", "token", "approve"} {
		if o.isAbout(verb) {
			return verb
		}
	}
	return ""
}

// KubeVerbBeside is the verb that changing an object takes beside RBAC's: who writes a role or a binding gives rights away.
func KubeVerbBeside(o KubeObject) string {
	for _, verb := range []string{"escalate", "bind"} {
		if o.isAbout(verb) {
			return verb
		}
	}
	return ""
}

func (o KubeObject) isAbout(verb string) bool {
	return slices.ContainsFunc(kubeAbout[verb], func(a KubeObject) bool {
		return a.Group == o.Group && a.Resource == o.Resource && a.Subresource == o.Subresource
	})
}

// KubeDetail is a capability on Kubernetes clusters:
//
//	{"type":"deputy_kube","locations":["spiffe://…/target/prod"],"actions":["get","list","exec"],
//	 "resources":["pods","pods/log","pods/exec","deployments.apps","*.batch"],"namespaces":["shop","shop-*"],"programs":["ls"]}
//
// An absent (nil) list is no constraint.
type KubeDetail struct {
	Locations []spiffeid.ID // targets; at least one
	Actions   []string      // of KubeVerbs; at least one
	// Resources are <resource>[.<group>][/<subresource>], each part a name or *.
	Resources  []string
	Namespaces []string // a last * stands for whatever follows; requests without a namespace lie outside
	Names      []string // the same for names
	Containers []string // exact names that exec, attach, debug and log may be about
	Commands   []string // exact commands of exec, see JoinKubeCommand
	Programs   []string // first words of them
	Paths      []string // of no resource; a last segment * stands for all that lies below
}

// KubeAction is one request to a cluster.
type KubeAction struct {
	Target spiffeid.ID
	Verb   string
	Object KubeObject // of the zero value for nonresource and discover
	Path   string     // for nonresource
}

func (a KubeAction) Name() string { return "kube:" + a.Verb }
func (KubeAction) action()        {}

type kubeJSON struct {
	Type       string    `json:"type"`
	Locations  locations `json:"locations"`
	Actions    []string  `json:"actions"`
	Resources  []string  `json:"resources,omitempty"`
	Namespaces []string  `json:"namespaces,omitempty"`
	Names      []string  `json:"names,omitempty"`
	Containers []string  `json:"containers,omitempty"`
	Commands   []string  `json:"commands,omitempty"`
	Programs   []string  `json:"programs,omitempty"`
	Paths      []string  `json:"paths,omitempty"`
}

func parseKube(data []byte) (Detail, error) {
	var j kubeJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	return KubeDetail{j.Locations, j.Actions, j.Resources, j.Namespaces, j.Names, j.Containers, j.Commands, j.Programs, j.Paths}, nil
}

func (d KubeDetail) MarshalJSON() ([]byte, error) {
	return json.Marshal(kubeJSON{kubeType, d.Locations, d.Actions, d.Resources, d.Namespaces, d.Names, d.Containers, d.Commands, d.Programs, d.Paths})
}

func (KubeDetail) Type() string             { return kubeType }
func (d KubeDetail) Targets() []spiffeid.ID { return d.Locations }

func (d KubeDetail) validate() error {
	return cmp.Or(checkPlace(d.Locations, d.Actions, KubeVerbs()), checkEntries([]entries{
		{"resources", d.Resources, checkKubePattern}, {"namespaces", d.Namespaces, checkNamespacePattern}, {"names", d.Names, checkNamePattern},
		{"containers", d.Containers, CheckKubeLabel}, {"commands", d.Commands, checkKubeCommand}, {"programs", d.Programs, checkKubeProgram},
		{"paths", d.Paths, checkKubePath},
	}))
}

func (d KubeDetail) within(parent Detail) error {
	p, ok := parent.(KubeDetail)
	switch {
	case !ok:
		return fmt.Errorf("%s is not %s", d.Type(), parent.Type())
	case !covers(p.Locations, d.Locations):
		return errors.New("locations are wider")
	case !covers(p.Actions, d.Actions):
		return errors.New("actions are wider")
	case p.Containers != nil && (d.Containers == nil || !covers(p.Containers, d.Containers)):
		return errors.New("containers is missing or wider")
	case p.bounded() && !d.bounded():
		return errors.New("commands and programs are missing")
	case p.bounded() && !covers(p.Programs, d.Programs):
		return errors.New("programs is wider")
	}
	for _, c := range d.Commands {
		if p.bounded() && !p.runs(c) {
			return fmt.Errorf("commands: %q is wider", c)
		}
	}
	for _, l := range []struct {
		name        string
		have, child []string
		covers      func(patterns []string, one string) bool
	}{
		{"resources", p.Resources, d.Resources, anyKubePattern}, {"namespaces", p.Namespaces, d.Namespaces, anyBeginning},
		{"names", p.Names, d.Names, anyBeginning}, {"paths", p.Paths, d.Paths, anyKubePath},
	} {
		if l.have == nil {
			continue
		}
		if l.child == nil {
			return fmt.Errorf("%s is missing", l.name)
		}
		for _, one := range l.child {
			if !l.covers(l.have, one) {
				return fmt.Errorf("%s: %q is wider", l.name, one)
			}
		}
	}
	return nil
}

func (d KubeDetail) bounded() bool { return d.Commands != nil || d.Programs != nil }

func (d KubeDetail) runs(command string) bool {
	if contains(d.Commands, command) {
		return true
	}
	program := KubeProgram(command)
	return program != "" && contains(d.Programs, program)
}

func (d KubeDetail) match(a Action) (Limits, error) {
	ka, ok := a.(KubeAction)
	switch {
	case !ok:
		return Limits{}, fmt.Errorf("%s is about Kubernetes", d.Type())
	case ka.Target.IsZero() || !contains(d.Locations, ka.Target):
		return Limits{}, fmt.Errorf("target %q is not among the locations", ka.Target)
	case !contains(d.Actions, ka.Verb):
		return Limits{}, fmt.Errorf("%q is not among the actions", ka.Verb)
	}
	if err := ka.Check(); err != nil {
		return Limits{}, err
	}
	return Limits{}, d.about(ka)
}

// about says whether a well-formed action is about what the capability is about.
func (d KubeDetail) about(a KubeAction) error {
	o := a.Object
	if a.Verb == "nonresource" {
		if d.Paths != nil && !anyKubePath(d.Paths, a.Path) {
			return fmt.Errorf("%q is under none of the paths", a.Path)
		}
		return nil
	}
	inside := a.Verb == "exec" || a.Verb == "attach" || a.Verb == "debug"
	switch {
	case d.Resources != nil && !anyKubePattern(d.Resources, o.pattern()):
		return fmt.Errorf("%q is none of the resources", o.pattern())
	case d.Namespaces != nil && !anyBeginning(d.Namespaces, o.Namespace):
		return fmt.Errorf("%q is none of the namespaces", o.Namespace)
	case d.Names != nil && !anyBeginning(d.Names, o.Name):
		return fmt.Errorf("%q is none of the names", o.Name)
	case d.Containers != nil && (inside || o.Subresource == "log") && !contains(d.Containers, o.Container):
		return fmt.Errorf("%q is none of the containers", o.Container)
	case d.bounded() && a.Verb == "exec" && !d.runs(o.Command):
		return errors.New("the command is none of the commands, and its program none of the programs")
	case d.bounded() && inside && a.Verb != "exec":
		return fmt.Errorf("%q may run anything, and the commands are bounded", a.Verb)
	}
	return nil
}

func (d KubeDetail) at(target spiffeid.ID) (Detail, bool) {
	if !contains(d.Locations, target) {
		return nil, false
	}
	d.Locations = []spiffeid.ID{target}
	return d, true
}

// pattern is the object's resource as a capability names it.
func (o KubeObject) pattern() string {
	s := o.Resource
	if o.Group != "" {
		s += "." + o.Group
	}
	if o.Subresource != "" {
		s += "/" + o.Subresource
	}
	return s
}

// cutKubePattern is its three parts.
func cutKubePattern(s string) (resource, group, subresource string) {
	s, subresource, _ = strings.Cut(s, "/")
	resource, group, _ = strings.Cut(s, ".")
	return resource, group, subresource
}

func anyKubePattern(patterns []string, one string) bool {
	r, g, s := cutKubePattern(one)
	return slices.ContainsFunc(patterns, func(p string) bool {
		pr, pg, ps := cutKubePattern(p)
		return (pr == r || pr == "*") && (pg == g || pg == "*") && (ps == s || ps == "*" && s != "")
	})
}

// anyBeginning says whether some pattern covers a name, or a pattern of a child. What has no name is covered by none.
func anyBeginning(patterns []string, name string) bool {
	return name != "" && slices.ContainsFunc(patterns, func(p string) bool {
		begin, open := strings.CutSuffix(p, "*")
		return p == name || open && strings.HasPrefix(strings.TrimSuffix(name, "*"), begin)
	})
}

func anyKubePath(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		begin, open := strings.CutSuffix(p, "*")
		return p == path || open && strings.HasPrefix(path, begin) && len(path) > len(begin)
	})
}
