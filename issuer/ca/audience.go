package ca

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a JWT-SVID's audience.
const (
	MaxAudiences = 8
	maxAudience  = 255 // bytes of each
)

// errOwnAudience keeps a JWT-SVID from being presented to Deputy itself: nothing here takes one, whatever its audience, and
// this way none says so either.
var errOwnAudience = errors.New("Deputy's own targets, roles and broker take credentials, never a JWT-SVID")

// CheckAudience says whether a JWT-SVID may be for an audience: one to eight names, each of visible ASCII, none of them
// Deputy's own.
func (a *JWTAuthority) CheckAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > MaxAudiences {
		return fmt.Errorf("audience: %d names, want 1 to %d", len(audience), MaxAudiences)
	}
	for i, s := range audience {
		if len(s) == 0 || len(s) > maxAudience || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("audience %d: want 1 to %d visible ASCII characters", i+1, maxAudience)
		}
		if slices.Contains(audience[:i], s) {
			return fmt.Errorf("audience %d: %q stands there twice", i+1, s)
		}
		if err := a.checkForeign(s); err != nil {
			return fmt.Errorf("audience %d, %q: %w", i+1, s, err)
		}
	}
	return nil
}

// checkForeign refuses what Deputy itself goes by, in whatever spelling.
func (a *JWTAuthority) checkForeign(s string) error {
	if scheme, _, _ := strings.Cut(s, ":"); strings.EqualFold(scheme, "spiffe") {
		id, err := spiffeid.FromString(s)
		if err != nil {
			return fmt.Errorf("not a SPIFFE ID: %w", err)
		}
		if !id.MemberOf(a.td) {
			return nil
		}
		switch first, _, _ := strings.Cut(strings.TrimPrefix(id.Path(), "/"), "/"); first {
		case "", "target", "deputy":
			return errOwnAudience
		}
		return nil
	}
	at, err := originOf(s)
	if err != nil {
		return err
	}
	if at == a.mesh {
		return errOwnAudience
	}
	return nil
}

// origin is where a URL leads, whatever its path and spelling. Other texts are of none.
type origin struct{ host, port string }

func originOf(s string) (origin, error) {
	if !strings.Contains(s, "//") {
		s = "//" + s // a bare host:port leads there, too
	}
	u, err := url.Parse(s)
	if err != nil {
		if strings.Contains(s, "://") {
			return origin{}, errors.New("not a URL")
		}
		return origin{}, nil // a plain name
	}
	out := origin{strings.TrimRight(strings.ToLower(u.Hostname()), "."), u.Port()}
	if out.port == "" {
		out.port = "443"
		if strings.EqualFold(u.Scheme, "http") {
			out.port = "80"
		}
	}
	return out, nil
}
