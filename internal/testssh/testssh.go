// Package testssh starts a real OpenSSH server for tests: its own configuration and keys in a temporary folder, on a free loopback
// port, with a host key, a host CA, a user CA and one key that may log in. As root it lets an unprivileged account in, and terminals
// work; otherwise it is the test's own account.
package testssh

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// Server is a running server.
type Server struct {
	t   testing.TB
	dir string
	// Account is who may log in.
	Account string
	// Port on 127.0.0.1.
	Port int
	// HostKey is the server's plain key, HostCA the authority that its host certificate (for HostName) is signed by.
	HostKey, HostCA ssh.PublicKey
	// UserKey may log in; UserCA signs certificates that may.
	UserKey, UserCA ssh.Signer
	// UserKeyFile and UserCAFile hold them as OpenSSH writes them, HostKeyFile and HostCAFile the public keys.
	UserKeyFile, UserCAFile, HostKeyFile, HostCAFile string
	// Files is a folder of the account's own.
	Files string

	uid, gid int
	cmd      *exec.Cmd
}

// HostName is the principal of the host certificate.
const HostName = "web.test"

// Start starts a server; lines are added to its configuration. The test's end stops it.
func Start(t testing.TB, lines ...string) *Server {
	t.Helper()
	s := &Server{t: t}
	dir, err := os.MkdirTemp("", "testssh")
	if err != nil {
		t.Fatalf("testssh: %v", err)
	}
	s.dir = dir
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	pam := s.chooseAccount()
	s.makeKeys()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	config := s.write("sshd_config", strings.Join(append([]string{
		"ListenAddress 127.0.0.1:" + strconv.Itoa(s.Port), "HostKey " + s.path("host"), "HostCertificate " + s.path("host-cert.pub"),
		"TrustedUserCAKeys " + s.path("user-ca.pub"), "AuthorizedKeysFile " + s.path("authorized"), "StrictModes no", "PidFile none", "UsePAM " + pam,
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "LogLevel VERBOSE", "Subsystem sftp /usr/lib/openssh/sftp-server",
		"Subsystem hello /bin/echo hello", "AcceptEnv *", "PrintMotd no", "PrintLastLog no", "MaxStartups 100",
	}, lines...), "\n")+"\n", 0o644)
	if os.Geteuid() == 0 {
		// What it separates its privileges in; Debian's service makes it.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.cmd = exec.Command(serverPath(t), "-D", "-f", config, "-E", s.path("log"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("testssh: %v", err)
	}
	exited := make(chan struct{})
	go func() { defer close(exited); _ = s.cmd.Wait() }()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("testssh: the server's log:\n%s", s.Log())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", s.Address())
		if err == nil {
			_ = conn.Close()
			return s
		}
		select {
		case <-exited:
			t.Fatalf("testssh: the server ended at once:\n%s", s.Log())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("testssh: no server on %s: %v\n%s", s.Address(), err, s.Log())
		}
	}
}

func serverPath(t testing.TB) string {
	for _, p := range []string{"/usr/sbin/sshd", "/usr/bin/sshd"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatal("testssh: no OpenSSH server; install Debian's openssh-server")
	return ""
}

// chooseAccount takes an account with a shell that isn't root's, so that the server's own separation of privileges is as on a real host.
func (s *Server) chooseAccount() (pam string) {
	if os.Geteuid() != 0 {
		u, err := user.Current()
		if err != nil {
			s.t.Fatal(err)
		}
		s.Account, s.uid, s.gid = u.Username, os.Geteuid(), os.Getegid()
		return "no"
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		s.t.Fatalf("testssh: no unprivileged account with a shell (Debian's postgresql-15 makes one): %v", err)
	}
	s.Account = u.Username
	s.uid, _ = strconv.Atoi(u.Uid)
	s.gid, _ = strconv.Atoi(u.Gid)
	// The account's password is locked, which PAM doesn't mind where a key logs in.
	return "yes"
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) write(name, text string, mode os.FileMode) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

func (s *Server) makeKeys() {
	s.t.Helper()
	host, _ := s.key("host")
	hostCA, _ := s.key("host-ca")
	s.UserKey, s.UserKeyFile = s.key("user")
	s.UserCA, s.UserCAFile = s.key("user-ca")
	s.HostKey, s.HostCA = host.PublicKey(), hostCA.PublicKey()
	s.HostKeyFile, s.HostCAFile = s.path("host.pub"), s.path("host-ca.pub")
	s.write("host-cert.pub", string(ssh.MarshalAuthorizedKey(s.HostCertificate(hostCA, ssh.HostCert, HostName))), 0o644)
	s.write("authorized", string(ssh.MarshalAuthorizedKey(s.UserKey.PublicKey())), 0o644)
	s.Files = s.path("files")
	if err := os.Mkdir(s.Files, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(s.Files, s.uid, s.gid); err != nil {
		s.t.Fatal(err)
	}
}

// HostCertificate is a certificate for the server's key, signed by whomever the test says.
func (s *Server) HostCertificate(by ssh.Signer, kind uint32, principals ...string) *ssh.Certificate {
	s.t.Helper()
	c := &ssh.Certificate{
		Key: s.HostKey, CertType: kind, KeyId: "testssh", ValidPrincipals: principals,
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	if err := c.SignCert(rand.Reader, by); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *Server) key(name string) (ssh.Signer, string) {
	s.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	if name == "host" && s.HostKey == nil {
		s.HostKey = signer.PublicKey()
	}
	s.write(name+".pub", string(ssh.MarshalAuthorizedKey(signer.PublicKey())), 0o644)
	return signer, s.write(name, string(pem.EncodeToMemory(block)), 0o600)
}

// Address is host:port.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// Log is what the server wrote so far.
func (s *Server) Log() string {
	b, _ := os.ReadFile(s.path("log"))
	return string(b)
}

// AwaitLog waits until the server has written something.
func (s *Server) AwaitLog(part string) string {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for line := range bytes.Lines([]byte(s.Log())) {
			if strings.Contains(string(line), part) {
				return string(line)
			}
		}
	}
	s.t.Fatalf("testssh: nothing about %q in the server's log:\n%s", part, s.Log())
	return ""
}

// Write puts a file of the account's own into Files, and returns its path.
func (s *Server) Write(name string, data []byte) string {
	s.t.Helper()
	p := filepath.Join(s.Files, name)
	if err := os.WriteFile(p, data, 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(p, s.uid, s.gid); err != nil {
		s.t.Fatal(err)
	}
	return p
}
