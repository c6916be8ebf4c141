package actor

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// RootEvidence is how a verifier knows the user.
type RootEvidence string

const (
	// RootVerified: the verifier itself verified the ID token, and that its nonce
	// is the login key that signed the user grant.
	RootVerified RootEvidence = "verified"
	// RootBroker: the user is known by the broker's word.
	RootBroker RootEvidence = "broker"
)

// Chain is a verified credential. It comes from [Verifier.Verify] only; one that
// was decoded from JSON, out of a record, is for reading and fails [Chain.Recheck].
type Chain struct {
	User         SubjectID    `json:"user"`
	SID          string       `json:"sid"`
	Txn          string       `json:"txn"`
	Roles        []string     `json:"roles"`
	AuthTime     time.Time    `json:"auth_time"`
	ACR          string       `json:"acr,omitempty"`
	Purpose      string       `json:"purpose"` // the user grant's; the token's where there is none
	RootEvidence RootEvidence `json:"root_evidence"`
	Mesh         string       `json:"mesh"`
	Target       spiffeid.ID  `json:"target"`
	// Hops from the user to the presenter: at least two.
	Hops    []Hop     `json:"hops"`
	Token   ChainID   `json:"token"`
	Details Details   `json:"authorization_details"`
	Expires time.Time `json:"expires"` // the earliest end of token, grants and SVIDs
	// Digest is the SHA-256 of the credential's exact bytes, as [Hash]: the name of
	// the evidence, not of the statement.
	Digest string `json:"digest"`

	limits limits
	keys   []RevocationKey // what RevocationKeys gives: it is asked for every command
}

// ChainID names the delegated token: iss and jti, never a hash of its bytes.
type ChainID struct {
	Issuer   string    `json:"iss"`
	ID       string    `json:"jti"`
	KeyID    string    `json:"kid"`
	IssuedAt time.Time `json:"iat"`
	Expires  time.Time `json:"exp"`
}

// HopKind tells the user from the agents.
type HopKind string

const (
	HopUser  HopKind = "user"
	HopAgent HopKind = "agent"
)

// Hop is one who acts, and what it passed on.
type Hop struct {
	Kind HopKind `json:"kind"`
	// ID is the agent's SPIFFE ID or [SubjectID.String] of the user.
	ID       string   `json:"id"`
	Agent    AgentID  `json:"-"`
	Grade    Grade    `json:"grade"`
	Evidence Evidence `json:"evidence,omitzero"`
	// Key is the thumbprint of the key that signed: login key or SVID key. It is
	// empty for a user without a user grant.
	Key string `json:"key,omitempty"`
	// Certificate is the x5t#S256 of an agent's SVID.
	Certificate string `json:"certificate,omitempty"`
	// Grant is what this hop signed for the next one; nil for the last hop, and for
	// a user without a user grant.
	Grant *HopGrant `json:"grant,omitempty"`
}

// UnmarshalJSON reads a hop out of a record.
func (h *Hop) UnmarshalJSON(data []byte) error {
	type plain Hop
	var p plain
	if err := strictjson.Unmarshal(data, &p); err != nil {
		return err
	}
	if p.Kind != HopUser && p.Kind != HopAgent || p.Grade != Asserted && p.Grade != Attested {
		return fmt.Errorf("a hop of the kind %q and the grade %q", p.Kind, p.Grade)
	}
	if p.Kind == HopAgent {
		a, err := AgentIDFromString(p.ID)
		if err != nil {
			return err
		}
		p.Agent = a
	}
	*h = Hop(p)
	return nil
}

// HopGrant is the statement by which a hop passed authority on.
type HopGrant struct {
	Issuer   string    `json:"iss"` // with ID the name of the statement
	ID       string    `json:"jti"`
	Delegate AgentID   `json:"delegate"`
	Purpose  string    `json:"purpose"`
	Cap      Details   `json:"cap"`
	Left     int       `json:"left"`
	IssuedAt time.Time `json:"iat"`
	Expires  time.Time `json:"exp"`
	// Narrowed says, for people, what is less than in the grant before.
	Narrowed []string `json:"narrowed,omitempty"`
}

// limits are the ends that Recheck compares with.
type limits struct {
	statements   time.Time // earliest exp of token and grants, and end of session
	certificates time.Time // earliest notAfter
	// authorities are those of the bundle that the paths ended in.
	authorities []AuthorityHash
}

// AuthorityHash is the SHA-256 of an authority's certificate.
type AuthorityHash [sha256.Size]byte

// HashAuthority names an authority of a trust bundle.
func HashAuthority(c *x509.Certificate) AuthorityHash { return sha256.Sum256(c.Raw) }

func (l limits) expires() time.Time {
	if l.certificates.Before(l.statements) {
		return l.certificates
	}
	return l.statements
}

func (l *limits) statement(t time.Time) {
	if l.statements.IsZero() || t.Before(l.statements) {
		l.statements = t
	}
}

// path takes in a certificate path that was used.
func (l *limits) path(w window) {
	if l.certificates.IsZero() || w.notAfter.Before(l.certificates) {
		l.certificates = w.notAfter
	}
	if !slices.Contains(l.authorities, w.authority) {
		l.authorities = append(l.authorities, w.authority)
	}
}

// Leaf is the presenter: the agent at the other end of the connection.
func (c *Chain) Leaf() Hop {
	if len(c.Hops) == 0 {
		return Hop{}
	}
	return c.Hops[len(c.Hops)-1]
}

// Depth is the number of agents.
func (c *Chain) Depth() int { return max(0, len(c.Hops)-1) }

// Actors are the agents, first to last.
func (c *Chain) Actors() []AgentID {
	var out []AgentID
	for _, h := range c.Hops {
		if h.Kind == HopAgent {
			out = append(out, h.Agent)
		}
	}
	return out
}

// LowestGrade is [Attested] only if every hop is, the user's included.
func (c *Chain) LowestGrade() Grade {
	if len(c.Hops) == 0 {
		return Asserted
	}
	for _, h := range c.Hops {
		if h.Grade != Attested {
			return Asserted
		}
	}
	return Attested
}

// Recheck is what comes before every command: the times, and the revocations as
// they are now. It never uses a cache.
func (c *Chain) Recheck(now time.Time, r Revocations) error {
	if c.limits.statements.IsZero() || r == nil {
		return refuse(ClassExpired, "this chain did not come from a verifier")
	}
	if !now.Before(c.limits.statements.Add(Skew)) || now.After(c.limits.certificates) {
		return refuse(ClassExpired, "the chain ended at %s", c.Expires.Format(time.RFC3339))
	}
	return checkRevocations(r, c.RevocationKeys())
}

// VouchedFor says whether each certificate path of the chain still ends in an
// authority of the bundle, so that what an authority said doesn't outlive the
// trust in it. known are the bundle's authorities as they are now.
func (c *Chain) VouchedFor(known map[AuthorityHash]bool) bool {
	for _, a := range c.limits.authorities {
		if !known[a] {
			return false
		}
	}
	return len(c.limits.authorities) > 0
}

// Match asks the capability alone; policy comes after it.
func (c *Chain) Match(a Action) (Limits, error) { return c.Details.Match(a) }
