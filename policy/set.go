package policy

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// Set is a loaded policy set. It never changes and is safe for use by many goroutines at once.
type Set struct {
	source     Source
	digest     string
	vocabulary *vocabulary
	entities   types.EntityMap // targets and their groups
	rules      []*rule
	byID       map[cedar.PolicyID]*rule
	byAction   map[types.EntityUID]bucket
	every      bucket
	resources  resources
}

// bucket is the policies that one action can match.
type bucket []*rule

func (b bucket) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, r := range b {
			if !yield(r.id, r.text) {
				return
			}
		}
	}
}

// index sorts the policies by action: groups are expanded, and a policy without an action in its head
// stands in every bucket.
func (s *Set) index() {
	s.every = bucket(s.rules)
	s.byID = make(map[cedar.PolicyID]*rule, len(s.rules))
	s.byAction = make(map[types.EntityUID]bucket, len(s.vocabulary.applies))
	for _, r := range s.rules {
		s.byID[r.id] = r
		for action := range s.vocabulary.applies {
			if r.actions == nil || slices.Contains(r.actions, action) {
				s.byAction[action] = append(s.byAction[action], r)
			}
		}
	}
}

// Version is the set's version.
func (s *Set) Version() uint64 { return s.source.Version }

// IssuedAt is when the set was signed.
func (s *Set) IssuedAt() time.Time { return time.Unix(s.source.IssuedAt, 0).UTC() }

// Digest is "sha256:" and the hexadecimal SHA-256 of the signed payload; "" if the set was never signed.
func (s *Set) Digest() string { return s.digest }

// Names lists the policies, by @id or file and line, in the order of the files.
func (s *Set) Names() []string {
	out := make([]string, len(s.rules))
	for i, r := range s.rules {
		out[i] = r.name
	}
	return out
}

// Command is what a request says about the command besides action and resource.
type Command struct {
	Database string `json:"database"`
	Account  string `json:"account"`
	ReadOnly bool   `json:"read_only"`
	Kind     string `json:"kind"`
}

// Request asks about one action on one object.
type Request struct {
	Subject *Subject
	Now     time.Time
	// Action is such as "postgres:select".
	Action   string
	Resource Resource
	Command  Command
	// Exact demands that one of the permits is written for this very resource (`resource == …`), as for
	// a view over a table with masked columns.
	Exact bool
}

// Decision is the answer to one request.
type Decision struct {
	Allow bool
	// Policies names, sorted, those that decided: the permits of an allowed request, the forbids of a
	// refused one; none if nothing matched.
	Policies []string
	// Obligations of an allowed request.
	Obligations Obligations
	// Reason is plain English for the user: why it was refused.
	Reason string
	// Err is set when the request couldn't be decided, which is a refusal.
	Err error
}

// Decide answers a request. It allows only if a permit matches, no forbid does and no policy failed.
func (s *Set) Decide(r Request) Decision {
	return s.decide(r, func(action types.EntityUID) cedar.PolicyIterator { return s.byAction[action] })
}

func (s *Set) decide(r Request, choose func(types.EntityUID) cedar.PolicyIterator) Decision {
	req, entities, err := s.request(r)
	if err != nil {
		return Decision{Reason: "the request can't be decided", Err: err}
	}
	verdict, diag := cedar.Authorize(choose(req.Action), entities, req)
	if len(diag.Errors) > 0 {
		failed := make([]*rule, len(diag.Errors))
		for i, e := range diag.Errors {
			failed[i] = s.byID[e.PolicyID]
		}
		names := namesOf(failed)
		return Decision{
			Policies: names,
			Reason:   fmt.Sprintf("policy %s couldn't be evaluated", quoted(names)),
			Err:      fmt.Errorf("evaluating policy %q: %s", s.byID[diag.Errors[0].PolicyID].name, diag.Errors[0].Message),
		}
	}
	rules := make([]*rule, len(diag.Reasons))
	for i, reason := range diag.Reasons {
		rules[i] = s.byID[reason.PolicyID]
	}
	demand := rules
	if o := openIn(req.Action, r.Resource); verdict == cedar.Allow && o != 0 {
		give, demanding, forbid := s.reached(o, rules, req, entities)
		const ask = "ask about a namespace, an object or a container that it leaves"
		switch {
		case len(forbid) > 0:
			return Decision{Policies: namesOf(forbid), Reason: fmt.Sprintf("policy %s forbids %s on some of what %s may be; %s", quoted(namesOf(forbid)), r.Action, r.Resource, ask)}
		case len(give) == 0:
			return Decision{Policies: namesOf(rules), Reason: fmt.Sprintf("policy %s permits %s on some of what %s may be, and not on all; %s", quoted(namesOf(rules)), r.Action, r.Resource, ask)}
		}
		rules, demand = give, append(demanding, give...)
	}
	d := Decision{Policies: namesOf(demand)}
	exact, named := false, !s.vocabulary.within(req.Action, groupNamed)
	for _, rule := range rules {
		exact = exact || rule.namesExactly(req.Resource)
		named = named || rule.names(req.Action)
	}
	switch {
	case verdict == cedar.Allow && r.Exact && !exact:
		d.Reason = fmt.Sprintf("%s on %s needs a policy written for exactly that (resource == …); %s is wider", r.Action, r.Resource, quoted(d.Policies))
	case verdict == cedar.Allow && !named:
		d.Reason = fmt.Sprintf("%s on %s needs a policy that names this action in its head; %s is wider", r.Action, r.Resource, quoted(d.Policies))
	case verdict == cedar.Allow:
		d.Allow = true
		for _, rule := range demand {
			d.Obligations = d.Obligations.And(rule.obligations)
		}
	case len(d.Policies) > 0:
		d.Reason = fmt.Sprintf("policy %s forbids %s on %s", quoted(d.Policies), r.Action, r.Resource)
	default:
		d.Reason = fmt.Sprintf("no policy permits %s on %s", r.Action, r.Resource)
	}
	return d
}

// Demanded are the obligations of an allowed request. Of one that leaves something open they are those of all permits that may meet some of it, though not
// all of it is allowed.
func (s *Set) Demanded(r Request) Obligations {
	req, entities, err := s.request(r)
	o := openIn(req.Action, r.Resource)
	if err != nil || o == 0 {
		return s.Decide(r).Obligations
	}
	var out Obligations
	_, demanding, rest := s.reached(o, nil, req, entities)
	for _, rule := range slices.Concat(demanding, rest) { // the rest are forbids, which have none, and what can't be evaluated
		out = out.And(rule.obligations)
	}
	return out
}

// namesOf are the names of some policies, sorted.
func namesOf(rules []*rule) []string {
	var names []string
	for _, r := range rules {
		names = append(names, r.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(q, ", ")
}

// request turns a request into Cedar's, with the entities it is about. An action that the schema doesn't
// have, one that doesn't apply to the resource and a target that the set doesn't list are errors.
func (s *Set) request(r Request) (cedar.Request, types.EntityGetter, error) {
	action := types.NewEntityUID(typeAction, types.String(r.Action))
	applies, ok := s.vocabulary.applies[action]
	if !ok {
		return cedar.Request{}, nil, fmt.Errorf("unknown action %q", r.Action)
	}
	resource, err := s.resources.of(r.Resource)
	if err != nil {
		return cedar.Request{}, nil, err
	}
	if !slices.Contains(applies, resource.uid.Type) {
		return cedar.Request{}, nil, fmt.Errorf("%s doesn't apply to a %s", r.Action, r.Resource.Kind)
	}
	if _, ok := s.source.Targets[r.Resource.Target]; !ok {
		return cedar.Request{}, nil, fmt.Errorf("target %q is not among the targets of policy set %d", r.Resource.Target, s.source.Version)
	}
	if r.Subject == nil {
		return cedar.Request{}, nil, fmt.Errorf("the request has no subject")
	}
	if r.Command.Database != r.Resource.Database {
		return cedar.Request{}, nil, fmt.Errorf("the command runs in database %q, its object is in %q", r.Command.Database, r.Resource.Database)
	}
	if r.Resource.onHost() && r.Command.Account != r.Resource.Account {
		return cedar.Request{}, nil, fmt.Errorf("the command runs as %q, its object is one of %q", r.Command.Account, r.Resource.Account)
	}
	return cedar.Request{
		Principal: r.Subject.principal,
		Action:    action,
		Resource:  resource.uid,
		Context:   r.Subject.context(r.Now, r.Command),
	}, layered{resource.entities, r.Subject.entities, s.entities, s.vocabulary.actions}, nil
}

// layered looks an entity up in the maps of resource, subject, targets and actions; their types differ.
type layered [4]types.EntityMap

func (l layered) Get(uid types.EntityUID) (types.Entity, bool) {
	for _, m := range l {
		if e, ok := m[uid]; ok {
			return e, true
		}
	}
	return types.Entity{}, false
}
