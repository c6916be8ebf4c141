package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// command is what a request is decided as, and how its answer is treated.
type command struct {
	proxy.Command
	verb string // for people, as RBAC says it
	// masked says that the answer may show values of Secrets, and that they are masked.
	masked bool
	// upgrade says that the request leaves HTTP.
	upgrade bool
}

// discovery are the paths that say which resources a cluster has; what ends in a slash has more below it.
var discovery = []string{"/api", "/api/", "/apis", "/apis/", "/openapi/", "/version", "/version/"}

// isDiscovery is about a path of no resource.
func isDiscovery(path string) bool {
	return slices.ContainsFunc(discovery, func(d string) bool {
		return path == d || strings.HasSuffix(d, "/") && d != "/version/" && strings.HasPrefix(path, d)
	})
}

// command says what a request is decided as.
func (e *Engine) command(r request, c content, header http.Header, account string) (command, error) {
	out := command{Command: proxy.Command{Kind: r.verb, Account: account}, verb: r.verb}
	out.Text, out.Scrubbed = r.method+" "+r.uri(), r.method+" "+r.path+scrubbedQuery(r)
	if r.verb == "" {
		return out, e.pathCommand(&out, r, header)
	}
	o, err := aboutBody(r, c)
	if err != nil {
		return out, err
	}
	if out.upgrade, err = leaves(header, o); err != nil {
		return out, err
	}
	verbs, err := verbsOf(r, &o, c)
	if err != nil {
		return out, err
	}
	out.Kind = verbs[0]
	if o.Container != "" || o.Command != "" {
		out.Scrubbed += fmt.Sprintf(" (container %q, program %q)", o.Container, actor.KubeProgram(o.Command))
	}
	for _, v := range verbs {
		about := o
		if v == "create" && r.verb != "create" {
			about.Subresource = "" // what an update makes is the whole object
		}
		out.Ops = append(out.Ops, e.op(v, about))
	}
	out.masked = o.Resource == "secrets"
	if len(c.text) > 0 {
		// What is written to a Secret is nobody's to read in a record.
		if !out.masked {
			out.Text += "\n" + c.record()
		}
		out.Scrubbed += " " + c.kind
	}
	out.Check = func(ob policy.Obligations) error { return carriedOut(ob, r, o, c, out.masked) }
	return out, nil
}

func (e *Engine) op(verb string, o actor.KubeObject) proxy.Op {
	return proxy.Op{
		Action:   actor.KubeAction{Target: e.cfg.Target, Verb: verb, Object: o},
		Resource: policy.KubeResource(e.hop.Name(), o),
		Write:    verb != "get" && verb != "list" && verb != "watch" && verb != "reveal",
	}
}

// pathCommand is a request for a path of no resource. Nothing is written to one.
func (e *Engine) pathCommand(out *command, r request, header http.Header) error {
	if r.method != http.MethodGet && r.method != http.MethodHead || len(header.Values("Upgrade")) > 0 {
		return unsupported("at a path of no resource there is only GET")
	}
	out.Kind, out.verb = "nonresource", "get"
	out.Check = plain
	if isDiscovery(r.path) {
		out.Kind = proxy.VerbDiscover
		out.Ops = []proxy.Op{{Action: actor.KubeAction{Target: e.cfg.Target, Verb: out.Kind}, Resource: policy.Service(e.hop.Name())}}
		return nil
	}
	out.Ops = []proxy.Op{{Action: actor.KubeAction{Target: e.cfg.Target, Verb: out.Kind, Path: r.path}, Resource: policy.KubePath(e.hop.Name(), r.path)}}
	return nil
}

// maxGenerated is what of a generateName a server keeps (k8s.io/apiserver/pkg/storage/names), in bytes.
const maxGenerated = 58

// aboutBody puts into a request's object what its content says about it, which must agree with the path.
func aboutBody(r request, c content) (actor.KubeObject, error) {
	o, m := r.object, c.meta
	if m.namespace != "" && m.namespace != o.Namespace && o.Resource != "namespaces" {
		return o, malformed("the content is about the namespace %q, and the path about %q", short(m.namespace), o.Namespace)
	}
	if o.Name != "" || r.verb != "create" {
		if m.name != "" && m.name != o.Name && r.verb != "delete" && r.verb != "deletecollection" {
			return o, malformed("the content is about the object %q, and the path about %q", short(m.name), o.Name)
		}
		return o, nil
	}
	switch {
	case m.name != "":
		o.Name = m.name
	case m.generateName != "":
		o.Name = m.generateName[:min(len(m.generateName), maxGenerated)] + "*"
	default: // as reviews have none
		return o, nil
	}
	if strings.Contains(m.name+m.generateName, "*") || o.Check() != nil {
		return o, malformed("%q is no name that can be decided", short(o.Name))
	}
	return o, nil
}

// connects are the subresources of a pod that a request leaves HTTP for.
var connects = []string{"exec", "attach", "portforward"}

// leaves says whether a request leaves HTTP; only what connects to a pod may.
func leaves(h http.Header, o actor.KubeObject) (bool, error) {
	upgrade := len(h.Values("Upgrade")) > 0 || strings.Contains(strings.ToLower(strings.Join(h.Values("Connection"), ",")), "upgrade")
	connect := slices.Contains(connects, actor.KubeVerbFor(o))
	switch {
	case upgrade && !connect:
		return false, unsupported("only exec, attach and portforward leave HTTP here; watch over HTTP")
	case connect && !upgrade:
		return false, unsupported("%s is a WebSocket or SPDY", o.Subresource)
	}
	return upgrade, nil
}

// verbsOf are what a request does, each of which must be allowed. It puts container and command into the object.
func verbsOf(r request, o *actor.KubeObject, c content) ([]string, error) {
	own := actor.KubeVerbFor(*o)
	changes := r.method == http.MethodPut || r.method == http.MethodPatch
	switch own {
	case "":
	case "exec", "attach", "portforward":
		if r.method != http.MethodGet && r.method != http.MethodPost || o.Name == "" {
			return nil, unsupported("%s is a GET or a POST", own)
		}
		return []string{own}, inPod(r, o)
	case "proxy":
		if o.Name == "" {
			return nil, malformed("it proxies to nothing")
		}
		return []string{own}, nil
	case "token":
		if r.verb != "create" || o.Name == "" {
			return nil, unsupported("a token is asked for with POST")
		}
		return []string{own}, nil
	default: // debug, approve
		if r.verb != "get" && !changes {
			return nil, unsupported("%s is read or changed", o.Subresource)
		}
		if changes {
			return []string{own}, nil
		}
	}
	if o.Resource == "pods" && o.Group == "" && o.Subresource == "log" {
		o.Container = r.query.Get("container")
		if o.Container != "" && actor.CheckKubeLabel(o.Container) != nil {
			return nil, malformed("%v", actor.CheckKubeLabel(o.Container))
		}
	}
	out := []string{r.verb}
	// An object that isn't there yet is created by server-side apply and, of some resources, by an update of it or of its status, whatever version that names.
	// A uid must be the object's, so where one is named the object must be there.
	if c.kind == typeApply || r.verb == "update" && c.meta.uid == "" {
		out = append(out, "create")
	}
	if beside := actor.KubeVerbBeside(*o); beside != "" && (changes || r.verb == "create") {
		out = append(out, beside)
	}
	return out, nil
}

// inPod reads which container is meant, and what runs in it. The API server takes them from the query alone.
func inPod(r request, o *actor.KubeObject) error {
	if o.Subresource == "portforward" {
		return nil
	}
	o.Container = r.query.Get("container")
	if o.Subresource == "exec" {
		var err error
		if o.Command, err = actor.JoinKubeCommand(r.query["command"]); err != nil {
			return malformed("the command can't be decided: %v", err)
		}
	}
	if err := o.Check(); err != nil {
		return malformed("%v", err)
	}
	return nil
}

// carriedOut says whether a request can be carried out as policy demands.
func carriedOut(ob policy.Obligations, r request, o actor.KubeObject, c content, secret bool) error {
	if ob.MaxRows > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for a limit of rows, and a cluster's answers have none"}
	}
	for _, m := range ob.Masks {
		if !m.OfAnswer() {
			return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks a table's column, and an object has members: $.name=masker or detect:kind=masker is expected"}
		}
	}
	own := actor.KubeVerbFor(o)
	if ob.Record == policy.RecordFull && (own == "portforward" || own == "proxy") {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: `the policy asks for @record("full"), and what is said behind a port or a proxy subresource can't be recorded here`}
	}
	if len(ob.Masks) == 0 && !secret {
		return nil
	}
	if slices.Contains(connects, own) || own == "proxy" || o.Subresource == "log" {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for masks, and what comes from a pod isn't an object that they could be put on"}
	}
	if err := asksAboutMasked(r, ob.Masks); err != nil {
		return err
	}
	return writesMasked(c)
}

func plain(ob policy.Obligations) error {
	if len(ob.Masks) > 0 || ob.MaxRows > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for masks or a limit of rows, and this is no object of the cluster"}
	}
	return nil
}

// scrubbedQuery is a query without its values.
func scrubbedQuery(r request) string {
	if len(r.query) == 0 {
		return ""
	}
	keys := make([]string, 0, len(r.query))
	for k := range r.query {
		keys = append(keys, hop.Printable(k))
	}
	slices.Sort(keys)
	return "?" + strings.Join(keys, "=…&") + "=…"
}

func malformed(format string, args ...any) error {
	return &fault{http.StatusBadRequest, hop.ClassMalformed, fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &fault{http.StatusForbidden, hop.ClassUnsupported, fmt.Sprintf(format, args...)}
}

func short(s string) string { return hop.Clip(hop.Printable(s), 64) }

func contains(list []string, s string) bool { return slices.Contains(list, s) }
