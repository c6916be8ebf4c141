package actor

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Subject is a verified subject_token of an exchange: a chain without the
// broker's countersignature. What it says must still match a live session.
type Subject struct {
	User     SubjectID
	SID      string
	Txn      string // "" for a bare ID token: the broker chooses one
	AuthTime time.Time
	ACR      string
	Purpose  string // the user grant's; "" without one
	// Bare: there is no user grant, so the session rests on the broker's word.
	Bare     bool
	RootHash string // Hash of the ID token
	LoginKey string // thumbprint; "" if Bare
	// RootCap is what the user granted; nil if Bare. In a bare session the broker
	// must hold Hops[1].Grant.Cap against the session's own cap.
	RootCap Details
	// Cap and Left are the last grant's; nil and 0 for a bare ID token.
	Cap     Details
	Left    int
	Hops    []Hop
	Head    string    // Hash of the newest grant; "" for a bare ID token
	Expires time.Time // earliest end of grants, SVIDs and session
	// Certificate is the x5t#S256 of the presenter's SVID.
	Certificate string
	Identity    IdentityClaims
	Digest      string // Hash of the exact bytes
}

// Actors are the agents, first to last; the last is the presenter.
func (s *Subject) Actors() []AgentID {
	c := Chain{Hops: s.Hops}
	return c.Actors()
}

// Presenter is the agent at the other end of the connection.
func (s *Subject) Presenter() AgentID { return s.Hops[len(s.Hops)-1].Agent }

// RequireFresh refuses an ID token that has expired. It is for the exchange that
// opens a session; afterwards the session counts.
func (s *Subject) RequireFresh(now time.Time) error {
	if !now.Before(s.Identity.Expires.Add(Skew)) {
		return refuse(ClassIDTokenExpired, "the ID token expired at %s", s.Identity.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// TokenRequest is what a broker decides for one exchange.
type TokenRequest struct {
	Mesh    string
	Target  spiffeid.ID
	Details Details // must lie within the subject's Cap
	Roles   []string
	Txn     string // the session's; needed for a bare ID token only
	Purpose string // used where there is no user grant
	Now     time.Time
	// NotAfter is the end of the session; zero for none.
	NotAfter time.Time
}

// Token fills a delegated token from a verified subject, with the earliest exp of
// all that bounds it. It refuses details that are too wide, with
// [ClassTokenDetails].
func (s *Subject) Token(r TokenRequest) (Token, error) {
	if s.Cap != nil {
		if err := r.Details.Within(s.Cap); err != nil {
			return Token{}, wrap(ClassTokenDetails, err)
		}
	} else if err := r.Details.Validate(); err != nil {
		return Token{}, err
	}
	t := Token{
		Issuer: r.Mesh, Audience: r.Target, Subject: s.User, SID: s.SID, AuthTime: s.AuthTime, ACR: s.ACR,
		Actors: s.Actors(), Certificate: s.Certificate, Details: r.Details, Roles: r.Roles,
		Purpose: s.Purpose, Txn: s.Txn, Head: s.Head,
		IssuedAt: r.Now, NotBefore: r.Now, Expires: r.Now.Add(TokenLife), ID: NewHexID(),
	}
	if s.Bare {
		t.Purpose = r.Purpose
	}
	if t.Txn == "" {
		t.Txn = r.Txn
	}
	for _, end := range []time.Time{s.Expires, r.NotAfter} {
		if !end.IsZero() && end.Before(t.Expires) {
			t.Expires = end
		}
	}
	if !t.Expires.After(t.IssuedAt) {
		return Token{}, refuse(ClassExpired, "the subject ended at %s", t.Expires.UTC().Format(time.RFC3339))
	}
	return t, nil
}
