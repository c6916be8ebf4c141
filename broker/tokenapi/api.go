package tokenapi

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/limit"
	"github.com/deputymesh/deputy/broker/session"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
)

// Limits in exchanges per second and agent, and in revocations per second and tree of agents. An agent needs one
// exchange per target every few minutes.
const (
	exchangeRate  = 10
	exchangeBurst = 40
	revokeRate    = 0.2
	revokeBurst   = 20
	maxCallers    = 16384
	// Refusals of a tree of agents that are recorded one by one while nothing of a chain is verified; what exceeds it is
	// counted. The log has a budget for each task, but these belong to none.
	strikeRate  = 1
	strikeBurst = 100
)

// Target is what the broker knows of a target.
type Target struct {
	Kind target.Kind
	// Roles that may get tokens for it; none means every user.
	Roles []string
}

// Config makes an API. Everything is needed except Ready.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Mesh        string
	Verifier    *actor.Verifier
	State       *state.State
	Log         *audit.Log
	Logger      *slog.Logger
	Now         func() time.Time

	Key  crypto.Signer      // token key
	Cert actor.KeyStatement // of Key, by the certifying key

	Targets  map[target.Name]Target
	Identity claims.Mappings
	Sessions session.Rules
	TokenTTL time.Duration

	// Ready returns why exchanges can't be answered at the moment, such as that the issuer can't be heard.
	Ready func() error
}

// API answers agents.
type API struct {
	cfg       Config
	keys      jwks
	exchanges *limit.Limiter
	revokes   *limit.Limiter
	strikes   *limit.Limiter
}

// New checks the configuration.
func New(cfg Config) (*API, error) {
	switch {
	case cfg.Verifier == nil || cfg.State == nil || cfg.Log == nil || cfg.Key == nil || cfg.Now == nil || cfg.Logger == nil:
		return nil, errors.New("token API: a dependency is missing")
	case cfg.TokenTTL < time.Minute || cfg.TokenTTL > actor.TokenLife:
		return nil, fmt.Errorf("token API: tokens of %s: want 1m to %s", cfg.TokenTTL, actor.TokenLife)
	case cfg.Cert.Mesh != cfg.Mesh:
		return nil, fmt.Errorf("token API: the key statement is for %q, this mesh is %q", cfg.Cert.Mesh, cfg.Mesh)
	}
	pub, ok := cfg.Key.Public().(*ecdsa.PublicKey)
	if !ok || !pub.Equal(cfg.Cert.Key) {
		return nil, errors.New("token API: the key statement is about another key than the token key")
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	keys, err := newJWKS(pub)
	if err != nil {
		return nil, err
	}
	return &API{
		cfg: cfg, keys: keys,
		exchanges: limit.New(exchangeRate, exchangeBurst, maxCallers),
		revokes:   limit.New(revokeRate, revokeBurst, maxCallers),
		strikes:   limit.New(strikeRate, strikeBurst, maxCallers),
	}, nil
}

// Handler serves the mesh listener. Its connections must be mTLS with SVIDs of the trust domain.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", a.token)
	mux.HandleFunc("POST /revoke", a.revoke)
	mux.Handle("GET /jwks", a.JWKS())
	return mux
}

// peer is the agent at the other end of the connection.
func (a *API) peer(r *http.Request) (actor.AgentID, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return actor.AgentID{}, &refusal{status: http.StatusUnauthorized, code: codeClient, class: "peer.certificate", reason: "an X.509-SVID is needed"}
	}
	id, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
	if err != nil {
		return actor.AgentID{}, &refusal{status: http.StatusUnauthorized, code: codeClient, class: "peer.certificate", reason: "the certificate is no X.509-SVID", cause: err}
	}
	agent, err := actor.ParseAgentID(id)
	if err != nil {
		return actor.AgentID{}, bad(codeUnauthor, string(actor.ClassNotAgent), "only agents may call this")
	}
	return agent, nil
}

// endChunked ends the connection of a request in chunks, whatever is answered: a form has a length, and with chunks beside it
// two readers could find two requests (RFC 9112 §6.1).
func endChunked(w http.ResponseWriter, r *http.Request) {
	if len(r.TransferEncoding) > 0 {
		w.Header().Set("Connection", "close")
	}
}

// token serves the exchange.
func (a *API) token(w http.ResponseWriter, r *http.Request) {
	endChunked(w, r)
	ctx := r.Context()
	agent, err := a.peer(r)
	if err != nil {
		// Roles aren't agents and don't flood the log, but their attempts aren't worth a record each.
		a.cfg.Log.Count(classify(err).class)
		classify(err).write(w, "")
		return
	}
	if !a.exchanges.Allow(agent.String(), a.cfg.Now()) {
		a.cfg.Log.Count("rate")
		w.Header().Set("Retry-After", "1")
		(&refusal{status: http.StatusTooManyRequests, code: codeUnavailable, reason: "too many exchanges; an agent needs one per target every few minutes"}).write(w, "")
		return
	}
	x := &exchange{api: a, agent: agent, peer: r.TLS.PeerCertificates}
	answer, err := x.run(ctx, w, r)
	if err != nil {
		ref := classify(err)
		a.report(ctx, ref, agent)
		ref.write(w, x.refused(ctx, ref))
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

func (a *API) report(ctx context.Context, ref *refusal, agent actor.AgentID) {
	level := slog.LevelInfo
	if ref.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	a.cfg.Logger.Log(ctx, level, "exchange refused", "agent", agent.String(), "class", ref.class, "error", ref.cause)
}

// JWKS serves the public token key.
func (a *API) JWKS() http.Handler { return a.keys }

// revokedSince asks again, after the token was signed, whether anything of it is revoked.
func (a *API) revokedSince(keys []actor.RevocationKey, txn string) error {
	if err := a.cfg.State.Check(keys); err != nil {
		var revoked *actor.RevokedError
		if errors.As(err, &revoked) {
			return bad(codeRequest, string(actor.ClassRevoked), revoked.Error())
		}
		return unavailable(string(actor.ClassRevocationUnknown), "the broker doesn't know at the moment what is revoked; try again", err)
	}
	have, ok, err := a.cfg.State.Session(txn)
	if err != nil {
		return unavailable("state", "the broker's state can't be read at the moment; try again", err)
	}
	if !ok {
		return bad(codeRequest, string(session.ClassEnded), "the session is over")
	}
	return session.Live(have, a.cfg.Now())
}

func targetKey(id spiffeid.ID) actor.RevocationKey {
	return actor.RevocationKey{Kind: actor.RevokeTarget, Value: id.String()}
}

func agentMatch(a actor.AgentID) feed.Match { return feed.Match{Kind: feed.Agent, Value: a.String()} }
