// Package session holds the rules of sessions: what the first exchange of a task lays down, and what
// every later one must equal.
//
// A session is one task of one sign-in, named by its txn. Every field is compared, so that nothing of one
// flow can be put into another: not the sign-in, the user, the login key, the first agent, nor what the
// user granted.
package session

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/strictjson"
)

// Class says which rule refused.
type Class string

// The classes of refusal.
const (
	ClassEnded      Class = "session.ended"      // over, or revoked
	ClassMismatch   Class = "session.mismatch"   // a field differs from the session's
	ClassUnknown    Class = "session.unknown"    // grants of a session that was never opened
	ClassPermission Class = "session.permission" // no configuration lets this agent open one with an ID token alone
)

// Refusal is why a subject may not use or open a session.
type Refusal struct {
	Class  Class
	Reason string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s", r.Class, r.Reason) }

func refuse(c Class, format string, args ...any) error {
	return &Refusal{c, fmt.Sprintf(format, args...)}
}

// Permission lets agents open sessions for users by an ID token alone, on the broker's word.
type Permission struct {
	Agents actor.PathPattern
	Issuer string // of the users
	// Subjects or Roles name the users; one that is in either may be acted for.
	Subjects []string
	Roles    []string
	Cap      actor.Details // ceiling of such a session
}

// Rules are what configuration says about sessions.
type Rules struct {
	Max  time.Duration // after auth_time
	Bare []Permission
}

// New is the session that a verified subject with a user grant would open now.
func (r Rules) New(s *actor.Subject, now time.Time) (state.Session, error) {
	if err := s.RequireFresh(now); err != nil {
		return state.Session{}, err
	}
	return state.Session{
		Txn: s.Txn, SID: s.SID, RootHash: s.RootHash, User: s.User, LoginKey: s.LoginKey, FirstAgent: s.Actors()[0],
		Cap: s.RootCap, Purpose: s.Purpose, AuthTime: s.AuthTime, ACR: s.ACR,
		Opened: now.Truncate(time.Microsecond), Ends: s.AuthTime.Add(r.Max),
	}, nil
}

// NewBare is the session that an agent would open now with an ID token alone, if it may.
func (r Rules) NewBare(s *actor.Subject, roles []string, now time.Time) (state.Session, error) {
	agent := s.Presenter()
	if err := s.RequireFresh(now); err != nil {
		return state.Session{}, err
	}
	if isThumbprint(s.Identity.Nonce) {
		// The user signs a grant for each agent of such a sign-in. An agent that holds one carries the ID token as
		// well, and must not trade the narrow grant for the whole of what configuration gives.
		return state.Session{}, refuse(ClassPermission, "this sign-in is bound to a login key; it opens sessions with the user's grant only")
	}
	if agent.Depth() != 1 {
		return state.Session{}, refuse(ClassPermission, "%s is not of the first level, and may not begin a chain", agent)
	}
	p, ok := r.permission(agent, s.User, roles)
	if !ok {
		return state.Session{}, refuse(ClassPermission, "no configuration lets %s open sessions for this user with an ID token alone", agent)
	}
	return state.Session{
		Txn: actor.NewHexID(), SID: s.SID, RootHash: s.RootHash, User: s.User, FirstAgent: agent, Cap: p.Cap,
		AuthTime: s.AuthTime, ACR: s.ACR, Opened: now.Truncate(time.Microsecond), Ends: s.AuthTime.Add(r.Max),
	}, nil
}

// isThumbprint says whether a nonce is a SHA-256 in base64url, as `deputy login` sends. An application that hands over ID
// tokens alone chooses its nonces otherwise.
func isThumbprint(nonce string) bool {
	b, err := strictjson.DecodeBase64URL(nonce)
	return err == nil && len(b) == sha256.Size
}

func (r Rules) permission(agent actor.AgentID, user actor.SubjectID, roles []string) (Permission, bool) {
	for _, p := range r.Bare {
		if p.Issuer != user.Issuer || !p.Agents.Match(agent) {
			continue
		}
		if slices.Contains(p.Subjects, user.Subject) || slices.ContainsFunc(p.Roles, func(want string) bool { return slices.Contains(roles, want) }) {
			return p, true
		}
	}
	return Permission{}, false
}

// Match refuses a subject that isn't of this session in every field, or a session that is over.
func Match(have state.Session, s *actor.Subject, now time.Time) error {
	if err := Live(have, now); err != nil {
		return err
	}
	for _, field := range []struct {
		name string
		same bool
	}{
		{"the sign-in", have.RootHash == s.RootHash},
		{"the user", have.User == s.User},
		{"sid", have.SID == s.SID},
		{"txn", s.Txn == have.Txn || s.Bare && s.Txn == ""},
		{"the login key", have.LoginKey == s.LoginKey && have.Bare() == s.Bare},
		{"the first agent", have.FirstAgent == s.Actors()[0]},
		{"auth_time", have.AuthTime.Equal(s.AuthTime)},
		{"acr", have.ACR == s.ACR},
		{"what the user granted", s.Bare || equal(have.Cap, s.RootCap)},
		{"the user's purpose", s.Bare || have.Purpose == s.Purpose},
	} {
		if !field.same {
			return refuse(ClassMismatch, "%s differs from what opened this session", field.name)
		}
	}
	if s.Bare && len(s.Hops) > 2 {
		// No user grant bounds the first agent's grant: the session does.
		first := s.Hops[1].Grant
		if first == nil {
			return refuse(ClassMismatch, "the first agent granted nothing")
		}
		if err := first.Cap.Within(have.Cap); err != nil {
			return refuse(ClassMismatch, "the first agent granted more than the session has: %v", err)
		}
	}
	return nil
}

// Live refuses a session that has ended.
func Live(have state.Session, now time.Time) error {
	switch {
	case !have.EndedAt.IsZero():
		return refuse(ClassEnded, "the session was ended at %s; sign in again", have.EndedAt.UTC().Format(time.RFC3339))
	case !now.Before(have.Ends):
		return refuse(ClassEnded, "the session reached its end at %s; sign in again", have.Ends.UTC().Format(time.RFC3339))
	}
	return nil
}

func equal(a, b actor.Details) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
