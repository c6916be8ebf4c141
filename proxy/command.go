package proxy

import (
	"errors"
	"fmt"
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

// VerbConnect opens a session with a database account, and is the verb of transaction control. No
// authorization_details name it: whoever may do anything in a database may connect to it.
const VerbConnect = "connect"

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
		a, ok := op.Action.(actor.PostgresAction)
		if !ok {
			return fmt.Errorf("an action of type %T has no rule here", op.Action)
		}
		if name, err := actor.TargetName(a.Target); err != nil || name != target || a.Database != op.Resource.Database {
			return fmt.Errorf("%s names another target or database than its resource", a.Name())
		}
		same := a.Schema == op.Resource.Schema && a.Table == op.Resource.Name
		switch op.Resource.Kind {
		case policy.KindDatabase, policy.KindSetting, policy.KindChannel:
			same = a.Schema == "" && a.Table == ""
		}
		if !same {
			return fmt.Errorf("%s is about another object than %s", a.Name(), op.Resource)
		}
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
	a, ok := op.Action.(actor.PostgresAction)
	if !ok || a.Verb != VerbConnect {
		return details.Match(op.Action)
	}
	for _, d := range details.ForTarget(a.Target) {
		pg, ok := d.(actor.PostgresDetail)
		if !ok {
			continue
		}
		if pg.Databases == nil {
			return actor.Limits{}, nil
		}
		for _, db := range pg.Databases {
			if db == a.Database {
				return actor.Limits{}, nil
			}
		}
	}
	return actor.Limits{}, errors.New("nothing in the credential speaks of this database")
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
		}
		out = append(out, audit.Object{Kind: string(op.Resource.Kind), Name: name, Columns: op.Columns, Write: op.Write})
	}
	return out
}
