package audit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// CredentialInput is a verified credential with everything that its verification depended on, so that
// [Verify] can repeat it offline.
type CredentialInput struct {
	Txn        string   // the task tree whose quota pays for it
	Credential string   // the exact bytes presented
	Peer       [][]byte // DER of the certificates of the TLS handshake, leaf first
	// Authorities is the trust bundle of the mesh's trust domain: DER of the X.509 authorities.
	Authorities [][]byte
	// KeyStatement is the statement by which the certifying key vouches for the token's key.
	KeyStatement string
	// IdentityKeys is the JWKS that the ID token was verified with; empty where it wasn't.
	IdentityKeys []byte

	VerifiedAt       time.Time
	TrustDomain      string // name
	Mesh             string
	Target           string // SPIFFE ID
	RootEvidence     string // demanded: `verified` or `broker`
	RequireUserGrant bool
	Audiences        []string // accepted in the ID token
	Delegations      []DelegationInput
	MaxActors        int
	MaxSession       time.Duration
}

// DelegationInput is a pair of path patterns that the proxy's configuration lists.
type DelegationInput struct {
	Delegator string `json:"delegator"`
	Delegate  string `json:"delegate"`
}

// credentialInput is the stored form: a JSON document that names its parts by digest.
type credentialInput struct {
	Credential       Digest            `json:"credential"`
	Peer             []Digest          `json:"peer"`
	Authorities      []Digest          `json:"authorities"`
	KeyStatement     Digest            `json:"key_statement"`
	IdentityKeys     Digest            `json:"identity_keys,omitempty"`
	VerifiedAt       time.Time         `json:"verified_at"`
	TrustDomain      string            `json:"trust_domain"`
	Mesh             string            `json:"mesh"`
	Target           string            `json:"target"`
	RootEvidence     string            `json:"root_evidence"`
	RequireUserGrant bool              `json:"require_user_grant"`
	Audiences        []string          `json:"audiences,omitempty"`
	Delegations      []DelegationInput `json:"delegations,omitempty"`
	MaxActors        int               `json:"max_actors"`
	MaxSession       Microseconds      `json:"max_session_us"`
}

// PutCredential keeps a verified credential and what it was verified with, each part once, and returns when all
// of it is durable. The digest goes into [Chain.Verification].
func (l *Log) PutCredential(ctx context.Context, in CredentialInput) (Digest, error) {
	if in.Credential == "" || len(in.Peer) == 0 || len(in.Authorities) == 0 || in.KeyStatement == "" || in.VerifiedAt.IsZero() {
		return "", errors.New("keeping a credential: the credential, its peer, the bundle, the key statement or the time is missing")
	}
	doc := credentialInput{
		VerifiedAt: in.VerifiedAt.UTC().Round(0), TrustDomain: in.TrustDomain, Mesh: in.Mesh, Target: in.Target, RootEvidence: in.RootEvidence,
		RequireUserGrant: in.RequireUserGrant, Audiences: in.Audiences, Delegations: in.Delegations, MaxActors: in.MaxActors,
		MaxSession: Microseconds(in.MaxSession.Microseconds()),
	}
	// All parts go into one frame, or a few: none is waited for alone.
	var waits []*Pending
	put := func(kind string, data []byte) Digest {
		d, p := l.submitEvidence(kind, in.Txn, data)
		if p != nil {
			waits = append(waits, p)
		}
		return d
	}
	doc.Credential = put(KindCredential, []byte(in.Credential))
	for _, c := range in.Peer {
		doc.Peer = append(doc.Peer, put(KindCertificate, c))
	}
	for _, c := range in.Authorities {
		doc.Authorities = append(doc.Authorities, put(KindCertificate, c))
	}
	doc.KeyStatement = put(KindKeyStatement, []byte(in.KeyStatement))
	if len(in.IdentityKeys) > 0 {
		doc.IdentityKeys = put(KindIdentityKeys, in.IdentityKeys)
	}
	data, err := compactJSON(&doc)
	if err != nil {
		return "", fmt.Errorf("keeping a credential: %w", err)
	}
	digest := put(KindVerification, data)
	for _, p := range waits {
		if _, err := p.Receipt(ctx); err != nil {
			return "", fmt.Errorf("keeping a credential: %w", err)
		}
	}
	return digest, l.Err()
}
