package actor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// ChainLife is how long a chain statement lives.
const ChainLife = 30 * time.Second

// ChainStatement is what a proxy tells a service about one request: the chain that it verified. It is signed by the proxy's SVID key, and is no
// credential: it says who asks, and gives nobody anything.
type ChainStatement struct {
	Issuer spiffeid.ID // iss, the proxy
	Target spiffeid.ID // aud
	User   SubjectID   // sub_id
	Txn    string
	// Actors from the first agent to the one that asks.
	Actors       []ChainActor
	Roles        []string
	Purpose      string
	RootEvidence RootEvidence
	// Method and Path are the request's: the method in capitals, the path decoded, in its canonical form.
	Method, Path string
	// Record is the id of the decision's record at the proxy.
	Record   string
	IssuedAt time.Time
	Expires  time.Time // at most ChainLife after IssuedAt
	ID       string    // jti
}

// ChainActor is one agent of a chain statement.
type ChainActor struct {
	ID    spiffeid.ID
	Grade Grade
}

type chainClaims struct {
	Issuer   string           `json:"iss"`
	Target   string           `json:"aud"`
	User     SubjectID        `json:"sub_id"`
	Txn      string           `json:"txn"`
	Actors   []chainActorJSON `json:"actors"`
	Roles    []string         `json:"roles"`
	Purpose  string           `json:"purpose"`
	Root     RootEvidence     `json:"root_evidence"`
	Method   string           `json:"htm"`
	Path     string           `json:"path"`
	Record   string           `json:"record"`
	IssuedAt int64            `json:"iat"`
	Expires  int64            `json:"exp"`
	ID       string           `json:"jti"`
}

type chainActorJSON struct {
	ID    string `json:"sub"`
	Grade Grade  `json:"grade"`
}

// StateChain makes the statement about a verified chain for one request.
func StateChain(c *Chain, proxy spiffeid.ID, method, path, record string, now time.Time) ChainStatement {
	s := ChainStatement{
		Issuer: proxy, Target: c.Target, User: c.User, Txn: c.Txn, Roles: c.Roles, Purpose: c.Purpose, RootEvidence: c.RootEvidence,
		Method: method, Path: path, Record: record, IssuedAt: now, Expires: now.Add(ChainLife), ID: NewHexID(),
	}
	for _, h := range c.Hops {
		if h.Kind == HopAgent {
			s.Actors = append(s.Actors, ChainActor{h.Agent.ID(), h.Grade})
		}
	}
	return s
}

// SignChain signs with the key of the proxy's SVID, whose leaf must be s.Issuer's.
func SignChain(key crypto.Signer, chain []*x509.Certificate, s ChainStatement) (string, error) {
	c := chainClaims{
		Issuer: s.Issuer.String(), Target: s.Target.String(), User: s.User, Txn: s.Txn, Roles: append([]string{}, s.Roles...), Purpose: s.Purpose, Root: s.RootEvidence,
		Method: s.Method, Path: s.Path, Record: s.Record, IssuedAt: s.IssuedAt.Unix(), Expires: s.Expires.Unix(), ID: s.ID,
	}
	for _, a := range s.Actors {
		c.Actors = append(c.Actors, chainActorJSON{a.ID.String(), a.Grade})
	}
	if err := c.check(); err != nil {
		return "", err
	}
	if len(chain) == 0 || len(chain) > maxCertificates {
		return "", refuse(ClassHeaderKey, "%d certificates, want 1 to %d", len(chain), maxCertificates)
	}
	if pub, ok := chain[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return "", refuse(ClassHeaderKey, "the key is not the one of the SVID")
	}
	if id, err := x509svid.IDFromCert(chain[0]); err != nil || id != s.Issuer {
		return "", refuse(ClassHeaderKey, "the SVID is not the one of %s", s.Issuer)
	}
	x5c := make([]string, len(chain))
	for i, cert := range chain {
		x5c[i] = base64.StdEncoding.EncodeToString(cert.Raw)
	}
	return sign(key, TypeChain, map[jose.HeaderKey]any{"x5c": x5c}, false, c)
}

func (c chainClaims) check() error {
	if proxy, err := spiffeid.FromString(c.Issuer); err != nil || proxy.String() != c.Issuer || !strings.HasPrefix(proxy.Path(), "/deputy/proxy/") {
		return refuse(ClassClaim, "iss %q is no proxy", c.Issuer)
	}
	if target, err := spiffeid.FromString(c.Target); err != nil || target.String() != c.Target {
		return refuse(ClassClaim, "aud %q is no SPIFFE ID", c.Target)
	} else if _, err := TargetName(target); err != nil {
		return wrap(ClassClaim, err)
	}
	if len(c.Actors) == 0 || len(c.Actors) > MaxLeft+1 {
		return refuse(ClassClaim, "%d actors", len(c.Actors))
	}
	for _, a := range c.Actors {
		id, err := spiffeid.FromString(a.ID)
		if err != nil {
			return wrap(ClassClaim, err)
		}
		if _, err := ParseAgentID(id); err != nil {
			return wrap(ClassClaim, err)
		}
		if a.Grade != Attested && a.Grade != Asserted {
			return refuse(ClassClaim, "grade %q", a.Grade)
		}
	}
	if c.Root != RootVerified && c.Root != RootBroker {
		return refuse(ClassClaim, "root_evidence %q", c.Root)
	}
	if err := checkRoles(c.Roles); err != nil {
		return err
	}
	if c.Expires-c.IssuedAt > int64(ChainLife/time.Second) {
		return refuse(ClassClaim, "the statement lives longer than %s", ChainLife)
	}
	if err := CheckHTTPPath(c.Path); err != nil {
		return wrap(ClassClaim, err)
	}
	return firstError(c.User.Validate(), checkHexID("txn", c.Txn), checkHexID("jti", c.ID), checkText("purpose", c.Purpose, 0, maxPurpose),
		checkText("htm", c.Method, 1, 32), checkText("record", c.Record, 1, 128), checkTimes(c.IssuedAt, c.Expires))
}

// ChainCall is what a service knows by itself of a request that carries a chain statement.
type ChainCall struct {
	// Bundles of the mesh's trust domain, Proxy the only one that may speak of this service, Target the service's own name.
	Bundles       x509bundle.Source
	Proxy, Target spiffeid.ID
	// Method and Path of the request: the method in capitals, the path decoded once.
	Method, Path string
	Now          time.Time
}

// VerifyChain refuses, with [ClassChain], a statement that is not that proxy's, for exactly this request, now. A service that must not take one
// twice keeps jti until Expires.
func VerifyChain(raw string, call ChainCall) (ChainStatement, error) {
	s, err := verifyChain(raw, call)
	if err != nil {
		return ChainStatement{}, wrap(ClassChain, err)
	}
	return s, nil
}

func verifyChain(raw string, call ChainCall) (ChainStatement, error) {
	if err := checkForm(raw); err != nil {
		return ChainStatement{}, err
	}
	j, err := splitJWS(raw)
	if err != nil {
		return ChainStatement{}, err
	}
	h, err := j.readHeader(TypeChain, "x5c")
	if err != nil {
		return ChainStatement{}, err
	}
	chain, err := parseX5C(*h.X5C)
	if err != nil {
		return ChainStatement{}, err
	}
	var c chainClaims
	if err := strictjson.Unmarshal(j.payload, &c); err != nil {
		return ChainStatement{}, jsonError(err)
	}
	if err := c.check(); err != nil {
		return ChainStatement{}, err
	}
	id, _, err := x509svid.Verify(chain, call.Bundles, x509svid.WithTime(call.Now))
	if err != nil {
		return ChainStatement{}, wrap(ClassHeaderKey, err)
	}
	key, err := P256(chain[0].PublicKey)
	if err != nil {
		return ChainStatement{}, err
	}
	if err := j.verify(key); err != nil {
		return ChainStatement{}, err
	}
	switch {
	case id != call.Proxy || c.Issuer != id.String():
		return ChainStatement{}, refuse(ClassClaim, "iss is not the proxy of this service")
	case c.Target != call.Target.String():
		return ChainStatement{}, refuse(ClassClaim, "aud is not this service")
	case c.Method != call.Method || c.Path != call.Path:
		return ChainStatement{}, refuse(ClassClaim, "the statement is about %s %s", c.Method, c.Path)
	case unix(c.IssuedAt).After(call.Now.Add(Skew)):
		return ChainStatement{}, refuse(ClassClaim, "iat lies in the future")
	case !call.Now.Before(unix(c.Expires).Add(Skew)):
		return ChainStatement{}, refuse(ClassClaim, "the statement has expired")
	}
	out := ChainStatement{
		Issuer: id, Target: call.Target, User: c.User, Txn: c.Txn, Roles: c.Roles, Purpose: c.Purpose, RootEvidence: c.Root,
		Method: c.Method, Path: c.Path, Record: c.Record, IssuedAt: unix(c.IssuedAt), Expires: unix(c.Expires), ID: c.ID,
	}
	for _, a := range c.Actors {
		agent, err := spiffeid.FromString(a.ID)
		if err != nil {
			return ChainStatement{}, wrap(ClassClaim, err)
		}
		out.Actors = append(out.Actors, ChainActor{agent, a.Grade})
	}
	return out, nil
}
