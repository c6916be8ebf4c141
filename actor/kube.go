package actor

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of what a Kubernetes action is about, in bytes.
const (
	maxKubeName    = 253
	maxKubeCommand = 64 << 10
	maxKubeProgram = 256
)

var (
	kubeLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	kubeGroup = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	// kubeName is what may stand in a path without an escape. RBAC's names have colons and capitals; nothing in use has more.
	kubeName         = regexp.MustCompile(`^[A-Za-z0-9_:@+=,~!-][A-Za-z0-9._:@+=,~!-]*$`)
	namespacePattern = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|([a-z0-9][a-z0-9-]{0,62})?\*)$`)
	kubeWord         = regexp.MustCompile(`^[A-Za-z0-9_./:@+,=%-]+$`)
)

// Check says whether the action is one that can be decided.
func (a KubeAction) Check() error {
	o := a.Object
	if a.Verb == "nonresource" {
		if o != (KubeObject{}) {
			return errors.New("a path of no resource is about no object")
		}
		return CheckHTTPPath(a.Path)
	}
	if !slices.Contains(KubeVerbs(), a.Verb) {
		return fmt.Errorf("unknown verb %q", a.Verb)
	}
	if _, own := kubeAbout[a.Verb]; own && !o.isAbout(a.Verb) {
		return fmt.Errorf("%q is not about %s", a.Verb, o.pattern())
	}
	if own := KubeVerbFor(o); own != "" && own != a.Verb && (a.Verb != "get" || own != "debug" && own != "approve") {
		return fmt.Errorf("%s is decided as %q, not as %q", o.pattern(), own, a.Verb)
	}
	if a.Path != "" {
		return errors.New("an object has no path beside")
	}
	if (a.Verb == "exec") != (o.Command != "") {
		return errors.New("exec has a command, and nothing else has")
	}
	if o.Port != 0 && a.Verb != "portforward" {
		return errors.New("only a forwarded connection has a port")
	}
	return o.Check()
}

// Check says whether the object is spelt as a cluster spells it.
func (o KubeObject) Check() error {
	if err := CheckKubeLabel(o.Resource); err != nil {
		return fmt.Errorf("resource: %w", err)
	}
	if o.Group != "" && (len(o.Group) > maxKubeName || !kubeGroup.MatchString(o.Group)) {
		return fmt.Errorf("%q is no name of an API group", o.Group)
	}
	for _, l := range []struct{ name, value string }{{"subresource", o.Subresource}, {"namespace", o.Namespace}, {"container", o.Container}} {
		if l.value == "" {
			continue
		}
		if err := CheckKubeLabel(l.value); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if o.Name != "" {
		if err := checkNamePattern(o.Name); err != nil {
			return err
		}
	}
	if o.Command != "" {
		return checkCommandText(o.Command)
	}
	return nil
}

// CheckKubeLabel takes an RFC 1123 label, as resources, subresources, namespaces and containers are named: 1 to 63 lower-case letters, digits and -.
func CheckKubeLabel(s string) error {
	if !kubeLabel.MatchString(s) {
		return fmt.Errorf("%q is no name of 1 to 63 lower-case letters, digits and -", s)
	}
	return nil
}

// CheckKubeName takes the name of an object: 1 to 253 letters, digits and ._:@+=,~!- that don't begin with a dot, so that it never needs
// an escape in a path and is no dot segment.
func CheckKubeName(s string) error {
	if len(s) > maxKubeName || !kubeName.MatchString(s) || strings.HasSuffix(s, ".") {
		return fmt.Errorf("%.64q is no name of an object that can be decided", s)
	}
	return nil
}

func checkNamespacePattern(s string) error {
	if !namespacePattern.MatchString(s) {
		return fmt.Errorf("%.64q is no namespace, nor the beginning of one and a *", s)
	}
	return nil
}

func checkNamePattern(s string) error {
	if begin, open := strings.CutSuffix(s, "*"); open && len(s) <= maxKubeName && (begin == "" || kubeName.MatchString(begin)) {
		return nil
	}
	return CheckKubeName(s)
}

func checkKubePattern(s string) error {
	slash := strings.Contains(s, "/")
	r, g, sub := cutKubePattern(s)
	if (r != "*" && !kubeLabel.MatchString(r)) || strings.Contains(strings.TrimSuffix(s, "/"+sub), ".") != (g != "") ||
		(g != "" && g != "*" && (len(g) > maxKubeName || !kubeGroup.MatchString(g))) || slash && sub != "*" && !kubeLabel.MatchString(sub) {
		return fmt.Errorf("%q should read <resource>[.<group>][/<subresource>], with * for any", s)
	}
	return nil
}

// checkKubePath takes a canonical path (CheckHTTPPath), in which a last segment * stands for all that lies below.
func checkKubePath(s string) error {
	if len(s) > maxCapPath {
		return fmt.Errorf("a path of %d bytes, want at most %d", len(s), maxCapPath)
	}
	begin, _ := strings.CutSuffix(s, "*")
	if strings.Contains(begin, "*") || begin != s && !strings.HasSuffix(begin, "/") {
		return fmt.Errorf("path %q: * stands only as the whole last segment", s)
	}
	return CheckHTTPPath(begin)
}

// JoinKubeCommand is the one text of a command's words: with a space between them, each as it is if it is of letters, digits and
// _-./:@+,=%, and otherwise in single quotes, with a quote in it spelt '\”. A POSIX shell would read the same words from it; no shell does.
func JoinKubeCommand(words []string) (string, error) {
	if len(words) == 0 {
		return "", errors.New("there is no command")
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if !kubeWord.MatchString(w) {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	text := strings.Join(quoted, " ")
	return text, checkCommandText(text)
}

// KubeProgram is the first word of a command's text; "" if it needs quotes.
func KubeProgram(command string) string {
	word, _, _ := strings.Cut(command, " ")
	if len(word) > maxKubeProgram || !kubeWord.MatchString(word) {
		return ""
	}
	return word
}

func checkCommandText(s string) error {
	if s == "" || len(s) > maxKubeCommand {
		return fmt.Errorf("a command of %d bytes, want 1 to %d", len(s), maxKubeCommand)
	}
	if !utf8.ValidString(s) || !isJoined(s) {
		return errors.New("the command isn't spelt in its one form")
	}
	return nil
}

// isJoined says whether JoinKubeCommand gives this text.
func isJoined(s string) bool {
	for {
		var word, rest string
		if strings.HasPrefix(s, "'") {
			end := closing(s)
			if end < 0 {
				return false
			}
			word, rest = s[:end], s[end:]
			if kubeWord.MatchString(strings.ReplaceAll(word[1:len(word)-1], `'\''`, "'")) {
				return false // it needed no quotes
			}
		} else {
			end := strings.IndexByte(s, ' ')
			if end < 0 {
				end = len(s)
			}
			word, rest = s[:end], s[end:]
			if !kubeWord.MatchString(word) {
				return false
			}
		}
		if rest == "" {
			return true
		}
		var more bool
		if s, more = strings.CutPrefix(rest, " "); !more || s == "" {
			return false
		}
	}
}

// closing is where the quoted word at the beginning of s ends; -1 if it doesn't.
func closing(s string) int {
	for i := 1; i < len(s); i++ {
		if s[i] != '\'' {
			continue
		}
		if strings.HasPrefix(s[i:], `'\''`) {
			i += 3
			continue
		}
		return i + 1
	}
	return -1
}

// checkKubeCommand takes a command of a capability: what a record and a reviewer can show on a line.
func checkKubeCommand(s string) error {
	if len(s) > maxCapCommand {
		return fmt.Errorf("a command of %d bytes, want at most %d", len(s), maxCapCommand)
	}
	if err := checkPrintable(s); err != nil {
		return err
	}
	return checkCommandText(s)
}

func checkKubeProgram(s string) error {
	if KubeProgram(s) != s || s == "" {
		return fmt.Errorf("%.64q is no program: 1 to %d letters, digits and _-./:@+,=%% are expected", s, maxKubeProgram)
	}
	return nil
}
