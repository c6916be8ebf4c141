package audit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/deputymesh/deputy/actor"
)

// Chain is who acts for whom. A record names it by the digest of its bytes; the bytes stand once in each
// segment, in a record of their own before the first that names them, and readers put them back. Make one per
// verified credential with [FromChain] or [FromSubject] and put the same pointer on every record; it must
// not be changed after its first use, since its encoding is kept.
type Chain struct {
	Txn          string             `json:"txn"` // the task tree
	User         actor.SubjectID    `json:"user"`
	SID          string             `json:"sid,omitempty"`
	AuthTime     *time.Time         `json:"auth_time,omitempty"`
	ACR          string             `json:"acr,omitempty"`
	Roles        []string           `json:"roles,omitempty"`
	Purpose      string             `json:"purpose,omitempty"`
	RootEvidence actor.RootEvidence `json:"root_evidence"`
	Mesh         string             `json:"mesh,omitempty"`
	Target       string             `json:"target,omitempty"` // none before the broker countersigned
	Hops         []actor.Hop        `json:"hops"`             // from the user to the presenter
	Token        *actor.ChainID     `json:"token,omitempty"`
	// Cap is the authorization_details of the token, or of the newest grant where there is no token.
	Cap     actor.Details `json:"authorization_details,omitempty"`
	Expires time.Time     `json:"expires"`
	// Verification is the digest of the evidence that [Log.PutCredential] kept: the exact bytes and what
	// they were verified with.
	Verification Digest `json:"verification,omitempty"`
	// Presented is the digest of the exact subject_token of an exchange, kept as evidence of the kind `subject`, on the
	// records of a broker.
	Presented Digest `json:"presented,omitempty"`

	once   sync.Once
	json   []byte
	digest Digest // of json
	err    error
}

// FromChain makes the record form of a chain that a proxy verified. verification is what PutCredential returned.
func FromChain(c *actor.Chain, verification Digest) *Chain {
	out := &Chain{
		Txn: c.Txn, User: c.User, SID: c.SID, AuthTime: timeOrNil(c.AuthTime), ACR: c.ACR, Roles: slices.Clone(c.Roles),
		Purpose: c.Purpose, RootEvidence: c.RootEvidence, Mesh: c.Mesh, Target: c.Target.String(),
		Hops: slices.Clone(c.Hops), Cap: c.Details, Expires: c.Expires.UTC(), Verification: verification,
	}
	token := c.Token
	out.Token = &token
	return out
}

// FromSubject makes the record form of a subject that a broker verified, for its records about exchanges. txn stands in for
// the one of a session without a user grant.
func FromSubject(s *actor.Subject, mesh, txn string) *Chain {
	out := &Chain{
		Txn: s.Txn, User: s.User, SID: s.SID, AuthTime: timeOrNil(s.AuthTime), ACR: s.ACR, Purpose: s.Purpose,
		RootEvidence: actor.RootVerified, Mesh: mesh, Hops: slices.Clone(s.Hops), Cap: s.Cap, Expires: s.Expires.UTC(),
	}
	if s.Bare {
		out.RootEvidence = actor.RootBroker
	}
	if out.Txn == "" {
		out.Txn = txn
	}
	return out
}

// MarshalJSON encodes the chain once and keeps the bytes.
func (c *Chain) MarshalJSON() ([]byte, error) { return c.encoded() }

func (c *Chain) encoded() ([]byte, error) {
	c.once.Do(func() {
		type plain Chain
		if c.err = c.check(); c.err == nil {
			var encoded []byte
			encoded, c.err = compactJSON((*plain)(c))
			c.json = bytes.Clone(encoded) // it lives as long as the session: without the room to grow
			c.digest = DigestOf(c.json)
		}
	})
	return c.json, c.err
}

// room is what the record that states the chain takes at most.
func (c *Chain) room() int {
	if c == nil {
		return 0
	}
	return len(c.json) + 1024
}

func (c *Chain) check() error {
	switch {
	case c.Txn == "":
		return errors.New("no txn")
	case c.User.Subject == "":
		return errors.New("no user")
	case c.RootEvidence != actor.RootVerified && c.RootEvidence != actor.RootBroker:
		return fmt.Errorf("unknown root_evidence %q", c.RootEvidence)
	case len(c.Hops) == 0 || c.Hops[0].Kind != actor.HopUser:
		return errors.New("the first hop isn't the user")
	}
	return nil
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// ChainStated is the chain that later records of the same segment name by the digest of these bytes.
type ChainStated struct {
	*Chain
	digest Digest // of the exact bytes, where the record was read
}

// EventType implements [Event].
func (*ChainStated) EventType() Type { return TypeChain }

func (e *ChainStated) check() error {
	if e.Chain == nil {
		return errors.New("no chain")
	}
	return e.Chain.check()
}

// chains gives the records of one segment their chains back. The zero value is ready; a new segment needs a new one.
type chains map[Digest]*Chain

// resolve puts the chain on r that it names, or remembers the one that it states.
func (c *chains) resolve(r *Record) error {
	if s, ok := r.Event.(*ChainStated); ok {
		if *c == nil {
			*c = make(chains)
		}
		(*c)[s.digest] = s.Chain
		return nil
	}
	if r.chain == "" {
		return nil
	}
	if r.Chain = (*c)[r.chain]; r.Chain == nil {
		return fmt.Errorf("audit record %s: no chain %s stands before it in its segment", r.ID, r.chain)
	}
	return nil
}
