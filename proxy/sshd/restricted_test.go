package sshd_test

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/internal/testssh"
	"github.com/deputymesh/deputy/proxy/sshd"
)

func restricted(c *sshd.Config) { c.Restricted = true }

// A restricted target runs commands that were decided and nothing else, whatever policy permits.
func TestARestrictedTargetRunsCommandsAlone(t *testing.T) {
	w := newWorld(t, ops, restricted)
	w.host.Write("file", []byte("text"))
	for name, r := range map[string]result{
		"a shell":            w.ssh("id\n", "-T", "web"),
		"a subsystem":        w.ssh("", "-s", "web", "hello"),
		"a second command":   w.ssh("", "web", "echo x; id"),
		"a substitution":     w.ssh("", "web", "echo $(id)"),
		"a second line":      w.ssh("", "web", "echo x\nid"),
		"a quoted word":      w.ssh("", "web", "echo 'x'"),
		"a redirection":      w.ssh("", "web", "echo x >"+w.host.Files+"/made"),
		"a shell's argument": w.ssh("", "web", "sh -c 'id'"),
	} {
		if r.code != 126 || r.out != "" || !strings.Contains(r.err, "record: rec-refused") {
			t.Errorf("%s: %s", name, r)
		}
	}
	if n := len(w.ledger.all("forwarded")); n != 0 || exists(w.host.Files+"/made") {
		t.Errorf("%d things left for the target", n)
	}
	// What a policy names by its text is decided, and so is a plain command; files are decided one by one.
	for text, out := range map[string]string{"echo plain": "plain\n", "echo 'by its text'; echo two": "by its text\ntwo\n"} {
		if r := w.ssh("", "web", text); r.code != 0 || r.out != out {
			t.Errorf("%s: %s", text, r)
		}
	}
	w.must(w.sftp("ls " + w.host.Files + "\n"))
}

func TestARestrictedTargetGivesNoTerminal(t *testing.T) {
	host := testssh.Start(t)
	var seen *ssh.Certificate
	w := worldOf(t, host, ops, byCA(host), restricted, func(c *sshd.Config) { c.Accounts[0].CA = spy{host.UserCA, &seen} })
	r := w.ssh("", "-tt", "web", "tty")
	if r.code != 126 || strings.Contains(r.out, "/dev/") || !strings.Contains(r.err, "this target gives no terminal; ask for none (record: rec-refused)") {
		t.Errorf("%s", r)
	}
	if len(w.ledger.all("forwarded")) != 0 {
		t.Error("it was started")
	}
	w.must(w.ssh("", "-T", "web", "echo x"))
	if len(seen.Extensions) != 0 {
		t.Errorf("the certificate allows %v", seen.Extensions)
	}
}

func TestARestrictedTargetForwardsNothing(t *testing.T) {
	cfg := newConfig(t, testssh.Start(t))
	cfg.Restricted, cfg.Forwarding = true, true
	if _, err := sshd.New(cfg); err == nil || !strings.Contains(err.Error(), "forwards nothing") {
		t.Errorf("%v", err)
	}
}
