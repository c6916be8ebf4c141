package operatorapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/limit"
	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/policy"
)

// ProofHeader carries the deputy-operator+jwt.
const ProofHeader = "Deputy-Operator-Proof"

// The names of the calls in a proof.
const (
	ActRevoke = "revoke"
	ActPolicy = "policy"
)

const (
	maxRevocation = 16 << 10 // bytes of a revocation's body
	// Calls per second of one address that are looked at.
	callRate   = 10
	callBurst  = 100
	maxCallers = 16384
)

// Applied is what one proxy did with a revision.
type Applied struct {
	Proxy         string `json:"proxy"`
	SessionsEnded uint32 `json:"sessions_ended"`
}

// Applier knows which proxies have a revision in force. Wait returns when all have it or ctx ends.
type Applier interface {
	Wait(ctx context.Context, revision uint64) (applied []Applied, pending []string)
}

// Config makes an API. Everything is needed.
type Config struct {
	Mesh     string
	Tokens   actor.IdentityTokens
	Identity claims.Mappings
	State    *state.State
	Log      *audit.Log
	Logger   *slog.Logger
	Now      func() time.Time
	Applier  Applier
	// OpenPolicy verifies a signed set as far as the broker can.
	OpenPolicy func(signed string) (*policy.Set, error)
	Targets    map[target.Name]bool
	MaxSession time.Duration
	Wait       time.Duration // longest wait for proxies; default 2 s
}

// API answers operators.
type API struct {
	cfg     Config
	limiter *limit.Limiter
}

// New checks the configuration.
func New(cfg Config) (*API, error) {
	if cfg.Tokens == nil || cfg.State == nil || cfg.Log == nil || cfg.Logger == nil || cfg.Now == nil || cfg.Applier == nil || cfg.OpenPolicy == nil {
		return nil, errors.New("operator API: a dependency is missing")
	}
	if cfg.Wait <= 0 {
		cfg.Wait = 2 * time.Second
	}
	return &API{cfg: cfg, limiter: limit.New(callRate, callBurst, maxCallers)}, nil
}

// Handler serves /operator/v1/.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /operator/v1/revocations", a.serve(ActRevoke, maxRevocation, a.revoke))
	mux.HandleFunc("POST /operator/v1/policy", a.serve(ActPolicy, policy.MaxSignedBytes, a.policy))
	return mux
}

// caller is who signed in.
type caller struct {
	claims actor.IdentityClaims
	admin  bool
	from   string // address
}

func (c caller) name() string {
	return actor.SubjectID{Issuer: c.claims.Issuer, Subject: c.claims.Subject}.String()
}

func (c caller) roles() []string {
	if c.admin {
		return []string{string(claims.Admin)}
	}
	return nil
}

// failure is what a caller is told.
type failure struct {
	status int
	class  string
	reason string
	cause  error // for the broker's own log only
}

func (f *failure) Error() string { return f.reason }

func fail(status int, class, format string, args ...any) *failure {
	return &failure{status: status, class: class, reason: fmt.Sprintf(format, args...)}
}

// call is one kind of call: it does what was asked and returns what it was about, and the answer.
type call func(ctx context.Context, who caller, body []byte) (object string, answer any, err *failure)

func (a *API) serve(act string, limit int64, do call) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		from, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			from = r.RemoteAddr
		}
		if !a.limiter.Allow(from, a.cfg.Now()) {
			w.Header().Set("Retry-After", "1")
			write(w, fail(http.StatusTooManyRequests, "rate", "too many operator calls; try again"), "")
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		if err != nil {
			write(w, fail(http.StatusRequestEntityTooLarge, "size", "the body is larger than %d bytes, or could not be read", limit), "")
			return
		}
		who, f := a.authenticate(ctx, r, act, body)
		who.from = from
		if f != nil {
			// Nobody in particular: counted, not recorded one by one.
			a.cfg.Log.Count("operator." + f.class)
			a.cfg.Logger.InfoContext(ctx, "operator call refused", "call", act, "class", f.class, "reason", f.reason, "error", f.cause)
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			write(w, f, "")
			return
		}
		object, answer, f := do(ctx, who, body)
		if f != nil {
			id := a.record(ctx, act, who, object, audit.Refusal, f)
			a.cfg.Logger.WarnContext(ctx, "operator call refused", "call", act, "class", f.class, "reason", f.reason, "error", f.cause)
			write(w, f, id)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// authenticate asks for both: the sign-in, and the key that it vouches for.
func (a *API) authenticate(ctx context.Context, r *http.Request, act string, body []byte) (caller, *failure) {
	var none caller
	auth, proofs := r.Header.Values("Authorization"), r.Header.Values(ProofHeader)
	if len(auth) != 1 || len(proofs) != 1 {
		return none, fail(http.StatusUnauthorized, "missing", "send one Authorization: Bearer <ID token> and one %s", ProofHeader)
	}
	raw, ok := strings.CutPrefix(auth[0], "Bearer ")
	if !ok {
		return none, fail(http.StatusUnauthorized, "missing", "Authorization must be Bearer <ID token>")
	}
	token, err := a.cfg.Tokens.VerifyIDToken(ctx, raw)
	if err != nil {
		return none, &failure{http.StatusUnauthorized, "id-token", "the ID token is refused; sign in again", err}
	}
	now := a.cfg.Now()
	if !now.Before(token.Expires) || !now.Before(token.AuthenticatedAt().Add(a.cfg.MaxSession)) {
		return none, fail(http.StatusUnauthorized, "expired", "the sign-in has expired; sign in again")
	}
	proof, err := actor.VerifyOperatorRequest(proofs[0], actor.OperatorCall{
		Issuer: token.Issuer, Nonce: token.Nonce, Mesh: a.cfg.Mesh, Act: act, Body: body, Now: now,
	})
	if err != nil {
		return none, &failure{http.StatusUnauthorized, "proof", "the proof is refused: it must be for this call, made now with the key of this sign-in", err}
	}
	user := actor.SubjectID{Issuer: token.Issuer, Subject: token.Subject}
	err = a.cfg.State.Check([]actor.RevocationKey{
		{Kind: actor.RevokeSubject, Issuer: user.Issuer, Value: user.Subject},
		{Kind: actor.RevokeSession, Issuer: user.Issuer, Value: actor.SessionID(raw, token.SID)},
	})
	if err != nil {
		return none, &failure{http.StatusUnauthorized, "revoked", "this sign-in is revoked", err}
	}
	err = a.cfg.State.UseProof(ctx, state.Proof{Issuer: proof.Issuer, ID: proof.ID, Expires: proof.Expires.Add(2 * actor.Skew)})
	if errors.Is(err, state.ErrReplayed) {
		return none, fail(http.StatusUnauthorized, "replayed", "this proof was used before; make a new one for each call")
	}
	if err != nil {
		return none, &failure{http.StatusServiceUnavailable, "state", "the broker's state can't be written at the moment; try again", err}
	}
	admin, err := a.cfg.Identity.IsOperator(token, claims.Admin)
	if err != nil {
		return none, &failure{http.StatusUnauthorized, "id-token", err.Error(), err}
	}
	return caller{claims: token, admin: admin}, nil
}

// record makes a call durable and returns its id; none if that fails.
func (a *API) record(ctx context.Context, act string, who caller, object string, result audit.Result, f *failure) audit.RecordID {
	e := &audit.OperatorCall{
		Result: result, Call: act, Issuer: who.claims.Issuer, Subject: who.claims.Subject, Roles: who.roles(), Object: object, ClientIP: who.from,
	}
	if f != nil {
		e.Class, e.Reason = f.class, f.reason
	}
	receipt, err := a.cfg.Log.Append(context.WithoutCancel(ctx), audit.Record{Event: e})
	if err != nil {
		a.cfg.Logger.ErrorContext(ctx, "an operator's call is not in the log", "call", act, "error", err)
		return ""
	}
	return receipt.RecordID
}

func write(w http.ResponseWriter, f *failure, id audit.RecordID) {
	code := map[int]string{
		http.StatusUnauthorized: "invalid_token", http.StatusForbidden: "insufficient_scope",
		http.StatusServiceUnavailable: "temporarily_unavailable", http.StatusConflict: "conflict",
	}[f.status]
	if code == "" {
		code = "invalid_request"
	}
	writeJSON(w, f.status, map[string]string{"error": code, "error_description": f.reason + " (record: " + id.String() + ")"})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that is gone can't be told
}
