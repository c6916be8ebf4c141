package audit

import (
	"errors"
	"fmt"
	"time"
)

// ConnectionOpened is an agent's connection that was let through to a target, before any command.
type ConnectionOpened struct {
	Target   string `json:"target"`
	Protocol string `json:"protocol"`
	Client   string `json:"client,omitempty"` // address it came from
	TLS      string `json:"tls,omitempty"`
	Account  string `json:"account,omitempty"`  // account used upstream
	Database string `json:"database,omitempty"` // or namespace, or host
	Upstream string `json:"upstream,omitempty"` // address it goes to
}

// ConnectionClosed is its end.
type ConnectionClosed struct {
	Reason   string       `json:"reason"` // `client`, `upstream`, `expired`, `revoked`, `shutdown`, `error`
	Commands int64        `json:"commands,omitempty"`
	Duration Microseconds `json:"us,omitempty"`
	Detail   string       `json:"detail,omitempty"`
}

// Object is what a command touches.
type Object struct {
	Kind    string   `json:"kind"` // `table`, `function`, `path` …
	Name    string   `json:"name"`
	Columns []string `json:"columns,omitempty"`
	Write   bool     `json:"write,omitempty"`
}

// Text is a command's text with its literals taken out. Make it with [Log.Text].
type Text struct {
	Scrubbed  string `json:"scrubbed"`
	Truncated bool   `json:"truncated,omitempty"` // Scrubbed was cut to fit
	Bytes     int    `json:"bytes"`               // length of the exact text
	// Hash is HMAC-SHA-256 of the exact text under the log's hash key, base64url; empty without a key.
	Hash string `json:"hmac_sha256,omitempty"`
}

// Obligation is what an allowed command is bound to.
type Obligation struct {
	Name  string `json:"name"` // `mask`, `limit` …
	Value string `json:"value,omitempty"`
}

// Decision is the answer to one command, written before it has any effect.
type Decision struct {
	Effect    Effect   `json:"effect"`
	Target    string   `json:"target"`
	Action    string   `json:"action"` // `postgres:select` …
	Objects   []Object `json:"objects,omitempty"`
	Statement *Text    `json:"statement,omitempty"`
	ReadOnly  bool     `json:"read_only,omitempty"` // proven; may run while this is made durable
	Account   string   `json:"account,omitempty"`

	Policies      []string     `json:"policies,omitempty"` // that made the decision
	PolicySet     string       `json:"policy_set,omitempty"`
	PolicyVersion int64        `json:"policy_version,omitempty"`
	PolicyDigest  Digest       `json:"policy_digest,omitempty"`
	Obligations   []Obligation `json:"obligations,omitempty"`

	Class  string       `json:"class,omitempty"` // class of a refusal: `capability`, `policy`, `unparsable` …
	Reason string       `json:"reason,omitempty"`
	Took   Microseconds `json:"us,omitempty"`
}

// Forwarded says that the command left for the target. It is left out where the outcome follows within milliseconds.
type Forwarded struct {
	Bytes int64 `json:"bytes,omitempty"`
}

// MaskedCount counts values withheld or replaced; never the values.
type MaskedCount struct {
	Rule   string `json:"rule"` // `email`, `withheld` …
	Column string `json:"column,omitempty"`
	Values int64  `json:"values"`
}

// Masked is what was masked in one answer.
type Masked struct {
	Counts []MaskedCount `json:"counts"`
}

// Completed is the outcome of a forwarded command, or of one that was allowed and then not sent.
type Completed struct {
	Status   string        `json:"status"` // `ok`, `error`, `cancelled`, `cut` (expired, revoked or limited), `not_sent`
	Command  string        `json:"command,omitempty"`
	Rows     int64         `json:"rows,omitempty"`
	Affected int64         `json:"affected,omitempty"`
	BytesIn  int64         `json:"bytes_in,omitempty"`  // to the target
	BytesOut int64         `json:"bytes_out,omitempty"` // to the agent
	Code     string        `json:"code,omitempty"`      // SQLSTATE, exit status, HTTP status
	Limit    string        `json:"limit,omitempty"`     // the limit that cut it
	Masked   []MaskedCount `json:"masked,omitempty"`
	Duration Microseconds  `json:"us,omitempty"`
}

// OutcomeUnknown stands for the outcome of a decision that was open when the log ended.
type OutcomeUnknown struct {
	Forwarded bool   `json:"forwarded"` // a forwarded record was found; without one it may have left all the same
	Reason    string `json:"reason"`
}

// Refused is a refusal before or instead of a decision. Count > 1: an aggregate, where nobody is
// authenticated yet or a quota is used up.
type Refused struct {
	Class  string     `json:"class"` // `tls`, `credential`, `revoked`, `over_quota` …
	Reason string     `json:"reason,omitempty"`
	Target string     `json:"target,omitempty"`
	Peer   string     `json:"peer,omitempty"`   // SPIFFE ID of the TLS peer, where mTLS succeeded
	Client string     `json:"client,omitempty"` // address it came from
	Count  int64      `json:"count,omitempty"`
	Since  *time.Time `json:"since,omitempty"`

	txn   string // of an aggregate
	chain *Chain
}

func (*ConnectionOpened) EventType() Type { return TypeConnectionOpened }
func (*ConnectionClosed) EventType() Type { return TypeConnectionClosed }
func (*Decision) EventType() Type         { return TypeDecision }
func (*Forwarded) EventType() Type        { return TypeForwarded }
func (*Masked) EventType() Type           { return TypeMasked }
func (*Completed) EventType() Type        { return TypeCompleted }
func (*OutcomeUnknown) EventType() Type   { return TypeOutcomeUnknown }
func (*Refused) EventType() Type          { return TypeRefused }

func (e *ConnectionOpened) check() error {
	return need("target", e.Target, "protocol", e.Protocol)
}
func (e *ConnectionClosed) check() error { return need("reason", e.Reason) }
func (e *Decision) check() error {
	if e.Effect != Allow && e.Effect != Refuse {
		return errors.New("decision: effect must be allow or refuse")
	}
	if e.Effect == Refuse && e.Class == "" {
		return errors.New("decision: a refusal needs a class")
	}
	return need("target", e.Target, "action", e.Action)
}
func (e *Forwarded) check() error { return nil }
func (e *Masked) check() error {
	if len(e.Counts) == 0 {
		return errors.New("event lacks counts")
	}
	return nil
}
func (e *Completed) check() error {
	switch e.Status {
	case "ok", "error", "cancelled", "cut", "not_sent":
		return nil
	}
	return fmt.Errorf("completed: unknown status %q", clip(e.Status, 40))
}
func (e *OutcomeUnknown) check() error { return need("reason", e.Reason) }
func (e *Refused) check() error        { return need("class", e.Class) }
