package tokenapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/session"
	"github.com/deputymesh/deputy/broker/state"
)

// exchange is one request on its way. What is known of it so far goes into its record, however it ends.
type exchange struct {
	api   *API
	agent actor.AgentID
	peer  []*x509.Certificate

	audience string
	subject  *actor.Subject // nil until verified
	session  state.Session
	roles    []string
	chain    *audit.Chain
	token    actor.Token
}

// answer is RFC 8693 §2.2.1 and RFC 9396 §7.
type answer struct {
	AccessToken     string        `json:"access_token"`
	IssuedTokenType string        `json:"issued_token_type"`
	TokenType       string        `json:"token_type"`
	ExpiresIn       int64         `json:"expires_in"`
	Scope           string        `json:"scope,omitempty"`
	Details         actor.Details `json:"authorization_details"`
}

func (x *exchange) run(ctx context.Context, w http.ResponseWriter, r *http.Request) (*answer, error) {
	a := x.api
	// 1. What is asked for.
	req, err := a.readExchange(w, r, x.agent)
	if err != nil {
		return nil, err
	}
	at := req.target.ID(a.cfg.TrustDomain)
	x.audience = at.String()
	if err := a.cfg.Ready(); err != nil {
		return nil, unavailable("not-ready", "the broker can't hear which agents have ended; try again in a moment", err)
	}

	// 2. Who asks, by whose authority: every hop, the sign-in, the revocations.
	x.subject, err = a.cfg.Verifier.VerifySubject(ctx, x.peer, req.subject)
	if err != nil {
		return nil, err
	}
	s := x.subject
	if bareOnly := s.Bare && len(s.Hops) == 2; bareOnly != req.bare {
		return nil, bad(codeRequest, "request.subject-type", "subject_token is not of the type that subject_token_type says")
	}
	if x.roles, err = a.cfg.Identity.Roles(s.Identity); err != nil {
		return nil, bad(codeRequest, string(actor.ClassIDToken), err.Error())
	}
	if want := a.cfg.Targets[req.target].Roles; len(want) > 0 &&
		!slices.ContainsFunc(want, func(r string) bool { return slices.Contains(x.roles, r) }) {
		return nil, bad(codeTarget, "target.roles", "the user has no role that may reach target "+req.target.String())
	}
	if err := x.enter(ctx, req); err != nil {
		return nil, err
	}

	// 3. The token: narrower than all of it.
	ceiling := s.Cap
	if ceiling == nil {
		ceiling = x.session.Cap
	}
	details, err := narrow(req, ceiling, at)
	if err != nil {
		return nil, err
	}
	now := a.cfg.Now()
	if now.Before(a.cfg.Cert.NotBefore) || !now.Before(a.cfg.Cert.Expires) {
		return nil, unavailable("token.key", "the broker's token key is not certified for now", nil)
	}
	x.token, err = s.Token(actor.TokenRequest{
		Mesh: a.cfg.Mesh, Target: at, Details: details, Roles: x.roles, Txn: x.session.Txn, Purpose: req.purpose,
		Now: now, NotAfter: earliest(x.session.Ends, now.Add(a.cfg.TokenTTL), a.cfg.Cert.Expires),
	})
	if err != nil {
		return nil, err
	}
	if !s.Bare && req.purpose != "" && req.purpose != s.Purpose {
		return nil, bad(codeRequest, string(actor.ClassTokenPurpose), "purpose differs from the user's")
	}
	signed, err := actor.SignToken(a.cfg.Key, a.cfg.Cert.KeyID(), x.token)
	if err != nil {
		return nil, err
	}

	// 4. Evidence before effect: nobody has the token yet.
	if err := x.record(ctx); err != nil {
		return nil, err
	}
	// 5. What was revoked while we were busy wins.
	if err := a.revokedSince(x.keys(), x.session.Txn); err != nil {
		return nil, err
	}
	out := &answer{
		AccessToken: signed, IssuedTokenType: typeAccessToken, TokenType: "Bearer",
		ExpiresIn: int64(x.token.Expires.Sub(now) / time.Second), Details: details,
	}
	if req.scopes != nil {
		out.Scope = strings.Join(req.scopes, " ")
	}
	return out, nil
}

// enter finds the session that the subject belongs to, or opens it.
func (x *exchange) enter(ctx context.Context, req exchangeRequest) error {
	a, s, now := x.api, x.subject, x.api.cfg.Now()
	var err error
	var found bool
	switch {
	case req.bare:
		x.session, found, err = a.cfg.State.BareSession(s.RootHash, agentMatch(x.agent), now)
	default:
		x.session, found, err = a.cfg.State.Session(s.Txn)
	}
	if err != nil {
		return unavailable("state", "the broker's state can't be read at the moment; try again", err)
	}
	if !found {
		if err := x.open(ctx, req); err != nil {
			return err
		}
	}
	x.chain = audit.FromSubject(s, a.cfg.Mesh, x.session.Txn)
	return session.Match(x.session, s, now)
}

// open lays the session down: evidence first, then the store.
func (x *exchange) open(ctx context.Context, req exchangeRequest) error {
	a, s, now := x.api, x.subject, x.api.cfg.Now()
	var want state.Session
	var err error
	opening := a.cfg.State.OpenSession
	switch {
	case req.bare:
		want, err = a.cfg.Sessions.NewBare(s, x.roles, now)
		opening = a.cfg.State.OpenBareSession
	case s.Bare:
		return &session.Refusal{Class: session.ClassUnknown, Reason: "these grants belong to no session; its first agent opens it with the ID token"}
	default:
		want, err = a.cfg.Sessions.New(s, now)
	}
	if err != nil {
		return err
	}
	var refused error
	x.session, _, err = opening(ctx, want, func() error {
		refused = x.recordOpening(ctx, req.subject, want)
		return refused
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return unavailable("state", "the session could not be stored; try again", err)
	}
	return nil
}

// recordOpening keeps the exact bytes of the sign-in and grants, and says who signed in and what began.
func (x *exchange) recordOpening(ctx context.Context, subject string, want state.Session) error {
	a, s := x.api, x.subject
	chain := audit.FromSubject(s, a.cfg.Mesh, want.Txn)
	digest, err := a.cfg.Log.PutEvidence(ctx, audit.KindSubject, []byte(subject))
	if err != nil {
		return noRecord(err)
	}
	chain.Presented = digest
	capability, err := json.Marshal(want.Cap)
	if err != nil {
		return err
	}
	authTime := want.AuthTime.UTC()
	rootType := "verified"
	if want.Bare() {
		rootType = "asserted"
	}
	pending := []*audit.Pending{
		a.cfg.Log.Submit(audit.Record{Session: want.SID, Chain: chain, Event: &audit.SignIn{
			Result: audit.Accepted, Issuer: want.User.Issuer, Subject: want.User.Subject, Session: want.SID,
			AuthTime: &authTime, ACR: want.ACR, LoginKey: want.LoginKey,
		}}),
		a.cfg.Log.Submit(audit.Record{Session: want.SID, Chain: chain, Event: &audit.SessionOpened{
			RootType: rootType, RootHash: want.RootHash, Issuer: want.User.Issuer, Subject: want.User.Subject,
			LoginKey: want.LoginKey, FirstAgent: want.FirstAgent.String(), Purpose: want.Purpose, Roles: x.roles,
			Cap: capability, Ends: want.Ends.UTC(),
		}}),
	}
	for _, p := range pending {
		if _, err := p.Receipt(ctx); err != nil {
			return noRecord(err)
		}
	}
	return nil
}

// record makes the exchange durable.
func (x *exchange) record(ctx context.Context) error {
	capability, err := json.Marshal(x.token.Details)
	if err != nil {
		return err
	}
	exp := x.token.Expires.UTC()
	_, err = x.api.cfg.Log.Append(ctx, audit.Record{Session: x.session.SID, Chain: x.chain, Event: &audit.Exchange{
		Result: audit.Accepted, Presenter: x.agent.String(), Audience: x.audience, TokenID: x.token.ID, Expires: &exp,
		Head: x.token.Head, Cap: capability, Roles: x.roles,
	}})
	if err != nil {
		return noRecord(err)
	}
	return nil
}

// refused records a refusal and returns its id, or none when even that fails.
func (x *exchange) refused(ctx context.Context, ref *refusal) audit.RecordID {
	if ref.class == classNoRecord {
		return ""
	}
	if x.chain == nil && !x.api.strikes.Allow(firstOf(x.agent).String(), x.api.cfg.Now()) {
		x.api.cfg.Log.Count(ref.class)
		return ""
	}
	rec := audit.Record{Chain: x.chain, Event: &audit.Exchange{
		Result: audit.Refusal, Presenter: x.agent.String(), Audience: x.audience, TokenID: x.token.ID,
		Error: ref.code, Class: ref.class, Reason: ref.reason,
	}}
	if x.subject != nil {
		rec.Session = x.subject.SID
	}
	// The caller may hang up; the record is made all the same.
	receipt, err := x.api.cfg.Log.Append(context.WithoutCancel(ctx), rec)
	if err != nil {
		x.api.cfg.Logger.ErrorContext(ctx, "a refused exchange is not in the log", "error", err)
		return ""
	}
	return receipt.RecordID
}

const classNoRecord = "record"

func noRecord(err error) error {
	return unavailable(classNoRecord, "the exchange could not be recorded, so there is no token", err)
}

// keys are all names under which the token could be revoked.
func (x *exchange) keys() []actor.RevocationKey {
	return append(x.subject.RevocationKeys(),
		actor.RevocationKey{Kind: actor.RevokeTxn, Value: x.session.Txn},
		actor.RevocationKey{Kind: actor.RevokeStatement, Issuer: x.api.cfg.Mesh, Value: x.token.ID},
		targetKey(x.token.Audience))
}

func earliest(first time.Time, rest ...time.Time) time.Time {
	for _, t := range rest {
		if t.Before(first) {
			first = t
		}
	}
	return first
}
