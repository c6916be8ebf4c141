package actor

import (
	"encoding/json"
	"regexp"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// SubjectID names a user the way RFC 9493 §3.2.6 does: {"format":"iss_sub"}.
// It is comparable. No other member of a statement identifies the user.
type SubjectID struct {
	Issuer  string // the identity provider's issuer URL, compared byte for byte
	Subject string // the provider's sub, compared byte for byte
}

const (
	maxURL     = 512
	maxSubject = 255 // OpenID Connect Core §2
)

type subjectJSON struct {
	Format  string `json:"format"`
	Issuer  string `json:"iss"`
	Subject string `json:"sub"`
}

// String is unambiguous because an issuer has no fragment: iss#sub.
func (s SubjectID) String() string { return s.Issuer + "#" + s.Subject }

// Validate refuses an issuer that is no URL and a subject that is empty, too
// long or holds control characters.
func (s SubjectID) Validate() error {
	if err := checkIssuer(s.Issuer); err != nil {
		return err
	}
	return checkText("sub", s.Subject, 1, maxSubject)
}

func (s SubjectID) MarshalJSON() ([]byte, error) {
	return json.Marshal(subjectJSON{"iss_sub", s.Issuer, s.Subject})
}

func (s *SubjectID) UnmarshalJSON(data []byte) error {
	var j subjectJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return err
	}
	if j.Format != "iss_sub" {
		return refuse(ClassClaim, "sub_id has the format %q, want iss_sub", j.Format)
	}
	*s = SubjectID{j.Issuer, j.Subject}
	return s.Validate()
}

// issuerURL is what RFC 3986 makes of "scheme, host, maybe a port and a path": url.Parse alone takes an upper-case scheme, an
// empty port or fragment, and bytes that no URL has.
var issuerURL = regexp.MustCompile("^https?://" +
	`(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?` +
	`(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?$`)

// checkIssuer takes an issuer URL: absolute, http or https, without query,
// fragment and user information. That it is the right one is for the caller.
func checkIssuer(s string) error {
	if len(s) > maxURL {
		return refuse(ClassClaim, "issuer URL is longer than %d bytes", maxURL)
	}
	if !issuerURL.MatchString(s) {
		return refuse(ClassClaim, "%q is not an issuer URL", s)
	}
	return nil
}

// checkText refuses control characters, which could fake lines in a log or a
// terminal.
func checkText(what, s string, least, most int) error {
	if len(s) < least || len(s) > most {
		return refuse(ClassClaim, "%s has %d bytes, want %d to %d", what, len(s), least, most)
	}
	for _, r := range s {
		if isControl(r) {
			return refuse(ClassClaim, "%s holds the control character %U", what, r)
		}
	}
	return nil
}

// isControl covers C0, DEL, C1, line and paragraph separators and the marks
// that change the direction of text.
func isControl(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r <= 0x9f,
		r == 0x061c, r == 0x200e, r == 0x200f,
		r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
		return true
	}
	return false
}
