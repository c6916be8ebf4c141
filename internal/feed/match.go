package feed

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/target"
)

// maxString bounds every string of a match. SPIFFE IDs are at most 2048 bytes.
const maxString = 2048

// Kind says what a revocation names.
type Kind string

// The kinds of revocation.
const (
	User    Kind = "user"    // everything of a user, by issuer and subject
	Session Kind = "session" // a sign-in session, by sid
	Task    Kind = "task"    // a task tree, by txn
	Agent   Kind = "agent"   // an agent and everything below it, by SPIFFE ID
	Edge    Kind = "edge"    // what one agent delegated to another
	Grant   Kind = "grant"   // a grant or a token, by iss and jti, and what hangs on it
	Target  Kind = "target"  // everything at a target
)

// Match is what a revocation covers. It is comparable and serves as a map key; make it with
// MatchUser and its kin, which check their arguments, or take it from Chain.Matches.
type Match struct {
	Kind Kind
	// Issuer is the iss of a user, a grant or a token; empty otherwise.
	Issuer string
	// Value is sub, sid, txn, the agent, the delegator, jti or the target's name.
	Value string
	// Delegate is the second end of an edge; empty otherwise.
	Delegate string
}

// String is for people.
func (m Match) String() string {
	switch m.Kind {
	case User, Grant:
		return fmt.Sprintf("%s %s of %s", m.Kind, m.Value, m.Issuer)
	case Edge:
		return fmt.Sprintf("edge from %s to %s", m.Value, m.Delegate)
	default:
		return fmt.Sprintf("%s %s", m.Kind, m.Value)
	}
}

// Check says whether m is well formed: a known kind with exactly its own members.
func (m Match) Check() error {
	if len(m.Issuer) > maxString || len(m.Value) > maxString || len(m.Delegate) > maxString {
		return fmt.Errorf("a revocation's member is longer than %d bytes", maxString)
	}
	if m.Value == "" {
		return fmt.Errorf("revocation of kind %q names nothing", m.Kind)
	}
	wantIssuer := m.Kind == User || m.Kind == Grant
	if wantIssuer != (m.Issuer != "") {
		return fmt.Errorf("revocation of kind %q: an issuer is wanted for user and grant, and for nothing else", m.Kind)
	}
	if (m.Kind == Edge) != (m.Delegate != "") {
		return fmt.Errorf("revocation of kind %q: a delegate is wanted for edge, and for nothing else", m.Kind)
	}
	switch m.Kind {
	case User, Session, Task, Grant:
		return nil
	case Agent:
		return checkAgent(m.Value)
	case Edge:
		// The first edge starts at the user's grant; its delegator is the identity provider's iss, so
		// only the delegate must be an agent there. Agents delegate as agents.
		if strings.HasPrefix(m.Value, "spiffe:") {
			if err := checkAgent(m.Value); err != nil {
				return err
			}
		}
		return checkAgent(m.Delegate)
	case Target:
		_, err := target.ParseName(m.Value)
		return err
	default:
		return fmt.Errorf("unknown kind of revocation %q: want user, session, task, agent, edge, grant or target", m.Kind)
	}
}

// MatchUser covers a user at one identity provider.
func MatchUser(iss, sub string) (Match, error) {
	return checked(Match{Kind: User, Issuer: iss, Value: sub})
}

// MatchSession covers a sign-in session.
func MatchSession(sid string) (Match, error) { return checked(Match{Kind: Session, Value: sid}) }

// MatchTask covers a task tree.
func MatchTask(txn string) (Match, error) { return checked(Match{Kind: Task, Value: txn}) }

// MatchAgent covers an agent and all below it. The path may also stop at a name, to mean all its
// instances.
func MatchAgent(id string) (Match, error) { return checked(Match{Kind: Agent, Value: id}) }

// MatchEdge covers what delegator handed to delegate.
func MatchEdge(delegator, delegate string) (Match, error) {
	return checked(Match{Kind: Edge, Value: delegator, Delegate: delegate})
}

// MatchGrant covers a grant or a token.
func MatchGrant(iss, jti string) (Match, error) {
	return checked(Match{Kind: Grant, Issuer: iss, Value: jti})
}

// MatchTarget covers everything at a target.
func MatchTarget(name string) (Match, error) { return checked(Match{Kind: Target, Value: name}) }

func checked(m Match) (Match, error) {
	if err := m.Check(); err != nil {
		return Match{}, err
	}
	return m, nil
}

func checkAgent(s string) error {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return fmt.Errorf("reading an agent's identity: %w", err)
	}
	if id.String() != s {
		return fmt.Errorf("agent identity %q is not in canonical form (%s)", s, id)
	}
	if !strings.HasPrefix(id.Path(), agentRoot) {
		return fmt.Errorf("%q is no agent: want spiffe://<trust domain>/agent/…", s)
	}
	return nil
}

const agentRoot = "/agent/"

// Chain is what revocations are compared with: the facts of one verified credential.
type Chain struct {
	Issuer  string // iss of the user's sub_id
	Subject string // sub of the user's sub_id
	Session string // sid
	Txn     string
	// Actors are the agents' SPIFFE IDs, outermost first.
	Actors []string
	// Statements are the user grant, every grant and the token.
	Statements []Statement
	// Target is the name of the target; empty when there is none yet.
	Target string
}

// Statement names a signed statement. Never a hash of its bytes: ES256 and base64 are malleable.
type Statement struct {
	Issuer string
	ID     string // jti
}

// Matches are all revocations that would end the chain. An agent is ended by one of itself, and of
// every prefix of its path (by segment) below /agent/.
func (c Chain) Matches() []Match {
	out := make([]Match, 0, 4+5*len(c.Actors)+len(c.Statements))
	out = append(out, Match{Kind: User, Issuer: c.Issuer, Value: c.Subject})
	if c.Session != "" {
		out = append(out, Match{Kind: Session, Value: c.Session})
	}
	out = append(out, Match{Kind: Task, Value: c.Txn})
	seen := make(map[string]bool)
	from := c.Issuer
	for _, a := range c.Actors {
		for _, p := range agentPrefixes(a) {
			if !seen[p] {
				seen[p] = true
				out = append(out, Match{Kind: Agent, Value: p})
			}
		}
		out = append(out, Match{Kind: Edge, Value: from, Delegate: a})
		from = a
	}
	for _, s := range c.Statements {
		out = append(out, Match{Kind: Grant, Issuer: s.Issuer, Value: s.ID})
	}
	if c.Target != "" {
		out = append(out, Match{Kind: Target, Value: c.Target})
	}
	return out
}

// agentPrefixes lists spiffe://td/agent/<name>, …/<name>/<instance>, and so on to the whole ID.
func agentPrefixes(id string) []string {
	at := strings.Index(id, agentRoot)
	if at < 0 {
		return nil
	}
	var out []string
	for i := at + len(agentRoot); i < len(id); i++ {
		if id[i] == '/' {
			out = append(out, id[:i])
		}
	}
	return append(out, id)
}

var errUnknownFields = errors.New("the message has fields that this version doesn't know")
