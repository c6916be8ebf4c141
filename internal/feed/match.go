package feed

import (
	"errors"
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/actor"
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
// MatchUser and its kin, which check their arguments, or with MatchOf.
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
		// The first edge starts at the user, named iss#sub (actor.SubjectID.String).
		if !strings.Contains(m.Value, "#") {
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

// MatchAgent covers one agent instance and all below it.
func MatchAgent(id string) (Match, error) { return checked(Match{Kind: Agent, Value: id}) }

// MatchEdge covers what delegator, an agent or a user as iss#sub, handed to delegate.
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
	id, err := actor.AgentIDFromString(s)
	if err != nil {
		return fmt.Errorf("reading an agent's identity: %w", err)
	}
	if id.String() != s {
		return fmt.Errorf("agent identity %q is not in canonical form (%s)", s, id)
	}
	return nil
}

// MatchOf is the match that would revoke k, one of the names under which a chain can be revoked
// (actor.Chain.RevocationKeys). A sid is compared without its provider: should two providers ever give
// out the same one, both sessions end.
func MatchOf(k actor.RevocationKey) Match {
	switch k.Kind {
	case actor.RevokeSubject:
		return Match{Kind: User, Issuer: k.Issuer, Value: k.Value}
	case actor.RevokeSession:
		return Match{Kind: Session, Value: k.Value}
	case actor.RevokeTxn:
		return Match{Kind: Task, Value: k.Value}
	case actor.RevokeActor:
		return Match{Kind: Agent, Value: k.Value}
	case actor.RevokeEdge:
		return Match{Kind: Edge, Value: k.Issuer, Delegate: k.Value}
	case actor.RevokeStatement:
		return Match{Kind: Grant, Issuer: k.Issuer, Value: k.Value}
	case actor.RevokeTarget:
		_, name, _ := strings.Cut(k.Value, "/target/")
		return Match{Kind: Target, Value: name}
	}
	// A kind that this build doesn't know matches nothing that can be written down; whoever adds one
	// to actor adds it here.
	return Match{Kind: Kind(k.Kind), Issuer: k.Issuer, Value: k.Value}
}

var errUnknownFields = errors.New("the message has fields that this version doesn't know")
