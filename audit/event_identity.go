package audit

import (
	"encoding/json"
	"errors"
	"time"
)

// SignIn is a user's sign-in, seen by the broker.
type SignIn struct {
	Result   Result     `json:"result"`
	Issuer   string     `json:"iss"`
	Subject  string     `json:"sub,omitempty"`
	Session  string     `json:"sid,omitempty"`
	AuthTime *time.Time `json:"auth_time,omitempty"`
	ACR      string     `json:"acr,omitempty"`
	AMR      []string   `json:"amr,omitempty"`
	LoginKey string     `json:"login_key,omitempty"` // RFC 7638 thumbprint, the nonce
	Class    string     `json:"class,omitempty"`     // class of the refusal
	Reason   string     `json:"reason,omitempty"`
	Client   string     `json:"client,omitempty"` // address it came from
}

// SessionOpened is the first exchange of a task tree.
type SessionOpened struct {
	RootType   string          `json:"root_type"` // `verified` (user grant) or `asserted` (the broker's word)
	RootHash   string          `json:"root_hash,omitempty"`
	Issuer     string          `json:"iss"`
	Subject    string          `json:"sub"`
	LoginKey   string          `json:"login_key,omitempty"`
	FirstAgent string          `json:"first_agent"`
	Purpose    string          `json:"purpose,omitempty"`
	Roles      []string        `json:"roles,omitempty"`
	Cap        json.RawMessage `json:"cap,omitempty"`
	Ends       time.Time       `json:"ends"`
}

// SessionEnded is the end of a session, at its limit, by its owner, or by a revocation.
type SessionEnded struct {
	Reason string `json:"reason"` // `expired`, `logout`, `revoked`
	By     string `json:"by,omitempty"`
}

// Exchange is one RFC 8693 token exchange.
type Exchange struct {
	Result    Result          `json:"result"`
	Presenter string          `json:"presenter"` // SPIFFE ID of the TLS peer
	Audience  string          `json:"audience,omitempty"`
	TokenID   string          `json:"jti,omitempty"`
	Expires   *time.Time      `json:"exp,omitempty"`
	Head      string          `json:"head,omitempty"` // hash of the newest grant
	Cap       json.RawMessage `json:"cap,omitempty"`
	Roles     []string        `json:"roles,omitempty"`
	Error     string          `json:"error,omitempty"` // OAuth error code of a refusal
	Class     string          `json:"class,omitempty"` // class of the refusal
	Reason    string          `json:"reason,omitempty"`
}

// Spawn is the issuer's registration of an agent, or its refusal.
type Spawn struct {
	Result   Result     `json:"result"`
	Agent    string     `json:"agent,omitempty"`
	Parent   string     `json:"parent,omitempty"` // empty for a first-level agent
	Name     string     `json:"name"`
	Purpose  string     `json:"purpose,omitempty"`
	Grade    string     `json:"grade,omitempty"`
	Attested []Selector `json:"attested,omitempty"` // uid, binary_sha256, cgroup …
	Serial   string     `json:"serial,omitempty"`
	NotAfter *time.Time `json:"not_after,omitempty"`
	Class    string     `json:"class,omitempty"`
	Reason   string     `json:"reason,omitempty"`
}

// Selector is one fact that the kernel vouched for.
type Selector struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// AgentEnded is the end of an agent and of all below it.
type AgentEnded struct {
	Agent       string `json:"agent"`
	Reason      string `json:"reason"` // `exited`, `lost`, `revoked`, `expired`
	Descendants int    `json:"descendants,omitempty"`
}

// JWTSVID is a JWT-SVID that is about to be signed, or one that was refused.
type JWTSVID struct {
	Result   Result     `json:"result"`
	Subject  string     `json:"sub,omitempty"` // SPIFFE ID; empty where the caller has none
	Audience []string   `json:"aud,omitempty"`
	TokenID  string     `json:"jti,omitempty"`
	KeyID    string     `json:"kid,omitempty"`
	Expires  *time.Time `json:"exp,omitempty"`
	Attested []Selector `json:"attested,omitempty"` // of who asked
	Class    string     `json:"class,omitempty"`
	Reason   string     `json:"reason,omitempty"`
}

// Revoked is a revocation and what it ended at once.
type Revoked struct {
	ID       string     `json:"id,omitempty"`
	Kind     string     `json:"kind"` // `user`, `session`, `task`, `agent`, `edge`, `grant`, `target`
	Issuer   string     `json:"iss,omitempty"`
	Value    string     `json:"value"`
	Delegate string     `json:"delegate,omitempty"` // second end of an edge
	By       string     `json:"by,omitempty"`
	Reason   string     `json:"reason,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
	Revision int64      `json:"revision,omitempty"`
	Sessions int        `json:"sessions_ended,omitempty"` // live connections that it ended here
}

// OperatorCall is one call of the operators' API, allowed or not.
type OperatorCall struct {
	Result   Result   `json:"result"`
	Call     string   `json:"call"`
	Issuer   string   `json:"iss,omitempty"`
	Subject  string   `json:"sub,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	Object   string   `json:"object,omitempty"`
	Before   Digest   `json:"before,omitempty"`
	After    Digest   `json:"after,omitempty"`
	Class    string   `json:"class,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	ClientIP string   `json:"client,omitempty"`
}

// PolicyLoaded is a policy set that came into force, or was refused while the last one stays.
type PolicyLoaded struct {
	Result  Result `json:"result"`
	Set     string `json:"set,omitempty"`
	Version int64  `json:"version,omitempty"`
	Digest  Digest `json:"digest,omitempty"`
	Key     string `json:"key,omitempty"` // the key that signed it
	Reason  string `json:"reason,omitempty"`
}

func need(members ...string) error {
	for i := 0; i < len(members); i += 2 {
		if members[i+1] == "" {
			return errors.New("event lacks " + members[i])
		}
	}
	return nil
}

func needResult(r Result) error {
	if r != Accepted && r != Refusal {
		return errors.New("event: result must be accepted or refused")
	}
	return nil
}

func (*SignIn) EventType() Type        { return TypeSignIn }
func (*SessionOpened) EventType() Type { return TypeSessionOpened }
func (*SessionEnded) EventType() Type  { return TypeSessionEnded }
func (*Exchange) EventType() Type      { return TypeExchange }
func (*Spawn) EventType() Type         { return TypeSpawn }
func (*AgentEnded) EventType() Type    { return TypeAgentEnded }
func (*JWTSVID) EventType() Type       { return TypeJWTSVID }
func (*Revoked) EventType() Type       { return TypeRevoked }
func (*OperatorCall) EventType() Type  { return TypeOperatorCall }
func (*PolicyLoaded) EventType() Type  { return TypePolicyLoaded }

func (e *SignIn) check() error { return errors.Join(needResult(e.Result), need("iss", e.Issuer)) }
func (e *SessionOpened) check() error {
	if e.RootType != "verified" && e.RootType != "asserted" {
		return errors.New("session_opened: root_type must be verified or asserted")
	}
	return need("iss", e.Issuer, "sub", e.Subject, "first_agent", e.FirstAgent)
}
func (e *SessionEnded) check() error { return need("reason", e.Reason) }
func (e *Exchange) check() error {
	return errors.Join(needResult(e.Result), need("presenter", e.Presenter))
}
func (e *Spawn) check() error        { return errors.Join(needResult(e.Result), need("name", e.Name)) }
func (e *AgentEnded) check() error   { return need("agent", e.Agent, "reason", e.Reason) }
func (e *JWTSVID) check() error      { return needResult(e.Result) }
func (e *Revoked) check() error      { return need("kind", e.Kind, "value", e.Value) }
func (e *OperatorCall) check() error { return errors.Join(needResult(e.Result), need("call", e.Call)) }
func (e *PolicyLoaded) check() error { return needResult(e.Result) }
