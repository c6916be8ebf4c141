package operatorapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/state"
)

type policyAnswer struct {
	Version  uint64    `json:"version"`
	Revision uint64    `json:"revision"`
	Applied  []Applied `json:"applied"`
	Pending  []string  `json:"pending"`
}

// policy publishes a signed set. The proxies verify it again, with keys of their own configuration.
func (a *API) policy(ctx context.Context, who caller, body []byte) (string, any, *failure) {
	if !who.admin {
		return "policy", nil, fail(http.StatusForbidden, "role", "only an operator with the role %s may publish policy", claims.Admin)
	}
	signed := strings.TrimSpace(string(body))
	set, err := a.cfg.OpenPolicy(signed)
	if err != nil {
		a.recordSet(ctx, &audit.PolicyLoaded{Result: audit.Refusal, Digest: audit.DigestOf(body), Reason: err.Error()})
		return "policy", nil, fail(http.StatusBadRequest, "policy", "%v; the set in force stays", err)
	}
	object := fmt.Sprintf("policy %d", set.Version())
	revision, err := a.cfg.State.PublishPolicy(ctx, state.Policy{Version: set.Version(), Signed: signed}, func() error {
		before := audit.Digest("")
		if have := a.cfg.State.Policy(); have != nil {
			before = audit.DigestOf([]byte(have.Signed))
		}
		_, err := a.cfg.Log.Append(context.WithoutCancel(ctx), audit.Record{Event: &audit.OperatorCall{
			Result: audit.Accepted, Call: ActPolicy, Issuer: who.claims.Issuer, Subject: who.claims.Subject, Roles: who.roles(),
			Object: object, Before: before, After: audit.DigestOf([]byte(signed)), ClientIP: who.from,
		}})
		return err
	})
	switch {
	case errors.Is(err, state.ErrOldPolicy):
		return object, nil, fail(http.StatusConflict, "policy.version", "%v; sign it with a greater version", err)
	case err != nil:
		return object, nil, &failure{http.StatusServiceUnavailable, "state", "the set could not be recorded and stored; try again", err}
	}
	a.recordSet(ctx, &audit.PolicyLoaded{Result: audit.Accepted, Version: int64(set.Version()), Digest: audit.DigestOf([]byte(signed))})
	waiting, cancel := context.WithTimeout(ctx, a.cfg.Wait)
	defer cancel()
	applied, pending := a.cfg.Applier.Wait(waiting, revision)
	return object, policyAnswer{Version: set.Version(), Revision: revision, Applied: applied, Pending: pending}, nil
}

func (a *API) recordSet(ctx context.Context, e *audit.PolicyLoaded) {
	if _, err := a.cfg.Log.Append(context.WithoutCancel(ctx), audit.Record{Event: e}); err != nil {
		a.cfg.Logger.ErrorContext(ctx, "a policy set's fate is not in the log", "error", err)
	}
}
