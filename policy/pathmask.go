package policy

import (
	"fmt"
	"regexp"
	"strings"
)

// PathStep is one step of a path into a JSON text.
type PathStep struct {
	// Deep lets any number of members and elements come before.
	Deep bool
	// Name is a member's, Any stands for every member of an object, Index for every element of an array. One of them is set.
	Name       string
	Any, Index bool
}

// pathMask is `$.name`, `$.*`, `$[*]`, `$..name` and what follows of the same, then `=masker`.
var (
	pathMask = regexp.MustCompile(`^(\$(?:\.\.?[A-Za-z0-9_-]+|\.\*|\[\*\])+)=([a-z0-9]+)$`)
	pathStep = regexp.MustCompile(`\.\.?[A-Za-z0-9_-]+|\.\*|\[\*\]`)
)

// maxMaskPath bounds a path, in bytes.
const maxMaskPath = 256

func parsePathMask(item string) (rule MaskRule, isPath bool, err error) {
	if !strings.HasPrefix(item, "$") {
		return MaskRule{}, false, nil
	}
	m := pathMask.FindStringSubmatch(item)
	if m == nil || len(m[1]) > maxMaskPath {
		return MaskRule{}, true, fmt.Errorf("%q should read $.member=masker, with $..member for any depth, .* for every member and [*] for every element", item)
	}
	masker, ok := maskerNames[m[2]]
	if !ok {
		return MaskRule{}, true, fmt.Errorf("unknown masker %q; known are email, last4, hash, redact and null", m[2])
	}
	return MaskRule{Path: m[1], Masker: masker}, true, nil
}

// Steps are those of the rule's path.
func (m MaskRule) Steps() []PathStep {
	var out []PathStep
	for _, s := range pathStep.FindAllString(m.Path, -1) {
		switch s {
		case ".*":
			out = append(out, PathStep{Any: true})
		case "[*]":
			out = append(out, PathStep{Index: true})
		default:
			out = append(out, PathStep{Deep: strings.HasPrefix(s, ".."), Name: strings.TrimLeft(s, ".")})
		}
	}
	return out
}
