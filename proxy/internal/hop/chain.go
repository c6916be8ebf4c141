package hop

import (
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/proxy"
)

// ChainHeader carries the chain to the target ([actor.VerifyChain]).
const ChainHeader = "Deputy-Chain"

// StateChain signs what the target is told about the chain of a request, by its method and path there. The error is a [*proxy.Refusal].
func (h *Hop) StateChain(core Session, record audit.RecordID, method, path string) (string, error) {
	svid, err := h.cfg.SVID.GetX509SVID()
	if err == nil {
		var raw string
		statement := actor.StateChain(core.Chain(), svid.ID, method, path, string(record), time.Now())
		if raw, err = actor.SignChain(svid.PrivateKey, svid.Certificates, statement); err == nil {
			return raw, nil
		}
	}
	h.cfg.Logger.Error("the chain can't be stated", "target", h.name, "error", err)
	return "", &proxy.Refusal{Class: proxy.ClassNotReady, Reason: "the target can't be told who asks, so it isn't asked", RecordID: record, Err: err}
}
