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

// detectMask is `detect:kind=masker`.
var detectMask = regexp.MustCompile(`^detect:([a-z0-9]+)=([a-z0-9]+)$`)

// detectors are what values are found by (package mask), and whether the masker email has something to keep of them.
var detectors = map[string]bool{"email": true, "card": false, "iban": false, "phone": false}

func parseDetectMask(item string) (rule MaskRule, isDetect bool, err error) {
	if !strings.HasPrefix(item, "detect:") {
		return MaskRule{}, false, nil
	}
	m := detectMask.FindStringSubmatch(item)
	if m == nil {
		return MaskRule{}, true, fmt.Errorf("%q should read detect:kind=masker, such as detect:email=redact", item)
	}
	isEmail, ok := detectors[m[1]]
	if !ok {
		return MaskRule{}, true, fmt.Errorf("unknown detector %q; known are email, card, iban and phone", m[1])
	}
	masker, ok := maskerNames[m[2]]
	switch {
	case !ok:
		return MaskRule{}, true, fmt.Errorf("unknown masker %q; known are email, last4, hash and redact", m[2])
	case masker == MaskNull:
		return MaskRule{}, true, fmt.Errorf("%q: what is found is a part of a text and can't be null; redact keeps nothing either", item)
	case masker == MaskEmail && !isEmail:
		return MaskRule{}, true, fmt.Errorf("%q: the masker email is for addresses; last4, hash and redact are for what is no address", item)
	}
	return MaskRule{Detect: m[1], Masker: masker}, true, nil
}
