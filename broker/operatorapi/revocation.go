package operatorapi

import (
	"context"
	"fmt"
	"net/http"
	"time"
	"unicode"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/deputymesh/deputy/internal/target"
)

const (
	maxReason   = 500
	longestLife = 366 * 24 * time.Hour
	// shortestLife is longer than any token lives. A revocation also ends the sessions that it concerns
	// for good, so that nothing comes back when it is forgotten.
	shortestLife = 15 * time.Minute
)

type revocationRequest struct {
	Kind     string `json:"kind"`
	Issuer   string `json:"iss,omitempty"`
	Subject  string `json:"sub,omitempty"`
	Value    string `json:"value,omitempty"`
	Delegate string `json:"delegate,omitempty"`
	Reason   string `json:"reason,omitempty"`
	For      string `json:"for,omitempty"`
}

type revocationAnswer struct {
	ID       string    `json:"id"`
	Revision uint64    `json:"revision"`
	Expires  time.Time `json:"expires_at"`
	Applied  []Applied `json:"applied"`
	Pending  []string  `json:"pending"`
}

// match reads what is to be revoked. A user's value is sub; value is taken for it as well, but not both.
func (q revocationRequest) match() (feed.Match, error) {
	m := feed.Match{Kind: feed.Kind(q.Kind), Issuer: q.Issuer, Value: q.Value, Delegate: q.Delegate}
	if q.Subject != "" {
		if m.Kind != feed.User || q.Value != "" {
			return feed.Match{}, fmt.Errorf("sub is for kind user, and stands instead of value")
		}
		m.Value = q.Subject
	}
	return m, m.Check()
}

// life is how long the revocation is kept: as asked, but never so short that something that it covers
// could outlive it.
func (q revocationRequest) life(kind feed.Kind, session time.Duration) (time.Duration, error) {
	least := shortestLife
	switch kind {
	case feed.Agent, feed.Edge, feed.Grant, feed.Session, feed.Task:
		least = session + shortestLife
	}
	if q.For == "" {
		return max(least, session+shortestLife), nil
	}
	d, err := time.ParseDuration(q.For)
	if err != nil || d <= 0 || d > longestLife {
		return 0, fmt.Errorf("for is %q: want a time such as 12h, at most %s", q.For, longestLife)
	}
	return max(least, d), nil
}

func (a *API) revoke(ctx context.Context, who caller, body []byte) (string, any, *failure) {
	var q revocationRequest
	if err := strictjson.Unmarshal(body, &q); err != nil {
		return "", nil, fail(http.StatusBadRequest, "request", "the body is no revocation: %v", err)
	}
	of, err := q.match()
	if err != nil {
		return "", nil, fail(http.StatusBadRequest, "request", "%v", err)
	}
	if len(q.Reason) > maxReason || !printable(q.Reason) {
		return of.String(), nil, fail(http.StatusBadRequest, "request", "reason is longer than %d bytes or not plain text", maxReason)
	}
	life, err := q.life(of.Kind, a.cfg.MaxSession)
	if err != nil {
		return of.String(), nil, fail(http.StatusBadRequest, "request", "%v", err)
	}
	if of.Kind == feed.Target {
		if name, err := target.ParseName(of.Value); err != nil || !a.cfg.Targets[name] {
			return of.String(), nil, fail(http.StatusBadRequest, "request", "there is no target %s", of.Value)
		}
	}
	if f := a.mayRevoke(who, of); f != nil {
		return of.String(), nil, f
	}

	now := a.cfg.Now().Truncate(time.Microsecond)
	done, err := a.cfg.State.Revoke(ctx, state.Revocation{By: who.name(), Revocation: feed.Revocation{
		ID: actor.NewHexID(), Of: of, IssuedAt: now, ExpiresAt: now.Add(life), Reason: q.Reason,
	}}, func(r state.Revocation, ends []state.Session) error { return a.recordRevocation(ctx, who, r, ends) })
	if err != nil {
		return of.String(), nil, &failure{http.StatusServiceUnavailable, "state", "the revocation could not be recorded and stored; nothing was revoked for certain, try again", err}
	}
	waiting, cancel := context.WithTimeout(ctx, a.cfg.Wait)
	defer cancel()
	applied, pending := a.cfg.Applier.Wait(waiting, done.Revision)
	return of.String(), revocationAnswer{ID: done.ID, Revision: done.Revision, Expires: done.ExpiresAt, Applied: applied, Pending: pending}, nil
}

// mayRevoke lets admins revoke everything and a user his own sessions and tasks.
func (a *API) mayRevoke(who caller, of feed.Match) *failure {
	if who.admin {
		return nil
	}
	if of.Kind != feed.Session && of.Kind != feed.Task {
		return fail(http.StatusForbidden, "role", "only an admin may revoke a %s; everybody may revoke his own sessions and tasks", of.Kind)
	}
	all, err := a.cfg.State.SessionsOf(of)
	if err != nil {
		return &failure{http.StatusServiceUnavailable, "state", "the broker's state can't be read at the moment; try again", err}
	}
	own := len(all) > 0
	for _, s := range all {
		own = own && s.User == actor.SubjectID{Issuer: who.claims.Issuer, Subject: who.claims.Subject}
	}
	if !own {
		// The same answer whether it is somebody else's or nobody's.
		return fail(http.StatusForbidden, "role", "this %s is not yours", of.Kind)
	}
	return nil
}

// recordRevocation is evidence before effect: the call, the revocation and the sessions that it ends.
func (a *API) recordRevocation(ctx context.Context, who caller, r state.Revocation, ends []state.Session) error {
	until := r.ExpiresAt.UTC()
	pending := []*audit.Pending{
		a.cfg.Log.Submit(audit.Record{Event: &audit.OperatorCall{
			Result: audit.Accepted, Call: ActRevoke, Issuer: who.claims.Issuer, Subject: who.claims.Subject, Roles: who.roles(),
			Object: r.Of.String(), ClientIP: who.from, Reason: r.Reason,
		}}),
		a.cfg.Log.Submit(audit.Record{Event: &audit.Revoked{
			ID: r.ID, Kind: string(r.Of.Kind), Issuer: r.Of.Issuer, Value: r.Of.Value, Delegate: r.Of.Delegate, By: r.By, Reason: r.Reason,
			Until: &until, Revision: int64(r.Revision),
		}}),
	}
	for _, s := range ends {
		pending = append(pending, a.cfg.Log.Submit(audit.Record{Txn: s.Txn, Session: s.SID, Event: &audit.SessionEnded{Reason: "revoked", By: r.By}}))
	}
	for _, p := range pending {
		if _, err := p.Receipt(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("recording the revocation: %w", err)
		}
	}
	return nil
}

func printable(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
