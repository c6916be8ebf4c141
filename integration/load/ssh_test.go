//go:build bench

package load_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/deputymesh/deputy/internal/testmesh"
	"github.com/deputymesh/deputy/internal/testssh"
)

// Ways to a host.
const (
	sshDeputy = "Deputy"
	sshJump   = "ssh -J"
	sshDirect = "direct"
)

// sshCopyBytes is what one copy moves.
const sshCopyBytes = 256 << 20

// measureSSH copies in bulk through Deputy, through another OpenSSH server (ssh -J), and without anything in between, and starts commands.
func measureSSH(b *bench) {
	host, jump := testssh.Start(b.t), testssh.Start(b.t)
	m := testmesh.Start(b.t, testmesh.Host(host), testmesh.Policy(filepath.Join(root(b.t), "integration", "testdata", "hosts")),
		testmesh.Edit("issuer", usualLimits), testmesh.Edit("broker", usualLimits), testmesh.Edit("proxy", usualLimits))
	alice := m.Login(b.t, "alice")
	there := host.Write("bulk", nil)
	if err := os.Truncate(there, sshCopyBytes); err != nil {
		b.t.Fatal(err)
	}
	config := filepath.Join(b.dir, "ssh.config")
	entry := func(name string, s *testssh.Server, more string) string {
		return fmt.Sprintf("Host %s\n  HostName 127.0.0.1\n  Port %d\n  User %s\n  IdentityFile %s\n%s\n", name, s.Port, s.Account, s.UserKeyFile, more)
	}
	text := entry("direct", host, "") + entry("jump", jump, "") + entry("behind", host, "  ProxyJump jump") +
		"Host *\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	// value makes of a time what is told, the more the better.
	ways := func(script func(flags, target string) string, value func(seconds float64) float64) []subject {
		locally := func(target string) func() float64 {
			return func() float64 {
				s := timed(script("-F "+config, target))
				return value(b.took(s, testmesh.Exec(b.t, testmesh.Command{Args: []string{"sh", "-c", s}})))
			}
		}
		return []subject{
			{sshDeputy, func() float64 {
				s := timed(script(`-F "$DEPUTY_SSH_CONFIG"`, testmesh.HostTarget))
				return value(b.took(s, alice.Run(b.t, []string{"planner --target web --no-isolate", "researcher --no-isolate"}, "sh", "-c", s)))
			}},
			{sshJump, locally("behind")}, {sshDirect, locally("direct")},
		}
	}
	rate := func(s float64) float64 { return sshCopyBytes / s / 1e6 }
	for _, c := range []struct {
		name, unit, aim string
		script          func(flags, target string) string
		value           func(float64) float64
	}{
		{"cat", "MB/s", "≥ 0.8", func(f, t string) string { return "ssh " + f + " " + t + " cat " + there + " >/dev/null" }, rate},
		{"sftp get", "MB/s", "≥ 0.8", func(f, t string) string { return "scp -q " + f + " " + t + ":" + there + ` "$d/copy"` }, rate},
		{"sftp put", "MB/s", "≥ 0.8", func(f, t string) string {
			return `truncate -s ` + strconv.Itoa(sshCopyBytes) + ` "$d/bulk" && scp -q ` + f + ` "$d/bulk" ` + t + ":" + host.Files + "/copy"
		}, rate},
		{"a connection with a command", "a second", "", func(f, t string) string { return "ssh " + f + " " + t + " echo x >/dev/null" }, func(s float64) float64 { return 1 / s }},
	} {
		if !b.wants("ssh", c.name) {
			continue
		}
		got := b.sideBySide("ssh "+c.name, ways(c.script, c.value))
		b.compare(result{Name: "ssh", Params: map[string]string{"what": c.name}, Unit: c.unit, aim: c.aim}, got, sshDeputy, sshJump)
		b.compare(result{Name: "ssh", Params: map[string]string{"what": c.name}, Unit: c.unit}, got, sshDeputy, sshDirect)
	}
}
