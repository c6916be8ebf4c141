package audit

import (
	"encoding/json"
	"errors"
	"sync"
	"time"
)

// Chain is who acts for whom, as a record shows it: the user, then every agent, outermost first. Make
// one per session with [FromActor] and put the same pointer on every record; it must not be changed
// after its first use, since its encoding is kept.
type Chain struct {
	Txn      string     `json:"txn"`                // the task tree
	User     User       `json:"user"`               // who it all starts with
	Hops     []Hop      `json:"hops,omitempty"`     // the agents, outermost first; the last one is the presenter
	Audience string     `json:"audience,omitempty"` // target of the delegated token, when there is one
	TokenID  string     `json:"token_jti,omitempty"`
	Issuer   string     `json:"token_iss,omitempty"` // the broker that countersigned
	Expires  *time.Time `json:"exp,omitempty"`       // end of the delegated token
	// Cap is the authorization_details of the delegated token.
	Cap json.RawMessage `json:"cap,omitempty"`
	// Credential is the digest of the exact bytes presented, kept by PutEvidence.
	Credential Digest `json:"credential,omitempty"`
	// Evidence lists digests of what the credential was verified against: trust bundles, token keys, provider keys.
	Evidence []Digest `json:"evidence,omitempty"`

	once sync.Once
	json []byte
	err  error
}

// User is the first hop.
type User struct {
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Name     string          `json:"name,omitempty"` // as the identity provider shows it; for people only
	Session  string          `json:"sid,omitempty"`
	AuthTime *time.Time      `json:"auth_time,omitempty"`
	ACR      string          `json:"acr,omitempty"`
	Roles    []string        `json:"roles,omitempty"`
	Grade    string          `json:"grade"` // `verified` (nonce and login key) or `asserted` (the broker's word)
	Purpose  string          `json:"purpose,omitempty"`
	GrantID  string          `json:"grant_jti,omitempty"`
	Cap      json.RawMessage `json:"cap,omitempty"`
	Left     *int            `json:"left,omitempty"`
	Expires  *time.Time      `json:"exp,omitempty"`
}

// Hop is one agent and the grant that it got, and what that grant still allowed.
type Hop struct {
	ID      string          `json:"id"`    // SPIFFE ID
	Grade   string          `json:"grade"` // `attested` or `asserted`, by the issuer
	Purpose string          `json:"purpose,omitempty"`
	GrantID string          `json:"grant_jti,omitempty"` // the grant that named this agent
	Cap     json.RawMessage `json:"cap,omitempty"`       // ceiling in that grant
	Left    *int            `json:"left,omitempty"`      // delegations still allowed by that grant
	Expires *time.Time      `json:"exp,omitempty"`       // end of that grant
	Serial  string          `json:"serial,omitempty"`    // serial number of the SVID, hex
}

// MarshalJSON encodes the chain once and keeps the bytes.
func (c *Chain) MarshalJSON() ([]byte, error) { return c.encoded() }

func (c *Chain) encoded() ([]byte, error) {
	c.once.Do(func() {
		type plain Chain
		c.json, c.err = compactJSON((*plain)(c))
		if c.err == nil && (c.Txn == "" || c.User.Subject == "") {
			c.err = errors.New("no txn or no user")
		}
	})
	return c.json, c.err
}
