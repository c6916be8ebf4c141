package audit

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/deputymesh/deputy/actor"
)

// Tree is one task: the user, the agents below, and what each of them did.
type Tree struct {
	Txn          string             `json:"txn"`
	Dev          bool               `json:"dev,omitempty"`
	User         *actor.SubjectID   `json:"user,omitempty"`
	RootEvidence actor.RootEvidence `json:"root_evidence,omitempty"`
	Purpose      string             `json:"purpose,omitempty"`
	Roles        []string           `json:"roles,omitempty"`
	ACR          string             `json:"acr,omitempty"`
	AuthTime     *time.Time         `json:"auth_time,omitempty"`
	Sessions     []TreeSession      `json:"sessions,omitempty"`
	Agents       []*TreeAgent       `json:"agents"`
	Revocations  []*Record          `json:"revocations,omitempty"`
	Totals       TreeTotals         `json:"totals"`
}

// TreeSession is a session at the broker.
type TreeSession struct {
	ID     string     `json:"sid"`
	Opened *time.Time `json:"opened,omitempty"`
	Ends   *time.Time `json:"ends,omitempty"`
	Ended  *time.Time `json:"ended,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// TreeAgent is one agent, what it was given, and what it did.
type TreeAgent struct {
	ID       string         `json:"id"`
	Grade    actor.Grade    `json:"grade,omitempty"`
	Evidence actor.Evidence `json:"evidence,omitzero"`
	// Grant is the newest statement by which this agent was named; none where the broker's word stands for it.
	Grant     *actor.HopGrant `json:"grant,omitempty"`
	Renewals  int             `json:"renewals,omitempty"`
	Spawned   *time.Time      `json:"spawned,omitempty"`
	Ended     *time.Time      `json:"ended,omitempty"`
	EndReason string          `json:"end_reason,omitempty"`
	Tokens    int             `json:"tokens,omitempty"` // delegated tokens that the broker issued to it
	Commands  []*TreeCommand  `json:"commands,omitempty"`
	Refusals  []*TreeRefusal  `json:"refusals,omitempty"`
	Children  []*TreeAgent    `json:"children,omitempty"`
	grants    map[string]bool // statements seen, by iss and jti
	parent    *TreeAgent
}

// TreeCommand is one command: its decision and what came of it.
type TreeCommand struct {
	Record    RecordID      `json:"record"`
	Time      time.Time     `json:"time"`
	Decision  *Decision     `json:"decision"`
	Forwarded bool          `json:"forwarded"`
	Outcome   *Completed    `json:"outcome,omitempty"`
	Unknown   string        `json:"outcome_unknown,omitempty"` // why
	Masked    []MaskedCount `json:"masked,omitempty"`
}

// TreeRefusal is a refusal that isn't a decision about a command.
type TreeRefusal struct {
	Record RecordID  `json:"record"`
	Time   time.Time `json:"time"`
	What   string    `json:"what"` // `exchange`, `spawn`, `connection`
	Target string    `json:"target,omitempty"`
	Class  string    `json:"class"`
	Reason string    `json:"reason,omitempty"`
	Count  int64     `json:"count,omitempty"`
}

// TreeTotals counts a task.
type TreeTotals struct {
	Agents   int   `json:"agents"`
	Commands int   `json:"commands"`
	Allowed  int   `json:"allowed"`
	Refused  int   `json:"refused"` // commands, exchanges, spawns and connections
	Unknown  int   `json:"unknown_outcomes"`
	Open     int   `json:"open"` // allowed, and no outcome yet
	Masked   int64 `json:"masked_values"`
}

type treeBuilder struct {
	tree     *Tree
	agents   map[string]*TreeAgent
	commands map[RecordID]*TreeCommand
	sessions map[string]*TreeSession
	order    []string
	aside    []*Record // records without a txn that may belong to an agent or a session of this task
	found    bool
}

// BuildTree gathers the task txn from several logs: an issuer's, a broker's, proxies'. [ErrNotFound]: none of them
// knows it.
func BuildTree(txn string, logs ...iter.Seq2[*Record, error]) (*Tree, error) {
	b := &treeBuilder{
		tree:     &Tree{Txn: txn, Agents: []*TreeAgent{}},
		agents:   make(map[string]*TreeAgent),
		commands: make(map[RecordID]*TreeCommand),
		sessions: make(map[string]*TreeSession),
	}
	for _, log := range logs {
		for r, err := range log {
			if err != nil {
				return nil, fmt.Errorf("drawing the task %s: %w", clip(txn, 64), err)
			}
			switch {
			case r.Txn == txn && txn != "":
				b.add(r)
			case r.Txn == "" && (r.Type == TypeSpawn || r.Type == TypeAgentEnded || r.Type == TypeSessionEnded || r.Type == TypeRevoked):
				b.aside = append(b.aside, r)
			case r.Type == TypeRevoked:
				b.aside = append(b.aside, r)
			}
		}
	}
	if !b.found {
		return nil, fmt.Errorf("task %q: %w in these logs", clip(txn, 64), ErrNotFound)
	}
	for _, r := range b.aside {
		b.addAside(r)
	}
	return b.finish(), nil
}

// FindTxn returns the task of a record, so that the id in an error message leads to the whole.
func FindTxn(id RecordID, logs ...iter.Seq2[*Record, error]) (*Record, error) {
	var errs []error
	for _, log := range logs {
		for r, err := range log {
			if err != nil {
				errs = append(errs, err)
				break
			}
			if r.ID == id {
				return r, nil
			}
		}
	}
	return nil, errors.Join(append(errs, fmt.Errorf("record %s: %w in these logs", id, ErrNotFound))...)
}

func (b *treeBuilder) add(r *Record) {
	b.found = true
	t := b.tree
	t.Dev = t.Dev || r.Dev
	leaf := b.chain(r.Chain)
	switch e := r.Event.(type) {
	case *SessionOpened:
		s := b.session(r.Session)
		s.Opened, s.Ends = &r.Time, &e.Ends
		if t.User == nil {
			t.User = &actor.SubjectID{Issuer: e.Issuer, Subject: e.Subject}
		}
		if t.Purpose == "" {
			t.Purpose = e.Purpose
		}
	case *SessionEnded:
		s := b.session(r.Session)
		s.Ended, s.Reason = &r.Time, e.Reason
	case *Exchange:
		a := b.leaf(leaf, e.Presenter)
		if e.Result == Accepted {
			a.Tokens++
			break
		}
		a.Refusals = append(a.Refusals, &TreeRefusal{Record: r.ID, Time: r.Time, What: "exchange", Target: e.Audience, Class: e.Class, Reason: e.Reason})
	case *Spawn, *AgentEnded:
		b.addAside(r)
	case *Decision:
		c := &TreeCommand{Record: r.ID, Time: r.Time, Decision: e}
		b.commands[r.ID] = c
		if leaf != nil {
			leaf.Commands = append(leaf.Commands, c)
		}
	case *Forwarded:
		if c := b.commands[r.Decision]; c != nil {
			c.Forwarded = true
		}
	case *Completed:
		if c := b.commands[r.Decision]; c != nil {
			c.Outcome = e
		}
	case *OutcomeUnknown:
		if c := b.commands[r.Decision]; c != nil {
			c.Unknown, c.Forwarded = e.Reason, c.Forwarded || e.Forwarded
		}
	case *Masked:
		if c := b.commands[r.Decision]; c != nil {
			c.Masked = e.Counts
		}
	case *Refused:
		if a := b.leaf(leaf, e.Peer); a != nil {
			a.Refusals = append(a.Refusals, &TreeRefusal{Record: r.ID, Time: r.Time, What: "connection", Target: e.Target, Class: e.Class, Reason: e.Reason, Count: e.Count})
		}
	case *Revoked:
		b.revocation(r, e)
	}
}

// addAside takes records that name an agent or a session rather than the task.
func (b *treeBuilder) addAside(r *Record) {
	switch e := r.Event.(type) {
	case *Spawn:
		if e.Result == Refusal {
			if a := b.agents[e.Parent]; a != nil {
				a.Refusals = append(a.Refusals, &TreeRefusal{Record: r.ID, Time: r.Time, What: "spawn", Target: e.Name, Class: e.Class, Reason: e.Reason})
			}
			return
		}
		a := b.agents[e.Agent]
		if a == nil && b.agents[e.Parent] != nil { // a child that never acted
			a = b.agent(e.Agent, b.agents[e.Parent])
			a.Grade = actor.Grade(e.Grade)
		}
		if a != nil && a.Spawned == nil {
			a.Spawned = &r.Time
		}
	case *AgentEnded:
		if a := b.agents[e.Agent]; a != nil {
			a.Ended, a.EndReason = &r.Time, e.Reason
		}
	case *SessionEnded:
		if s := b.sessions[r.Session]; s != nil && s.Ended == nil {
			s.Ended, s.Reason = &r.Time, e.Reason
		}
	case *Revoked:
		if b.touches(e) {
			b.revocation(r, e)
		}
	}
}

// touches reports whether a revocation ends something of this task.
func (b *treeBuilder) touches(e *Revoked) bool {
	t := b.tree
	if e.Value == t.Txn || b.sessions[e.Value] != nil {
		return true
	}
	if t.User != nil && e.Value == t.User.Subject && e.Issuer == t.User.Issuer {
		return true
	}
	for id, a := range b.agents {
		if (id == e.Value || strings.HasPrefix(id, e.Value+"/")) && (e.Delegate == "" || b.agents[e.Delegate] != nil) || a.grants[e.Issuer+" "+e.Value] {
			return true
		}
	}
	return false
}

// revocation keeps one record of each revocation: the broker's, which says who, before a proxy's.
func (b *treeBuilder) revocation(r *Record, e *Revoked) {
	for i, have := range b.tree.Revocations {
		if old := have.Event.(*Revoked); e.ID != "" && old.ID == e.ID {
			if old.By == "" && e.By != "" {
				b.tree.Revocations[i] = r
			}
			return
		}
	}
	b.tree.Revocations = append(b.tree.Revocations, r)
}

// chain puts the agents of a chain into the tree and returns the presenter.
func (b *treeBuilder) chain(c *Chain) *TreeAgent {
	if c == nil {
		return nil
	}
	t := b.tree
	user := c.User
	t.User, t.ACR, t.AuthTime = &user, c.ACR, c.AuthTime
	if len(c.Roles) > 0 {
		t.Roles = c.Roles
	}
	if c.Purpose != "" {
		t.Purpose = c.Purpose
	}
	if t.RootEvidence == "" || c.Token != nil { // a proxy's own verification counts more than a broker's
		t.RootEvidence = c.RootEvidence
	}
	if c.SID != "" {
		b.session(c.SID)
	}
	var at *TreeAgent
	for i, h := range c.Hops[1:] {
		at = b.agent(h.ID, at)
		at.Grade, at.Evidence = h.Grade, h.Evidence
		g := c.Hops[i].Grant // what the hop before passed on to this one
		if g == nil {
			continue
		}
		if name := g.Issuer + " " + g.ID; !at.grants[name] {
			if len(at.grants) > 0 {
				at.Renewals++
			}
			at.grants[name] = true
			if at.Grant == nil || g.IssuedAt.After(at.Grant.IssuedAt) {
				at.Grant = g
			}
		}
	}
	return at
}

func (b *treeBuilder) agent(id string, parent *TreeAgent) *TreeAgent {
	a := b.agents[id]
	if a == nil {
		a = &TreeAgent{ID: id, grants: make(map[string]bool)}
		b.agents[id] = a
	} else if a.parent != nil || parent == nil || slices.Contains(b.tree.Agents, a) && isBelow(parent, a) {
		return a
	}
	if parent == nil {
		b.tree.Agents = append(b.tree.Agents, a)
		return a
	}
	// It may have been seen before without its chain.
	b.tree.Agents = slices.DeleteFunc(b.tree.Agents, func(x *TreeAgent) bool { return x == a })
	a.parent = parent
	parent.Children = append(parent.Children, a)
	return a
}

// isBelow reports whether a is under top.
func isBelow(a, top *TreeAgent) bool {
	for ; a != nil; a = a.parent {
		if a == top {
			return true
		}
	}
	return false
}

// leaf is the agent that a record is about: the end of its chain, or the peer where there is no chain yet.
func (b *treeBuilder) leaf(leaf *TreeAgent, peer string) *TreeAgent {
	if leaf != nil || peer == "" {
		return leaf
	}
	if a := b.agents[peer]; a != nil {
		return a
	}
	return b.agent(peer, nil)
}

func (b *treeBuilder) session(id string) *TreeSession {
	s := b.sessions[id]
	if s == nil {
		s = &TreeSession{ID: id}
		b.sessions[id] = s
		b.order = append(b.order, id)
	}
	return s
}

func (b *treeBuilder) finish() *Tree {
	t := b.tree
	for _, id := range b.order {
		t.Sessions = append(t.Sessions, *b.sessions[id])
	}
	for _, a := range b.agents {
		t.Totals.Agents++
		t.Totals.Refused += len(a.Refusals)
		sort.SliceStable(a.Commands, func(i, j int) bool { return a.Commands[i].Time.Before(a.Commands[j].Time) })
		sort.SliceStable(a.Refusals, func(i, j int) bool { return a.Refusals[i].Time.Before(a.Refusals[j].Time) })
		for _, c := range a.Commands {
			b.total(c)
		}
	}
	return t
}

func (b *treeBuilder) total(c *TreeCommand) {
	n := &b.tree.Totals
	n.Commands++
	if c.Decision.Effect == Refuse {
		n.Refused++
		return
	}
	n.Allowed++
	switch {
	case c.Unknown != "":
		n.Unknown++
	case c.Outcome == nil:
		n.Open++
	}
	for _, m := range c.masked() {
		n.Masked += m.Values
	}
}

// masked is what was masked in the answer: on the outcome, or on a record of its own.
func (c *TreeCommand) masked() []MaskedCount {
	if c.Outcome != nil && len(c.Outcome.Masked) > 0 {
		return c.Outcome.Masked
	}
	return c.Masked
}
