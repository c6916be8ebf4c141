package actor

import (
	"context"
	"time"
)

type root struct {
	evidence RootEvidence
	claims   IdentityClaims
}

// root verifies step 7 for a token.
func (s *verification) root(ctx context.Context, t Token) (root, error) {
	if err := s.sessionAge(t.AuthTime); err != nil {
		return root{}, err
	}
	if s.user != nil && t.SID != s.user.Root.SID {
		return root{}, refuse(ClassRootSession, "sid is not the one of the user grant")
	}
	if s.idToken == "" {
		if s.v.cfg.RootEvidence == RootVerified {
			return root{}, refuse(ClassIDTokenMissing, "this target demands the ID token")
		}
		return root{evidence: RootBroker}, nil
	}
	if Hash(s.idToken) != s.user.Root.Hash {
		return root{}, refuse(ClassRootHash, "the ID token is not the one that the user grant names")
	}
	if s.v.cfg.IdentityTokens == nil {
		return root{evidence: RootBroker}, nil
	}
	claims, err := s.identity(ctx)
	if err != nil {
		return root{}, err
	}
	if !claims.AuthenticatedAt().Equal(t.AuthTime) || claims.ACR != t.ACR {
		return root{}, refuse(ClassRootAuthTime, "auth_time or acr differs from the ID token's")
	}
	return root{RootVerified, claims}, nil
}

// identity verifies the ID token and, where there is a user grant, that the
// sign-in vouches for its key.
func (s *verification) identity(ctx context.Context) (IdentityClaims, error) {
	claims, err := s.v.cfg.IdentityTokens.VerifyIDToken(ctx, s.idToken)
	if err != nil {
		return claims, wrap(ClassIDToken, err)
	}
	if s.user == nil {
		return claims, nil
	}
	u := s.user
	switch {
	case claims.Issuer != u.Issuer || claims.Subject != u.Subject.Subject:
		return claims, refuse(ClassRootSubject, "the ID token is about another user")
	case claims.Nonce == "" || claims.Nonce != NonceFor(u.LoginKey):
		return claims, refuse(ClassRootNonce, "the nonce is not the thumbprint of the login key")
	case u.Root.SID != SessionID(s.idToken, claims.SID):
		return claims, refuse(ClassRootSession, "root.sid is not the session of the ID token")
	}
	return claims, nil
}

func (s *verification) sessionAge(authTime time.Time) error {
	end := authTime.Add(s.v.cfg.MaxSession)
	if authTime.After(s.now.Add(Skew)) || !s.now.Before(end.Add(Skew)) {
		return refuse(ClassRootAge, "the sign-in of %s is not within the last %s", authTime.UTC().Format(time.RFC3339), s.v.cfg.MaxSession)
	}
	s.limits.statement(end)
	return nil
}

// hops reads the grades, step 8, and puts the hops together, root first.
func (s *verification) hops(who SubjectID, evidence RootEvidence) ([]Hop, error) {
	hops := []Hop{{Kind: HopUser, ID: who.String(), Grade: Asserted}}
	user := &hops[0]
	var before Details
	if u := s.user; u != nil {
		user.Key = NonceFor(u.LoginKey)
		if evidence == RootVerified {
			user.Grade = Attested
		}
		user.Grant = &HopGrant{Issuer: u.Issuer, ID: u.ID, Delegate: u.Delegate, Purpose: u.Purpose,
			Cap: u.Cap, Left: u.Left, IssuedAt: u.IssuedAt, Expires: u.Expires}
		before = u.Cap
	}
	left, exp := -1, time.Time{}
	if s.user != nil {
		left, exp = s.user.Left, s.user.Expires
	}
	for i, g := range s.grantList {
		grade, seen, err := GradeFromCertificate(g.Chain[0])
		if err != nil {
			return nil, atHop(i+1, err)
		}
		grant := &HopGrant{Issuer: g.Issuer.String(), ID: g.ID, Delegate: g.Delegate, Purpose: g.Purpose,
			Cap: g.Cap, Left: g.Left, IssuedAt: g.IssuedAt, Expires: g.Expires}
		if before != nil {
			grant.Narrowed = narrowed(before, g.Cap, left, g.Left, exp, g.Expires)
		}
		before, left, exp = g.Cap, g.Left, g.Expires
		hops = append(hops, Hop{Kind: HopAgent, ID: g.Issuer.String(), Agent: g.Issuer, Grade: grade, Evidence: seen,
			Key: NonceFor(g.Chain[0].PublicKey), Certificate: CertificateHash(g.Chain[0]), Grant: grant})
	}
	grade, seen, err := GradeFromCertificate(s.peer.leaf)
	if err != nil {
		return nil, atHop(len(s.grantList)+1, err)
	}
	return append(hops, Hop{Kind: HopAgent, ID: s.peer.agent.String(), Agent: s.peer.agent, Grade: grade, Evidence: seen,
		Key: NonceFor(s.peer.leaf.PublicKey), Certificate: CertificateHash(s.peer.leaf)}), nil
}

// subject verifies a subject_token: steps 5 to 9 without a token.
func (s *verification) subject(ctx context.Context, raw string) (*Subject, error) {
	if s.user == nil && s.v.cfg.RequireUserGrant {
		return nil, refuse(ClassUserGrantMissing, "a user grant is demanded")
	}
	named := s.namedActors()
	if len(named) == 0 {
		named = []AgentID{s.peer.agent}
	}
	if len(named) > s.v.cfg.MaxActors {
		return nil, refuse(ClassActorCount, "%d actors, want at most %d", len(named), s.v.cfg.MaxActors)
	}
	seen := map[AgentID]bool{}
	for _, a := range named {
		if seen[a] {
			return nil, refuse(ClassActorRepeated, "%s acts twice", a)
		}
		seen[a] = true
	}

	out := &Subject{Bare: s.user == nil, RootHash: Hash(s.idToken), Certificate: CertificateHash(s.peer.leaf), Digest: Hash(raw)}
	switch {
	case s.user != nil:
		out.User, out.Txn, out.Purpose, out.SID = s.user.Subject, s.user.Txn, s.user.Purpose, s.user.Root.SID
		out.LoginKey, out.RootCap = NonceFor(s.user.LoginKey), s.user.Cap
	case len(s.grantList) > 0:
		out.User, out.Txn = s.grantList[0].Subject, s.grantList[0].Txn
	}
	if err := s.grants(out.Txn, out.User); err != nil {
		return nil, err
	}
	if s.user != nil && out.RootHash != s.user.Root.Hash {
		return nil, refuse(ClassRootHash, "the ID token is not the one that the user grant names")
	}
	claims, err := s.identity(ctx)
	if err != nil {
		return nil, err
	}
	who := SubjectID{claims.Issuer, claims.Subject}
	if err := who.Validate(); err != nil {
		return nil, wrap(ClassIDToken, err)
	}
	if len(s.grantList) > 0 && out.User != who {
		return nil, refuse(ClassRootSubject, "the ID token is about another user")
	}
	out.User, out.SID = who, SessionID(s.idToken, claims.SID)
	out.Identity, out.AuthTime, out.ACR = claims, claims.AuthenticatedAt(), claims.ACR
	if err := s.sessionAge(out.AuthTime); err != nil {
		return nil, err
	}

	evidence := RootBroker
	if !out.Bare {
		evidence = RootVerified
	}
	if out.Hops, err = s.hops(who, evidence); err != nil {
		return nil, err
	}
	if last, ok := s.newest(); ok {
		out.Cap, out.Left, out.Head = last.cap, last.left, last.hash
	}
	s.limits.path(s.peer.window)
	out.Expires = s.limits.expires()
	if err := checkRevocations(s.v.cfg.Revocations, out.RevocationKeys()); err != nil {
		return nil, err
	}
	return out, nil
}
