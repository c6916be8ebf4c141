package sftp

import (
	"context"
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/actor"
)

// maxClimb is how many names at the end of a path may be missing.
const maxClimb = 64

// place is where a path leads. missing is set where something on the way isn't there: then the path can't be acted on, but what may be
// said about it is decided all the same.
type place struct {
	path    string
	missing *status
}

// unclear says that a path can't be decided. It is the agent's matter, and ends nothing.
type unclear struct{ why string }

func (u *unclear) Error() string { return u.why }

func unclearf(format string, args ...any) error { return &unclear{fmt.Sprintf(format, args...)} }

// checkAsked takes what may be asked about at all.
func checkAsked(path string) error {
	for _, c := range []byte(path) {
		if c < 0x20 || c == 0x7f {
			return unclearf("the path %q holds control characters", clip(path))
		}
	}
	return nil
}

// resolve has the target resolve a path, links and all.
func (s *session) resolve(ctx context.Context, path string) (place, error) {
	if err := checkAsked(path); err != nil {
		return place{}, err
	}
	if path == "" {
		path = "."
	}
	found, st, err := s.realpath(ctx, path)
	if err != nil {
		return place{}, err
	}
	if st == nil {
		return place{path: found}, nil
	}
	// Something on the way is missing, or closed to the account. Climb to what is there: an answer "no such file" says something about a
	// folder, too, and is decided where that folder really is.
	first, rest := st, ""
	for range maxClimb {
		dir, name := split(path)
		if name == "" {
			break
		}
		if name == ".." {
			return place{}, unclearf("%q leads up from something that can't be resolved (%s)", clip(path), first.name())
		}
		if name != "." {
			rest = "/" + name + rest
		}
		if found, st, err = s.realpath(ctx, dir); err != nil {
			return place{}, err
		}
		if st != nil {
			path = dir
			continue
		}
		if name != "." {
			if err := s.notALink(ctx, join(found, name)); err != nil {
				return place{}, err
			}
		}
		whole := strings.TrimSuffix(found, "/") + rest
		if whole == "" {
			whole = "/"
		}
		if err := actor.CheckPath(whole); err != nil {
			return place{}, unclearf("the target resolves the path to something that can't be decided: %v", err)
		}
		if first.code == fxNoSuchFile && strings.LastIndexByte(rest, '/') == 0 {
			return place{path: whole}, nil // the last name alone is missing: it may be made
		}
		return place{path: whole, missing: first}, nil
	}
	return place{}, unclearf("%q can't be resolved (%s)", clip(path), first.name())
}

// notALink refuses a link that leads nowhere: where it would lead isn't known.
func (s *session) notALink(ctx context.Context, path string) error {
	rep, err := s.ask(ctx, request{kind: fxpLstat, path: path})
	if err != nil {
		return err
	}
	if rep.kind == fxpAttrs && rep.attrs.permissions&modeType == modeLink {
		return unclearf("%q is a link that leads nowhere", clip(path))
	}
	return nil
}

// resolveName resolves the folder of a path, for what acts on the name and not on what a link of that name leads to.
func (s *session) resolveName(ctx context.Context, path string) (place, error) {
	dir, name := split(path)
	if name == "" || name == "." || name == ".." {
		return s.resolve(ctx, path)
	}
	if err := checkAsked(name); err != nil {
		return place{}, err
	}
	p, err := s.resolve(ctx, dir)
	if err != nil {
		return place{}, err
	}
	p.path = join(p.path, name)
	if err := actor.CheckPath(p.path); err != nil {
		return place{}, unclearf("the path can't be decided: %v", err)
	}
	return p, nil
}

// realpath is the target's own resolution of a path, or its status. OpenSSH's takes a path whose last name alone is missing.
func (s *session) realpath(ctx context.Context, path string) (string, *status, error) {
	rep, err := s.ask(ctx, request{kind: fxpRealpath, path: path})
	if err != nil {
		return "", nil, err
	}
	if rep.kind == fxpStatus {
		return "", &rep.status, nil
	}
	return s.canonical(rep)
}

// canonical takes the one name of an answer, if a decision can be about it.
func (s *session) canonical(rep reply) (string, *status, error) {
	found := rep.names[0].name
	if err := actor.CheckPath(found); err != nil {
		return "", nil, unclearf("the target resolves the path to something that can't be decided: %v", err)
	}
	return found, nil, nil
}

// split takes the last name off a path; slashes at its end are dropped. The name of "/" is "".
func split(path string) (dir, name string) {
	trimmed := strings.TrimRight(path, "/")
	i := strings.LastIndexByte(trimmed, '/')
	name = trimmed[i+1:]
	switch {
	case i > 0:
		return trimmed[:i], name
	case i == 0 || trimmed == "" && path != "":
		return "/", name
	}
	return ".", name
}

func join(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

// hasUp says whether a path leads up somewhere.
func hasUp(path string) bool {
	for seg := range strings.SplitSeq(path, "/") {
		if seg == ".." {
			return true
		}
	}
	return false
}

func clip(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
