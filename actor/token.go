package actor

import (
	"crypto"
	"crypto/sha256"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Token is the delegated token (RFC 9068 at+jwt): the broker's countersignature
// of a chain, for one target and at most [TokenLife]. client_id and act.sub are
// the last of Actors, sub is made from Subject.
type Token struct {
	Issuer   string      // iss, the mesh
	Audience spiffeid.ID // aud, one target
	Subject  SubjectID   // sub_id
	SID      string
	AuthTime time.Time // of the sign-in; copied, never renewed
	ACR      string    // optional
	// Actors from the first agent to the presenter; nested into act.
	Actors      []AgentID
	Certificate string // cnf x5t#S256: CertificateHash of the presenter's SVID
	Details     Details
	Roles       []string // may be empty
	Purpose     string
	Txn         string
	Head        string // Hash of the newest grant; empty only when there is none
	IssuedAt    time.Time
	NotBefore   time.Time
	Expires     time.Time
	ID          string // jti
	KeyID       string // header kid; set by parsing
	Statement   string // the exact bytes; set by parsing
}

type tokenClaims struct {
	Issuer    string    `json:"iss"`
	Audience  audience  `json:"aud"`
	Sub       string    `json:"sub"`
	Subject   SubjectID `json:"sub_id"`
	SID       string    `json:"sid"`
	AuthTime  int64     `json:"auth_time"`
	ACR       *string   `json:"acr,omitempty"`
	ClientID  AgentID   `json:"client_id"`
	Act       *actClaim `json:"act"`
	Confirm   cnfClaim  `json:"cnf"`
	Details   Details   `json:"authorization_details"`
	Roles     []string  `json:"roles"`
	Purpose   string    `json:"purpose"`
	Txn       string    `json:"txn"`
	Head      *string   `json:"head,omitempty"`
	IssuedAt  int64     `json:"iat"`
	NotBefore int64     `json:"nbf"`
	Expires   int64     `json:"exp"`
	ID        string    `json:"jti"`
}

// actClaim is RFC 8693 §4.1, outermost the current actor. iss is the namespace
// of sub: the trust domain's ID.
// audience is a target. What isn't is for somebody else, so it has the class of that.
type audience struct{ spiffeid.ID }

func (a *audience) UnmarshalText(text []byte) error {
	id, err := spiffeid.FromString(string(text))
	if err == nil {
		_, err = TargetName(id)
	}
	if err != nil {
		return wrap(ClassTokenAudience, err)
	}
	a.ID = id
	return nil
}

type actClaim struct {
	Sub     AgentID   `json:"sub"`
	Issuer  string    `json:"iss"`
	Profile string    `json:"sub_profile"`
	Act     *actClaim `json:"act,omitempty"`
}

const actorProfile = "ai_agent"

type cnfClaim struct {
	X5T string `json:"x5t#S256"`
}

// SubjectName is the sub of a delegated token: a name for the user in the mesh's
// own namespace, which can never be read as an agent's (RFC 9700 §4.15).
func SubjectName(s SubjectID) string {
	sum := sha256.Sum256([]byte(s.Issuer + "\n" + s.Subject))
	return "u_" + strictjson.EncodeBase64URL(sum[:16])
}

// SignToken signs with a token key; kid is its [NonceFor].
func SignToken(key crypto.Signer, kid string, t Token) (string, error) {
	c := tokenClaims{
		Issuer: t.Issuer, Audience: audience{t.Audience}, Sub: SubjectName(t.Subject), Subject: t.Subject, SID: t.SID,
		AuthTime: t.AuthTime.Unix(), ACR: textOrAbsent(t.ACR), Confirm: cnfClaim{t.Certificate}, Details: t.Details,
		Roles: t.Roles, Purpose: t.Purpose, Txn: t.Txn, Head: textOrAbsent(t.Head), IssuedAt: t.IssuedAt.Unix(),
		NotBefore: t.NotBefore.Unix(), Expires: t.Expires.Unix(), ID: t.ID,
	}
	if c.Roles == nil {
		c.Roles = []string{}
	}
	for _, a := range t.Actors {
		c.Act = &actClaim{Sub: a, Issuer: a.TrustDomain().IDString(), Profile: actorProfile, Act: c.Act}
		c.ClientID = a
	}
	if err := c.check(); err != nil {
		return "", err
	}
	if kid == "" || kid != NonceFor(key.Public()) {
		return "", refuse(ClassHeaderKey, "kid is not the thumbprint of the key")
	}
	return sign(key, TypeToken, map[jose.HeaderKey]any{"kid": kid}, false, c)
}

// ParseToken reads strictly and verifies nothing. That client_id is the current
// actor is verified later, so it reads Actors from act.
func ParseToken(raw string) (Token, error) {
	if err := checkForm(raw); err != nil {
		return Token{}, err
	}
	j, err := splitJWS(raw)
	if err != nil {
		return Token{}, err
	}
	t, _, err := readToken(&j)
	return t, err
}

func readToken(j *jws) (Token, tokenClaims, error) {
	h, err := j.readHeader(TypeToken, "kid")
	if err != nil {
		return Token{}, tokenClaims{}, err
	}
	var c tokenClaims
	if err := strictjson.Unmarshal(j.payload, &c); err != nil {
		return Token{}, tokenClaims{}, jsonError(err)
	}
	if err := c.check(); err != nil {
		return Token{}, tokenClaims{}, err
	}
	return Token{
		Issuer: c.Issuer, Audience: c.Audience.ID, Subject: c.Subject, SID: c.SID, AuthTime: unix(c.AuthTime),
		ACR: textOf(c.ACR), Actors: c.actors(), Certificate: c.Confirm.X5T, Details: c.Details, Roles: c.Roles,
		Purpose: c.Purpose, Txn: c.Txn, Head: textOf(c.Head), IssuedAt: unix(c.IssuedAt), NotBefore: unix(c.NotBefore),
		Expires: unix(c.Expires), ID: c.ID, KeyID: *h.Kid, Statement: j.raw,
	}, c, nil
}

// actors are the members of act from the inside out: the first agent first.
func (c tokenClaims) actors() []AgentID {
	var out []AgentID
	for a := c.Act; a != nil; a = a.Act {
		out = append(out, a.Sub)
	}
	for i, k := 0, len(out)-1; i < k; i, k = i+1, k-1 {
		out[i], out[k] = out[k], out[i]
	}
	return out
}

func (c tokenClaims) check() error {
	if c.Act == nil || c.ClientID.IsZero() {
		return refuse(ClassClaim, "no actor")
	}
	if _, err := TargetName(c.Audience.ID); err != nil {
		return wrap(ClassTokenAudience, err)
	}
	if c.Sub != SubjectName(c.Subject) {
		return refuse(ClassClaim, "sub is not made from sub_id")
	}
	if err := checkRoles(c.Roles); err != nil {
		return err
	}
	for a := c.Act; a != nil; a = a.Act {
		if a.Profile != actorProfile {
			return refuse(ClassClaim, "sub_profile is %q, want %s", a.Profile, actorProfile)
		}
	}
	// An empty string isn't an absent one: each token has one encoding.
	if c.ACR != nil {
		if err := checkText("acr", *c.ACR, 1, maxSubject); err != nil {
			return err
		}
	}
	if c.Head != nil {
		if err := checkHash("head", *c.Head); err != nil {
			return err
		}
	}
	if c.AuthTime <= 0 || c.AuthTime > maxTime || c.NotBefore <= 0 || c.NotBefore > c.Expires {
		return refuse(ClassClaim, "auth_time or nbf is not a time that fits")
	}
	return firstError(
		checkIssuer(c.Issuer), c.Subject.Validate(), checkText("sid", c.SID, 1, maxSubject),
		checkHash("cnf.x5t#S256", c.Confirm.X5T), c.Details.Validate(),
		checkText("purpose", c.Purpose, 0, maxPurpose), checkHexID("txn", c.Txn), checkHexID("jti", c.ID),
		checkTimes(c.IssuedAt, c.Expires),
	)
}

func textOrAbsent(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func textOf(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func nonEmpty[T any](l []T) []T {
	if len(l) == 0 {
		return nil
	}
	return l
}

func checkRoles(roles []string) error {
	if len(roles) > maxRoles {
		return refuse(ClassClaim, "%d roles, want at most %d", len(roles), maxRoles)
	}
	if err := checkList("roles", nonEmpty(roles)); err != nil {
		return wrap(ClassClaim, err)
	}
	for _, r := range roles {
		if err := checkText("role", r, 1, maxSubject); err != nil {
			return err
		}
	}
	return nil
}
