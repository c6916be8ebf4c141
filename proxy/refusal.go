package proxy

import (
	"fmt"

	"github.com/deputymesh/deputy/audit"
)

// Classes of refusals that the core makes itself. A refused credential has the class of package actor, an
// engine adds its own (such as "unparsable" or "masked").
const (
	ClassCapability = "capability"     // not within the token's authorization_details
	ClassPolicy     = "policy"         // no policy permits it, or one forbids it
	ClassUndecided  = "undecided"      // the policy couldn't be evaluated, or the command is malformed
	ClassNotReady   = "not_ready"      // no complete snapshot, or no policy set yet
	ClassStale      = "stale"          // the feed is older than the staleness limit
	ClassRevoked    = "revoked"        // a revocation, or the end of an agent in the chain
	ClassExpired    = "expired"        // the credential ran out and wasn't renewed
	ClassClosed     = "closed"         // the session or the proxy has ended
	ClassEvidence   = "evidence"       // the decision couldn't be recorded
	ClassQuota      = "over_quota"     // the chain's budget of records is used up
	ClassTarget     = "unknown_target" // not served here
	ClassRenewal    = "renewal"        // a fresh credential that doesn't continue the session
)

// Refusal says no, in words for the user. Engines translate it into their protocol and show Reason and
// RecordID.
type Refusal struct {
	// Class is stable and for programs.
	Class string
	// Reason is plain English, complete, without secrets.
	Reason string
	// Policy names the policies that decided, if any did.
	Policy string
	// RecordID is the record of the refusal; the zero value prints as "none": the log itself is down.
	RecordID audit.RecordID
	// Ended says that the session is over, too.
	Ended bool
	// Err is the cause, for logs only.
	Err error
}

// Error is what a user may see: reason and record id.
func (r *Refusal) Error() string {
	return fmt.Sprintf("%s (record: %s)", r.Reason, r.RecordID)
}

func (r *Refusal) Unwrap() error { return r.Err }

// Objection is what [Command.Check] returns to refuse a command for a reason of the engine's.
type Objection struct {
	Class  string
	Reason string
}

func (o *Objection) Error() string { return o.Reason }
