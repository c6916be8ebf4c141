package actor

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// RevocationKind is what can be revoked.
type RevocationKind string

const (
	RevokeSubject   RevocationKind = "sub_id"    // Issuer, Value: the user's iss and sub
	RevokeSession   RevocationKind = "sid"       // Issuer: the identity provider; Value: sid
	RevokeTxn       RevocationKind = "txn"       // Value: txn
	RevokeActor     RevocationKind = "actor"     // Value: SPIFFE ID of the agent or of one above it
	RevokeEdge      RevocationKind = "edge"      // Issuer: the delegator; Value: the delegate
	RevokeStatement RevocationKind = "statement" // Issuer: iss; Value: jti
	RevokeTarget    RevocationKind = "target"    // Value: SPIFFE ID of the target
)

// RevocationKey names one thing that is or may be revoked. It is comparable, so
// that sets and indexes are maps. Members that a kind doesn't use are empty.
//
// The delegator of an edge is an agent's SPIFFE ID or [SubjectID.String] of the
// user.
type RevocationKey struct {
	Kind   RevocationKind `json:"kind"`
	Issuer string         `json:"iss,omitempty"`
	Value  string         `json:"value"`
}

func (k RevocationKey) String() string {
	if k.Issuer == "" {
		return fmt.Sprintf("%s %s", k.Kind, k.Value)
	}
	return fmt.Sprintf("%s %s %s", k.Kind, k.Issuer, k.Value)
}

// Revocations answers from memory and never waits: it is asked for every command.
// Check returns nil only if it knows that none of keys is revoked; a
// [*RevokedError] if one is; any other error when it can't know, for example
// because its feed is stale, which refuses as well. Safe for concurrent use.
type Revocations interface {
	Check(keys []RevocationKey) error
}

// RevokedError says what was revoked.
type RevokedError struct{ Key RevocationKey }

func (e *RevokedError) Error() string { return e.Key.String() + " is revoked" }

func checkRevocations(r Revocations, keys []RevocationKey) error {
	err := r.Check(keys)
	if err == nil {
		return nil
	}
	var revoked *RevokedError
	if errors.As(err, &revoked) {
		return wrap(ClassRevoked, err)
	}
	return wrap(ClassRevocationUnknown, fmt.Errorf("asking for revocations: %w", err))
}

// revocationKeys are all the names under which a chain can be revoked.
func revocationKeys(user SubjectID, sid, txn string, hops []Hop) []RevocationKey {
	keys := []RevocationKey{
		{Kind: RevokeSubject, Issuer: user.Issuer, Value: user.Subject},
		{Kind: RevokeSession, Issuer: user.Issuer, Value: sid},
	}
	if txn != "" {
		keys = append(keys, RevocationKey{Kind: RevokeTxn, Value: txn})
	}
	seen := map[AgentID]bool{}
	for i, h := range hops {
		// The agents above an agent in its path count even where a configured pair
		// of patterns let the chain go past them: ending one ends its subtree.
		for a, ok := h.Agent, !h.Agent.IsZero(); ok && !seen[a]; a, ok = a.Parent() {
			seen[a] = true
			keys = append(keys, RevocationKey{Kind: RevokeActor, Value: a.String()})
		}
		if i+1 < len(hops) {
			keys = append(keys, RevocationKey{Kind: RevokeEdge, Issuer: h.ID, Value: hops[i+1].ID})
		}
		if h.Grant != nil {
			keys = append(keys, RevocationKey{Kind: RevokeStatement, Issuer: h.Grant.Issuer, Value: h.Grant.ID})
		}
	}
	return keys
}

// RevocationKeys are the names under which the chain can be revoked, for asking
// and for indexing live sessions. Callers don't change them.
func (c *Chain) RevocationKeys() []RevocationKey {
	if c.keys != nil {
		return c.keys
	}
	keys := revocationKeys(c.User, c.SID, c.Txn, c.Hops)
	return append(keys,
		RevocationKey{Kind: RevokeStatement, Issuer: c.Mesh, Value: c.Token.ID},
		targetKey(c.Target))
}

// RevocationKeys are the names under which the subject can be revoked.
func (s *Subject) RevocationKeys() []RevocationKey {
	return revocationKeys(s.User, s.SID, s.Txn, s.Hops)
}

func targetKey(id spiffeid.ID) RevocationKey {
	return RevocationKey{Kind: RevokeTarget, Value: id.String()}
}
