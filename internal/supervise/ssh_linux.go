package supervise

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/client"
)

// sshVariable names the run's ssh configuration, for `ssh -F "$DEPUTY_SSH_CONFIG"`: OpenSSH's client reads no variable of its own for it.
const sshVariable = "DEPUTY_SSH_CONFIG"

// knownHostsVariable names the file of host keys for clients that use the run's listener of a host.
const knownHostsVariable = "DEPUTY_SSH_KNOWN_HOSTS"

// sshVariables lead SSH clients to a configuration, or to keys of the user's own. An outer run's must not lead an inner agent to the outer
// one's targets, and a user's keys must not lead past the run's.
var sshVariables = []string{sshVariable, knownHostsVariable, "GIT_SSH", "GIT_SSH_COMMAND", "RSYNC_RSH", "ANSIBLE_SSH_COMMON_ARGS", "SSH_AUTH_SOCK", "SSH_AGENT_PID", "SSH_ASKPASS"}

// openSSH writes the ssh configuration of the run: an entry per SSH target, whose ProxyCommand is `deputy connect` in the agent's own process
// tree. So no listener is needed, and the kernel shows the supervisor who asks for the credential.
func (s *Supervisor) openSSH() error {
	var text strings.Builder
	for _, t := range s.mesh.Targets {
		if t.Kind != "ssh" {
			continue
		}
		if err := s.writeHost(&text, t); err != nil {
			return fmt.Errorf("writing the ssh configuration of %s: %w", t.Name, err)
		}
	}
	if text.Len() == 0 {
		return nil
	}
	dir := filepath.Join(s.cfg.Dir, "ssh")
	s.knownHosts.path = filepath.Join(dir, "known_hosts")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("writing the ssh configuration: %w", err)
	}
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("writing the ssh configuration: %w", err)
	}
	s.sshConfig = path
	if _, err := user.LookupId(strconv.Itoa(os.Geteuid())); err != nil {
		s.log.Warn("OpenSSH's client won't run here: this agent's uid has no name. Give the uids of agents names in /etc/passwd; docs/targets/ssh.md says how", "uid", os.Geteuid())
	}
	return nil
}

func (s *Supervisor) writeHost(to *strings.Builder, t client.Target) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	user := t.User
	if user == "" {
		// Which account it is follows from the roles of the chain's user.
		user = placeholder
	}
	known := filepath.Join(s.cfg.Dir, "ssh", "known."+t.Name)
	for _, v := range []string{self, known, user} {
		if strings.ContainsAny(v, "\"'\\\r\n\x00") {
			return fmt.Errorf("%q can't stand in an ssh configuration", v)
		}
	}
	percent := strings.NewReplacer("%", "%%")
	fmt.Fprintf(to, "Host %s\n", t.Name)
	// The host key comes inside TLS, from the proxy that the catalogue names, before SSH begins: connect writes it where ssh looks next.
	fmt.Fprintf(to, "  ProxyCommand '%s' connect --known-hosts '%s' %s\n", percent.Replace(self), percent.Replace(known), t.Name)
	fmt.Fprintf(to, "  HostKeyAlias %s\n  UserKnownHostsFile \"%s\"\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  VerifyHostKeyDNS no\n", t.Name, percent.Replace(known))
	fmt.Fprintf(to, "  User %s\n  PreferredAuthentications none\n  PubkeyAuthentication no\n  PasswordAuthentication no\n  KbdInteractiveAuthentication no\n", user)
	fmt.Fprintf(to, "  IdentityAgent none\n  ForwardAgent no\n  ForwardX11 no\n\n")
	return nil
}

// sshEnvironment is what brings git, rsync and Ansible to the run's configuration.
func (s *Supervisor) sshEnvironment() []string {
	if s.sshConfig == "" {
		return nil
	}
	command := "ssh -F '" + s.sshConfig + "'"
	return []string{sshVariable + "=" + s.sshConfig, knownHostsVariable + "=" + s.knownHosts.path, "GIT_SSH_COMMAND=" + command, "RSYNC_RSH=" + command, "ANSIBLE_SSH_COMMON_ARGS=-F '" + s.sshConfig + "'"}
}

// knownHosts is a file of host keys as OpenSSH writes it, of the run's own listeners. Each proxy's key comes inside TLS; it is there before the
// listener passes the first byte of SSH.
type knownHosts struct {
	path string

	mu   sync.Mutex
	keys map[string]string // guarded by mu; by address
}

func (k *knownHosts) keep(address, key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys[address] == key {
		return nil
	}
	if k.keys == nil {
		k.keys = map[string]string{}
	}
	k.keys[address] = key
	var text strings.Builder
	for _, address := range slices.Sorted(maps.Keys(k.keys)) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("writing the host key: %w", err)
		}
		fmt.Fprintf(&text, "[%s]:%s %s\n", host, port, k.keys[address])
	}
	// At once: a client may be reading.
	next := k.path + ".new"
	err := os.WriteFile(next, []byte(text.String()), 0o600)
	if err == nil {
		err = os.Rename(next, k.path)
	}
	if err != nil {
		return fmt.Errorf("writing the host key: %w", err)
	}
	return nil
}

// sayBeforeSSH says why there is no SSH here: a server may send lines before its version (RFC 4253 §4.2), and clients show or log them.
func sayBeforeSSH(conn net.Conn, why string) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(conn, "deputy: %s\r\n", strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, why))
}
