package tokenapi

import (
	"context"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
)

// revoke serves RFC 7009. An agent may give up a token that it or an agent below it got in its chain, and
// a grant that it signed itself, with everything that hangs on it. What isn't one of these is answered
// with 200, as RFC 7009 §2.2 wants, and changes nothing.
func (a *API) revoke(w http.ResponseWriter, r *http.Request) {
	endChunked(w, r)
	ctx := r.Context()
	agent, err := a.peer(r)
	if err == nil && !a.revokes.Allow(firstOf(agent).String(), a.cfg.Now()) {
		w.Header().Set("Retry-After", "5")
		err = &refusal{status: http.StatusTooManyRequests, code: codeUnavailable, class: "rate", reason: "too many revocations"}
	}
	if err != nil {
		a.cfg.Log.Count(classify(err).class)
		classify(err).write(w, "")
		return
	}
	form, err := readForm(w, r, "token", "token_type_hint", "client_id")
	if err == nil && form.Get("token") == "" {
		err = bad(codeRequest, "request.token", "token is missing")
	}
	if err != nil {
		classify(err).write(w, "")
		return
	}
	of, until, ok := a.ownStatement(form.Get("token"), agent, r.TLS.PeerCertificates[0].NotAfter)
	if ok {
		if err := a.giveUp(ctx, agent, of, until); err != nil {
			a.cfg.Logger.ErrorContext(ctx, "an agent's revocation failed", "agent", agent.String(), "error", err)
			unavailable("state", "the revocation could not be stored; try again", err).write(w, "")
			return
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// firstOf is the agent of the first level above an agent. Revocations are counted by it: an agent starts as many others as
// it likes, and each of their revocations goes to every proxy and is remembered for as long as an SVID lives.
func firstOf(a actor.AgentID) actor.AgentID {
	for up, ok := a.Parent(); ok; up, ok = up.Parent() {
		a = up
	}
	return a
}

// ownStatement says what may be revoked by agent, and how long the revocation must be remembered. end is
// the end of the agent's SVID, which none of its grants outlives.
func (a *API) ownStatement(raw string, agent actor.AgentID, end time.Time) (feed.Match, time.Time, bool) {
	now := a.cfg.Now()
	if t, err := actor.ParseToken(raw); err == nil {
		signed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			return feed.Match{}, time.Time{}, false
		}
		if _, err := signed.Verify(a.cfg.Cert.Key); err != nil || t.Issuer != a.cfg.Mesh {
			return feed.Match{}, time.Time{}, false
		}
		for _, in := range t.Actors {
			if in == agent {
				return feed.Match{Kind: feed.Grant, Issuer: t.Issuer, Value: t.ID}, t.Expires, now.Before(t.Expires.Add(actor.Skew))
			}
		}
		return feed.Match{}, time.Time{}, false
	}
	// A grant needs no check of its signature: whoever is the peer can only name statements of its own.
	g, err := actor.ParseGrant(raw)
	if err != nil || g.Issuer != agent || !now.Before(g.Expires.Add(actor.Skew)) {
		return feed.Match{}, time.Time{}, false
	}
	return feed.Match{Kind: feed.Grant, Issuer: g.Issuer.String(), Value: g.ID}, earliest(g.Expires, end), true
}

func (a *API) giveUp(ctx context.Context, agent actor.AgentID, of feed.Match, until time.Time) error {
	// Times are compared with skew, so the statement lives that much longer.
	r := state.Revocation{By: agent.String(), Revocation: feed.Revocation{
		ID: actor.NewHexID(), Of: of, IssuedAt: a.cfg.Now().Truncate(time.Microsecond), ExpiresAt: until.Add(2 * actor.Skew), Reason: "given up by an agent",
	}}
	_, err := a.cfg.State.Revoke(ctx, r, func(r state.Revocation, _ []state.Session) error {
		until := r.ExpiresAt.UTC()
		_, err := a.cfg.Log.Append(ctx, audit.Record{Event: &audit.Revoked{
			ID: r.ID, Kind: string(r.Of.Kind), Issuer: r.Of.Issuer, Value: r.Of.Value, By: r.By, Reason: r.Reason, Until: &until, Revision: int64(r.Revision),
		}})
		return err
	})
	return err
}
