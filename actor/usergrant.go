package actor

import (
	"crypto"
	"crypto/ecdsa"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// UserGrant is the first hop: the signed-in user's login key says that the first
// agent may act for the user, this far. The sign-in vouches for the key by its
// nonce, so iss is the identity provider.
type UserGrant struct {
	Issuer    string    // iss, the identity provider's issuer URL
	Root      Root      // which sign-in
	Delegate  AgentID   // the first agent, of the first level
	Mesh      string    // the broker's issuer URL
	Subject   SubjectID // sub_id
	Txn       string    // one per task tree, 128 bits
	Cap       Details
	Left      int // delegations still allowed after this one
	Purpose   string
	IssuedAt  time.Time
	Expires   time.Time
	ID        string           // jti
	LoginKey  *ecdsa.PublicKey // header jwk; set by parsing, ignored by signing
	Statement string           // the exact bytes; set by parsing, ignored by signing
}

// Root ties a chain to one sign-in.
type Root struct {
	Issuer string `json:"iss"`
	// Hash is the base64url SHA-256 of the ID token's exact bytes.
	Hash string `json:"th"`
	// SID is the ID token's sid, or Hash when it has none: see [SessionID].
	SID string `json:"sid"`
}

const rootType = "id_token"

// SessionID is the sid of everything that descends from one ID token: the
// provider's sid or, where there is none, the token's hash.
func SessionID(idToken, sid string) string {
	if sid != "" {
		return sid
	}
	return Hash(idToken)
}

// MaxLeft is the greatest left: [HardMaxActors] actors need one user grant and
// this many grants.
const MaxLeft = HardMaxActors - 1

type userGrantClaims struct {
	Issuer   string    `json:"iss"`
	Root     rootJSON  `json:"root"`
	Delegate AgentID   `json:"delegate"`
	Mesh     string    `json:"mesh"`
	Subject  SubjectID `json:"sub_id"`
	Txn      string    `json:"txn"`
	Cap      Details   `json:"cap"`
	Left     int       `json:"left"`
	Purpose  string    `json:"purpose"`
	IssuedAt int64     `json:"iat"`
	Expires  int64     `json:"exp"`
	ID       string    `json:"jti"`
}

type rootJSON struct {
	Type   string `json:"type"`
	Issuer string `json:"iss"`
	Hash   string `json:"th"`
	SID    string `json:"sid"`
}

// SignUserGrant signs with the login key, whose [NonceFor] was the sign-in's
// nonce.
func SignUserGrant(key crypto.Signer, g UserGrant) (string, error) {
	c := userGrantClaims{
		Issuer: g.Issuer, Root: rootJSON{rootType, g.Root.Issuer, g.Root.Hash, g.Root.SID},
		Delegate: g.Delegate, Mesh: g.Mesh, Subject: g.Subject, Txn: g.Txn, Cap: g.Cap, Left: g.Left,
		Purpose: g.Purpose, IssuedAt: g.IssuedAt.Unix(), Expires: g.Expires.Unix(), ID: g.ID,
	}
	if err := c.check(); err != nil {
		return "", err
	}
	return sign(key, TypeUserGrant, nil, true, c)
}

// ParseUserGrant reads strictly and verifies nothing.
func ParseUserGrant(raw string) (UserGrant, error) {
	if err := checkForm(raw); err != nil {
		return UserGrant{}, err
	}
	j, err := splitJWS(raw)
	if err != nil {
		return UserGrant{}, err
	}
	return readUserGrant(&j)
}

func readUserGrant(j *jws) (UserGrant, error) {
	h, err := j.readHeader(TypeUserGrant, "jwk")
	if err != nil {
		return UserGrant{}, err
	}
	key, err := h.JWK.publicKey()
	if err != nil {
		return UserGrant{}, err
	}
	var c userGrantClaims
	if err := strictjson.Unmarshal(j.payload, &c); err != nil {
		return UserGrant{}, jsonError(err)
	}
	if err := c.check(); err != nil {
		return UserGrant{}, err
	}
	return UserGrant{
		Issuer: c.Issuer, Root: Root{c.Root.Issuer, c.Root.Hash, c.Root.SID}, Delegate: c.Delegate,
		Mesh: c.Mesh, Subject: c.Subject, Txn: c.Txn, Cap: c.Cap, Left: c.Left, Purpose: c.Purpose,
		IssuedAt: unix(c.IssuedAt), Expires: unix(c.Expires), ID: c.ID, LoginKey: key, Statement: j.raw,
	}, nil
}

// check looks at each claim alone; how statements fit together is verified later.
func (c userGrantClaims) check() error {
	if c.Root.Type != rootType {
		return refuse(ClassClaim, "root has the type %q, want %s", c.Root.Type, rootType)
	}
	if c.Left < 0 || c.Left > MaxLeft {
		return refuse(ClassClaim, "left is %d, want 0 to %d", c.Left, MaxLeft)
	}
	if c.Delegate.IsZero() {
		return refuse(ClassClaim, "delegate is missing")
	}
	return firstError(
		checkIssuer(c.Issuer), checkIssuer(c.Root.Issuer), checkIssuer(c.Mesh),
		checkHash("root.th", c.Root.Hash), checkText("root.sid", c.Root.SID, 1, maxSubject),
		c.Subject.Validate(), checkHexID("txn", c.Txn), checkHexID("jti", c.ID),
		c.Cap.Validate(), checkText("purpose", c.Purpose, 0, maxPurpose), checkTimes(c.IssuedAt, c.Expires),
	)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
