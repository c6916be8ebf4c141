package actor

import (
	"crypto/subtle"
	"fmt"
	"time"
)

// token verifies steps 3 (token), 4 (presenter) and 5 (shape).
func (s *verification) token(c Credential) error {
	if err := s.tokenItself(c); err != nil {
		return err
	}
	if err := s.presented(c); err != nil {
		return err
	}
	return s.shape(c)
}

func (s *verification) tokenItself(c Credential) error {
	t := c.Token
	k, err := s.v.cfg.TokenKeys.TokenKey(t.KeyID)
	if err != nil {
		return wrap(ClassTokenKey, fmt.Errorf("token key: %w", err))
	}
	switch {
	case NonceFor(k.Key) != t.KeyID:
		return refuse(ClassTokenKey, "kid is not the thumbprint of the token key")
	case k.Mesh != s.v.cfg.Mesh:
		return refuse(ClassTokenKey, "the token key is certified for another mesh")
	case s.now.Before(k.NotBefore.Add(-Skew)) || !s.now.Before(k.Expires.Add(Skew)):
		return refuse(ClassTokenKey, "the token key is not valid now")
	}
	key := keyOf([]byte("token"), []byte(t.KeyID), []byte(t.Statement))
	if _, ok := s.v.cache.get(key); !ok {
		if err := c.token.verify(k.Key); err != nil {
			return wrap(ClassTokenSignature, err)
		}
		s.v.cache.put(key, window{})
	}
	switch {
	case t.Issuer != s.v.cfg.Mesh:
		return refuse(ClassTokenIssuer, "iss is %q, want %q", t.Issuer, s.v.cfg.Mesh)
	case t.Audience != s.v.cfg.Target:
		return refuse(ClassTokenAudience, "aud is %s, want %s", t.Audience, s.v.cfg.Target)
	case t.NotBefore.After(s.now.Add(Skew)) || t.IssuedAt.After(s.now.Add(Skew)):
		return refuse(ClassTokenNotYet, "nbf or iat lies in the future")
	case !s.now.Before(t.Expires.Add(Skew)):
		return refuse(ClassTokenExpired, "the token expired at %s", t.Expires.Format(time.RFC3339))
	case t.Expires.Sub(t.IssuedAt) > TokenLife:
		return refuse(ClassTokenLifetime, "the token lives for %s, want at most %s", t.Expires.Sub(t.IssuedAt), TokenLife)
	}
	s.limits.statement(t.Expires)
	return nil
}

func (s *verification) presented(c Credential) error {
	current := c.claims.Act.Sub
	switch {
	case current != s.peer.agent:
		return refuse(ClassPresenterActor, "act.sub is %s, the peer %s", current, s.peer.agent)
	case c.claims.ClientID != current:
		return refuse(ClassPresenterClient, "client_id is %s, act.sub %s", c.claims.ClientID, current)
	case subtle.ConstantTimeCompare([]byte(c.Token.Certificate), []byte(CertificateHash(s.peer.leaf))) != 1:
		return refuse(ClassPresenterBinding, "the token is bound to another certificate; exchange again after a rotation")
	}
	s.limits.path(s.peer.window)
	return nil
}

func (s *verification) shape(c Credential) error {
	actors := c.Token.Actors
	if len(actors) > s.v.cfg.MaxActors {
		return refuse(ClassActorCount, "%d actors, want at most %d", len(actors), s.v.cfg.MaxActors)
	}
	seen := map[AgentID]bool{}
	for a := c.claims.Act; a != nil; a = a.Act {
		if a.Sub.TrustDomain() != s.v.cfg.TrustDomain || a.Issuer != s.v.cfg.TrustDomain.IDString() {
			return refuse(ClassActorTrustDomain, "the actor %s of %q is not in %s", a.Sub, a.Issuer, s.v.cfg.TrustDomain)
		}
		if seen[a.Sub] {
			return refuse(ClassActorRepeated, "%s acts twice", a.Sub)
		}
		seen[a.Sub] = true
	}
	if s.user == nil && s.v.cfg.RequireUserGrant {
		return refuse(ClassUserGrantMissing, "this target demands a user grant")
	}
	named := s.namedActors()
	if len(named) == 0 && len(actors) == 1 {
		return nil // the first agent of a session without user grant
	}
	if len(named) != len(actors) {
		return refuse(ClassActorGrants, "act names %d actors, the grants %d", len(actors), len(named))
	}
	for i := range named {
		if named[i] != actors[i] {
			return refuse(ClassActorGrants, "actor %d is %s in act and %s in the grants", i+1, actors[i], named[i])
		}
	}
	return nil
}

// namedActors are the agents that the grants name, first to last.
func (s *verification) namedActors() []AgentID {
	var out []AgentID
	switch {
	case s.user != nil:
		out = append(out, s.user.Delegate)
	case len(s.grantList) > 0:
		out = append(out, s.grantList[0].Issuer)
	}
	for _, g := range s.grantList {
		out = append(out, g.Delegate)
	}
	return out
}

// newest is the last statement before the token.
func (s *verification) newest() (link, bool) {
	if n := len(s.grantList); n > 0 {
		g := s.grantList[n-1]
		return link{true, g.Delegate, Hash(g.Statement), g.Left, g.Expires, g.Cap}, true
	}
	if s.user != nil {
		return link{true, s.user.Delegate, Hash(s.user.Statement), s.user.Left, s.user.Expires, s.user.Cap}, true
	}
	return link{}, false
}

// head begins step 6: the token names the newest grant, or says that there is none.
func (s *verification) head(t Token) error {
	if last, _ := s.newest(); t.Head != last.hash {
		return refuse(ClassGrantHead, "head is not the hash of the newest grant")
	}
	return nil
}

// tokenWithin ends step 6: the token itself is the last narrowing.
func (s *verification) tokenWithin(t Token) error {
	if t.Expires.After(s.peer.leaf.NotAfter) {
		return refuse(ClassTokenOutlives, "exp lies after the end of the presenter's SVID")
	}
	last, ok := s.newest()
	if !ok {
		return nil
	}
	if t.Expires.After(last.exp) {
		return refuse(ClassTokenOutlives, "exp lies after the one of the newest grant")
	}
	if err := t.Details.Within(last.cap); err != nil {
		return wrap(ClassTokenDetails, err)
	}
	if s.user != nil && t.Purpose != s.user.Purpose {
		return refuse(ClassTokenPurpose, "purpose is not the one of the user grant")
	}
	return nil
}
