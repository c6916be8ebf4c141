package sshd

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
)

// Classes of refusals of this engine, beside those of the core.
const (
	classUnsupported = "unsupported" // not spoken here, whatever policy says
	classForwarding  = "forwarding"  // would lead around the decisions
	classMalformed   = "malformed"
	classRestricted  = "restricted"
	classTarget      = "target" // the target didn't do it
)

// onlyRecording refuses obligations that nothing here can carry out.
func onlyRecording(o policy.Obligations) error {
	if len(o.Masks) > 0 || o.MaxRows > 0 {
		return &proxy.Objection{Class: classUnsupported, Reason: "the policy asks for masks or a limit of rows, and bytes of a host have neither columns nor rows"}
	}
	return nil
}

// opaque refuses, beyond that, a full recording of what runs for long and out of sight.
func opaque(o policy.Obligations) error {
	if o.Record == policy.RecordFull {
		return &proxy.Objection{Class: classUnsupported, Reason: `the policy asks for @record("full"), and what happens inside this can't be recorded here`}
	}
	return onlyRecording(o)
}

// start is what a channel's one command is, as it was decided.
type start struct {
	kind    string // "exec", "shell" or "subsystem"
	payload []byte // of the request, as the target gets it
	cmd     proxy.Command
	sftp    bool
}

// parseStart reads the request that starts something. The objection, if any, refuses it before it is decided.
func (c *connection) parseStart(r *ssh.Request) (start, *proxy.Objection) {
	s := start{kind: r.Type, payload: r.Payload, cmd: proxy.Command{Kind: r.Type, Account: c.account.Name}}
	malformed := func(format string, args ...any) (start, *proxy.Objection) {
		return s, &proxy.Objection{Class: classMalformed, Reason: fmt.Sprintf(format, args...)}
	}
	restricted := func(what string) (start, *proxy.Objection) {
		return s, &proxy.Objection{Class: classRestricted, Reason: "this target runs commands alone, and " + what + " runs what nobody decides; name the command"}
	}
	if r.Type == "shell" {
		s.cmd.Scrubbed, s.cmd.Check = "shell", onlyRecording
		s.cmd.Ops = []proxy.Op{c.e.op("shell", policy.Account(c.e.name, c.account.Name), true)}
		if len(r.Payload) > 0 {
			return malformed("the request for a shell holds more than it may")
		}
		if c.e.cfg.Restricted {
			return restricted("a shell")
		}
		return s, nil
	}
	var body struct{ Text string }
	if err := ssh.Unmarshal(r.Payload, &body); err != nil {
		return malformed("the request can't be read")
	}
	switch text := body.Text; {
	case text == "" || len(text) > actor.MaxSSHCommand:
		return malformed("the command has %d bytes; 1 to %d can be decided", len(text), actor.MaxSSHCommand)
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return malformed("the command is not UTF-8 or holds a NUL, so what runs might differ from what is decided")
	case r.Type == "exec":
		s.cmd.Text, s.cmd.Scrubbed, s.cmd.Check = text, text, onlyRecording
		s.cmd.Ops = []proxy.Op{c.e.op("exec", policy.Exec(c.e.name, c.account.Name, text), true)}
		if _, plain := actor.Program(text); c.e.cfg.Restricted && !plain {
			s.cmd.Ops[0].Exact = true
		}
	case text == "sftp":
		s.sftp = true
		s.cmd.Scrubbed, s.cmd.Check = "subsystem sftp", onlyRecording
		s.cmd.Ops = []proxy.Op{c.e.op(proxy.VerbSFTP, policy.Account(c.e.name, c.account.Name), false)}
	default:
		s.cmd.Scrubbed, s.cmd.Check = "subsystem "+text, opaque
		s.cmd.Ops = []proxy.Op{c.e.op("subsystem", policy.Subsystem(c.e.name, c.account.Name, text), true)}
		if c.e.cfg.Restricted {
			return restricted("a subsystem")
		}
	}
	return s, nil
}

// allows says whether an agent may set a variable. The value is bounded to what languages, terminals and versions are called:
// no path, nothing that a program could take for a format or code.
func (e *Engine) allows(name, value string) bool {
	if !isVariable(name) || len(value) > 128 {
		return false
	}
	for i := range len(value) {
		if c := value[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("._@:=,+-", c) < 0 {
			return false
		}
	}
	for _, allowed := range e.cfg.Environment {
		if begin, open := strings.CutSuffix(allowed, "*"); name == allowed || open && strings.HasPrefix(name, begin) {
			return true
		}
	}
	return false
}

func isVariable(name string) bool {
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return name != "" && len(name) <= 64
}
