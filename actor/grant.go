package actor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Grant is every further hop: the agent Issuer says, by its SVID key, that
// Delegate may act for it, this far.
type Grant struct {
	Issuer   AgentID   // iss
	Delegate AgentID   // a direct child of Issuer
	Mesh     string    // the broker's issuer URL
	Subject  SubjectID // sub_id
	Txn      string
	// Previous is prh: the [Hash] of the grant before, or of the ID token when
	// the session has no user grant.
	Previous  string
	Cap       Details
	Left      int // delegations still allowed after this one
	Purpose   string
	IssuedAt  time.Time
	Expires   time.Time           // not past the issuer's SVID
	ID        string              // jti
	Chain     []*x509.Certificate // header x5c; set by parsing, ignored by signing
	Statement string              // the exact bytes; set by parsing, ignored by signing
}

type grantClaims struct {
	Issuer   AgentID   `json:"iss"`
	Delegate AgentID   `json:"delegate"`
	Mesh     string    `json:"mesh"`
	Subject  SubjectID `json:"sub_id"`
	Txn      string    `json:"txn"`
	Previous string    `json:"prh"`
	Cap      Details   `json:"cap"`
	Left     int       `json:"left"`
	Purpose  string    `json:"purpose"`
	IssuedAt int64     `json:"iat"`
	Expires  int64     `json:"exp"`
	ID       string    `json:"jti"`
}

// SignGrant signs with the key of the SVID chain, whose leaf must be g.Issuer's.
// It refuses a grant that would be refused for what it says alone; [Narrow] makes
// one that also fits the grant before.
func SignGrant(key crypto.Signer, chain []*x509.Certificate, g Grant) (string, error) {
	c := grantClaims{
		Issuer: g.Issuer, Delegate: g.Delegate, Mesh: g.Mesh, Subject: g.Subject, Txn: g.Txn,
		Previous: g.Previous, Cap: g.Cap, Left: g.Left, Purpose: g.Purpose,
		IssuedAt: g.IssuedAt.Unix(), Expires: g.Expires.Unix(), ID: g.ID,
	}
	if err := c.check(); err != nil {
		return "", err
	}
	if len(chain) == 0 || len(chain) > maxCertificates {
		return "", refuse(ClassHeaderKey, "%d certificates, want 1 to %d", len(chain), maxCertificates)
	}
	leaf := chain[0]
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return "", refuse(ClassHeaderKey, "the key is not the one of the SVID")
	}
	if id, err := x509svid.IDFromCert(leaf); err != nil || id != g.Issuer.ID() {
		return "", refuse(ClassGrantIssuer, "the SVID is not the one of %s", g.Issuer)
	}
	if g.Expires.After(leaf.NotAfter) {
		return "", refuse(ClassGrantOutlivesSVID, "the grant would end after the SVID, at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	x5c := make([]string, len(chain))
	for i, cert := range chain {
		x5c[i] = base64.StdEncoding.EncodeToString(cert.Raw)
	}
	return sign(key, TypeGrant, map[jose.HeaderKey]any{"x5c": x5c}, false, c)
}

// ParseGrant reads strictly and verifies nothing.
func ParseGrant(raw string) (Grant, error) {
	if err := checkForm(raw); err != nil {
		return Grant{}, err
	}
	j, err := splitJWS(raw)
	if err != nil {
		return Grant{}, err
	}
	return readGrant(&j)
}

func readGrant(j *jws) (Grant, error) {
	h, err := j.readHeader(TypeGrant, "x5c")
	if err != nil {
		return Grant{}, err
	}
	chain, err := parseX5C(*h.X5C)
	if err != nil {
		return Grant{}, err
	}
	var c grantClaims
	if err := strictjson.Unmarshal(j.payload, &c); err != nil {
		return Grant{}, jsonError(err)
	}
	if err := c.check(); err != nil {
		return Grant{}, err
	}
	return Grant{
		Issuer: c.Issuer, Delegate: c.Delegate, Mesh: c.Mesh, Subject: c.Subject, Txn: c.Txn,
		Previous: c.Previous, Cap: c.Cap, Left: c.Left, Purpose: c.Purpose,
		IssuedAt: unix(c.IssuedAt), Expires: unix(c.Expires), ID: c.ID, Chain: chain, Statement: j.raw,
	}, nil
}

func (c grantClaims) check() error {
	if c.Left < 0 || c.Left > MaxLeft {
		return refuse(ClassClaim, "left is %d, want 0 to %d", c.Left, MaxLeft)
	}
	if c.Issuer.IsZero() || c.Delegate.IsZero() {
		return refuse(ClassClaim, "iss or delegate is missing")
	}
	return firstError(
		checkIssuer(c.Mesh), c.Subject.Validate(), checkHexID("txn", c.Txn), checkHexID("jti", c.ID),
		checkHash("prh", c.Previous), c.Cap.Validate(), checkText("purpose", c.Purpose, 0, maxPurpose),
		checkTimes(c.IssuedAt, c.Expires),
	)
}

// Narrowing is what an agent wants to pass on.
type Narrowing struct {
	Issuer   AgentID // must be the delegate of the statement before
	Delegate AgentID
	// Cap is nil for the same as before.
	Cap Details
	// Left is nil for one less than before.
	Left *int
	// Purpose is empty for the same as before.
	Purpose  string
	IssuedAt time.Time
	// Expires is cut to the end of the statement before and NotAfter.
	Expires  time.Time
	NotAfter time.Time // end of the issuer's SVID
}

// Narrow makes the grant that follows previous, a user grant or grant. It refuses
// to widen, with the class that a verifier would give. It does not ask whether
// Delegate is a direct child, because a verifier's configuration may allow pairs.
func Narrow(previous string, n Narrowing) (Grant, error) {
	if err := checkForm(previous); err != nil {
		return Grant{}, err
	}
	j, err := splitJWS(previous)
	if err != nil {
		return Grant{}, err
	}
	var before Grant
	typ, err := j.peekType()
	if err != nil {
		return Grant{}, err
	}
	if typ == TypeUserGrant {
		u, err := readUserGrant(&j)
		if err != nil {
			return Grant{}, err
		}
		before = Grant{Delegate: u.Delegate, Mesh: u.Mesh, Subject: u.Subject, Txn: u.Txn, Cap: u.Cap,
			Left: u.Left, Purpose: u.Purpose, Expires: u.Expires}
	} else if before, err = readGrant(&j); err != nil {
		return Grant{}, err
	}

	g := Grant{
		Issuer: n.Issuer, Delegate: n.Delegate, Mesh: before.Mesh, Subject: before.Subject, Txn: before.Txn,
		Previous: Hash(previous), Cap: n.Cap, Left: before.Left - 1, Purpose: n.Purpose,
		IssuedAt: n.IssuedAt, Expires: n.Expires, ID: NewHexID(),
	}
	if g.Cap == nil {
		g.Cap = before.Cap
	}
	if n.Left != nil {
		g.Left = *n.Left
	}
	if g.Purpose == "" {
		g.Purpose = before.Purpose
	}
	for _, end := range []time.Time{before.Expires, n.NotAfter} {
		if !end.IsZero() && end.Before(g.Expires) {
			g.Expires = end
		}
	}
	switch {
	case g.Issuer != before.Delegate:
		return Grant{}, refuse(ClassGrantDelegate, "%s is not the delegate of the grant before", g.Issuer)
	case g.Left < 0 || g.Left >= before.Left:
		return Grant{}, refuse(ClassGrantLeft, "left would be %d after %d", g.Left, before.Left)
	}
	if err := g.Cap.Within(before.Cap); err != nil {
		return Grant{}, wrap(ClassGrantCap, err)
	}
	return g, nil
}
