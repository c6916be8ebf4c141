package actor

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// verification is one run of the order of the specification. Hops count from the
// root: grantList[0] is the oldest grant by an agent, hop 1.
type verification struct {
	v         *Verifier
	now       time.Time
	peer      presenter
	user      *UserGrant
	grantList []Grant // oldest first
	idToken   string
	lineage   lineage
	limits    limits
	anchors   *bundle // once asked for
}

// bundle is the same for every hop of one verification.
func (s *verification) bundle() (bundle, error) {
	if s.anchors == nil {
		b, err := s.v.bundle()
		if err != nil {
			return bundle{}, err
		}
		s.anchors = &b
	}
	return *s.anchors, nil
}

type presenter struct {
	agent  AgentID
	leaf   *x509.Certificate
	window window
}

func (s *verification) setGrants(newestFirst []Grant) {
	s.grantList = slices.Clone(newestFirst)
	slices.Reverse(s.grantList)
	slices.Reverse(s.lineage.grants)
}

// peer verifies the certificate of the connection: step 1.
func (v *Verifier) peer(chain []*x509.Certificate, now time.Time) (presenter, error) {
	if len(chain) == 0 {
		return presenter{}, refuse(ClassPeerCertificate, "the peer showed no certificate")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return presenter{}, wrap(ClassPeerCertificate, err)
	}
	if id.TrustDomain() != v.cfg.TrustDomain {
		return presenter{}, refuse(ClassPeerTrustDomain, "the peer %s is not in %s", id, v.cfg.TrustDomain)
	}
	w, err := v.knownPath(chain, now)
	if err != nil {
		return presenter{}, wrap(ClassPeerCertificate, err)
	}
	agent, err := ParseAgentID(id)
	if err != nil {
		return presenter{}, err
	}
	return presenter{agent, chain[0], w}, nil
}

// knownPath is path, or finds that these exact certificates were verified with this bundle before: an agent opens many connections
// with one SVID. The times are compared every time.
func (v *Verifier) knownPath(chain []*x509.Certificate, now time.Time) (window, error) {
	if len(chain) > maxCertificates {
		return window{}, fmt.Errorf("%d certificates, want at most %d", len(chain), maxCertificates)
	}
	bundle, err := v.bundle()
	if err != nil {
		return window{}, err
	}
	parts := [][]byte{[]byte("peer"), bundle.revision}
	for _, c := range chain {
		parts = append(parts, c.Raw)
	}
	key := keyOf(parts...)
	if w, ok := v.cache.get(key); ok && w.holds(now) {
		return w, nil
	}
	w, err := v.path(chain, bundle, now)
	if err == nil {
		v.cache.put(key, w)
	}
	return w, err
}

// bundle is the bundle of our own trust domain as it is now, and the name of that content.
type bundle struct {
	*x509bundle.Bundle
	revision []byte
}

func (v *Verifier) bundle() (bundle, error) {
	current, err := v.cfg.Bundles.GetX509BundleForTrustDomain(v.cfg.TrustDomain)
	if err != nil {
		return bundle{}, err
	}
	// The source may change its bundle at any moment; what is kept is about this content.
	authorities := current.X509Authorities()
	return bundle{x509bundle.FromX509Authorities(v.cfg.TrustDomain, authorities), revision(authorities)}, nil
}

// path verifies an SVID against a bundle.
func (v *Verifier) path(chain []*x509.Certificate, in bundle, now time.Time) (window, error) {
	if len(chain) > maxCertificates {
		return window{}, fmt.Errorf("%d certificates, want at most %d", len(chain), maxCertificates)
	}
	if chain[0].KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return window{}, fmt.Errorf("the SVID's key is not for digital signatures")
	}
	if _, err := P256(chain[0].PublicKey); err != nil {
		return window{}, err
	}
	_, paths, err := x509svid.Verify(chain, in.Bundle, x509svid.WithTime(now))
	if err != nil {
		return window{}, err
	}
	anchor := paths[0][len(paths[0])-1]
	w := window{notBefore: chain[0].NotBefore, notAfter: chain[0].NotAfter, authority: HashAuthority(anchor)}
	for _, c := range paths[0] {
		if c.NotBefore.After(w.notBefore) {
			w.notBefore = c.NotBefore
		}
		if c.NotAfter.Before(w.notAfter) {
			w.notAfter = c.NotAfter
		}
	}
	return w, nil
}

// grants verifies every hop from the user grant on: step 6.
func (s *verification) grants(txn string, subject SubjectID) error {
	var before link
	if s.user != nil {
		if err := s.userGrant(txn, subject); err != nil {
			return atHop(0, err)
		}
		before = link{true, s.user.Delegate, Hash(s.user.Statement), s.user.Left, s.user.Expires, s.user.Cap}
	} else if s.idToken != "" {
		// A session without user grant hangs the first grant on the ID token.
		before = link{hash: Hash(s.idToken)}
	}
	for i := range s.grantList {
		g := &s.grantList[i]
		if err := s.grant(g, s.lineage.grants[i], before, txn, subject); err != nil {
			return atHop(i+1, err)
		}
		before = link{true, g.Delegate, Hash(g.Statement), g.Left, g.Expires, g.Cap}
	}
	if before.granted && before.delegate != s.peer.agent {
		return atHop(len(s.grantList), refuse(ClassGrantDelegate, "the delegate is %s, the peer %s", before.delegate, s.peer.agent))
	}
	return nil
}

// link is what a grant is held against: the statement before it.
type link struct {
	granted  bool // false where there is no statement before
	delegate AgentID
	hash     string
	left     int
	exp      time.Time
	cap      Details
}

func (s *verification) userGrant(txn string, subject SubjectID) error {
	u := s.user
	if u.Issuer != u.Subject.Issuer || u.Root.Issuer != u.Issuer {
		return refuse(ClassGrantIssuer, "iss, root.iss and sub_id.iss differ")
	}
	key := keyOf([]byte("user"), []byte(u.Statement))
	if _, ok := s.v.cache.get(key); !ok {
		if err := s.lineage.userGrant.verify(u.LoginKey); err != nil {
			return wrap(ClassGrantSignature, err)
		}
		s.v.cache.put(key, window{})
	}
	if err := s.statement(u.IssuedAt, u.Expires, u.Mesh, u.Txn, u.Subject, txn, subject); err != nil {
		return err
	}
	if u.Delegate.TrustDomain() != s.v.cfg.TrustDomain {
		return refuse(ClassGrantTrustDomain, "the delegate %s is not in %s", u.Delegate, s.v.cfg.TrustDomain)
	}
	if u.Delegate.Depth() != 1 {
		return refuse(ClassGrantChild, "a user delegates to an agent of the first level, not to %s", u.Delegate)
	}
	return nil
}

// statement checks what user grants and grants have in common.
func (s *verification) statement(iat, exp time.Time, mesh, ownTxn string, own SubjectID, txn string, subject SubjectID) error {
	switch {
	case iat.After(s.now.Add(Skew)):
		return refuse(ClassGrantNotYet, "iat lies in the future")
	case !s.now.Before(exp.Add(Skew)):
		return refuse(ClassGrantExpired, "the grant expired at %s", exp.Format(time.RFC3339))
	case mesh != s.v.cfg.Mesh:
		return refuse(ClassGrantMesh, "mesh is %q, want %q", mesh, s.v.cfg.Mesh)
	case ownTxn != txn:
		return refuse(ClassGrantTxn, "txn differs")
	case own != subject:
		return refuse(ClassGrantSubject, "sub_id differs")
	}
	s.limits.statement(exp)
	return nil
}

func (s *verification) grant(g *Grant, form jws, before link, txn string, subject SubjectID) error {
	if g.Issuer.TrustDomain() != s.v.cfg.TrustDomain {
		return refuse(ClassGrantTrustDomain, "the delegator %s is not in %s", g.Issuer, s.v.cfg.TrustDomain)
	}
	w, err := s.signedByIssuer(g, form)
	if err != nil {
		return err
	}
	if err := s.statement(g.IssuedAt, g.Expires, g.Mesh, g.Txn, g.Subject, txn, subject); err != nil {
		return err
	}
	if g.Expires.After(g.Chain[0].NotAfter) {
		return refuse(ClassGrantOutlivesSVID, "exp lies after the end of the delegator's SVID")
	}
	s.limits.path(w)
	if before.hash != "" && g.Previous != before.hash {
		return refuse(ClassGrantPrevious, "prh is not the hash of the statement before")
	}
	if before.granted && g.Issuer != before.delegate {
		return refuse(ClassGrantDelegate, "iss is %s, the grant before named %s", g.Issuer, before.delegate)
	}
	if g.Delegate.TrustDomain() != s.v.cfg.TrustDomain {
		return refuse(ClassGrantTrustDomain, "the delegate %s is not in %s", g.Delegate, s.v.cfg.TrustDomain)
	}
	if !g.Delegate.IsDirectChildOf(g.Issuer) && !s.v.pairAllowed(g.Issuer, g.Delegate) {
		return refuse(ClassGrantChild, "%s is not a direct child of %s", g.Delegate, g.Issuer)
	}
	if !before.granted {
		return nil
	}
	if g.Left >= before.left {
		return refuse(ClassGrantLeft, "left is %d after %d", g.Left, before.left)
	}
	if g.Expires.After(before.exp) {
		return refuse(ClassGrantExp, "exp lies after the one of the grant before")
	}
	if err := g.Cap.Within(before.cap); err != nil {
		return wrap(ClassGrantCap, err)
	}
	return nil
}

// signedByIssuer verifies path, identity and signature, or finds that these exact
// bytes were verified with this bundle before. The times of the path are compared
// every time.
func (s *verification) signedByIssuer(g *Grant, form jws) (window, error) {
	bundle, err := s.bundle()
	if err != nil {
		return window{}, wrap(ClassGrantCertificate, err)
	}
	key := keyOf([]byte("grant"), bundle.revision, []byte(g.Statement))
	if w, ok := s.v.cache.get(key); ok && w.holds(s.now) {
		return w, nil
	}
	id, err := x509svid.IDFromCert(g.Chain[0])
	if err != nil {
		return window{}, wrap(ClassGrantCertificate, err)
	}
	if id.TrustDomain() != s.v.cfg.TrustDomain {
		return window{}, refuse(ClassGrantTrustDomain, "the grant was signed by %s", id)
	}
	w, err := s.v.path(g.Chain, bundle, s.now)
	if err != nil {
		return window{}, wrap(ClassGrantCertificate, err)
	}
	if id != g.Issuer.ID() {
		return window{}, refuse(ClassGrantIssuer, "iss is %s, the SVID is %s", g.Issuer, id)
	}
	leaf, err := P256(g.Chain[0].PublicKey)
	if err != nil {
		return window{}, err
	}
	if err := form.verify(leaf); err != nil {
		return window{}, wrap(ClassGrantSignature, err)
	}
	s.v.cache.put(key, w)
	return w, nil
}

func (v *Verifier) pairAllowed(delegator, delegate AgentID) bool {
	for _, p := range v.cfg.Delegations {
		if p.Delegator.Match(delegator) && p.Delegate.Match(delegate) {
			return true
		}
	}
	return false
}
