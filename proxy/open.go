package proxy

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/time/rate"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	"github.com/deputymesh/deputy/policy"
)

// verified is a credential that passed, with all that is derived from it.
type verified struct {
	chain   *actor.Chain
	subject *policy.Subject
	record  *audit.Chain
}

// Open verifies peer and credential for the target, keeps the evidence and opens a session. The error is
// a [*Refusal]. The caller must Close the session.
func (c *Core) Open(ctx context.Context, peer Peer, credential string, t target.Name, conn Connection) (*Session, error) {
	at := where{target: t.String(), peer: peerID(peer), client: peer.Address}
	served := c.targets[t]
	if served == nil {
		return nil, c.refuse(ctx, at, &Refusal{Class: ClassTarget, Reason: fmt.Sprintf("target %q isn't served here", t)})
	}
	if err := c.Ready(); err != nil {
		return nil, c.refuse(ctx, at, asRefusal(err))
	}
	v, r := c.verify(ctx, served, peer, credential)
	if r != nil {
		return nil, c.refuse(ctx, at, r)
	}
	id, err := newSessionID()
	if err != nil {
		return nil, c.refuse(ctx, at, &Refusal{Class: ClassEvidence, Reason: "no session could be made", Err: err})
	}
	s := newSession(c, id, served, conn, v)
	at.chain, at.connection = v.record, id
	if r := c.enter(s, v); r != nil {
		s.cancel(&Ended{Class: r.Class, Reason: r.Reason})
		return nil, c.refuse(ctx, at, r)
	}
	_, err = c.cfg.Log.Append(ctx, audit.Record{
		Session: v.chain.SID, Connection: id, Chain: v.record,
		Event: &audit.ConnectionOpened{
			Target: t.String(), Protocol: conn.Protocol, Client: peer.Address, TLS: peer.TLS,
			Account: conn.Account, Database: conn.Database, Upstream: conn.Upstream,
		},
	})
	if err != nil {
		s.leave(&Ended{Class: ClassEvidence, Reason: "the session couldn't be recorded"})
		return nil, evidenceRefusal(err)
	}
	return s, nil
}

// verify checks a credential and keeps what it was verified with. It returns only after that is durable.
func (c *Core) verify(ctx context.Context, t *servedTarget, peer Peer, credential string) (*verified, *Refusal) {
	now := c.cfg.Now()
	chain, err := t.verifier.Verify(ctx, peer.Certificates, credential)
	if err != nil {
		return nil, credentialRefusal(err)
	}
	subject, err := policy.NewSubject(chain)
	if err != nil {
		return nil, &Refusal{Class: ClassUndecided, Reason: "the chain can't be judged: " + err.Error(), Err: err}
	}
	bundle, err := c.cfg.Bundles.GetX509BundleForTrustDomain(c.cfg.TrustDomain)
	if err != nil {
		return nil, &Refusal{Class: ClassNotReady, Reason: "this proxy has no trust bundle", Err: err}
	}
	in := audit.CredentialInput{
		Txn: chain.Txn, Credential: credential, Peer: ders(peer.Certificates), Authorities: ders(bundle.X509Authorities()),
		KeyStatement: c.cfg.State.keyStatement(chain.Token.KeyID), VerifiedAt: now,
		TrustDomain: c.cfg.TrustDomain.Name(), Mesh: c.cfg.Mesh, Target: t.id.String(),
		RootEvidence: string(t.RootEvidence), RequireUserGrant: t.RequireUserGrant, Audiences: c.cfg.Audiences,
		MaxActors: t.MaxActors, MaxSession: t.MaxSession,
	}
	if chain.RootEvidence == actor.RootVerified {
		in.IdentityKeys = c.cfg.IdentityKeys.Document(chain.User.Issuer)
	}
	for _, d := range t.Delegations {
		in.Delegations = append(in.Delegations, audit.DelegationInput{Delegator: d.Delegator.String(), Delegate: d.Delegate.String()})
	}
	digest, err := c.cfg.Log.PutCredential(ctx, in)
	if err != nil {
		return nil, evidenceRefusal(err)
	}
	return &verified{chain, subject, audit.FromChain(chain, digest)}, nil
}

// enter puts a session into the table, unless a limit is reached or it was revoked meanwhile.
func (c *Core) enter(s *Session, v *verified) *Refusal {
	c.opening.Lock()
	defer c.opening.Unlock()
	others := c.sessions.matching(feed.Match{Kind: feed.Task, Value: v.chain.Txn})
	if c.live >= c.cfg.MaxSessions || len(others) >= c.cfg.MaxSessionsPerTask {
		return &Refusal{Class: ClassQuota, Reason: "too many connections are open; close some and try again"}
	}
	for _, o := range others {
		// A pool of connections presents one credential over and over: what is derived from it is kept once.
		if was := o.state(); o.target == s.target && was.chain.Digest == v.chain.Digest && was.chain.Expires.Equal(v.chain.Expires) {
			v.chain, v.subject = was.chain, was.subject
			break
		}
	}
	keys := v.chain.RevocationKeys()
	if err := c.cfg.State.admit(keys, func() error { return c.sessions.put(s, keys) }); err != nil {
		return credentialRefusal(err)
	}
	c.live++
	return nil
}

// where says what a refusal is about, for its record.
type where struct {
	target, peer, client, connection string
	chain                            *audit.Chain
}

// refuse records a refusal outside a decision and returns it with its record id. A peer that is refused
// over and over is only counted, so that it can't fill the log.
func (c *Core) refuse(ctx context.Context, at where, r *Refusal) *Refusal {
	if at.chain == nil && !c.strikes.allow(at.peer, c.cfg.Now()) {
		c.cfg.Log.Count(r.Class)
		return r
	}
	rec := audit.Record{Connection: at.connection, Chain: at.chain, Event: &audit.Refused{
		Class: r.Class, Reason: clip(r.Reason, 2048), Target: at.target, Peer: at.peer, Client: at.client,
	}}
	if at.chain != nil {
		rec.Session = at.chain.SID
	}
	receipt, err := c.cfg.Log.Append(ctx, rec)
	if err != nil {
		c.unrecorded(ctx, "a refusal couldn't be recorded", err)
		r.RecordID = ""
		return r
	}
	r.RecordID = receipt.RecordID
	return r
}

// unrecorded tells the operator, but not of a quota that is used up: that is counted in the audit log, and whoever used it up
// could fill the operator's own log instead.
func (c *Core) unrecorded(ctx context.Context, what string, err error) {
	if !errors.Is(err, audit.ErrOverQuota) {
		c.cfg.Logger.ErrorContext(ctx, what, "error", err)
	}
}

func credentialRefusal(err error) *Refusal {
	var known *Refusal
	if errors.As(err, &known) {
		return asRefusal(known)
	}
	var revoked *actor.RevokedError
	if errors.As(err, &revoked) {
		return &Refusal{Class: ClassRevoked, Reason: "access is refused: " + revoked.Error(), Ended: true, Err: err}
	}
	var e *actor.Error
	if errors.As(err, &e) {
		class := string(e.Class)
		if e.Class == actor.ClassExpired {
			class = ClassExpired
		}
		return &Refusal{Class: class, Reason: "the credential is refused: " + e.Error(), Err: err}
	}
	return &Refusal{Class: ClassUndecided, Reason: "the credential couldn't be verified", Err: err}
}

// asRefusal copies a refusal, so that a record id is never shared.
func asRefusal(err error) *Refusal {
	var r *Refusal
	if !errors.As(err, &r) {
		return &Refusal{Class: ClassUndecided, Reason: "the request couldn't be decided", Err: err}
	}
	out := *r
	return &out
}

func evidenceRefusal(err error) *Refusal {
	if errors.Is(err, audit.ErrOverShare) {
		return &Refusal{Class: ClassQuota, Reason: "this user's commands have filled his share of the log's disk; some of it comes back every hour, or ask the operator of this proxy", Err: err}
	}
	if errors.Is(err, audit.ErrOverBytes) {
		return &Refusal{Class: ClassQuota, Reason: "this task's records have used up its budget of bytes; slow down, or send shorter statements", Err: err}
	}
	if errors.Is(err, audit.ErrOverQuota) {
		return &Refusal{Class: ClassQuota, Reason: "this task has used up its budget of records; slow down", Err: err}
	}
	return &Refusal{Class: ClassEvidence, Reason: "this couldn't be recorded, so it isn't allowed", Err: err}
}

func newSessionID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("making a session id: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

func peerID(p Peer) string {
	if len(p.Certificates) == 0 {
		return ""
	}
	id, err := x509svid.IDFromCert(p.Certificates[0])
	if err != nil {
		return ""
	}
	return id.String()
}

func ders(certs []*x509.Certificate) [][]byte {
	out := make([][]byte, len(certs))
	for i, c := range certs {
		out[i] = c.Raw
	}
	return out
}

// strikes bounds the refused credentials that are recorded one by one, per peer.
type strikes struct {
	mu    sync.Mutex
	peers map[string]*rate.Limiter
}

const (
	strikesPerSecond = 5
	strikeBurst      = 50
	maxStrikePeers   = 4096
)

func (s *strikes) allow(peer string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.peers[peer]
	if l == nil {
		if len(s.peers) >= maxStrikePeers || s.peers == nil {
			s.peers = map[string]*rate.Limiter{}
		}
		l = rate.NewLimiter(strikesPerSecond, strikeBurst)
		s.peers[peer] = l
	}
	return l.AllowN(now, 1)
}
