package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of a policy set. A set beyond them doesn't load.
const (
	MaxSignedBytes = 1 << 20
	maxFiles       = 64
	maxFileBytes   = 256 << 10
	maxPolicies    = 2000
	maxTargets     = 1000
	maxGroups      = 32
)

// Source is a policy set before it is signed.
type Source struct {
	// Version must rise from one set to the next; a proxy never goes back.
	Version uint64
	// Schema is the vocabulary, [SchemaID].
	Schema string
	// IssuedAt is in seconds since 1970.
	IssuedAt int64
	// Files holds Cedar texts by file name.
	Files map[string]string
	// Targets are those that the policies speak about, by name.
	Targets map[string]Target
}

// Target is what policies know of a target.
type Target struct {
	// Kind is the engine: "postgres", "ssh", "http", "tcp", "mcp" or "kube".
	Kind string
	// Groups are the Deputy::TargetGroup entities that the target stands in.
	Groups []string
}

var (
	targetPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	filePattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.cedar$`)
	kinds         = []string{"postgres", "ssh", "http", "tcp", "mcp", "kube"}
)

// check refuses a source whose frame is wrong; the texts are compiled later.
func (s Source) check() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Version == 0 {
		fail("version: must be 1 or more")
	}
	if s.Version > 1<<53 {
		fail("version: %d is too large", s.Version)
	}
	if s.Schema != SchemaID {
		fail("schema: %q is not known; this build understands %q", s.Schema, SchemaID)
	}
	if s.IssuedAt <= 0 {
		fail("issued_at: must be the time of signing in seconds since 1970")
	}
	if len(s.Files) == 0 || len(s.Files) > maxFiles {
		fail("files: %d are given; a set has 1 to %d", len(s.Files), maxFiles)
	}
	for _, name := range sortedKeys(s.Files) {
		switch text := s.Files[name]; {
		case !filePattern.MatchString(name):
			fail("files: %q is no plain file name that ends in .cedar", name)
		case len(text) > maxFileBytes:
			fail("%s: %d bytes; at most %d", name, len(text), maxFileBytes)
		case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
			fail("%s: the text is not UTF-8", name)
		}
	}
	if len(s.Targets) > maxTargets {
		fail("targets: %d are given; at most %d", len(s.Targets), maxTargets)
	}
	for _, name := range sortedKeys(s.Targets) {
		t := s.Targets[name]
		if !targetPattern.MatchString(name) {
			fail("targets: %q is no target name (lower-case letters, digits and '-', a letter first)", name)
		}
		if !slices.Contains(kinds, t.Kind) {
			fail("targets: %s: kind %q is not known; known are %s", name, t.Kind, strings.Join(kinds, ", "))
		}
		if len(t.Groups) > maxGroups {
			fail("targets: %s: %d groups; at most %d", name, len(t.Groups), maxGroups)
		}
		for i, g := range t.Groups {
			if !targetPattern.MatchString(g) || slices.Contains(t.Groups[:i], g) {
				fail("targets: %s: group %q is no name, or stands there twice", name, g)
			}
		}
	}
	return errors.Join(errs...)
}

// Problem is one fault of a policy set, with the place where it stands. Line and Column count from 1;
// they are 0 where the fault has no place in a file.
type Problem struct {
	File   string
	Line   int
	Column int
	// Policy is the @id or the name of the policy, if the fault is within one.
	Policy string
	What   string
}

func (p *Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
		}
		b.WriteByte(' ')
	}
	if p.Policy != "" {
		fmt.Fprintf(&b, "policy %q: ", p.Policy)
	}
	b.WriteString(p.What)
	return b.String()
}
