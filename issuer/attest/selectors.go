package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
)

// Selectors say which processes an entry is for. All that are given must match.
type Selectors struct {
	UID, GID *uint32
	// Path of the executable, absolute and clean. The process must run the very file that stands there now: a path
	// alone can be faked by a mount namespace.
	Path string
	// SHA256 of the executable, 64 lower-case hexadecimal digits.
	SHA256 string
}

// Check says what is wrong with the selectors: which one ("uid", "gid", "path", "sha256" or "") and what would be right.
func (s Selectors) Check() (field string, err error) {
	if s.UID == nil && s.GID == nil && s.Path == "" && s.SHA256 == "" {
		return "", errors.New("it has no selector, so it would match every process; give at least one of uid, gid, path, sha256")
	}
	if s.Path != "" && (!filepath.IsAbs(s.Path) || filepath.Clean(s.Path) != s.Path) {
		return "path", fmt.Errorf("%q: want an absolute path without . or .. or a trailing slash", s.Path)
	}
	if s.SHA256 != "" {
		b, err := hex.DecodeString(s.SHA256)
		if err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != s.SHA256 {
			return "sha256", fmt.Errorf("%q: want 64 lower-case hexadecimal digits, as sha256sum prints", s.SHA256)
		}
	}
	return "", nil
}

// Match says whether the process has every property that is asked for. What is unknown doesn't match, and
// selectors that ask for nothing match nobody.
func (s Selectors) Match(a Attributes) bool {
	if s.UID == nil && s.GID == nil && s.Path == "" && s.SHA256 == "" {
		return false
	}
	if s.UID != nil && (*s.UID != a.UID || *s.UID != a.UIDs[1]) {
		return false
	}
	if s.GID != nil && (*s.GID != a.GID || *s.GID != a.GIDs[1]) {
		return false
	}
	if s.Path == "" && s.SHA256 == "" {
		return true
	}
	if a.Executable == nil {
		return false
	}
	if s.SHA256 != "" && s.SHA256 != hex.EncodeToString(a.Executable.SHA256[:]) {
		return false
	}
	if s.Path != "" {
		at, err := identityAt(s.Path)
		if err != nil || at != a.Executable.id || s.Path != a.Executable.Path {
			return false
		}
	}
	return true
}
