package actor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const sshType = "deputy_ssh"

// SSHVerbs are the actions of a deputy_ssh capability, in sync with the policy actions ssh:<verb>.
// Opening the connection and the subsystem sftp itself need none.
func SSHVerbs() []string {
	return []string{"exec", "shell", "subsystem", "forward", "remote-forward",
		"sftp-read", "sftp-write", "sftp-list", "sftp-stat", "sftp-rename", "sftp-remove", "sftp-setstat", "sftp-link"}
}

// sftpPrefix begins the verbs whose object is a path.
const sftpPrefix = "sftp-"

// SSHDetail is a capability on hosts reached by SSH:
//
//	{"type":"deputy_ssh","locations":["spiffe://…/target/web"],"actions":["exec","sftp-read"],
//	 "accounts":["deploy"],"commands":["uptime -p"],"programs":["git-upload-pack"],"paths":["/srv/*"]}
//
// An absent (nil) list is no constraint, save that Commands and Programs are one constraint together: where
// either is there, a command must be one of Commands or a plain one of a program in Programs, and neither
// shells nor subsystems are covered.
type SSHDetail struct {
	Locations  []spiffeid.ID // targets; at least one
	Actions    []string      // of SSHVerbs; at least one
	Accounts   []string      // exact names of accounts at the host
	Commands   []string      // exact texts
	Programs   []string      // first words of plain commands, see [Program]
	Subsystems []string      // exact names
	Paths      []string      // absolute; a last segment * is all that lies below
	Forwards   []string      // host:port or the path of a socket, exact
}

// SSHAction is one verb on one object of a host. The object is the command's text, the subsystem's name, the
// path, where a forwarding leads to, or where the target listens for one that leads to the agent; a shell has none.
type SSHAction struct {
	Target  spiffeid.ID
	Verb    string
	Account string
	Object  string
}

func (a SSHAction) Name() string { return "ssh:" + a.Verb }
func (SSHAction) action()        {}

type sshJSON struct {
	Type       string    `json:"type"`
	Locations  locations `json:"locations"`
	Actions    []string  `json:"actions"`
	Accounts   []string  `json:"accounts,omitempty"`
	Commands   []string  `json:"commands,omitempty"`
	Programs   []string  `json:"programs,omitempty"`
	Subsystems []string  `json:"subsystems,omitempty"`
	Paths      []string  `json:"paths,omitempty"`
	Forwards   []string  `json:"forwards,omitempty"`
}

func parseSSH(data []byte) (Detail, error) {
	var j sshJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	return SSHDetail{Locations: j.Locations, Actions: j.Actions, Accounts: j.Accounts, Commands: j.Commands, Programs: j.Programs,
		Subsystems: j.Subsystems, Paths: j.Paths, Forwards: j.Forwards}, nil
}

func (d SSHDetail) MarshalJSON() ([]byte, error) {
	return json.Marshal(sshJSON{Type: sshType, Locations: d.Locations, Actions: d.Actions, Accounts: d.Accounts, Commands: d.Commands,
		Programs: d.Programs, Subsystems: d.Subsystems, Paths: d.Paths, Forwards: d.Forwards})
}

func (SSHDetail) Type() string             { return sshType }
func (d SSHDetail) Targets() []spiffeid.ID { return d.Locations }

func (d SSHDetail) validate() error {
	return cmp.Or(checkPlace(d.Locations, d.Actions, SSHVerbs()), checkEntries([]entries{
		{"accounts", d.Accounts, CheckAccount}, {"commands", d.Commands, checkCommand}, {"programs", d.Programs, checkProgram},
		{"subsystems", d.Subsystems, checkSubsystem}, {"paths", d.Paths, checkPathPattern}, {"forwards", d.Forwards, CheckForward},
	}))
}

func (d SSHDetail) within(parent Detail) error {
	p, ok := parent.(SSHDetail)
	if !ok {
		return fmt.Errorf("%s is not %s", d.Type(), parent.Type())
	}
	if !covers(p.Locations, d.Locations) {
		return errors.New("locations are wider")
	}
	if !covers(p.Actions, d.Actions) {
		return errors.New("actions are wider")
	}
	for _, l := range []struct {
		name          string
		parent, child []string
	}{{"accounts", p.Accounts, d.Accounts}, {"subsystems", p.Subsystems, d.Subsystems}, {"forwards", p.Forwards, d.Forwards}} {
		if l.parent != nil && l.child == nil {
			return fmt.Errorf("%s is missing", l.name)
		}
		if l.parent != nil && !covers(l.parent, l.child) {
			return fmt.Errorf("%s are wider", l.name)
		}
	}
	if p.bounded() {
		if !d.bounded() {
			return errors.New("commands and programs are missing")
		}
		for _, c := range d.Commands {
			if !p.coversCommand(c) {
				return fmt.Errorf("commands: %q is wider", c)
			}
		}
		if !covers(p.Programs, d.Programs) {
			return errors.New("programs are wider")
		}
	}
	if p.Paths != nil && d.Paths == nil {
		return errors.New("paths is missing")
	}
	if p.Paths != nil {
		for _, c := range d.Paths {
			if !anyPath(p.Paths, c) {
				return fmt.Errorf("paths: %q is wider", c)
			}
		}
	}
	return nil
}

// bounded says whether only some commands are covered.
func (d SSHDetail) bounded() bool { return d.Commands != nil || d.Programs != nil }

func (d SSHDetail) coversCommand(text string) bool {
	if contains(d.Commands, text) {
		return true
	}
	program, plain := Program(text)
	return plain && contains(d.Programs, program)
}

// anyPath says whether some pattern covers a path, or a pattern of a child: a child's /x/* is covered as the path
// it is spelled like, since only a pattern's own last segment is a wildcard.
func anyPath(patterns []string, path string) bool {
	for _, p := range patterns {
		if below, ok := strings.CutSuffix(p, "*"); p == path || ok && len(path) > len(below) && strings.HasPrefix(path, below) {
			return true
		}
	}
	return false
}

func (d SSHDetail) match(a Action) (Limits, error) {
	sa, ok := a.(SSHAction)
	if !ok {
		return Limits{}, fmt.Errorf("%s is about SSH", d.Type())
	}
	switch {
	case sa.Target.IsZero() || !contains(d.Locations, sa.Target):
		return Limits{}, fmt.Errorf("target %q is not among the locations", sa.Target)
	case !contains(d.Actions, sa.Verb):
		return Limits{}, fmt.Errorf("%q is not among the actions", sa.Verb)
	case sa.Account == "":
		return Limits{}, errors.New("the action names no account")
	case d.Accounts != nil && !contains(d.Accounts, sa.Account):
		return Limits{}, fmt.Errorf("account %q is not among the accounts", sa.Account)
	case (sa.Object == "") != (sa.Verb == "shell"):
		return Limits{}, errors.New("a shell has no object, and every other action has one")
	}
	switch {
	case sa.Verb == "exec":
		if d.bounded() && !d.coversCommand(sa.Object) {
			return Limits{}, errors.New("the command is none of the commands, and no plain command of the programs")
		}
	case sa.Verb == "shell":
		if d.bounded() {
			return Limits{}, errors.New("a shell runs any command, and only some are covered")
		}
	case sa.Verb == "subsystem":
		if d.bounded() {
			return Limits{}, errors.New("a subsystem runs a program of the host's choice, and only some commands are covered")
		}
		if d.Subsystems != nil && !contains(d.Subsystems, sa.Object) {
			return Limits{}, fmt.Errorf("%q is not among the subsystems", sa.Object)
		}
	case sa.Verb == "forward" || sa.Verb == "remote-forward":
		if d.Forwards != nil && !contains(d.Forwards, sa.Object) {
			return Limits{}, fmt.Errorf("%q is not among the forwards", sa.Object)
		}
	case strings.HasPrefix(sa.Verb, sftpPrefix):
		if err := CheckPath(sa.Object); err != nil {
			return Limits{}, err
		}
		if d.Paths != nil && !anyPath(d.Paths, sa.Object) {
			return Limits{}, fmt.Errorf("%q lies under none of the paths", sa.Object)
		}
	}
	return Limits{}, nil
}

// Reaches says why the capability covers nothing of a connection as that account, or nil. A connection needs no
// action of its own; with sftp it needs one of those on paths.
func (d SSHDetail) Reaches(account string, sftp bool) error {
	if d.Accounts != nil && !contains(d.Accounts, account) {
		return fmt.Errorf("account %q is not among the accounts", account)
	}
	if !sftp {
		return nil
	}
	for _, a := range d.Actions {
		if strings.HasPrefix(a, sftpPrefix) {
			return nil
		}
	}
	return errors.New("no action on files is among the actions")
}

func (d SSHDetail) at(target spiffeid.ID) (Detail, bool) {
	if !contains(d.Locations, target) {
		return nil, false
	}
	d.Locations = []spiffeid.ID{target}
	return d, true
}

// Limits of what an SSH action is about, in bytes.
const (
	MaxSSHCommand = 64 << 10
	MaxSSHPath    = 4096

	maxCapCommand = 4096
	maxCapProgram = 256
	maxCapPath    = 1024
)

// Program is the first word of a plain command, and whether the text is one: words of letters, digits and
// _-./:@+,=% with single spaces between them, none beginning with "=" and the first without "=" and "%". In such a text no shell
// finds anything to expand, redirect, assign or chain. Which file the word leads to is the host's matter.
func Program(command string) (word string, plain bool) {
	if len(command) > MaxSSHCommand {
		return "", false
	}
	for i, w := range strings.Split(command, " ") {
		if w == "" || w[0] == '=' {
			return "", false
		}
		for j := range len(w) {
			c := w[j]
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("_-./:@+,", c) >= 0:
			case i > 0 && (c == '=' || c == '%'):
			default:
				return "", false
			}
		}
		if i == 0 {
			word = w
		}
	}
	return word, true
}

func checkProgram(s string) error {
	if word, plain := Program(s); !plain || word != s || len(s) > maxCapProgram {
		return fmt.Errorf("%q is not one plain word of at most %d bytes", s, maxCapProgram)
	}
	return nil
}

func checkCommand(s string) error {
	if s == "" || len(s) > maxCapCommand {
		return fmt.Errorf("a command of %d bytes, want 1 to %d", len(s), maxCapCommand)
	}
	return checkPrintable(s)
}

func checkPrintable(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%q is not UTF-8", s)
	}
	for _, r := range s {
		if isControl(r) {
			return fmt.Errorf("%q holds %q", s, r)
		}
	}
	return nil
}

// CheckAccount takes the name of an account at a host.
func CheckAccount(s string) error {
	if !isWord(s, 64, "._-") || s[0] == '-' {
		return fmt.Errorf("%q is not an account of 1 to 64 letters, digits and ._-", s)
	}
	return nil
}

func checkSubsystem(s string) error {
	if !isWord(s, 64, ".@_-") {
		return fmt.Errorf("%q is not a subsystem of 1 to 64 letters, digits and .@_-", s)
	}
	return nil
}

func isWord(s string, most int, more string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// CheckPath takes an absolute path in its one canonical form: no empty segment, no . and .., no control characters.
func CheckPath(s string) error {
	if s == "/" {
		return nil
	}
	rest, ok := strings.CutPrefix(s, "/")
	if !ok || len(s) > MaxSSHPath {
		return fmt.Errorf("%q is not an absolute path of at most %d bytes", s, MaxSSHPath)
	}
	for _, seg := range strings.Split(rest, "/") {
		if seg == "" || seg == "." || seg == ".." {
			return fmt.Errorf("path %q is not in canonical form", s)
		}
	}
	return checkPrintable(s)
}

func checkPathPattern(s string) error {
	if len(s) > maxCapPath {
		return fmt.Errorf("a path of %d bytes, want at most %d", len(s), maxCapPath)
	}
	if strings.Contains(strings.TrimSuffix(s, "/*"), "*") {
		return fmt.Errorf("path %q: * stands only as the whole last segment", s)
	}
	return CheckPath(s)
}

// CheckForward takes where a forwarding leads to, in its one canonical form: host:port with the host in lower case (an IPv6 address
// in brackets), or the absolute path of a socket.
func CheckForward(s string) error {
	if strings.HasPrefix(s, "/") {
		return CheckPath(s)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return fmt.Errorf("%q is neither host:port nor the path of a socket", s)
	}
	host, port := s[:i], s[i+1:]
	n := 0
	for _, c := range []byte(port) {
		if c < '0' || c > '9' || len(port) > 5 || port[0] == '0' {
			return fmt.Errorf("%q has no port from 1 to 65535", s)
		}
		n = 10*n + int(c-'0')
	}
	if n < 1 || n > 65535 {
		return fmt.Errorf("%q has no port from 1 to 65535", s)
	}
	more := ".-"
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return fmt.Errorf("%q: the bracket isn't closed", s)
		}
		more = ":."
	}
	if !isWord(host, 253, more) || strings.ToLower(host) != host {
		return fmt.Errorf("%q has no host in lower case", s)
	}
	return nil
}
