package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
)

// Command is one command as an engine understood it: one statement, one request, one channel.
type Command struct {
	// Kind is the engine's name for what it is, such as "select"; policies see it.
	Kind string
	// Text is the exact text, of which the record keeps a keyed hash; Scrubbed is the text without
	// literals, which the record keeps.
	Text, Scrubbed string
	// Database and Account are where and as whom it runs at the target.
	Database, Account string
	// Ops is everything that the command does, at least one; all must be allowed. A command that touches
	// no object of its own is an op on its database ("select", or "connect" for transaction control).
	Ops []Op
	// ReadOnly says that the engine has proven that the command changes nothing. Only then may it be
	// forwarded while its decision is being made durable.
	ReadOnly bool
	// Check, if set, sees the obligations of an otherwise allowed command before its decision is recorded.
	// An error refuses it; an [*Objection] says in which class and words. It must not block.
	Check func(policy.Obligations) error
}

// Op is one action on one object.
type Op struct {
	// Action is matched against the credential's authorization_details. Its name is the action that
	// policy decides on.
	Action actor.Action
	// Resource is the same object as policy names it.
	Resource policy.Resource
	// Columns and Write are for the record.
	Columns []string
	Write   bool
	// Exact demands a policy written for this very resource, as for a view over masked columns.
	Exact bool
}

// Verbs that no authorization_details name.
const (
	// VerbConnect opens a session with an account at the target, and is the verb of transaction control: whoever
	// may do anything in a database, as an account at a host, or at a tool server, may connect to it.
	VerbConnect = "connect"
	// VerbSFTP opens the subsystem sftp: whoever may do anything with an account's files may open it.
	VerbSFTP = "sftp"
	// VerbDiscover asks a cluster which resources it has: whoever may do anything in it may ask.
	VerbDiscover = "discover"
)

const maxOps = 512

// check refuses ops whose two halves don't speak about the same object.
func (c Command) check(target, database string) error {
	if len(c.Ops) == 0 {
		return errors.New("the command names nothing that it does")
	}
	if len(c.Ops) > maxOps {
		return fmt.Errorf("the command touches %d objects; at most %d", len(c.Ops), maxOps)
	}
	if database != "" && c.Database != database {
		return fmt.Errorf("the command runs in database %q of a session in %q", c.Database, database)
	}
	for _, op := range c.Ops {
		if op.Resource.Target != target || op.Resource.Database != c.Database {
			return fmt.Errorf("%s is not in database %q of target %q", op.Resource, c.Database, target)
		}
		var err error
		switch a := op.Action.(type) {
		case actor.PostgresAction:
			err = checkPostgres(a, op.Resource, target)
		case actor.SSHAction:
			err = checkSSH(a, op.Resource, target, c.Account)
		case actor.HTTPAction:
			err = checkHTTP(a, op.Resource, target)
		case actor.TCPAction:
			err = checkTCP(a, op.Resource, target)
		case actor.MCPAction:
			err = checkMCP(a, op.Resource, target)
		case actor.KubeAction:
			err = checkKube(a, op.Resource, target)
		default:
			err = fmt.Errorf("an action of type %T has no rule here", op.Action)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func checkPostgres(a actor.PostgresAction, r policy.Resource, target string) error {
	if name, err := actor.TargetName(a.Target); err != nil || name != target || a.Database != r.Database {
		return fmt.Errorf("%s names another target or database than its resource", a.Name())
	}
	same := a.Schema == r.Schema && a.Table == r.Name
	switch r.Kind {
	case policy.KindDatabase, policy.KindSetting, policy.KindChannel:
		same = a.Schema == "" && a.Table == ""
	}
	if !same {
		return fmt.Errorf("%s is about another object than %s", a.Name(), r)
	}
	return nil
}

func checkSSH(a actor.SSHAction, r policy.Resource, target, account string) error {
	if name, err := actor.TargetName(a.Target); err != nil || name != target || a.Account != account || r.Account != account {
		return fmt.Errorf("%s names another target or account than its resource", a.Name())
	}
	if a.Object != r.Name {
		return fmt.Errorf("%s is about another object than %s", a.Name(), r)
	}
	return nil
}

func checkHTTP(a actor.HTTPAction, r policy.Resource, target string) error {
	if name, err := actor.TargetName(a.Target); err != nil || name != target || r.Kind != policy.KindEndpoint || a.Path != r.Name || a.Query != r.Query {
		return fmt.Errorf("%s is about another request than its resource", a.Name())
	}
	return nil
}

func checkTCP(a actor.TCPAction, r policy.Resource, target string) error {
	if name, err := actor.TargetName(a.Target); err != nil || name != target || r.Kind != policy.KindService {
		return fmt.Errorf("%s is about another service than its resource", a.Name())
	}
	return nil
}

func checkMCP(a actor.MCPAction, r policy.Resource, target string) error {
	kind := map[string]policy.Kind{"": policy.KindService, actor.MCPTool: policy.KindTool, actor.MCPResource: policy.KindMCPResource, actor.MCPPrompt: policy.KindPrompt}[a.Kind]
	if name, err := actor.TargetName(a.Target); err != nil || name != target || kind == "" || r.Kind != kind || r.Name != a.Object {
		return fmt.Errorf("%s is about another object than %s", a.Name(), r)
	}
	return nil
}

func checkKube(a actor.KubeAction, r policy.Resource, target string) error {
	want := policy.KubeResource(target, a.Object)
	switch a.Verb {
	case VerbDiscover:
		want = policy.Service(target)
	case "nonresource":
		want = policy.KubePath(target, a.Path)
	}
	if name, err := actor.TargetName(a.Target); err != nil || name != target || r != want || a.Verb == VerbDiscover && a.Object != (actor.KubeObject{}) {
		return fmt.Errorf("%s is about another object than %s", a.Name(), r)
	}
	return nil
}

// match requires every op to lie within the details and returns the tightest limit.
func (c Command) match(details actor.Details) (actor.Limits, error) {
	var out actor.Limits
	for _, op := range c.Ops {
		limits, err := matchOp(op, details)
		if err != nil {
			return actor.Limits{}, fmt.Errorf("%s on %s: %w", op.Action.Name(), op.Resource, err)
		}
		if limits.MaxRows != 0 && (out.MaxRows == 0 || limits.MaxRows < out.MaxRows) {
			out.MaxRows = limits.MaxRows
		}
	}
	return out, nil
}

func matchOp(op Op, details actor.Details) (actor.Limits, error) {
	switch a := op.Action.(type) {
	case actor.PostgresAction:
		if a.Verb == VerbConnect {
			return actor.Limits{}, reachesDatabase(a, details)
		}
	case actor.SSHAction:
		if a.Verb == VerbConnect || a.Verb == VerbSFTP {
			return actor.Limits{}, reachesAccount(a, details)
		}
	case actor.MCPAction:
		if a.Verb == VerbConnect && a.Kind == "" {
			return actor.Limits{}, reachesServer(a, details)
		}
	case actor.KubeAction:
		if a.Verb == VerbDiscover {
			return actor.Limits{}, reachesCluster(a, details)
		}
	}
	return details.Match(op.Action)
}

func reachesDatabase(a actor.PostgresAction, details actor.Details) error {
	for _, d := range details.ForTarget(a.Target) {
		pg, ok := d.(actor.PostgresDetail)
		if ok && (pg.Databases == nil || slices.Contains(pg.Databases, a.Database)) {
			return nil
		}
	}
	return errors.New("nothing in the credential speaks of this database")
}

func reachesServer(a actor.MCPAction, details actor.Details) error {
	for _, d := range details.ForTarget(a.Target) {
		if _, ok := d.(actor.MCPDetail); ok {
			return nil
		}
	}
	return errors.New("nothing in the credential speaks of this tool server")
}

func reachesCluster(a actor.KubeAction, details actor.Details) error {
	for _, d := range details.ForTarget(a.Target) {
		if _, ok := d.(actor.KubeDetail); ok {
			return nil
		}
	}
	return errors.New("nothing in the credential speaks of this cluster")
}

func reachesAccount(a actor.SSHAction, details actor.Details) error {
	for _, d := range details.ForTarget(a.Target) {
		if host, ok := d.(actor.SSHDetail); ok && host.Reaches(a.Account, a.Verb == VerbSFTP) == nil {
			return nil
		}
	}
	if a.Verb == VerbSFTP {
		return errors.New("nothing in the credential speaks of this account's files")
	}
	return errors.New("nothing in the credential speaks of this account")
}

// kubeName is an object as kubectl spells it, such as shop/deployments.apps/web/scale.
func kubeName(o actor.KubeObject) string {
	parts := []string{o.Resource}
	if o.Group != "" {
		parts[0] += "." + o.Group
	}
	if o.Namespace != "" {
		parts = append([]string{o.Namespace}, parts...)
	}
	for _, s := range []string{o.Name, o.Subresource} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, "/")
}

// actions is the distinct actions, for the record.
func (c Command) actions() string {
	var names []string
	seen := map[string]bool{}
	for _, op := range c.Ops {
		if op.Action == nil || seen[op.Action.Name()] {
			continue
		}
		seen[op.Action.Name()] = true
		names = append(names, op.Action.Name())
	}
	return strings.Join(names, ",")
}

func (c Command) objects() []audit.Object {
	out := make([]audit.Object, 0, len(c.Ops))
	for _, op := range c.Ops {
		name := op.Resource.Database
		switch op.Resource.Kind {
		case policy.KindTable, policy.KindFunction:
			name = op.Resource.Schema + "." + op.Resource.Name
		case policy.KindSetting, policy.KindChannel:
			name = op.Resource.Name
		case policy.KindAccount:
			name = op.Resource.Account
		case policy.KindExec:
			// The whole text is the record's statement, and not there where a policy wants digests only.
			var plain bool
			if name, plain = actor.Program(op.Resource.Name); !plain {
				name = "…"
			}
		case policy.KindService:
			name = op.Resource.Target
		case policy.KindKubeResource:
			name = kubeName(op.Resource.Kube)
		case policy.KindSubsystem, policy.KindPath, policy.KindForward, policy.KindEndpoint, policy.KindTool, policy.KindMCPResource, policy.KindPrompt, policy.KindKubePath:
			name = op.Resource.Name
		}
		out = append(out, audit.Object{Kind: string(op.Resource.Kind), Name: name, Columns: op.Columns, Write: op.Write})
	}
	return out
}
