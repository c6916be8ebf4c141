package state

import (
	"context"
	"errors"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/feed"
)

// Errors of a store that callers branch on. Nothing was written.
var (
	// ErrConflict: the change's revision isn't the next one.
	ErrConflict = errors.New("the state changed meanwhile")
	// ErrExists: there is a session with this txn already.
	ErrExists = errors.New("a session with this txn exists already")
	// ErrReplayed: this proof was used before.
	ErrReplayed = errors.New("this proof was used before")
)

// Store keeps the state durably.
//
// Contract. Commit returns nil only after the change is on the disk as a whole; after ErrConflict,
// ErrExists or ErrReplayed nothing of it is. After any other error the outcome is unknown: the caller reads everything
// again with Load, it doesn't retry. Methods may be called concurrently. Times are kept to the microsecond, UTC.
type Store interface {
	// Load returns everything that wasn't forgotten.
	Load(ctx context.Context) (Contents, error)
	Commit(ctx context.Context, c Change) error
}

// Contents is everything that a store keeps.
type Contents struct {
	Revision       uint64 // of the last change that had one; 0 if none
	IssuerRevision uint64 // of the last ended agent
	Sessions       []Session
	Revocations    []Revocation
	Ended          []EndedAgent
	Policy         *Policy
}

// Change is what one Commit makes durable: all members that are set, or none.
type Change struct {
	// Revision is one more than the last, or 0 for what proxies needn't know.
	Revision    uint64
	Open        *Session
	End         []string // txns of sessions, ended at EndAt
	EndAt       time.Time
	Revocation  *Revocation
	Ended       *EndedAgent
	Policy      *Policy // replaces the one before
	Proof       *Proof
	Forget      time.Time // if set: drop proofs, revocations, sessions and agents that are over since before this time
	ForgetEnded time.Time // the same for ended agents
	// ForgetIssuer sets the issuer's revision back to 0: the issuer began anew.
	ForgetIssuer bool
}

// Session is one task of one sign-in: what the first exchange laid down.
type Session struct {
	Txn        string // its name
	SID        string // the sign-in
	RootHash   string // of the ID token
	User       actor.SubjectID
	LoginKey   string // thumbprint; "" for a session on the broker's word
	FirstAgent actor.AgentID
	Cap        actor.Details
	Purpose    string
	AuthTime   time.Time
	ACR        string
	Opened     time.Time
	Ends       time.Time
	EndedAt    time.Time // zero while it lives
}

// Bare says that the session rests on the broker's word.
func (s Session) Bare() bool { return s.LoginKey == "" }

// Revocation is a revocation, who asked for it, and its revision.
type Revocation struct {
	feed.Revocation
	Revision uint64
	By       string
}

// EndedAgent is an agent that is no more.
type EndedAgent struct {
	feed.EndedAgent
	Reason         string
	Revision       uint64
	IssuerRevision uint64
}

// Policy is a signed set.
type Policy struct {
	Version uint64
	Signed  string
}

// Proof is a statement that may be used once.
type Proof struct {
	Issuer  string
	ID      string
	Expires time.Time
}
