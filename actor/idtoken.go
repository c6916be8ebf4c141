package actor

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// checkIDToken looks at the form of a statement that isn't ours before a library
// does: its parser takes duplicate and case-folded members.
func checkIDToken(j jws) error {
	header, err := strictjson.ParseObject(j.header)
	if err != nil {
		return jsonError(err)
	}
	payload, err := strictjson.ParseObject(j.payload)
	if err != nil {
		return jsonError(err)
	}
	if err := header.CheckMembers("alg", "typ", "kid", "jku", "x5u", "jwk", "crit"); err != nil {
		return jsonError(err)
	}
	if err := payload.CheckMembers("iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "sid", "acr"); err != nil {
		return jsonError(err)
	}
	for _, name := range []string{"jku", "x5u", "jwk", "crit"} {
		if header.Has(name) {
			return refuse(ClassHeaderMember, "%s is not allowed in an ID token", name)
		}
	}
	if header.Has("kid") {
		if _, err := header.String("kid"); err != nil {
			return jsonError(err)
		}
	}
	alg, err := header.String("alg")
	if err != nil {
		return jsonError(err)
	}
	switch alg {
	case "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519":
		return nil
	}
	return refuse(ClassHeaderAlg, "alg %q is not allowed in an ID token", alg)
}

// IDToken is what an ID token says, read strictly and not verified: specification, section 3.5.
type IDToken struct {
	Claims          IdentityClaims
	Audience        []string
	AuthorizedParty string // azp; "" if absent
}

// ParseIDToken is for what verifies ID tokens: with it the claims that are believed are the ones that stand there,
// whatever the library that verifies the signature makes of them.
func ParseIDToken(raw string) (IDToken, error) {
	j, err := splitJWS(raw)
	if err != nil {
		return IDToken{}, err
	}
	if err := checkIDToken(j); err != nil {
		return IDToken{}, err
	}
	// typ tells an ID token from every other kind of JWT that the provider signs with the same keys.
	if typ, err := strictjson.StringMember(j.header, "typ"); err == nil && !strings.EqualFold(typ, "JWT") {
		return IDToken{}, fmt.Errorf("typ %q is not an ID token's", typ)
	}
	r := idTokenReader{}
	if err := json.Unmarshal(j.payload, &r.claims); err != nil {
		return IDToken{}, err
	}
	t := IDToken{
		Claims: IdentityClaims{
			Issuer: r.text("iss"), Subject: r.text("sub"), Nonce: r.text("nonce"), SID: r.text("sid"), ACR: r.text("acr"),
			AuthTime: r.time("auth_time"), IssuedAt: r.time("iat"), Expires: r.time("exp"), Payload: j.payload,
		},
		AuthorizedParty: r.text("azp"),
	}
	if raw := r.claims["aud"]; len(raw) > 0 && raw[0] == '[' {
		r.read("aud", &t.Audience)
	} else {
		t.Audience = []string{r.text("aud")}
	}
	if r.err != nil {
		return IDToken{}, r.err
	}
	return t, (SubjectID{t.Claims.Issuer, t.Claims.Subject}).Validate()
}

// IsFor says whether one of clients is who the ID token was issued to, OpenID Connect Core §3.1.3.7.
func (t IDToken) IsFor(clients []string) bool {
	if t.AuthorizedParty != "" {
		return slices.Contains(t.Audience, t.AuthorizedParty) && slices.Contains(clients, t.AuthorizedParty)
	}
	return len(t.Audience) == 1 && slices.Contains(clients, t.Audience[0])
}

// idTokenReader takes members by their exact names and keeps the first failure.
type idTokenReader struct {
	claims map[string]json.RawMessage
	err    error
}

// member is a member's exact bytes; what OpenID Connect Core §2 requires must be there.
func (r *idTokenReader) member(name string) (json.RawMessage, bool) {
	raw, ok := r.claims[name]
	if !ok && slices.Contains([]string{"iss", "sub", "aud", "iat", "exp"}, name) {
		r.fail(name, strictjson.ErrMissing)
	}
	return raw, ok
}

func (r *idTokenReader) fail(name string, err error) {
	r.err = errors.Join(r.err, fmt.Errorf("reading %s: %w", name, err))
}

func (r *idTokenReader) read(name string, into any) {
	if raw, ok := r.member(name); ok {
		if err := strictjson.Unmarshal(raw, into); err != nil {
			r.fail(name, err)
		}
	}
}

func (r *idTokenReader) text(name string) (s string) {
	r.read(name, &s)
	return s
}

// time cuts off the fraction that RFC 7519 allows a NumericDate.
func (r *idTokenReader) time(name string) time.Time {
	raw, ok := r.member(name)
	if !ok {
		return time.Time{}
	}
	f, err := strconv.ParseFloat(string(raw), 64) // of a string, null and the like an error
	if err != nil || f < 0 || f > maxTime {
		r.fail(name, errors.New("not a time"))
		return time.Time{}
	}
	return time.Unix(int64(f), 0).UTC()
}
