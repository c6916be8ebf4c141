// Package target names the things that agents act on: name, kind and labels, never an address or a
// credential. The name is the last segment of spiffe://<td>/target/<name>, the only audience that a
// delegated token can have.
package target

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxName is what a token's audience may have (actor.TargetName).
const maxName = 32

// Name is a target's name: a lower-case letter, then letters, digits and hyphens. Only ParseName and
// FromID make one; the zero value names nothing.
type Name struct{ s string }

// ParseName reads a name as it stands in configuration.
func ParseName(s string) (Name, error) {
	if s == "" {
		return Name{}, errors.New("a target's name is empty")
	}
	if len(s) > maxName {
		return Name{}, fmt.Errorf("target name of %d bytes: at most %d are allowed", len(s), maxName)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '-') {
			continue
		}
		return Name{}, fmt.Errorf("target name %q: want a lower-case letter, then letters, digits and hyphens, such as orders-db", s)
	}
	return Name{s}, nil
}

// FromID reads the name out of spiffe://<td>/target/<name>; td must be the mesh's own trust domain.
func FromID(td spiffeid.TrustDomain, id string) (Name, error) {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return Name{}, fmt.Errorf("reading a target's identity: %w", err)
	}
	if parsed.String() != id {
		return Name{}, fmt.Errorf("target identity %q is not in canonical form (%s)", id, parsed)
	}
	rest, ok := strings.CutPrefix(parsed.Path(), "/target/")
	if parsed.TrustDomain() != td || !ok {
		return Name{}, fmt.Errorf("%q is no target of trust domain %s: want spiffe://%s/target/<name>", id, td.Name(), td.Name())
	}
	return ParseName(rest)
}

// String is the bare name.
func (n Name) String() string { return n.s }

// IsZero reports whether n names nothing.
func (n Name) IsZero() bool { return n.s == "" }

// ID is the audience of tokens for the target.
func (n Name) ID(td spiffeid.TrustDomain) spiffeid.ID {
	id, err := spiffeid.FromSegments(td, "target", n.s)
	if err != nil {
		// Every Name is a legal path segment; only the zero value can come here.
		return spiffeid.ID{}
	}
	return id
}

// Kind is the protocol that a target speaks.
type Kind string

// The kinds with an engine.
const (
	Postgres Kind = "postgres"
	SSH      Kind = "ssh"
	HTTP     Kind = "http"
	TCP      Kind = "tcp"
	MCP      Kind = "mcp"
	Kube     Kind = "kube"
)

// ParseKind reads a kind as it stands in configuration.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case Postgres, SSH, HTTP, TCP, MCP, Kube:
		return k, nil
	}
	return "", fmt.Errorf("target kind %q is not supported: want %q, %q, %q, %q, %q or %q", s, Postgres, SSH, HTTP, TCP, MCP, Kube)
}
