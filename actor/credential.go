package actor

import "strings"

// Credential is what an agent presents, one string:
//
//	token~grantₙ~…~grant₁[~id_token]
//
// newest grant first, the user grant last. Parsing is strict and verifies
// nothing; the parts keep their exact bytes.
type Credential struct {
	Token     Token
	Grants    []Grant    // newest first, without the user grant
	UserGrant *UserGrant // nil in a session that has none
	IDToken   string     // "" if absent

	claims tokenClaims
	token  jws
	lineage
}

// SubjectToken is the subject_token of an exchange: a credential without its
// token. A bare ID token has neither grants nor user grant.
type SubjectToken struct {
	Grants    []Grant // newest first
	UserGrant *UserGrant
	IDToken   string

	lineage
}

// lineage holds the forms that signatures are checked on.
type lineage struct {
	grants    []jws
	userGrant jws
}

const maxParts = 2 + HardMaxActors

// checkForm is what comes before everything: size and alphabet.
func checkForm(s string) error {
	if len(s) == 0 || len(s) > MaxSize {
		return refuse(ClassSize, "%d bytes, want 1 to %d", len(s), MaxSize)
	}
	for i := range len(s) {
		if !inAlphabet[s[i]] {
			return refuse(ClassAlphabet, "byte %d is outside the alphabet", i)
		}
	}
	return nil
}

// inAlphabet are base64url, the dots of the compact form and the tildes between parts.
var inAlphabet = func() (in [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~") {
		in[c] = true
	}
	return in
}()

// ParseCredential reads the whole credential before any cryptography.
func ParseCredential(s string) (Credential, error) {
	parts, err := splitParts(s)
	if err != nil {
		return Credential{}, err
	}
	var c Credential
	if c.Token, c.claims, err = readToken(&parts[0]); err != nil {
		return Credential{}, err
	}
	c.token = parts[0]
	c.Grants, c.UserGrant, c.IDToken, c.lineage, err = readLineage(parts[1:])
	if err != nil {
		return Credential{}, err
	}
	if c.UserGrant == nil && c.IDToken != "" {
		return Credential{}, refuse(ClassOrder, "an ID token without the user grant that names it")
	}
	return c, nil
}

// ParseSubject reads a subject_token: grants~user_grant~id_token,
// grants~id_token for a session without user grant, or a bare ID token.
func ParseSubject(s string) (SubjectToken, error) {
	parts, err := splitParts(s)
	if err != nil {
		return SubjectToken{}, err
	}
	var out SubjectToken
	out.Grants, out.UserGrant, out.IDToken, out.lineage, err = readLineage(parts)
	if err != nil {
		return SubjectToken{}, err
	}
	if out.IDToken == "" {
		return SubjectToken{}, refuse(ClassIDTokenMissing, "the subject has no ID token")
	}
	return out, nil
}

func splitParts(s string) ([]jws, error) {
	if err := checkForm(s); err != nil {
		return nil, err
	}
	raw := strings.Split(s, "~")
	if len(raw) > maxParts {
		return nil, refuse(ClassParts, "%d parts, want at most %d", len(raw), maxParts)
	}
	out := make([]jws, len(raw))
	for i, r := range raw {
		var err error
		if out[i], err = splitJWS(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readLineage tells the parts apart by typ and place: grants, then at most one
// user grant, then at most one ID token.
func readLineage(parts []jws) (grants []Grant, user *UserGrant, idToken string, l lineage, err error) {
	// The hop of a part is known once it is known how the lineage ends.
	types := make([]string, len(parts))
	for i, p := range parts {
		if types[i], err = p.peekType(); err != nil {
			return nil, nil, "", l, err
		}
	}
	n := 0
	for n < len(parts) && types[n] == TypeGrant {
		n++
	}
	rest, types := parts[n:], types[n:]
	for i, p := range parts[:n] {
		g, err := readGrant(&p)
		if err != nil {
			return nil, nil, "", l, atHop(n-i, err)
		}
		grants, l.grants = append(grants, g), append(l.grants, p)
	}
	if len(rest) > 0 && types[0] == TypeUserGrant {
		u, err := readUserGrant(&rest[0])
		if err != nil {
			return nil, nil, "", l, atHop(0, err)
		}
		user, l.userGrant, rest, types = &u, rest[0], rest[1:], types[1:]
	}
	if len(rest) > 0 {
		switch types[0] {
		case TypeGrant, TypeUserGrant, TypeToken, TypeKeyStatement, TypeOperatorRequest:
			return nil, nil, "", l, refuse(ClassOrder, "%s in the wrong place", types[0])
		}
		if len(rest) > 1 {
			return nil, nil, "", l, refuse(ClassHeaderType, "typ %q is none of a grant", types[0])
		}
		if err := checkIDToken(rest[0]); err != nil {
			return nil, nil, "", l, err
		}
		idToken = rest[0].raw
	}
	return grants, user, idToken, l, nil
}

// String joins the exact bytes of the parts.
func (c Credential) String() string {
	return joinParts(c.Token.Statement, c.Grants, c.UserGrant, c.IDToken)
}

// String joins the exact bytes of the parts.
func (s SubjectToken) String() string { return joinParts("", s.Grants, s.UserGrant, s.IDToken) }

func joinParts(token string, grants []Grant, user *UserGrant, idToken string) string {
	var parts []string
	if token != "" {
		parts = append(parts, token)
	}
	for _, g := range grants {
		parts = append(parts, g.Statement)
	}
	if user != nil {
		parts = append(parts, user.Statement)
	}
	if idToken != "" {
		parts = append(parts, idToken)
	}
	return strings.Join(parts, "~")
}

// JoinCredential puts a credential together from its signed parts: grants are
// newest first with the user grant last, as in a subject_token. idToken may be
// empty.
func JoinCredential(token string, grants []string, idToken string) string {
	parts := append([]string{token}, grants...)
	if idToken != "" {
		parts = append(parts, idToken)
	}
	return strings.Join(parts, "~")
}

// JoinSubject puts a subject_token together from its signed parts.
func JoinSubject(grants []string, idToken string) string {
	return strings.Join(append(append([]string{}, grants...), idToken), "~")
}
