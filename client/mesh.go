package client

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
)

// Mesh is the broker, as an agent must know it. All of it comes from the configuration of the run, never
// from a peer.
type Mesh struct {
	// Name is the broker's issuer URL, compared byte for byte.
	Name string
	// TokenURL is the token endpoint on the mesh listener.
	TokenURL string
	// Broker is the SPIFFE ID that the listener must prove.
	Broker spiffeid.ID
}

// Target is one target that the run names.
type Target struct {
	Name string
	Kind string
	// Address is host:port of the proxy, which must prove the SPIFFE ID Proxy.
	Address string
	Proxy   spiffeid.ID
	// RenewalURL is the base of the proxy's renewal listener, as in https://host:port.
	RenewalURL string
	// Database and User are sent where the caller names none.
	Database, User string
	// SocketDir is the folder of the run's Unix socket for the target; empty where there is none.
	SocketDir string
}

// Source is an identity that rotates: the current X.509-SVID and the bundle of its trust domain.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// Chain is an agent's grants, newest first, down to the user grant, and the ID token at the root.
type Chain struct {
	Grants  []string
	IDToken string
}

// SubjectToken is the chain as the token exchange takes it.
func (c Chain) SubjectToken() string { return actor.JoinSubject(c.Grants, c.IDToken) }

// Credential is what an agent presents to one target: a password or bearer token. It is bound to the
// agent's current SVID and useless without its key, but it is still never logged.
type Credential struct {
	value string
	// ExpiresAt is when the target stops taking it.
	ExpiresAt time.Time
}

// Reveal returns the credential itself.
func (c Credential) Reveal() string { return c.value }

func (Credential) String() string       { return "[credential]" }
func (Credential) GoString() string     { return "[credential]" }
func (Credential) LogValue() slog.Value { return slog.StringValue("[credential]") }

// Delegation is what an agent lets another one do on its behalf. It can only be narrower than its own.
type Delegation struct {
	// Cap is the ceiling; nil is the delegator's own.
	Cap actor.Details
	// Left is how many further delegations are allowed; 0 is none, LeftInherited one less than the
	// delegator's own.
	Left int
	// Purpose is a label for the records.
	Purpose string
	// TTL is how long, at most; 0 is as long as the delegator's own grant.
	TTL time.Duration
}

// LeftInherited gives the delegate one delegation less than the delegator has.
const LeftInherited = -1

// ErrNoTarget is returned for a target that the run doesn't name.
var ErrNoTarget = errors.New("this run has no such target")

func findTarget(targets []Target, name string) (Target, error) {
	var have []string
	for _, t := range targets {
		if t.Name == name {
			return t, nil
		}
		have = append(have, t.Name)
	}
	if len(have) == 0 {
		return Target{}, fmt.Errorf("%q: %w: it names none; start it with --target %s", name, ErrNoTarget, name)
	}
	return Target{}, fmt.Errorf("%q: %w: it names %s", name, ErrNoTarget, strings.Join(have, ", "))
}
