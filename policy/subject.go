package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/deputymesh/deputy/actor"
)

// Facts is what policies may know of a chain. [FactsOf] takes them from a verified chain; written out as
// JSON they are what `deputy policy explain` reads.
type Facts struct {
	User         User     `json:"user"`
	Roles        []string `json:"roles"`
	ACR          string   `json:"acr,omitempty"`
	Purpose      string   `json:"purpose,omitempty"`
	RootEvidence string   `json:"root_evidence"`
	// Agents are the actors, outermost first.
	Agents []Agent `json:"agents"`
	// TrustDomain is that of the target; names of agents from elsewhere carry their own.
	TrustDomain string    `json:"trust_domain"`
	SignedIn    time.Time `json:"signed_in"`
	Started     time.Time `json:"started"`
	Issued      time.Time `json:"issued"`
}

// User is the principal.
type User struct {
	Issuer  string `json:"iss"`
	Subject string `json:"sub"`
	// Grade of the user hop: "attested" if the identity provider vouched for the key that signed it.
	Grade string `json:"grade"`
}

// Agent is one actor of the chain with its grade.
type Agent struct {
	ID    string `json:"id"`
	Grade string `json:"grade"`
}

// Subject is a chain prepared for decisions: the principal with its roles, and the facts that don't
// change while the chain is alive. It is safe for use by many goroutines at once.
type Subject struct {
	facts     Facts
	principal types.EntityUID
	entities  types.EntityMap
	fixed     types.RecordMap
	newest    atomic.Pointer[aged]
}

// aged is the chain's context at some ages. Ages are whole seconds, so that most decisions share one.
type aged struct {
	signIn, session, token types.Long
	chain                  types.Record

	mu       sync.Mutex // guards what follows
	contexts map[Command]types.Record
}

// maxContexts bounds the contexts that are kept at one age; an engine knows few kinds of command.
const maxContexts = 64

// context is the context of a request: the chain and the command.
func (a *aged) context(c Command) types.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	out, ok := a.contexts[c]
	if ok {
		return out
	}
	out = types.NewRecord(types.RecordMap{
		"chain": a.chain,
		"command": types.NewRecord(types.RecordMap{
			"database": types.String(c.Database),
			"account":  types.String(c.Account),
			"readOnly": types.Boolean(c.ReadOnly),
			"kind":     types.String(c.Kind),
		}),
	})
	if len(a.contexts) >= maxContexts {
		clear(a.contexts)
	}
	a.contexts[c] = out
	return out
}

const (
	maxAgents = 64
	maxRoles  = 256
)

// FactsOf takes the facts from a verified chain.
func FactsOf(c *actor.Chain) (Facts, error) {
	if c == nil || len(c.Hops) < 2 || c.Hops[0].Kind != actor.HopUser {
		return Facts{}, errors.New("the chain doesn't start with a user")
	}
	f := Facts{
		User:  User{Issuer: c.User.Issuer, Subject: c.User.Subject, Grade: string(c.Hops[0].Grade)},
		Roles: c.Roles, ACR: c.ACR, RootEvidence: string(c.RootEvidence),
		TrustDomain: c.Target.TrustDomain().Name(),
		SignedIn:    c.AuthTime, Started: c.AuthTime, Issued: c.Token.IssuedAt,
	}
	// Policies read the user's purpose only; without a user grant the user stated none.
	if g := c.Hops[0].Grant; g != nil {
		f.Started, f.Purpose = g.IssuedAt, g.Purpose
	}
	for _, h := range c.Hops[1:] {
		if h.Kind != actor.HopAgent {
			return Facts{}, fmt.Errorf("hop %s is no agent", h.ID)
		}
		f.Agents = append(f.Agents, Agent{ID: h.Agent.String(), Grade: string(h.Grade)})
	}
	return f, nil
}

// NewSubject prepares a verified chain for decisions.
func NewSubject(c *actor.Chain) (*Subject, error) {
	f, err := FactsOf(c)
	if err != nil {
		return nil, err
	}
	return NewSubjectFromFacts(f)
}

// NewSubjectFromFacts computes everything that policies read about a chain. It is the one place where
// facts that need a quantifier ("every agent…") are worked out, since Cedar has none.
func NewSubjectFromFacts(f Facts) (*Subject, error) {
	if f.User.Issuer == "" || f.User.Subject == "" {
		return nil, errors.New("the chain names no user")
	}
	// '#' ends the issuer in the entity id; an issuer with one could pose as another.
	if strings.Contains(f.User.Issuer, "#") {
		return nil, fmt.Errorf("the user's issuer %q holds a '#'", f.User.Issuer)
	}
	if len(f.Agents) == 0 || len(f.Agents) > maxAgents || len(f.Roles) > maxRoles {
		return nil, fmt.Errorf("the chain has %d agents and %d roles; policies can judge 1 to %d agents and up to %d roles",
			len(f.Agents), len(f.Roles), maxAgents, maxRoles)
	}
	if f.RootEvidence != "verified" && f.RootEvidence != "broker" {
		return nil, fmt.Errorf("unknown root evidence %q", f.RootEvidence)
	}
	if f.SignedIn.IsZero() || f.Started.IsZero() || f.Issued.IsZero() {
		return nil, errors.New("a time of the chain (sign-in, start, issue) is missing")
	}
	var paths, ids []types.Value
	var names []string
	lowest, err := lower("attested", f.User.Grade)
	if err != nil {
		return nil, fmt.Errorf("the user: %w", err)
	}
	for _, a := range f.Agents {
		path, err := AgentPath(a.ID, f.TrustDomain)
		if err != nil {
			return nil, err
		}
		if lowest, err = lower(lowest, a.Grade); err != nil {
			return nil, fmt.Errorf("agent %s: %w", a.ID, err)
		}
		names = append(names, path)
		paths = append(paths, types.String(path))
		ids = append(ids, types.String(a.ID))
	}
	last := len(f.Agents) - 1
	s := &Subject{
		facts:     f,
		principal: types.NewEntityUID(typeUser, types.String(f.User.Issuer+"#"+f.User.Subject)),
		fixed: types.RecordMap{
			"actors":       types.NewSet(paths...),
			"actorIds":     types.NewSet(ids...),
			"within":       stringSet(commonPaths(names)),
			"leaf":         types.String(names[last]),
			"leafId":       types.String(f.Agents[last].ID),
			"depth":        types.Long(len(f.Agents)),
			"lowestGrade":  types.NewEntityUID(typeGrade, types.String(lowest)),
			"rootEvidence": types.NewEntityUID(typeEvidence, types.String(f.RootEvidence)),
			"purpose":      types.String(f.Purpose),
			"roles":        stringSet(f.Roles),
			"acr":          types.String(f.ACR),
		},
	}
	s.entities = types.EntityMap{}
	var roles []types.EntityUID
	for _, r := range f.Roles {
		uid := types.NewEntityUID(typeRole, types.String(r))
		roles = append(roles, uid)
		s.entities[uid] = types.Entity{UID: uid}
	}
	s.entities[s.principal] = types.Entity{
		UID: s.principal, Parents: types.NewEntityUIDSet(roles...),
		Attributes: types.NewRecord(types.RecordMap{
			"iss": types.String(f.User.Issuer), "sub": types.String(f.User.Subject),
		}),
	}
	return s, nil
}

// lower is the lower one of two grades; one that isn't known is an error, never the lower one.
func lower(a, b string) (string, error) {
	switch b {
	case "attested":
		return a, nil
	case "asserted":
		return b, nil
	}
	return "", fmt.Errorf("unknown grade %q", b)
}

// context is the context of a request, with the ages as they are now.
func (s *Subject) context(now time.Time, c Command) types.Record { return s.aged(now).context(c) }

func (s *Subject) aged(now time.Time) *aged {
	signIn, session, token := age(now, s.facts.SignedIn), age(now, s.facts.Started), age(now, s.facts.Issued)
	if a := s.newest.Load(); a != nil && a.signIn == signIn && a.session == session && a.token == token {
		return a
	}
	m := make(types.RecordMap, len(s.fixed)+3)
	for k, v := range s.fixed {
		m[k] = v
	}
	m["signInAge"], m["sessionAge"], m["tokenAge"] = signIn, session, token
	a := &aged{signIn: signIn, session: session, token: token, chain: types.NewRecord(m), contexts: map[Command]types.Record{}}
	s.newest.Store(a)
	return a
}

// age rounds up, so that "at most 60 seconds" never holds for something older.
func age(now, then time.Time) types.Long {
	d := now.Sub(then)
	if d <= 0 {
		return 0
	}
	return types.Long((d + time.Second - 1) / time.Second)
}

// AgentPath is the name of an agent in policies: its path of names, without the instances. An agent whose
// trust domain isn't home gets it in front, so that nobody from elsewhere bears a name of ours.
func AgentPath(id, home string) (string, error) {
	agent, err := actor.AgentIDFromString(id)
	if err != nil {
		return "", err
	}
	segments := agent.Segments()
	names := make([]string, len(segments))
	for i, seg := range segments {
		names[i] = seg.Name
	}
	path := strings.Join(names, "/")
	if td := agent.TrustDomain().Name(); td != home {
		path = "//" + td + "/" + path
	}
	return path, nil
}

// commonPaths are the paths, outermost first, at or under which every name lies, compared by segment.
func commonPaths(names []string) []string {
	first := strings.Split(names[0], "/")
	n := len(first)
	for _, name := range names[1:] {
		segments := strings.Split(name, "/")
		n = min(n, len(segments))
		for i := 0; i < n; i++ {
			if segments[i] != first[i] {
				n = i
			}
		}
	}
	var out []string
	for i := 1; i <= n; i++ {
		p := strings.Join(first[:i], "/")
		// "//other.example/…" starts with two empty segments and the trust domain; these alone name no agent.
		if strings.HasPrefix(names[0], "//") && i <= 3 {
			continue
		}
		out = append(out, p)
	}
	return slices.Clip(out)
}

func stringSet(values []string) types.Set {
	out := make([]types.Value, len(values))
	for i, v := range values {
		out[i] = types.String(v)
	}
	return types.NewSet(out...)
}
