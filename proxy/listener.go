package proxy

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
)

// ServerTLS is the TLS configuration of every listener of a proxy: 1.3 only, the proxy's SVID, and an
// agent's SVID of the proxy's own trust domain from the other side. Without tickets there is no
// resumption, which would go around the check of the peer.
func ServerTLS(svid x509svid.Source, bundles x509bundle.Source, td spiffeid.TrustDomain) *tls.Config {
	cfg := tlsconfig.MTLSServerConfig(svid, bundles, tlsconfig.AdaptMatcher(func(id spiffeid.ID) error {
		if id.TrustDomain() != td {
			return errors.New("the peer belongs to another trust domain")
		}
		_, err := actor.ParseAgentID(id)
		return err
	}))
	cfg.MinVersion = tls.VersionTLS13
	cfg.SessionTicketsDisabled = true
	return cfg
}

const (
	renewalTimeout = 10 * time.Second
	maxHeaderBytes = 16 << 10
	maxRenewals    = 64 // at once
	maxOwnRenewals = 4  // at once, of one agent
)

// NewRenewalServer serves, over mTLS only,
//
//	POST /sessions/{id}/credential   body: a credential; 204 when it is in force
//	GET  /ready                      204 if the proxy may serve, else 503
//
// Errors are JSON: {"class", "reason", "record"}. The caller gives it a TLS listener made with
// [ServerTLS] and shuts it down.
func NewRenewalServer(c *Core) *http.Server {
	h := &renewal{core: c, slots: make(chan struct{}, maxRenewals), own: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sessions/{id}/credential", h.renew)
	mux.HandleFunc("GET /ready", h.ready)
	return &http.Server{
		Handler: mux, ReadTimeout: renewalTimeout, ReadHeaderTimeout: renewalTimeout, WriteTimeout: renewalTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaderBytes,
	}
}

type renewal struct {
	core  *Core
	slots chan struct{}

	mu  sync.Mutex     // guards own
	own map[string]int // renewals under way, by agent
}

// enter counts a renewal of an agent, so that none takes the places of all others.
func (h *renewal) enter(agent string) (leave func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own[agent] >= maxOwnRenewals {
		return nil, false
	}
	h.own[agent]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.own[agent]--; h.own[agent] <= 0 {
			delete(h.own, agent)
		}
	}, true
}

func (h *renewal) renew(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		answer(w, http.StatusForbidden, &Refusal{Class: "tls", Reason: "a client certificate is needed"})
		return
	}
	peer := Peer{Certificates: r.TLS.PeerCertificates, Address: r.RemoteAddr, TLS: tls.VersionName(r.TLS.Version) + " " + tls.CipherSuiteName(r.TLS.CipherSuite)}
	// Whose session it is shows before anything is read: another agent learns nothing about it.
	s := h.core.sessions.get(r.PathValue("id"))
	if s == nil || s.Chain().Leaf().ID != peerID(peer) {
		answer(w, http.StatusNotFound, &Refusal{Class: ClassRenewal, Reason: "this agent has no such session here"})
		return
	}
	busy := &Refusal{Class: ClassQuota, Reason: "too many renewals at once; try again"}
	leave, ok := h.enter(peerID(peer))
	if !ok {
		answer(w, http.StatusServiceUnavailable, busy)
		return
	}
	defer leave()
	// Read first: whoever sends slowly holds up nobody.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, actor.MaxSize))
	if err != nil {
		answer(w, http.StatusRequestEntityTooLarge, &Refusal{Class: string(actor.ClassSize), Reason: "the credential is too large or incomplete"})
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		answer(w, http.StatusServiceUnavailable, busy)
		return
	}
	if err := s.Renew(r.Context(), peer, string(body)); err != nil {
		answer(w, http.StatusForbidden, asRefusal(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *renewal) ready(w http.ResponseWriter, _ *http.Request) {
	if err := h.core.Ready(); err != nil {
		answer(w, http.StatusServiceUnavailable, asRefusal(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, status int, r *Refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// The status says it all if this fails.
	_ = json.NewEncoder(w).Encode(map[string]string{"class": r.Class, "reason": r.Reason, "record": r.RecordID.String()})
}
